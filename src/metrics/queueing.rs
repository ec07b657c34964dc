//! What is on disk, how it gets there, and how it leaves.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry,
};

use super::{counters, forgetting::remove, gauge, gauges, moments, register};
use crate::{
    endpoint::EndpointName,
    queue::{Committed, Stats},
};

/// Buckets for one commit, most of which is its sync.
const COMMIT_SECONDS: [f64; 12] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
];

/// The queue's metrics over all endpoints.
#[derive(Debug)]
pub struct QueueMetrics {
    events: IntGaugeVec,
    bytes: IntGauge,
    pending_bytes: IntGaugeVec,
    pending_limit: IntGaugeVec,
    oldest_age: GaugeVec,
    deliveries: IntCounterVec,
    attempts: IntGaugeVec,
    corrupt: IntCounterVec,
    commit_duration: Histogram,
    commit_batch: IntGauge,
    /// The endpoints that are configured.
    configured: Mutex<BTreeSet<String>>,
}

/// The handles of one endpoint.
#[derive(Debug)]
pub struct Deliveries {
    /// Events the upstream accepted.
    pub delivered: IntCounter,
    /// Attempts that are followed by another.
    pub retry: IntCounter,
    /// Events given up.
    pub dead: IntCounter,
    /// Attempts under way.
    pub attempts: IntGauge,
}

impl QueueMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            events: gauges(
                registry,
                "queue_events",
                "Events on disk that wait (pending) or were given up (dead).",
                &["endpoint", "state"],
            ),
            bytes: gauge(
                registry,
                "queue_bytes",
                "Bytes of all events and quarantined requests on disk.",
            ),
            pending_bytes: gauges(
                registry,
                "queue_pending_bytes",
                "Bytes of events on disk that wait.",
                &["endpoint"],
            ),
            pending_limit: gauges(
                registry,
                "queue_pending_limit_bytes",
                "Bytes of waiting events beyond which new ones are refused; absent where none are kept.",
                &["endpoint"],
            ),
            oldest_age: moments(
                registry,
                "queue_oldest_event_age_seconds",
                "Age of the oldest event that is not delivered; 0 without one.",
                &["endpoint"],
            ),
            deliveries: counters(
                registry,
                "deliveries_total",
                "Attempts at queued events, by what followed.",
                &["endpoint", "result"],
            ),
            attempts: gauges(
                registry,
                "delivery_attempts",
                "Attempts at queued events under way.",
                &["endpoint"],
            ),
            corrupt: counters(
                registry,
                "queue_corrupt_records_total",
                "Events whose bytes on disk are not what was written; they are dead letters. \
                 Of endpoint \"\": logs of the store that are not.",
                &["endpoint"],
            ),
            commit_duration: register(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "hookward_commit_duration_seconds",
                        "Time of one commit, its sync included.",
                    )
                    .buckets(COMMIT_SECONDS.to_vec()),
                ),
            ),
            commit_batch: gauge(
                registry,
                "commit_batch_events",
                "Events in the last commit that held any.",
            ),
            configured: Mutex::default(),
        }
    }

    /// Shows how many bytes may wait; `None`: the endpoint keeps nothing on disk.
    pub(super) fn limit_pending(&self, endpoint: &str, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => self
                .pending_limit
                .with_label_values(&[endpoint])
                .set(number(bytes)),
            // Absent already where it kept nothing before.
            None => drop(self.pending_limit.remove_label_values(&[endpoint])),
        }
    }

    pub(super) fn deliveries(&self, endpoint: &str) -> Deliveries {
        self.configured().insert(endpoint.to_owned());
        let result = |result| self.deliveries.with_label_values(&[endpoint, result]);
        self.corrupt.with_label_values(&[endpoint]);
        for state in ["pending", "dead"] {
            self.events.with_label_values(&[endpoint, state]);
        }
        self.oldest_age.with_label_values(&[endpoint]);
        self.pending_bytes.with_label_values(&[endpoint]);
        Deliveries {
            delivered: result("delivered"),
            retry: result("retry"),
            dead: result("dead"),
            attempts: self.attempts.with_label_values(&[endpoint]),
        }
    }

    /// Takes away what is counted of an endpoint; what it has on disk is shown until that is gone.
    pub(super) fn forget(&self, endpoint: &str) {
        self.configured().remove(endpoint);
        self.limit_pending(endpoint, None);
        for result in ["delivered", "retry", "dead"] {
            remove(&self.deliveries, &[endpoint, result]);
        }
        remove(&self.attempts, &[endpoint]);
        remove(&self.corrupt, &[endpoint]);
        self.forget_stored(endpoint);
    }

    fn forget_stored(&self, endpoint: &str) {
        for state in ["pending", "dead"] {
            remove(&self.events, &[endpoint, state]);
        }
        remove(&self.oldest_age, &[endpoint]);
        remove(&self.pending_bytes, &[endpoint]);
    }

    fn configured(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.configured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a commit.
    pub fn committed(&self, commit: Committed) {
        self.commit_duration.observe(commit.duration.as_secs_f64());
        if commit.events > 0 {
            self.commit_batch
                .set(i64::try_from(commit.events).unwrap_or(i64::MAX));
        }
    }

    /// Counts an event whose bytes are not what was written, and which is a dead letter therefore.
    pub fn corrupt_record(&self, endpoint: &EndpointName) {
        let name = endpoint.as_str();
        self.corrupt.with_label_values(&[name]).inc();
        self.deliveries.with_label_values(&[name, "dead"]).inc();
    }

    /// Counts a log that was damaged, and with it whatever it held: whose it was is not known.
    pub fn damaged_log(&self) {
        self.corrupt.with_label_values(&[""]).inc();
    }

    /// Takes over what the store says of itself, just before it is shown. An endpoint that is not
    /// configured is shown for as long as it has events.
    pub fn observe(&self, stored_bytes: u64, stats: &[Stats]) {
        self.bytes.set(number(stored_bytes));
        let configured = self.configured();
        for stats in stats {
            let name = stats.endpoint.as_str();
            let is_empty = stats.pending + stats.leased + stats.dead == 0;
            if is_empty && !configured.contains(name) {
                self.forget_stored(name);
                continue;
            }
            let state = |state| self.events.with_label_values(&[name, state]);
            state("pending").set(number(stats.pending.saturating_add(stats.leased)));
            state("dead").set(number(stats.dead));
            self.pending_bytes
                .with_label_values(&[name])
                .set(number(stats.pending_bytes));
            let age: Gauge = self.oldest_age.with_label_values(&[name]);
            age.set(stats.oldest_age.unwrap_or_default().as_secs_f64());
        }
    }
}

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
