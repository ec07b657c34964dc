//! The senders' certificates: where they come from, and what is told of them.

use std::sync::Arc;

use super::AppError;
use crate::{
    config::Config,
    gate::Shared,
    tls::{self, acme},
};

/// Opens what is kept of certificates from an authority, where they come from one.
pub(super) fn obtaining(config: &Config) -> Result<Option<Arc<acme::Manager>>, AppError> {
    let (Some(settings), Some(dir)) = (config.server.acme(), &config.data_dir) else {
        return Ok(None);
    };
    let dir = dir.join("acme");
    let opened = acme::Manager::open(settings.clone(), &dir);
    let place = || format!("cannot keep certificates in {}", dir.display());
    Ok(Some(Arc::new(
        opened.map_err(|error| AppError::Start(place(), error))?,
    )))
}

/// Obtains certificates for ever, where they come from an authority.
pub(super) async fn obtain(acme: Option<&acme::Manager>) {
    match acme {
        Some(acme) => acme.run().await,
        None => std::future::pending().await,
    }
}

/// Resolves when an authority has issued another certificate.
pub(super) async fn issued(acme: Option<&acme::Manager>) {
    match acme {
        Some(acme) => acme.changed().notified().await,
        None => std::future::pending().await,
    }
}

pub(super) fn note_certificates(config: &Config, shared: &Shared, acme: Option<&acme::Manager>) {
    let files = config.server.tls.iter().flat_map(|tls| &tls.certificates);
    let issued = acme.and_then(|acme| acme.shown().certificate());
    let expiries = tls::expiries(files.chain(&issued));
    shared.metrics.certificates(&expiries);
}
