//! What the operator configured for one path: who signs, where it goes, how strict we are.
//!
//! Owns the parsed form of an endpoint and the lookup from path to endpoint. Everything here is
//! right by construction: names are bounded, paths are origin-form, secrets are not empty. It
//! leaves reading configuration to `config` and acting on it to `gate` and `upstream`.

mod allow;
mod queueing;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    fmt,
    net::IpAddr,
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderName, HeaderValue, StatusCode};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

pub use self::{
    allow::{Allow, Allowed},
    queueing::{Mode, Ordering, Queueing},
};
use crate::{
    dedup,
    signature::{Scheme, Secrets},
};

/// The name of an endpoint: `[a-z][a-z0-9_]{0,62}` without `__`, so that it fits an environment
/// variable, a metric label and a header value unquoted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointName(Arc<str>);

/// Why a text is not an [`EndpointName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName;

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a lower-case letter, then up to 62 of a-z, 0-9 and _, without two _ in a row")
    }
}

impl EndpointName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`BadName`] when it is not of the documented form.
    pub fn new(name: &str) -> Result<Self, BadName> {
        let mut bytes = name.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_lowercase());
        let tail = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if head && tail && name.len() <= 63 && !name.contains("__") {
            Ok(Self(name.into()))
        } else {
            Err(BadName)
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an endpoint listens among the paths of the public listeners.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathPattern {
    /// This path and no other.
    Exact(String),
    /// Any path below this prefix (which ends in `/`); the remainder is appended to the
    /// upstream's path.
    Prefix(String),
}

impl PathPattern {
    /// Reads `/exact` or `/prefix/*`.
    ///
    /// # Errors
    /// A text that says what a path looks like.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let plain = |path: &str| {
            path.starts_with('/')
                && path
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !b"?#*\\\"<>^`{|}".contains(&b))
                && !path.split('/').any(|part| matches!(part, "." | ".."))
        };
        match text.strip_suffix('*') {
            Some(prefix) if prefix.ends_with('/') && plain(prefix) => {
                Ok(Self::Prefix(prefix.to_owned()))
            }
            None if plain(text) => Ok(Self::Exact(text.to_owned())),
            _ => Err(
                "a path that starts with / , without ?, # or dot segments, with * only as a final /*",
            ),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(path) => write!(f, "{path}*"),
        }
    }
}

/// Which verified events go on to the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventFilter {
    /// Every event type.
    All,
    /// Only these types; an event whose type cannot be read passes all the same.
    Only(Vec<String>),
}

impl EventFilter {
    /// Whether an event of this type is delivered. `None`: its type could not be read.
    pub fn allows(&self, event_type: Option<&str>) -> bool {
        match (self, event_type) {
            (Self::All, _) | (_, None) => true,
            (Self::Only(types), Some(event_type)) => types.iter().any(|t| t == event_type),
        }
    }
}

/// What becomes of a request whose signature is missing or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// It is refused.
    Always,
    /// Until this moment it goes upstream marked unverified; from then on it is refused.
    From(SystemTime),
}

impl Enforcement {
    /// Whether an unverified request is refused at `now`.
    pub fn at(self, now: SystemTime) -> bool {
        match self {
            Self::Always => true,
            Self::From(start) => now >= start,
        }
    }
}

/// What to do with a genuine event that names no idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingKey {
    /// Take the body's digest for the key.
    Body,
    /// Let it through, without protection against duplicates.
    Forward,
    /// Refuse it.
    Reject,
}

/// How an endpoint recognises what it has seen.
#[derive(Clone, Copy, Debug)]
pub struct Dedup {
    /// What a missing key means.
    pub missing_key: MissingKey,
    /// Window, and what a reused key or a replayed body means.
    pub policy: dedup::Policy,
}

/// How the upstream is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Plain TCP.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// TLS over TCP; the certificate must be good for `host`.
    Tls {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A stream socket in the file system.
    Unix {
        /// The socket's path.
        path: PathBuf,
    },
}

/// Certificates for an `https` upstream beyond the system's roots.
#[derive(Default)]
pub struct TlsMaterial {
    /// Roots trusted in addition.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The certificate chain and key we show when asked for one.
    pub client: Option<(
        Vec<CertificateDer<'static>>,
        Zeroizing<PrivateKeyDer<'static>>,
    )>,
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial")
            .field("extra_roots", &self.extra_roots.len())
            .field("client", &self.client.is_some())
            .finish()
    }
}

/// A bound on how often the upstream is called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests per second, above 0; also the burst, rounded up to at least one.
    pub per_second: f64,
}

/// The application behind one endpoint.
#[derive(Debug)]
pub struct Upstream {
    /// How it is reached.
    pub transport: Transport,
    /// `Host` for clients that sent none, and for errors: `host:port` or `localhost`.
    pub authority: String,
    /// Path as configured, beginning with `/`.
    pub path: String,
    /// Query as configured, without `?`; goes before the sender's own.
    pub query: Option<String>,
    /// Requests at a time, over all threads.
    pub max_concurrency: NonZeroUsize,
    /// Requests per second, if bounded.
    pub rate: Option<Rate>,
    /// Set on every request; a header of the same name from the sender is replaced.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Bound on one connect, name resolution and TLS handshake included.
    pub connect_timeout: Duration,
    /// How long a failed connect is tried again before 502; zero: once.
    pub connect_retry: Duration,
    /// Certificates, for `https`.
    pub tls: TlsMaterial,
    /// Which addresses may be connected to; `None`: any.
    pub allow: Option<Arc<Allow>>,
}

impl Upstream {
    /// Reads `http://…`, `https://…` or `unix:/socket:/path` into transport, authority, path and
    /// query.
    ///
    /// # Errors
    /// A text that says what is expected; never the value found.
    pub fn parse_url(
        url: &str,
    ) -> Result<(Transport, String, String, Option<String>), &'static str> {
        const EXPECTED: &str =
            "http://host[:port]/path, https://host[:port]/path or unix:/path/to.sock:/path";
        const PORT: &str = "a port between 1 and 65535";
        if url.contains('#') {
            return Err("a URL without a fragment: nothing behind # is sent");
        }
        if let Some(rest) = url.strip_prefix("unix:") {
            let (socket, target) = match rest.split_once(":/") {
                Some((socket, path)) => (socket, format!("/{path}")),
                None => (rest, "/".to_owned()),
            };
            if !socket.starts_with('/') || socket.contains('\0') {
                return Err(EXPECTED);
            }
            let target: http::uri::PathAndQuery = target.parse().map_err(|_| EXPECTED)?;
            return Ok((
                Transport::Unix {
                    path: socket.into(),
                },
                "localhost".to_owned(),
                target.path().to_owned(),
                target.query().map(str::to_owned),
            ));
        }
        let uri: http::Uri = url.parse().map_err(|_| EXPECTED)?;
        let authority = uri.authority().ok_or(EXPECTED)?;
        if authority.as_str().contains('@') {
            return Err("a URL without user name and password; use upstream_options.headers");
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() {
            return Err(EXPECTED);
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => None,
            Some(port) => {
                let number = port.strip_prefix(':').and_then(|port| port.parse().ok());
                Some(number.filter(|port: &u16| *port > 0).ok_or(PORT)?)
            }
            None => return Err(EXPECTED),
        };
        let path = if uri.path().is_empty() {
            "/"
        } else {
            uri.path()
        }
        .to_owned();
        let query = uri.query().map(str::to_owned);
        let transport = match uri.scheme_str() {
            Some("http") => Transport::Tcp {
                host,
                port: port.unwrap_or(80),
            },
            Some("https") => Transport::Tls {
                host,
                port: port.unwrap_or(443),
            },
            _ => return Err(EXPECTED),
        };
        Ok((transport, authority.as_str().to_owned(), path, query))
    }
}

impl Upstream {
    /// The path and query of a request: the configured ones with the sender's remainder and query
    /// behind them.
    pub fn target(&self, remainder: &str, query: Option<&str>) -> Cow<'_, str> {
        if remainder.is_empty() && query.is_none() && self.query.is_none() {
            return Cow::Borrowed(&self.path);
        }
        let mut target = String::with_capacity(self.path.len() + remainder.len() + 64);
        target.push_str(&self.path);
        if !remainder.is_empty() {
            if !target.ends_with('/') {
                target.push('/');
            }
            target.push_str(remainder);
        }
        let queries = self.query.as_deref().into_iter().chain(query);
        for (query, mark) in queries.zip(['?', '&']) {
            target.push(mark);
            target.push_str(query);
        }
        Cow::Owned(target)
    }
}

/// One configured endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// Its name, in logs, metrics and headers.
    pub name: EndpointName,
    /// Where it listens.
    pub path: PathPattern,
    /// How its sender signs.
    pub scheme: Scheme,
    /// What its sender signs with.
    pub secrets: Secrets,
    /// The application behind.
    pub upstream: Upstream,
    /// Which events are delivered.
    pub events: EventFilter,
    /// Switched off: 503 for everything.
    pub active: bool,
    /// When it was made at run time; `None`: it stands in the configuration.
    pub made_at: Option<SystemTime>,
    /// Free text for the operator.
    pub description: String,
    /// Free text: where the sender-side webhook was made.
    pub source: String,
    /// From the request's first byte to our answer.
    pub deadline: Duration,
    /// The status of a signature that is missing, unreadable or wrong.
    pub reject_status: StatusCode,
    /// What an unverified request meets.
    pub enforcement: Enforcement,
    /// Largest body in bytes.
    pub max_body: usize,
    /// How duplicates are recognised.
    pub dedup: Dedup,
    /// What the sender hears: the upstream, or that the event is on disk.
    pub mode: Mode,
    /// How what is on disk is delivered.
    pub queueing: Queueing,
    /// Bytes of requests kept whose signature did not match; 0: none.
    pub quarantine: u64,
}

/// All endpoints of one configuration, found by path.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    all: Vec<Arc<Endpoint>>,
    exact: BTreeMap<String, usize>,
    /// Longest prefix first.
    prefixes: Vec<(String, usize)>,
    shadowable: HashSet<HeaderName>,
}

/// Two endpoints claim one path, or one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    /// The endpoint that came first.
    pub first: EndpointName,
    /// The one that repeats its path or name.
    pub second: EndpointName,
}

impl Endpoints {
    /// Indexes endpoints by path; their position is their number in metrics and pools.
    ///
    /// # Errors
    /// [`Clash`] when two of them share a path or a name.
    pub fn new(all: Vec<Endpoint>) -> Result<Self, Clash> {
        let all: Vec<Arc<Endpoint>> = all.into_iter().map(Arc::new).collect();
        let mut index = Self::default();
        for (number, endpoint) in all.iter().enumerate() {
            let twin = all
                .iter()
                .take(number)
                .find(|other| other.path == endpoint.path || other.name == endpoint.name);
            if let Some(first) = twin {
                return Err(Clash {
                    first: first.name.clone(),
                    second: endpoint.name.clone(),
                });
            }
            match &endpoint.path {
                PathPattern::Exact(path) => {
                    index.exact.insert(path.clone(), number);
                }
                PathPattern::Prefix(path) => index.prefixes.push((path.clone(), number)),
            }
            index
                .shadowable
                .extend(endpoint.scheme.header_names().cloned());
            let set = endpoint.upstream.headers.iter();
            index.shadowable.extend(set.map(|(name, _)| name.clone()));
        }
        index
            .prefixes
            .sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        index.all = all;
        Ok(index)
    }

    /// The endpoint at this path, and what of the path lies beyond a prefix.
    ///
    /// The path is compared byte for byte: nothing is decoded or normalised, so no two spellings
    /// reach one endpoint.
    pub fn find<'p>(&self, path: &'p str) -> Option<(usize, &Arc<Endpoint>, &'p str)> {
        let found = |number: usize, rest| self.all.get(number).map(|e| (number, e, rest));
        if let Some(&number) = self.exact.get(path) {
            return found(number, "");
        }
        self.prefixes
            .iter()
            .find_map(|(prefix, number)| Some((*number, path.strip_prefix(prefix.as_str())?)))
            .and_then(|(number, rest)| found(number, rest))
    }

    /// Whether there is one of this name.
    pub fn has(&self, name: &str) -> bool {
        self.iter().any(|endpoint| endpoint.name.as_str() == name)
    }

    /// Every endpoint, in the order of their numbers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Endpoint>> {
        self.all.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether some endpoint's scheme reads this header, or its upstream options set it: a twin of
    /// it spelled with `_` is refused.
    pub fn reads(&self, name: &HeaderName) -> bool {
        self.shadowable.contains(name)
    }
}

/// A network whose `X-Forwarded-*` we keep contains this peer.
pub fn is_trusted(peer: Option<IpAddr>, trusted: &[ipnet::IpNet]) -> bool {
    let Some(peer) = peer.map(|ip| ip.to_canonical()) else {
        return false;
    };
    trusted.iter().any(|net| net.contains(&peer))
}
