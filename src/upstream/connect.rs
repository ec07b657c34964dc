//! Connections to an application: names, sockets, TLS.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::{
    endpoint::{Allow, TlsMaterial, Transport},
    stream::Stream,
};

/// How long an address found for a name is used before it is looked up again.
const ADDRESS_LIFE: Duration = Duration::from_secs(30);

const CA: &str = "upstream_options.ca";

/// Where an application is reached, and what is known about the way. Shared by all threads.
#[derive(Debug)]
pub(super) struct Route {
    transport: Transport,
    timeout: Duration,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    resolved: Arc<Names>,
    /// Which addresses may be connected to; `None`: any.
    allow: Option<Arc<Allow>>,
}

/// What a name stands for.
#[derive(Debug, Default)]
struct Names {
    found: Mutex<Resolved>,
    /// Grows whenever the addresses are other ones than before.
    generation: AtomicUsize,
}

#[derive(Debug, Default)]
struct Resolved {
    /// The one that was reached last stands first.
    addresses: Vec<SocketAddr>,
    since: Option<Instant>,
    /// A look-up is under way.
    refreshing: bool,
}

/// What is wrong with the settings of a route: the key below the endpoint, and what would be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// `upstream`, or a key of its options.
    pub key: &'static str,
    /// What would be right.
    pub what: &'static str,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// Why no TLS session could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// The upstream did not take what we offered, or our certificate.
    Declined,
    /// It ended the connection as soon as there was a session.
    Ended,
    /// Its certificate is over.
    Expired,
    /// Its certificate's validity has not begun.
    NotYetValid,
    /// Its certificate is for another name.
    OtherName,
    /// What it speaks is no TLS that we speak.
    Protocol,
    /// Its certificate cannot be used otherwise.
    UnfitCertificate,
    /// Its certificate was issued by nobody we know.
    UnknownIssuer,
}

impl TlsFault {
    /// The fault behind a failed connect, if TLS was it.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum that grows: what is not named here is one thing to an operator"
    )]
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        use rustls::{CertificateError as Bad, Error};
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        Some(match error {
            Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => Self::Expired,
            Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
                Self::NotYetValid
            }
            Error::InvalidCertificate(
                Bad::NotValidForName | Bad::NotValidForNameContext { .. },
            ) => Self::OtherName,
            Error::InvalidCertificate(Bad::UnknownIssuer) => Self::UnknownIssuer,
            Error::InvalidCertificate(_) | Error::NoCertificatesPresented => Self::UnfitCertificate,
            Error::AlertReceived(_) => Self::Declined,
            _ => Self::Protocol,
        })
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Declined => "it declined the TLS handshake; does it want another client_cert?",
            Self::Ended => {
                "it ended the connection right after the TLS handshake, without an answer; \
                 is client_cert missing, or not accepted?"
            }
            Self::Expired => "its certificate has expired",
            Self::NotYetValid => "its certificate is not valid yet; is a clock wrong?",
            Self::OtherName => "its certificate is for another name than the upstream's host",
            Self::Protocol => "it speaks no TLS that fits; is it https?",
            Self::UnfitCertificate => "its certificate cannot be used",
            Self::UnknownIssuer => "its certificate's issuer is not known; set upstream_options.ca",
        })
    }
}

impl Route {
    /// Prepares a route; loads the system's roots when it is `https`.
    ///
    /// # Errors
    /// What is wrong with the certificates, or with the host as a name for TLS.
    pub(super) fn new(
        transport: &Transport,
        timeout: Duration,
        material: &TlsMaterial,
    ) -> Result<Self, Misfit> {
        let tls = match transport {
            Transport::Tls { host, .. } => {
                let name = ServerName::try_from(host.clone()).map_err(|_| Misfit {
                    key: "upstream",
                    what: "expected a DNS name or an address as host, for TLS",
                })?;
                Some((Arc::new(client_config(material)?), name))
            }
            Transport::Tcp { .. } | Transport::Unix { .. } => None,
        };
        Ok(Self {
            transport: transport.clone(),
            timeout,
            tls,
            resolved: Arc::default(),
            allow: None,
        })
    }

    /// The same to these addresses alone; `None`: to any.
    pub(super) fn within(self, allow: Option<Arc<Allow>>) -> Self {
        Self { allow, ..self }
    }

    /// Which addresses are in force: a connection made under others is not used again.
    pub(super) fn generation(&self) -> usize {
        self.resolved.generation.load(Ordering::Acquire)
    }

    /// Opens one connection, within `connect_timeout` altogether, and says under which addresses.
    pub(super) async fn connect(&self) -> io::Result<(Stream, usize)> {
        let until = Instant::now() + self.timeout;
        tokio::time::timeout(self.timeout, self.open(until))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn open(&self, until: Instant) -> io::Result<(Stream, usize)> {
        let (host, port) = match &self.transport {
            Transport::Unix { path } => {
                return Ok((Stream::Unix(UnixStream::connect(path).await?), 0));
            }
            Transport::Tcp { host, port } | Transport::Tls { host, port } => (host, *port),
        };
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        let (mut addresses, generation) = self.addresses(host, port).await?;
        if let Some(allow) = &self.allow {
            // What a name leads to may change at any time: the address that is connected to counts.
            addresses.retain(|address| allow.permits(host, address.ip()));
            if addresses.is_empty() {
                last = io::ErrorKind::PermissionDenied.into();
            }
        }
        for (number, address) in addresses.iter().enumerate() {
            // A fair share each: one that is silent leaves time for the next.
            let left = u32::try_from(addresses.len() - number).unwrap_or(u32::MAX);
            let share = until.saturating_duration_since(Instant::now()) / left;
            let stream = tokio::time::timeout(share, self.open_at(*address)).await;
            match stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    self.prefer(*address);
                    return Ok((stream, generation));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn open_at(&self, address: SocketAddr) -> io::Result<Stream> {
        let tcp = TcpStream::connect(address).await?;
        // Head and body go out in one write; nothing is gained by waiting for more.
        let _ = tcp.set_nodelay(true);
        // A peer that is silently gone is noticed while nothing is owed.
        let _ = SockRef::from(&tcp).set_tcp_keepalive(&keepalive());
        match &self.tls {
            None => Ok(Stream::Tcp(tcp)),
            Some((config, name)) => {
                let connector = TlsConnector::from(config.clone());
                let tls = connector.connect(name.clone(), tcp).await?;
                Ok(Stream::Tls(Box::new(tls.into())))
            }
        }
    }

    /// Puts an address first that was reached, so that the next connection does not wait for those
    /// that were not.
    fn prefer(&self, address: SocketAddr) {
        let mut resolved = self.resolved.lock();
        let place = resolved.addresses.iter().position(|a| *a == address);
        if let Some(place) = place.filter(|place| *place > 0) {
            resolved.addresses.rotate_left(place);
        }
    }

    /// The addresses of a host: looked up the first time and after a long rest, else renewed behind
    /// the caller's back.
    async fn addresses(&self, host: &str, port: u16) -> io::Result<(Vec<SocketAddr>, usize)> {
        if let Ok(ip) = host.parse() {
            return Ok((vec![SocketAddr::new(ip, port)], 0));
        }
        self.renew();
        let is_believed = |known: &Resolved| {
            let is_near = |since: Instant| since.elapsed() < 2 * ADDRESS_LIFE;
            !known.addresses.is_empty() && known.since.is_some_and(is_near)
        };
        if !is_believed(&self.resolved.lock()) {
            let found = lookup(host, port).await;
            if let Err(error) = found.as_ref().map_err(io::Error::kind)
                && self.resolved.lock().addresses.is_empty()
            {
                return Err(error.into());
            }
            self.resolved.remember(found.ok());
        }
        let resolved = self.resolved.lock();
        Ok((resolved.addresses.clone(), self.generation()))
    }

    /// Looks a name up again when what was found is old; it does not wait for the outcome.
    pub(super) fn renew(&self) {
        let (Transport::Tcp { host, port } | Transport::Tls { host, port }) = &self.transport
        else {
            return;
        };
        let mut resolved = self.resolved.lock();
        let is_old = resolved
            .since
            .is_some_and(|since| since.elapsed() >= ADDRESS_LIFE);
        if resolved.addresses.is_empty() || !is_old || resolved.refreshing {
            return;
        }
        resolved.refreshing = true;
        let (host, port, shared) = (host.clone(), *port, self.resolved.clone());
        // Ends by itself with the look-up; its only effect is on the shared addresses.
        tokio::task::spawn_local(async move {
            let found = lookup(&host, port).await;
            shared.remember(found.ok());
        });
    }
}

impl Names {
    fn lock(&self) -> std::sync::MutexGuard<'_, Resolved> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was found, in the order that proved itself if it is the same; a failed renewal
    /// keeps what was known.
    fn remember(&self, found: Option<Vec<SocketAddr>>) {
        let mut resolved = self.lock();
        resolved.refreshing = false;
        resolved.since = Some(Instant::now());
        if let Some(found) = found {
            let set = |addresses: &[SocketAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
            if set(&found) != set(&resolved.addresses) {
                resolved.addresses = found;
                self.generation.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3)
}

async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    if found.is_empty() {
        Err(io::ErrorKind::NotFound.into())
    } else {
        Ok(found)
    }
}

fn client_config(material: &TlsMaterial) -> Result<ClientConfig, Misfit> {
    let misfit = |key, what| Misfit { key, what };
    let mut roots = RootCertStore::empty();
    // A broken root among the system's is no reason to trust none of them.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for root in &material.extra_roots {
        roots
            .add(root.clone())
            .map_err(|_| misfit(CA, "the file named here holds what is no root certificate"))?;
    }
    if roots.is_empty() {
        let what = "there are no root certificates: install ca-certificates, or set this";
        return Err(misfit(CA, what));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| misfit("upstream", "no TLS version is available"))?
        .with_root_certificates(roots);
    match &material.client {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|_| {
                let what = "expected the key that belongs to client_cert";
                misfit("upstream_options.client_key", what)
            }),
    }
}

#[cfg(test)]
mod tests;
