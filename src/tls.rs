//! Certificates for senders: which one a TLS handshake is answered with, and until when each is
//! valid.
//!
//! Owns the terms of TLS on the public listeners: versions 1.2 and 1.3, the protocols offered, the
//! choice among certificates by the name that a sender asks for. Files are read by the
//! configuration, handshakes are the connection's, TLS towards an application is `upstream`'s.

pub mod acme;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_rustls::TlsAcceptor;
use x509_cert::{
    Certificate as Parsed,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// The protocols offered (RFC 7301), the one we like best first.
const PROTOCOLS: [&[u8]; 2] = [HTTP2, b"http/1.1"];
/// HTTP/2's name among them (RFC 9113 §3.2).
pub(crate) const HTTP2: &[u8] = b"h2";

/// A certificate, the chain behind it and the key that belongs to it.
#[derive(Clone)]
pub struct Certificate {
    shown: Arc<CertifiedKey>,
    names: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Why two texts are no certificate with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// There is no certificate in PEM, or one that cannot be read.
    Certificate,
    /// The key is encrypted.
    Encrypted,
    /// There is no private key in PEM, or none that TLS can use.
    Key,
    /// The key belongs to another certificate.
    Pair,
}

impl Certificate {
    /// Reads a chain in PEM, the server's own certificate first, and its key.
    ///
    /// # Errors
    /// See [`Misfit`].
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, Misfit> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| Misfit::Certificate)?;
        let own = chain.first().ok_or(Misfit::Certificate)?;
        let parsed = Parsed::from_der(own).map_err(|_| Misfit::Certificate)?;
        let is_encrypted = memchr::memmem::find(key, b"ENCRYPTED").is_some();
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| match is_encrypted {
            true => Misfit::Encrypted,
            false => Misfit::Key,
        })?;
        let validity = parsed.tbs_certificate().validity();
        let (not_before, not_after) = (
            validity.not_before.to_system_time(),
            validity.not_after.to_system_time(),
        );
        let names = names(&parsed);
        let key = provider()
            .key_provider
            .load_private_key(key)
            .map_err(|_| Misfit::Key)?;
        let shown = CertifiedKey::new(chain, key);
        match shown.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(Misfit::Pair),
            Err(_) => return Err(Misfit::Certificate),
        }
        Ok(Self {
            shown: Arc::new(shown),
            names,
            not_before,
            not_after,
        })
    }

    /// The DNS names and addresses it is for, in lower case.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    fn is_for(&self, name: Option<&str>) -> bool {
        let is = |own: &String| name.is_some_and(|name| own.eq_ignore_ascii_case(name));
        self.names.iter().any(is)
    }

    /// When it ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// How long it is valid altogether.
    pub fn lifetime(&self) -> Duration {
        let whole = self.not_after.duration_since(self.not_before);
        whole.unwrap_or_default()
    }

    /// How long it is valid yet; `None` when it is not valid now.
    pub fn remaining(&self, now: SystemTime) -> Option<Duration> {
        if now < self.not_before {
            return None;
        }
        self.not_after.duration_since(now).ok()
    }
}

/// The subject alternative names (RFC 5280 §4.2.1.6): what TLS clients compare with.
fn names(parsed: &Parsed) -> Vec<String> {
    let found = parsed.tbs_certificate().get_extension::<SubjectAltName>();
    let Ok(Some((_, names))) = found else {
        return Vec::new();
    };
    let text = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        GeneralName::IpAddress(bytes) => {
            let four = <[u8; 4]>::try_from(bytes.as_bytes()).map(std::net::IpAddr::from);
            let ip = four.or_else(|_| <[u8; 16]>::try_from(bytes.as_bytes()).map(Into::into));
            ip.ok().map(|ip| ip.to_string())
        }
        GeneralName::OtherName(_)
        | GeneralName::Rfc822Name(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EdiPartyName(_)
        | GeneralName::UniformResourceIdentifier(_)
        | GeneralName::RegisteredId(_) => None,
    };
    names.0.iter().filter_map(text).collect()
}

/// Where certificates come from, as configured.
#[derive(Clone, Debug)]
pub struct Material {
    /// From files.
    pub certificates: Vec<Certificate>,
    /// From an authority.
    pub acme: Option<acme::Settings>,
}

/// What an authority issued, and what it is to find when it looks; changed while it is shown.
#[derive(Debug, Default)]
pub struct Shown {
    issued: RwLock<Option<Certificate>>,
    /// By domain.
    proofs: RwLock<HashMap<String, Arc<CertifiedKey>>>,
}

impl Shown {
    /// The certificate that was issued, if there is one.
    pub fn certificate(&self) -> Option<Certificate> {
        let issued = self.issued.read().unwrap_or_else(PoisonError::into_inner);
        issued.clone()
    }

    fn show(&self, certificate: Certificate) {
        let mut issued = self.issued.write().unwrap_or_else(PoisonError::into_inner);
        *issued = Some(certificate);
    }

    fn expect(&self, domain: String, proof: Arc<CertifiedKey>) {
        let mut proofs = self.proofs.write().unwrap_or_else(PoisonError::into_inner);
        proofs.insert(domain, proof);
    }

    fn forget_proofs(&self) {
        let mut proofs = self.proofs.write().unwrap_or_else(PoisonError::into_inner);
        proofs.clear();
    }

    fn proof(&self, domain: &str) -> Option<Arc<CertifiedKey>> {
        let proofs = self.proofs.read().unwrap_or_else(PoisonError::into_inner);
        proofs.get(&domain.to_ascii_lowercase()).cloned()
    }
}

/// What the public listeners speak TLS with.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Terms with these certificates, and those that an authority issues; the first is shown where
    /// no other has the name asked for.
    ///
    /// # Panics
    /// Never: the provider that is built in speaks both versions.
    pub fn new(certificates: &[Certificate], shown: Option<Arc<Shown>>) -> Self {
        let mut protocols = PROTOCOLS.to_vec();
        protocols.extend(shown.is_some().then_some(acme::PROTOCOL));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("the built-in provider speaks TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Choice::new(certificates, shown)));
        config.alpn_protocols = protocols.into_iter().map(<[u8]>::to_vec).collect();
        Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
        }
    }

    /// What makes a TLS connection of an accepted one.
    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }
}

/// When certificates end, by the names they are for; the earliest where several are.
pub fn expiries<'c>(
    certificates: impl IntoIterator<Item = &'c Certificate>,
) -> Vec<(String, SystemTime)> {
    let mut expiries: HashMap<String, SystemTime> = HashMap::new();
    for certificate in certificates {
        for name in &certificate.names {
            let ends = expiries
                .entry(name.clone())
                .or_insert(certificate.not_after);
            *ends = certificate.not_after.min(*ends);
        }
    }
    expiries.into_iter().collect()
}

/// Certificates by name.
#[derive(Debug)]
struct Choice {
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    first: Vec<Arc<CertifiedKey>>,
    shown: Option<Arc<Shown>>,
}

impl Choice {
    fn new(certificates: &[Certificate], shown: Option<Arc<Shown>>) -> Self {
        let mut by_name: HashMap<_, Vec<_>> = HashMap::new();
        for certificate in certificates {
            for name in &certificate.names {
                let named = by_name.entry(name.clone()).or_default();
                named.push(certificate.shown.clone());
            }
        }
        let first = certificates.first().map(|first| first.shown.clone());
        Self {
            by_name,
            first: first.into_iter().collect(),
            shown,
        }
    }

    /// Those for a name: its own, else a wildcard's (RFC 6125 §6.4.3: for one label).
    fn named(&self, name: &str) -> Option<&[Arc<CertifiedKey>]> {
        let name = name.to_ascii_lowercase();
        let own = self.by_name.get(&name);
        let named = own.or_else(|| {
            let (_, rest) = name.split_once('.')?;
            self.by_name.get(&format!("*.{rest}"))
        })?;
        Some(named)
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        if let Some(shown) = &self.shown {
            // An authority that looks offers nothing else (RFC 8737 §3).
            let mut offered = hello.alpn().into_iter().flatten();
            if (offered.next(), offered.next()) == (Some(acme::PROTOCOL), None) {
                return shown.proof(name?);
            }
        }
        let named = name.and_then(|name| self.named(name));
        let issued = || self.shown.as_ref()?.certificate();
        let named = match named {
            Some(named) => named,
            None => match issued().filter(|issued| self.first.is_empty() || issued.is_for(name)) {
                Some(issued) => return Some(issued.shown),
                None => &self.first,
            },
        };
        // One name may have certificates with keys of several kinds.
        let schemes = hello.signature_schemes();
        let fits = |shown: &&Arc<CertifiedKey>| shown.key.choose_scheme(schemes).is_some();
        named.iter().find(fits).or(named.first()).cloned()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests;
