//! File, environment and flags, read into a [`Config`] that is right by construction.
//!
//! Owns every key of the configuration, its default, and what is said when it is wrong. All faults
//! are reported together, each with the place it was set and what would be right; the value found
//! is never shown, because it may be a secret. Secrets and certificates are read here, once; what
//! is done with them is left to others.

mod build;
mod document;
mod private;
mod table;

use std::{
    fmt,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use serde_json::Value;

use crate::{
    admin,
    connection::opening::Proxies,
    endpoint::Endpoints,
    limits::Limits,
    log,
    roster::{Roster, RosterError},
    tls,
};

/// Where a configuration comes from. Not to be printed: the environment holds secrets.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file named on the command line.
    pub file: Option<PathBuf>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The names of our variables that hold no UTF-8 text: they are ignored, with a warning.
    pub unreadable: Vec<String>,
    /// What the command line says besides.
    pub flags: Flags,
}

/// The flags that stand for a file: one endpoint named `default`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Its upstream.
    pub upstream: Option<String>,
    /// The variable that holds its secret.
    pub secret_env: Option<String>,
    /// Its path.
    pub path: Option<String>,
    /// Its mode.
    pub mode: Option<String>,
    /// The public listeners.
    pub listen: Vec<String>,
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file, variable or flag it was set by.
    pub origin: String,
    /// The key, such as `endpoints.crm.deadline`; empty for a whole file.
    pub path: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.what)
    }
}

/// A configuration, parsed.
#[derive(Debug)]
pub struct Config {
    /// Where durable state lives.
    pub data_dir: Option<PathBuf>,
    /// How long the process still accepts after it was told to end.
    pub shutdown_delay: Duration,
    /// How long requests in flight then have.
    pub shutdown_grace: Duration,
    /// The public side.
    pub server: Server,
    /// The operator's listeners.
    pub admin_listen: Vec<Listen>,
    /// The listeners of API and dashboard, where they have their own.
    pub api_listen: Option<Vec<Listen>>,
    /// Who may use API and dashboard, and what they keep.
    pub admin: Arc<admin::Settings>,
    /// What is logged, and how.
    pub log: Log,
    /// The bounds for senders.
    pub limits: Limits,
    /// Done keys held in memory.
    pub dedup_capacity: NonZeroUsize,
    /// The endpoints.
    pub endpoints: Endpoints,
    /// What is legal and probably not meant.
    pub warnings: Vec<String>,
    /// Files whose change means a reload.
    pub watched: Vec<PathBuf>,
    /// What was set at run time.
    pub roster: Roster,
    /// Why that was not read: whoever serves must not go on without it.
    pub roster_fault: Option<RosterError>,
    document: Option<document::Document>,
    effective: Value,
}

/// The public side.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where senders connect.
    pub listen: Vec<Listen>,
    /// Event-loop threads.
    pub threads: NonZeroUsize,
    /// Peers whose `X-Forwarded-*` are kept.
    pub trusted_proxies: Vec<IpNet>,
    /// Who begins a connection with the PROXY protocol.
    pub proxies: Option<Proxies>,
    /// What TCP listeners speak TLS with, if they do.
    pub tls: Option<tls::Material>,
}

impl Server {
    /// What is obtained from an authority, if anything is.
    pub fn acme(&self) -> Option<&tls::acme::Settings> {
        self.tls.as_ref()?.acme.as_ref()
    }
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least level: an env-filter directive.
    pub level: String,
    /// How lines look.
    pub format: log::Format,
    /// One line per request.
    pub access: bool,
}

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// The same as [`Listen::Tcp`], without TLS where the others speak it.
    Plain(SocketAddr),
    /// An IP address and a port; port 0 is the system's choice.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Listen {
    /// Reads `127.0.0.1:8080`, `[::]:8080` or `unix:/run/app.sock`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => path.starts_with('/').then(|| Self::Unix(path.into())),
            None => text.parse().ok().map(Self::Tcp),
        }
    }

    /// Reads the same, or `http://127.0.0.1:8080` for an address that stays plain beside TLS.
    pub fn parse_public(text: &str) -> Option<Self> {
        match text.strip_prefix("http://") {
            Some(plain) => plain.parse().ok().map(Self::Plain),
            None => Self::parse(text),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(address) | Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Reads a configuration; `now` tells secrets that have expired.
///
/// # Errors
/// Every [`Fault`] there is, ordered by place.
pub fn load(sources: &Sources, now: SystemTime) -> Result<Config, Vec<Fault>> {
    load_naming(sources, now, &mut Vec::new())
}

/// The same, and which files it names, also where it is refused: a change of theirs may mend it.
///
/// # Errors
/// As [`load`].
pub fn load_naming(
    sources: &Sources,
    now: SystemTime,
    named: &mut Vec<PathBuf>,
) -> Result<Config, Vec<Fault>> {
    let document = document::Document::read(sources)?;
    let roster = document
        .data_dir()
        .map_or_else(|| Ok(Roster::default()), |dir| Roster::read(&dir));
    build::build(document, roster, &sources.env, now, named)
}

/// What a configuration becomes with another roster: its layers as they were read then, its secrets
/// read again.
///
/// # Errors
/// As [`load`].
pub fn with_roster(
    config: &Config,
    roster: Roster,
    sources: &Sources,
    now: SystemTime,
) -> Result<Config, Vec<Fault>> {
    let document = match &config.document {
        Some(document) => document.clone(),
        None => document::Document::read(sources)?,
    };
    build::build(document, Ok(roster), &sources.env, now, &mut Vec::new())
}

/// Where durable state lives, whatever else is wrong with a configuration: an operator's shell
/// need not hold its secrets.
///
/// # Errors
/// A file that cannot be read.
pub fn data_dir(sources: &Sources) -> Result<Option<PathBuf>, Vec<Fault>> {
    Ok(document::Document::read(sources)?.data_dir())
}

/// Where API and dashboard are and what opens them, whatever else is wrong with a configuration.
#[derive(Debug)]
pub struct Door {
    /// Where they listen.
    pub listen: Vec<Listen>,
    /// What opens them.
    pub settings: Arc<admin::Settings>,
}

/// Reads of a configuration what leads to the API: an operator's shell need not hold its other
/// secrets.
///
/// # Errors
/// A file that cannot be read, and what is wrong in the table `admin`.
pub fn door(sources: &Sources) -> Result<Door, Vec<Fault>> {
    build::door(&document::Document::read(sources)?, &sources.env)
}

impl Config {
    /// The effective configuration, defaults filled in and secrets as `***`, as TOML.
    pub fn effective_toml(&self) -> String {
        // Every value in it came from text, numbers and flags: TOML can say them all.
        toml::to_string_pretty(&self.effective).unwrap_or_default()
    }

    /// The same as JSON.
    pub fn effective_json(&self) -> &Value {
        &self.effective
    }

    /// The file, where there is one.
    pub fn file(&self) -> Option<&Path> {
        self.document.as_ref()?.file.as_deref()
    }

    /// Whether an endpoint that stands in the configuration is active there; `None`: none of this
    /// name does.
    pub fn active_as_configured(&self, name: &str) -> Option<bool> {
        let document = self.document.as_ref()?;
        let table = document.values.get("endpoints")?.get(name)?;
        let active = table.get("active").and_then(Value::as_bool);
        Some(active.unwrap_or(true))
    }

    /// The keys whose change a running process cannot follow.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let changed = [
            ("server.listen", self.server.listen != new.server.listen),
            (
                "server.tls",
                self.server.tls.is_some() != new.server.tls.is_some(),
            ),
            ("server.tls.acme", self.server.acme() != new.server.acme()),
            ("server.threads", self.server.threads != new.server.threads),
            ("admin.listen", self.admin_listen != new.admin_listen),
            ("admin.api_listen", self.api_listen != new.api_listen),
            ("data_dir", self.data_dir != new.data_dir),
            ("log.format", self.log.format != new.log.format),
            ("dedup.capacity", self.dedup_capacity != new.dedup_capacity),
        ];
        changed
            .into_iter()
            .filter(|(_, is_changed)| *is_changed)
            .map(|(key, _)| key)
            .collect()
    }
}

/// The JSON Schema (2020-12) of the configuration.
pub fn json_schema() -> Value {
    build::schema()
}

#[cfg(test)]
mod tests;
