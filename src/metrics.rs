//! Every metric: its name, its labels, its help.
//!
//! Owns the registry and the handles into it, resolved once per configuration so that the request
//! path never looks a label up. Labels come from closed sets: endpoint names from the
//! configuration, the sender's documented event types, reasons, outcomes. It leaves deciding what
//! happened to others; it is only told.

mod forgetting;
mod queueing;
mod readings;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::StatusCode;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

pub use self::{
    queueing::{Deliveries, QueueMetrics},
    readings::{Buckets, Readings, quantile},
};
use crate::{
    connection::opening::OpenFault,
    dedup::{KeyReuse, Replay},
    endpoint::{Endpoint, EndpointName, Enforcement, EventFilter, Mode},
    rejection::Rejection,
    signature::KeySource,
};

/// What became of a request, as in `Hookward-Outcome` and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The same event was delivered before.
    Duplicate,
    /// The upstream did not take it.
    Failed,
    /// Genuine, but of a type the endpoint does not want.
    Filtered,
    /// The upstream answered.
    Forwarded,
    /// On disk, to be delivered.
    Queued,
    /// Refused.
    Rejected,
    /// The upstream answered an event whose signature is missing or wrong.
    Unverified,
}

impl Outcome {
    const ALL: [Self; 7] = [
        Self::Duplicate,
        Self::Failed,
        Self::Filtered,
        Self::Forwarded,
        Self::Queued,
        Self::Rejected,
        Self::Unverified,
    ];

    /// The word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Failed => "failed",
            Self::Filtered => "filtered",
            Self::Forwarded => "forwarded",
            Self::Queued => "queued",
            Self::Rejected => "rejected",
            Self::Unverified => "unverified",
        }
    }

    fn number(self) -> usize {
        match self {
            Self::Duplicate => 0,
            Self::Failed => 1,
            Self::Filtered => 2,
            Self::Forwarded => 3,
            Self::Queued => 4,
            Self::Rejected => 5,
            Self::Unverified => 6,
        }
    }
}

/// The label of an event type: one of the sender's five, or `other`, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLabel(usize);

impl EventLabel {
    /// The event types that the sender documents.
    pub const KNOWN: [&'static str; 5] = [
        "contact.created",
        "message.created",
        "contact.lead.updated",
        "conversation.created",
        "takeover.request",
    ];
    const LABELS: [&'static str; 7] = [
        "contact.created",
        "message.created",
        "contact.lead.updated",
        "conversation.created",
        "takeover.request",
        "other",
        "none",
    ];
    /// A type that could not be read, or is not known yet.
    pub const NONE: Self = Self(6);

    /// The label as text.
    pub fn label(self) -> &'static str {
        Self::LABELS.get(self.0).unwrap_or(&"none")
    }

    /// The label for this type.
    pub fn of(event_type: Option<&str>) -> Self {
        let known = |t| {
            Self::KNOWN
                .iter()
                .position(|k| *k == t)
                .map_or(Self(5), Self)
        };
        event_type.map_or(Self::NONE, known)
    }
}

/// Of answers; an interim one is none.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

fn class(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(2, 5) - 2
}

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

    /// Resolves the handles of one endpoint; those that count exist from here on.
    pub fn endpoint(self: &Arc<Self>, endpoint: &Endpoint) -> EndpointMetrics {
        let name = endpoint.name.as_str();
        let secrets = endpoint
            .secrets
            .names()
            .map(|secret| self.secret_matches.with_label_values(&[name, secret]));
        let of = EndpointMetrics {
            requests: (0..Outcome::ALL.len() * EventLabel::LABELS.len() * CLASSES.len())
                .map(|_| OnceLock::new())
                .collect(),
            rejections: Rejection::KINDS
                .iter()
                .map(|kind| {
                    let labels = [name, kind.label()];
                    is_routed(*kind).then(|| self.rejections.with_label_values(&labels))
                })
                .collect(),
            duration: Outcome::ALL
                .map(|outcome| self.duration.with_label_values(&[name, outcome.label()])),
            upstream_duration: self.upstream_duration.with_label_values(&[name]),
            upstream_responses: CLASSES
                .map(|class| self.upstream_responses.with_label_values(&[name, class])),
            upstream_errors: self.upstream_responses.with_label_values(&[name, "error"]),
            body_bytes: self.body_bytes.with_label_values(&[name]),
            in_flight: self.in_flight.with_label_values(&[name]),
            key_reuse: self.key_reuse.with_label_values(&[name]),
            replays: self.replays.with_label_values(&[name]),
            secret_matches: secrets.collect(),
            deliveries: self.queue.deliveries(name),
            last_verified: OnceLock::new(),
            name: name.to_owned(),
            all: self.clone(),
        };
        let is_kept = endpoint.mode != (Mode::Relay { fallback: None });
        self.queue
            .limit_pending(name, is_kept.then_some(endpoint.queueing.max_pending_bytes));
        for (secret, expiry) in endpoint.secrets.names().zip(endpoint.secrets.expiries()) {
            if let Some(expiry) = expiry {
                self.secret_expiry
                    .with_label_values(&[name, secret])
                    .set(seconds(expiry));
            }
        }
        for event in (0..EventLabel::LABELS.len()).map(EventLabel) {
            for (outcome, statuses) in endings(endpoint, event) {
                for status in statuses {
                    of.requests(event, outcome, *status);
                }
            }
        }
        of
    }
}

/// What can become of a request with this label, and with a status of which classes.
fn endings(endpoint: &Endpoint, event: EventLabel) -> Vec<(Outcome, &'static [StatusCode])> {
    const GOOD: &[StatusCode] = &[StatusCode::OK];
    const OTHER: &[StatusCode] = &[StatusCode::FOUND, StatusCode::BAD_REQUEST, SHED];
    const ANY: &[StatusCode] = &[
        StatusCode::OK,
        StatusCode::FOUND,
        StatusCode::BAD_REQUEST,
        SHED,
    ];
    const SHED: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    let is_none = event == EventLabel::NONE;
    let is_wanted = match &endpoint.events {
        EventFilter::All => true,
        EventFilter::Only(types) => {
            is_none || types.iter().any(|t| EventLabel::of(Some(t)) == event)
        }
    };
    let is_unwanted = endpoint.events != EventFilter::All
        && !is_none
        && (!is_wanted || event == EventLabel::of(Some("")));
    let policy = endpoint.dedup.policy;
    // Of a verified event: what its key or its body says.
    let is_refused = policy.key_reuse == KeyReuse::Reject
        || policy.replay == Replay::Reject
        || matches!(endpoint.scheme.key_source(), KeySource::Pointer(_));
    let mut endings = Vec::new();
    if is_wanted {
        if endpoint.mode != Mode::Queue {
            endings.push((Outcome::Forwarded, ANY));
        }
        if endpoint.mode != (Mode::Relay { fallback: None }) {
            endings.push((Outcome::Queued, GOOD));
        }
        endings.extend([
            (Outcome::Duplicate, GOOD),
            // One that waited for the first shares its status.
            (Outcome::Failed, OTHER),
            (Outcome::Rejected, &[SHED][..]),
        ]);
    }
    if is_unwanted {
        endings.push((Outcome::Filtered, GOOD));
    }
    if is_none || (is_wanted && is_refused) {
        endings.push((Outcome::Rejected, &[StatusCode::BAD_REQUEST]));
    }
    if is_none && endpoint.enforcement != Enforcement::Always {
        endings.push((Outcome::Unverified, ANY));
    }
    endings
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

/// Whether a refusal can come when a request has an endpoint.
fn is_routed(kind: Rejection) -> bool {
    !matches!(
        kind,
        Rejection::HeadersTooLarge | Rejection::TargetTooLong | Rejection::UnknownPath
    )
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

/// The handles of one endpoint.
#[derive(Debug)]
pub struct EndpointMetrics {
    requests: Box<[OnceLock<IntCounter>]>,
    /// By the kind's number; `None`: it comes before any endpoint is known.
    rejections: Vec<Option<IntCounter>>,
    duration: [Histogram; 7],
    /// From handing over to the head of the answer.
    pub upstream_duration: Histogram,
    upstream_responses: [IntCounter; CLASSES.len()],
    /// Attempts that ended without an answer.
    pub upstream_errors: IntCounter,
    /// Sizes of bodies that were read whole.
    pub body_bytes: Histogram,
    /// Requests being handled.
    pub in_flight: IntGauge,
    /// Keys that came again with another body.
    pub key_reuse: IntCounter,
    /// Bodies that came again under another key.
    pub replays: IntCounter,
    secret_matches: Vec<IntCounter>,
    /// Deliveries of what is on disk.
    pub deliveries: Deliveries,
    last_verified: OnceLock<Gauge>,
    name: String,
    all: Arc<Metrics>,
}

impl EndpointMetrics {
    fn requests(
        &self,
        event: EventLabel,
        outcome: Outcome,
        status: StatusCode,
    ) -> Option<&IntCounter> {
        let class = class(status);
        let number =
            (outcome.number() * EventLabel::LABELS.len() + event.0) * CLASSES.len() + class;
        let event = EventLabel::LABELS.get(event.0)?;
        Some(self.requests.get(number)?.get_or_init(|| {
            let labels = [
                self.name.as_str(),
                event,
                outcome.label(),
                CLASSES.get(class).unwrap_or(&"5xx"),
            ];
            self.all.requests.with_label_values(&labels)
        }))
    }

    /// Counts an answer and the time it took.
    pub fn answered(
        &self,
        event: EventLabel,
        outcome: Outcome,
        status: StatusCode,
        took: Duration,
    ) {
        if let Some(counter) = self.requests(event, outcome, status) {
            counter.inc();
        }
        if let Some(duration) = self.duration.get(outcome.number()) {
            duration.observe(took.as_secs_f64());
        }
    }

    /// Counts a refusal or failure by its reason.
    pub fn refused(&self, rejection: Rejection) {
        if let Some(Some(counter)) = self.rejections.get(rejection.number()) {
            counter.inc();
        }
    }

    /// Counts the head of an upstream's answer.
    pub fn upstream_answered(&self, status: StatusCode, took: Duration) {
        if let Some(counter) = self.upstream_responses.get(class(status)) {
            counter.inc();
        }
        self.upstream_duration.observe(took.as_secs_f64());
    }

    /// Counts a genuine request under the number of its secret.
    pub fn verified(&self, secret: usize, now: SystemTime) {
        if let Some(counter) = self.secret_matches.get(secret) {
            counter.inc();
        }
        let moment = || {
            self.all
                .last_verified
                .with_label_values(&[self.name.as_str()])
        };
        self.last_verified.get_or_init(moment).set(seconds(now));
    }
}

fn seconds(moment: SystemTime) -> f64 {
    moment
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn blank() -> IntCounter {
    IntCounter::new("blank", "blank").expect("a constant name is valid")
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("a constant name is valid");
    registry
        .register(Box::new(collector.clone()))
        .expect("each name is registered once");
    collector
}

fn options(name: &str, help: &str) -> Opts {
    Opts::new(format!("hookward_{name}"), help)
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::with_opts(options(name, help)))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::with_opts(options(name, help)))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(options(name, help), labels))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(options(name, help), labels))
}

fn moments(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    register(registry, GaugeVec::new(options(name, help), labels))
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[f64],
) -> HistogramVec {
    let options = HistogramOpts::new(format!("hookward_{name}"), help).buckets(buckets.to_vec());
    register(registry, HistogramVec::new(options, labels))
}
