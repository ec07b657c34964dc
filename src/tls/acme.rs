//! Certificates from an authority that speaks ACME (RFC 8555), proven by TLS itself (RFC 8737).
//!
//! Owns when a certificate is obtained and renewed, and what is kept between runs. The protocol is
//! a library's; here are its errors, with what helps, and the waiting between attempts. Nothing
//! that goes wrong here ends anything: what there is is shown on.

mod client;
mod store;

use std::{
    fmt, io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use self::{client::Client, store::Store};
use super::{Certificate, Shown, provider};

/// The protocol by which an authority comes to look (RFC 8737 §4).
pub(crate) const PROTOCOL: &[u8] = b"acme-tls/1";
/// How long one certificate may take to be obtained.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long an authority may take to look, and to issue.
const LOOK: Duration = Duration::from_secs(90);
/// How often it is looked at the clock while nothing is due.
const LOOK_AT_CLOCK: Duration = Duration::from_hours(1);
/// Least time between two certificates.
const PAUSE: Duration = Duration::from_secs(5);
/// Waiting after an authority that was not reached, doubled up to the second.
const UNREACHED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Waiting after a refusal, tripled up to the second: authorities count refusals per hour.
const REFUSED: (Duration, Duration) = (Duration::from_secs(120), Duration::from_hours(6));

/// What is obtained, and from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The DNS names; one certificate is for all of them.
    pub domains: Vec<String>,
    /// Whom the authority writes to, as a `mailto:` URL.
    pub contact: Option<String>,
    /// The authority's directory.
    pub directory: String,
    /// Roots trusted beside the system's, for the authority itself.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Obtains and renews.
#[derive(Debug)]
pub struct Manager {
    settings: Settings,
    store: Store,
    shown: Arc<Shown>,
    changed: Arc<Notify>,
}

/// Why no certificate was obtained.
#[derive(Debug)]
enum Failure {
    /// The authority, or the way to it.
    Authority(Error),
    /// It came to look at a domain, and did not find what it was to find.
    Domain(String, String),
    /// What it issued is of no use.
    Issued,
    /// A key or a request could not be made.
    Key(rcgen::Error),
    /// It does not offer to look by TLS.
    NoChallenge(String),
    /// What was obtained could not be kept.
    Store(io::Error),
    /// It took too long.
    TimedOut,
    /// What was obtained is due to be renewed already, or not for all domains.
    Unfit,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Authority(error)
    }
}

impl From<rcgen::Error> for Failure {
    fn from(error: rcgen::Error) -> Self {
        Self::Key(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority(Error::Other(error)) => write!(
                f,
                "the authority cannot be reached: {error}; look at the network, the directory's \
                 URL, and ca if its certificate is issued privately"
            ),
            Self::Authority(error) => write!(
                f,
                "the authority refused: {error}; look at domains and contact"
            ),
            Self::Domain(domain, why) => write!(
                f,
                "{domain} could not be proven: {why}; its name has to lead here, and port 443 \
                 there to a TLS listener of ours"
            ),
            Self::Issued => {
                f.write_str("what the authority issued cannot be used; ask whoever runs it")
            }
            Self::Key(error) => write!(f, "no key could be made: {error}"),
            Self::NoChallenge(domain) => write!(
                f,
                "the authority does not offer tls-alpn-01 for {domain}; name another directory, \
                 or a domain without a wildcard"
            ),
            Self::Store(error) => write!(
                f,
                "what was obtained cannot be kept: {error}; let this user write in data_dir/acme"
            ),
            Self::TimedOut => f.write_str("it took too long; the authority may be busy"),
            Self::Unfit => f.write_str(
                "what the authority issued is over by this machine's clock, or not for all domains; \
                 look at the clock",
            ),
        }
    }
}

impl Failure {
    /// How long to wait before the next attempt, after so many failures in a row.
    fn pause(&self, failures: u32) -> Duration {
        let ((first, most), factor) = match self {
            Self::Authority(Error::Other(_)) => (UNREACHED, 2_u32),
            Self::Authority(_)
            | Self::Domain(..)
            | Self::Issued
            | Self::Key(_)
            | Self::NoChallenge(_)
            | Self::Store(_)
            | Self::TimedOut
            | Self::Unfit => (REFUSED, 3),
        };
        let times = factor.saturating_pow(failures.saturating_sub(1));
        first.saturating_mul(times).min(most)
    }
}

impl Manager {
    /// Opens what is kept in a directory, and shows it if it is of use.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(settings: Settings, dir: &Path) -> io::Result<Self> {
        let store = Store::open(dir)?;
        let shown = Arc::new(Shown::default());
        if let Some(pem) = store.certificate() {
            match Certificate::read(&pem, &pem) {
                Ok(certificate) => shown.show(certificate),
                Err(_) => store.certificate_is_no_use(),
            }
        }
        Ok(Self {
            settings,
            store,
            shown,
            changed: Arc::default(),
        })
    }

    /// What is shown in handshakes.
    pub fn shown(&self) -> &Arc<Shown> {
        &self.shown
    }

    /// Told whenever another certificate is shown.
    pub fn changed(&self) -> &Arc<Notify> {
        &self.changed
    }

    /// Obtains and renews, for ever.
    pub async fn run(&self) {
        let mut failures = 0;
        loop {
            self.wait_until_due().await;
            let obtained = tokio::time::timeout(PATIENCE, self.obtain()).await;
            self.shown.forget_proofs();
            let failure = match obtained.unwrap_or(Err(Failure::TimedOut)) {
                Ok(certificate) => {
                    let ends = humantime::format_rfc3339_seconds(certificate.not_after());
                    let domains = self.settings.domains.join(", ");
                    tracing::info!(domains, %ends, "acme: certificate obtained");
                    self.shown.show(certificate);
                    self.changed.notify_one();
                    // Asked for again at once, it would be no better.
                    let is_due = self.rest(SystemTime::now()).is_zero();
                    is_due.then_some(Failure::Unfit)
                }
                Err(failure) => Some(failure),
            };
            let pause = match failure {
                None => {
                    failures = 0;
                    PAUSE
                }
                Some(failure) => {
                    failures += 1;
                    let pause = failure.pause(failures);
                    let again_seconds = pause.as_secs();
                    tracing::error!(%failure, again_seconds, "acme: no certificate obtained");
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits until another certificate is due, looking at the clock again and again: it may be set,
    /// and timers stand still in a machine that is suspended.
    async fn wait_until_due(&self) {
        loop {
            let rest = self.rest(SystemTime::now());
            if rest.is_zero() {
                return;
            }
            tokio::time::sleep(rest.min(LOOK_AT_CLOCK)).await;
        }
    }

    /// How long what is shown is good for: a third of its time is left for what may go wrong. One
    /// that is not valid yet is good, too: authorities date none ahead, the clock here is behind.
    fn rest(&self, now: SystemTime) -> Duration {
        self.shown
            .certificate()
            .filter(|certificate| {
                let names = certificate.names();
                self.settings
                    .domains
                    .iter()
                    .all(|domain| names.contains(domain))
            })
            .and_then(|certificate| {
                let left = certificate.not_after().duration_since(now).ok()?;
                Some(left.saturating_sub(certificate.lifetime() / 3))
            })
            .unwrap_or_default()
    }

    async fn account(&self) -> Result<Account, Failure> {
        let builder =
            || Account::builder_with_http(Box::new(Client::new(self.settings.roots.clone())));
        let directory = &self.settings.directory;
        if let Some(credentials) = self.store.account(directory) {
            return Ok(builder().from_credentials(credentials).await?);
        }
        let contact: Vec<&str> = self.settings.contact.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contact,
            // Whoever names an authority agrees to its terms: the documentation says so.
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let created = builder().create(&new, directory.clone(), None).await?;
        let (account, credentials): (Account, AccountCredentials) = created;
        self.store
            .keep_account(directory, credentials)
            .map_err(Failure::Store)?;
        Ok(account)
    }

    /// Obtains one certificate for all domains, and keeps it.
    async fn obtain(&self) -> Result<Certificate, Failure> {
        let account = self.account().await?;
        let domains = &self.settings.domains;
        let identifiers: Vec<_> = domains.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
        self.prove(&mut order).await?;
        let retries = RetryPolicy::default().timeout(LOOK);
        if order.poll_ready(&retries).await.ok() != Some(OrderStatus::Ready) {
            return Err(why_not(&mut order).await?);
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(domains.clone())?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?;
        order.finalize_csr(request.der()).await?;
        let chain = order.poll_certificate(&retries).await?;
        let pem = Zeroizing::new(format!("{}{chain}", *Zeroizing::new(key.serialize_pem())));
        let bytes = pem.as_bytes();
        let certificate = Certificate::read(bytes, bytes).map_err(|_| Failure::Issued)?;
        self.store.keep_certificate(bytes).map_err(Failure::Store)?;
        Ok(certificate)
    }

    /// Prepares what the authority is to find at each domain, and asks it to look.
    async fn prove(&self, order: &mut Order) -> Result<(), Failure> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let domain = authorization.identifier().to_string();
            let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
            let mut challenge = challenge.ok_or(Failure::NoChallenge(domain.clone()))?;
            let digest = challenge.key_authorization().digest();
            let proof = proof(&domain, digest.as_ref())?;
            self.shown.expect(domain, proof);
            challenge.set_ready().await?;
        }
        Ok(())
    }
}

/// What an authority is to find at a domain (RFC 8737 §3). Nobody else is shown it: its one critical
/// extension makes it no certificate for others.
fn proof(domain: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, Failure> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([domain.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let chain = vec![params.self_signed(&key)?.der().clone()];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = provider().key_provider.load_private_key(key);
    let key = key.map_err(|_| Failure::Issued)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

/// What an authority says about the domain that it did not find proven.
async fn why_not(order: &mut Order) -> Result<Failure, Failure> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let state = authorization.refresh().await?;
        let domain = state.identifier().to_string();
        let error = state.challenges.iter().find_map(|c| c.error.as_ref());
        if let Some(problem) = error {
            return Ok(Failure::Domain(domain, problem.to_string()));
        }
        if state.status != AuthorizationStatus::Valid {
            let why = "the authority did not come to look in time".to_owned();
            return Ok(Failure::Domain(domain, why));
        }
    }
    Ok(Failure::TimedOut)
}

#[cfg(test)]
mod tests;
