use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName};

use super::{HANG, Sender};

/// A certificate authority that senders trust.
pub(crate) struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key in files.
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        Self { root, issuer }
    }

    /// A certificate for these names and its key, in PEM.
    pub(crate) fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// The same, in files of a directory.
    pub(crate) fn write(&self, dir: &Path, names: &[&str]) -> Pair {
        let pair = Pair {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
        };
        let (cert, key) = self.issue(names);
        std::fs::write(&pair.cert, cert).unwrap();
        std::fs::write(&pair.key, key).unwrap();
        pair
    }

    /// How a sender speaks TLS that trusts this authority.
    pub(crate) fn client(&self, protocols: &[&[u8]]) -> ClientConfig {
        self.client_of(
            protocols,
            &[&rustls::version::TLS13, &rustls::version::TLS12],
        )
    }

    pub(crate) fn client_of(
        &self,
        protocols: &[&[u8]],
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        config
    }
}

/// A TLS session with whoever listens there; its handshake goes with the first bytes.
pub(crate) fn session(
    address: SocketAddr,
    name: &str,
    config: ClientConfig,
) -> StreamOwned<ClientConnection, TcpStream> {
    session_over(TcpStream::connect(address).unwrap(), name, config)
}

/// The same over a connection that has begun.
pub(crate) fn session_over(
    stream: TcpStream,
    name: &str,
    config: ClientConfig,
) -> StreamOwned<ClientConnection, TcpStream> {
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(session, stream)
}

impl Sender {
    /// A connection by TLS and HTTP/1.1.
    pub(crate) fn secure(address: SocketAddr, name: &str, authority: &Authority) -> Self {
        Self::over(session(address, name, authority.client(&[b"http/1.1"])))
    }
}

/// The certificate that is shown for a name.
pub(crate) fn shown(
    address: SocketAddr,
    name: &str,
    authority: &Authority,
) -> Result<CertificateDer<'static>, String> {
    let mut tls = session(address, name, authority.client(&[]));
    while tls.conn.is_handshaking() {
        let done = tls.conn.complete_io(&mut tls.sock);
        done.map_err(|error| error.to_string())?;
    }
    Ok(tls.conn.peer_certificates().unwrap()[0]
        .clone()
        .into_owned())
}
