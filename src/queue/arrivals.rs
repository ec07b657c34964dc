//! Events that are leased as they arrive: a worker with free places need not have them looked for
//! in the store, nor read from it.
//!
//! The worker says how many it expects; the writer keeps as many leased in the transaction that
//! appends them, and hands them over when it is on disk. Whoever is not expected is found by
//! [`Arrivals::lease`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Endpoint, Lease, Leases, Refused};

/// The right to an endpoint's events as they arrive; the latest one made has it. Dropped, it hands
/// back what nobody has taken.
#[derive(Debug)]
pub struct Arrivals {
    endpoint: Endpoint,
    threshold: Arc<Threshold>,
}

impl Arrivals {
    pub(super) fn new(endpoint: Endpoint, threshold: Arc<Threshold>) -> Self {
        Self {
            endpoint,
            threshold,
        }
    }

    /// Expects so many events from now on, instead of those still expected; those that have arrived and
    /// were not taken are among them.
    pub fn expect(&self, events: usize) {
        self.threshold.expect(events);
    }

    /// Leases up to `limit` events that are due, as [`Endpoint::lease`] does. When there are fewer,
    /// the rest is expected.
    ///
    /// # Errors
    /// As [`Endpoint::lease`].
    pub fn lease(
        &self,
        limit: usize,
    ) -> impl Future<Output = Result<Leases, Refused>> + use<> + 'static {
        let (endpoint, threshold) = (self.endpoint.clone(), self.threshold.clone());
        async move { endpoint.lease_or_expect(limit, Some(threshold)).await }
    }

    /// The events that have arrived, at least one, the first that came first. May be dropped and
    /// called again.
    pub async fn next(&self) -> Vec<Lease> {
        loop {
            let leases = std::mem::take(&mut self.threshold.lock().leases);
            if !leases.is_empty() {
                return leases;
            }
            self.threshold.news.notified().await;
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        let mut within = self.threshold.lock();
        (within.is_gone, within.expected) = (true, 0);
        let leases = std::mem::take(&mut within.leases);
        drop(within);
        for lease in leases {
            lease.hand_back(None);
        }
    }
}

/// Where the writer leaves what was expected.
#[derive(Debug, Default)]
pub(super) struct Threshold {
    within: Mutex<Within>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Within {
    expected: usize,
    leases: Vec<Lease>,
    /// Nobody comes for them any more.
    is_gone: bool,
}

impl Threshold {
    fn lock(&self) -> MutexGuard<'_, Within> {
        self.within.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn expect(&self, events: usize) {
        let mut within = self.lock();
        if !within.is_gone {
            within.expected = events.saturating_sub(within.leases.len());
        }
    }

    /// Whether one more was expected. One that is rolled back may still come, another time.
    pub(super) fn take_expected(&self) -> bool {
        let mut within = self.lock();
        let is_expected = within.expected > 0;
        within.expected -= usize::from(is_expected);
        is_expected
    }

    /// Hands over what was expected, once it is on disk.
    pub(super) fn put(&self, lease: Lease) {
        let mut within = self.lock();
        if within.is_gone {
            drop(within);
            lease.hand_back(None);
            return;
        }
        within.leases.push(lease);
        drop(within);
        self.news.notify_one();
    }
}
