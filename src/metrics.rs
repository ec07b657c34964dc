//! Every metric: its name, its labels, its help.
//!
//! Owns the registry and the handles into it, resolved once per configuration so that the request
//! path never looks a label up. Labels come from closed sets: endpoint names from the
//! configuration, the sender's documented event types, reasons, outcomes. It leaves deciding what
//! happened to others; it is only told.

mod endpoint;
mod forgetting;
mod labels;
mod making;
mod queueing;
mod readings;

use std::time::{SystemTime, UNIX_EPOCH};

use http::StatusCode;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Registry, TextEncoder,
};

use self::making::{blank, counter, counters, gauge, gauges, histograms, moments, register};
pub use self::{
    endpoint::EndpointMetrics,
    labels::{EventLabel, Outcome},
    queueing::{Deliveries, QueueMetrics},
    readings::{Buckets, Readings, quantile},
};
use crate::{connection::opening::OpenFault, endpoint::EndpointName, rejection::Rejection};

const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];
const VERIFY_SECONDS: [f64; 10] = [
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 1e-2,
];
const BYTES: [f64; 8] = [
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
];

/// The registry and everything in it that is not bound to one endpoint.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    rejections: IntCounterVec,
    duration: HistogramVec,
    upstream_duration: HistogramVec,
    upstream_responses: IntCounterVec,
    body_bytes: HistogramVec,
    in_flight: IntGaugeVec,
    key_reuse: IntCounterVec,
    replays: IntCounterVec,
    secret_matches: IntCounterVec,
    last_verified: GaugeVec,
    secret_expiry: GaugeVec,
    certificate_expiry: GaugeVec,
    not_opened: IntCounterVec,
    evictions: IntCounterVec,
    /// Time spent on hashing and comparing, per verified or refused body.
    pub verify_duration: Histogram,
    /// Connections open on the public listeners.
    pub connections: IntGauge,
    buffered_bytes: IntGauge,
    dedup_entries: IntGauge,
    /// Successful reloads.
    pub config_reloads: IntCounter,
    /// Reloads that kept the running configuration.
    pub config_reload_failures: IntCounter,
    config_last_successful: IntGauge,
    config_last_success: Gauge,
    /// What is on disk, and its delivery.
    pub queue: QueueMetrics,
    unrouted: Unrouted,
}

/// Counters of refusals before a request has an endpoint.
#[derive(Debug)]
struct Unrouted {
    rejections: Vec<(&'static str, IntCounter)>,
    refused: IntCounter,
    shed: IntCounter,
}

impl Metrics {
    /// Makes and registers every metric; those without labels exist from here on.
    ///
    /// # Panics
    /// Never: names and labels are constants that a test registers.
    pub fn new(revision: &str) -> Self {
        let registry = Registry::new();
        let metrics = Self {
            requests: counters(
                &registry,
                "requests_total",
                "Requests answered, by what became of them.",
                &["endpoint", "event", "outcome", "code"],
            ),
            rejections: counters(
                &registry,
                "rejections_total",
                "Requests refused or failed, by reason; the endpoint is empty before routing.",
                &["endpoint", "reason"],
            ),
            duration: histograms(
                &registry,
                "request_duration_seconds",
                "From a request's first byte to the answer's head.",
                &["endpoint", "outcome"],
                &SECONDS,
            ),
            upstream_duration: histograms(
                &registry,
                "upstream_duration_seconds",
                "From handing an event to the upstream to the head of its answer.",
                &["endpoint"],
                &SECONDS,
            ),
            upstream_responses: counters(
                &registry,
                "upstream_responses_total",
                "Answers of the upstream by class of status; error is none at all.",
                &["endpoint", "class"],
            ),
            body_bytes: histograms(
                &registry,
                "request_body_bytes",
                "Sizes of the bodies that were read whole.",
                &["endpoint"],
                &BYTES,
            ),
            in_flight: gauges(
                &registry,
                "in_flight",
                "Requests being handled.",
                &["endpoint"],
            ),
            key_reuse: counters(
                &registry,
                "key_reuse_total",
                "Idempotency keys that came again with another body.",
                &["endpoint"],
            ),
            replays: counters(
                &registry,
                "replays_total",
                "Bodies that came again under another idempotency key.",
                &["endpoint"],
            ),
            secret_matches: counters(
                &registry,
                "secret_matches_total",
                "Genuine requests by the name of the secret that matched.",
                &["endpoint", "secret"],
            ),
            last_verified: moments(
                &registry,
                "last_verified_timestamp_seconds",
                "When the last genuine request came; absent until the first.",
                &["endpoint"],
            ),
            secret_expiry: moments(
                &registry,
                "secret_expiry_timestamp_seconds",
                "When a secret stops matching.",
                &["endpoint", "secret"],
            ),
            certificate_expiry: moments(
                &registry,
                "tls_certificate_expiry_timestamp_seconds",
                "When the certificate shown for a domain ends.",
                &["domain"],
            ),
            not_opened: counters(
                &registry,
                "handshake_failures_total",
                "Connections on which no HTTP could be spoken, by cause.",
                &["cause"],
            ),
            evictions: counters(
                &registry,
                "dedup_evictions_total",
                "Idempotency keys forgotten, by cause.",
                &["cause"],
            ),
            verify_duration: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "hookward_verify_duration_seconds",
                        "Time to hash and compare one body.",
                    )
                    .buckets(VERIFY_SECONDS.to_vec()),
                ),
            ),
            connections: gauge(
                &registry,
                "connections",
                "Connections open on the public listeners.",
            ),
            buffered_bytes: gauge(
                &registry,
                "buffered_bytes",
                "Bytes of bodies held in memory.",
            ),
            dedup_entries: gauge(
                &registry,
                "dedup_entries",
                "Idempotency keys known as delivered.",
            ),
            config_reloads: counter(
                &registry,
                "config_reloads_total",
                "Reloads that took effect.",
            ),
            config_reload_failures: counter(
                &registry,
                "config_reload_failures_total",
                "Reloads that were refused; the running configuration stayed.",
            ),
            config_last_successful: gauge(
                &registry,
                "config_last_reload_successful",
                "Whether the last reload, or the start, took effect.",
            ),
            config_last_success: register(
                &registry,
                Gauge::new(
                    "hookward_config_last_reload_success_timestamp_seconds",
                    "When the running configuration took effect.",
                ),
            ),
            queue: QueueMetrics::new(&registry),
            unrouted: Unrouted {
                rejections: Vec::new(),
                refused: blank(),
                shed: blank(),
            },
            registry,
        };
        for cause in ["capacity", "expired"] {
            metrics.evictions.with_label_values(&[cause]);
        }
        for cause in OpenFault::LABELS {
            metrics.not_opened.with_label_values(&[cause]);
        }
        let build = gauges(
            &metrics.registry,
            "build_info",
            "1, labelled with the version and revision that run.",
            &["version", "revision"],
        );
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), revision])
            .set(1);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        metrics
            .registry
            .register(Box::new(process))
            .expect("the process set is registered once");
        metrics.with_unrouted()
    }

    fn with_unrouted(mut self) -> Self {
        let rejections = unrouted_kinds().map(|kind| {
            (
                kind.label(),
                self.rejections.with_label_values(&["", kind.label()]),
            )
        });
        let requests = |class| {
            let labels = ["", "none", Outcome::Rejected.label(), class];
            self.requests.with_label_values(&labels)
        };
        self.unrouted = Unrouted {
            rejections: rejections.collect(),
            refused: requests("4xx"),
            shed: requests("5xx"),
        };
        self
    }

    /// Counts a refusal before any endpoint was known.
    pub fn refused_unrouted(&self, rejection: Rejection) {
        let label = rejection.label();
        if let Some((_, counter)) = self.unrouted.rejections.iter().find(|(l, _)| *l == label) {
            counter.inc();
        }
        match rejection.status(StatusCode::UNAUTHORIZED).is_client_error() {
            true => self.unrouted.refused.inc(),
            false => self.unrouted.shed.inc(),
        }
    }

    /// Counts a connection on which no HTTP could be spoken.
    pub fn not_opened(&self, cause: &'static str) {
        self.not_opened.with_label_values(&[cause]).inc();
    }

    /// Notes which certificates are shown, and when they end.
    pub fn certificates<'n>(&self, expiries: impl IntoIterator<Item = &'n (String, SystemTime)>) {
        self.certificate_expiry.reset();
        for (domain, ends) in expiries {
            let gauge = self.certificate_expiry.with_label_values(&[domain]);
            gauge.set(seconds(*ends));
        }
    }

    /// Notes that a configuration took effect: at start, or by a reload.
    pub fn config_took_effect(&self, now: SystemTime) {
        self.config_last_successful.set(1);
        self.config_last_success.set(seconds(now));
    }

    /// Notes that a reload was refused.
    pub fn config_was_refused(&self) {
        self.config_reload_failures.inc();
        self.config_last_successful.set(0);
    }

    /// Takes over the readings that are counted elsewhere, just before they are shown.
    pub fn observe(&self, reading: &Reading) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.buffered_bytes.set(gauge(reading.buffered_bytes));
        self.dedup_entries.set(gauge(reading.dedup_entries));
        for (cause, count) in [
            ("capacity", reading.evicted_by_capacity),
            ("expired", reading.evicted_by_expiry),
        ] {
            let counter = self.evictions.with_label_values(&[cause]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    /// Everything, in the Prometheus text format.
    pub fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }

    /// Counts an event that came with a key that another body had before.
    pub fn key_reused(&self, endpoint: &EndpointName) {
        self.key_reuse.with_label_values(&[endpoint.as_str()]).inc();
    }
}

/// The refusals that can come before a request has an endpoint.
fn unrouted_kinds() -> impl Iterator<Item = Rejection> {
    Rejection::KINDS.into_iter().filter(|kind| {
        matches!(
            kind,
            Rejection::HeadersTooLarge
                | Rejection::Malformed(_)
                | Rejection::Overloaded
                | Rejection::TargetTooLong
                | Rejection::Timeout
                | Rejection::UnknownPath
        )
    })
}

/// Values that are counted by their owners and read when the metrics are shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Bytes of bodies in memory.
    pub buffered_bytes: usize,
    /// Keys known as delivered.
    pub dedup_entries: usize,
    /// Keys forgotten for want of room.
    pub evicted_by_capacity: u64,
    /// Keys forgotten after their window.
    pub evicted_by_expiry: u64,
}

fn seconds(moment: SystemTime) -> f64 {
    moment
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
