//! Connections to an application: names, sockets, TLS.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::{
    endpoint::{TlsMaterial, Transport},
    stream::Stream,
};

/// How long an address found for a name is used before it is looked up again.
const ADDRESS_LIFE: Duration = Duration::from_secs(30);

/// Where an application is reached, and what is known about the way. Shared by all threads.
#[derive(Debug)]
pub(super) struct Route {
    transport: Transport,
    timeout: Duration,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    resolved: Arc<Mutex<Resolved>>,
}

#[derive(Debug, Default)]
struct Resolved {
    addresses: Vec<SocketAddr>,
    since: Option<Instant>,
    /// A look-up is under way.
    refreshing: bool,
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
    ) -> Result<Self, String> {
        let tls = match transport {
            Transport::Tls { host, .. } => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| "the host is neither a DNS name nor an address".to_owned())?;
                Some((Arc::new(client_config(material)?), name))
            }
            Transport::Tcp { .. } | Transport::Unix { .. } => None,
        };
        let transport = transport.clone();
        Ok(Self {
            transport,
            timeout,
            tls,
            resolved: Arc::default(),
        })
    }

    /// Opens one connection, within `connect_timeout` altogether.
    pub(super) async fn connect(&self) -> io::Result<Stream> {
        tokio::time::timeout(self.timeout, self.open())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn open(&self) -> io::Result<Stream> {
        match &self.transport {
            Transport::Unix { path } => Ok(Stream::Unix(UnixStream::connect(path).await?)),
            Transport::Tcp { host, port } => Ok(Stream::Tcp(self.tcp(host, *port).await?)),
            Transport::Tls { host, port } => {
                let tcp = self.tcp(host, *port).await?;
                let Some((config, name)) = &self.tls else {
                    return Err(io::ErrorKind::Unsupported.into());
                };
                let connector = TlsConnector::from(config.clone());
                let tls = connector.connect(name.clone(), tcp).await?;
                Ok(Stream::Tls(Box::new(tls.into())))
            }
        }
    }

    async fn tcp(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in self.addresses(host, port).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Head and body go out in one write; nothing is gained by waiting for more.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The addresses of a host: looked up the first time, then renewed behind the caller's back.
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let known = {
            let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
            let is_old = resolved
                .since
                .is_none_or(|since| since.elapsed() >= ADDRESS_LIFE);
            if !resolved.addresses.is_empty() && is_old && !resolved.refreshing {
                resolved.refreshing = true;
                let (host, shared) = (host.to_owned(), self.resolved.clone());
                // Ends by itself with the look-up; its only effect is on the shared addresses.
                tokio::task::spawn_local(async move {
                    let found = lookup(&host, port).await;
                    remember(&shared, found.ok());
                });
            }
            resolved.addresses.clone()
        };
        if !known.is_empty() {
            return Ok(known);
        }
        let found = lookup(host, port).await?;
        remember(&self.resolved, Some(found.clone()));
        Ok(found)
    }
}

async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    if found.is_empty() {
        Err(io::ErrorKind::NotFound.into())
    } else {
        Ok(found)
    }
}

/// Keeps what was found; a failed renewal keeps what was known.
fn remember(shared: &Mutex<Resolved>, found: Option<Vec<SocketAddr>>) {
    let mut resolved = shared.lock().unwrap_or_else(PoisonError::into_inner);
    resolved.refreshing = false;
    resolved.since = Some(Instant::now());
    if let Some(found) = found {
        resolved.addresses = found;
    }
}

fn client_config(material: &TlsMaterial) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    // A broken root among the system's is no reason to trust none of them.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for root in &material.extra_roots {
        roots
            .add(root.clone())
            .map_err(|_| "ca holds what is no root certificate".to_owned())?;
    }
    if roots.is_empty() {
        return Err("no root certificates: install ca-certificates, or set ca".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| "no TLS version is available".to_owned())?
        .with_root_certificates(roots);
    match &material.client {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|_| "client_cert and client_key do not belong together".to_owned()),
    }
}
