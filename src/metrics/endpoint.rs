//! The handles of one endpoint, resolved once per configuration.
//!
//! Owns which series an endpoint can have; those that count exist from the start, so that a first
//! event is a rise from 0 and not a series out of nowhere.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use http::StatusCode;
use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::{
    Deliveries, Metrics,
    labels::{CLASSES, EventLabel, Outcome, class},
    seconds,
};
use crate::{
    dedup::{KeyReuse, Replay},
    endpoint::{Endpoint, Enforcement, EventFilter, Mode},
    rejection::Rejection,
    signature::KeySource,
};

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

impl Metrics {
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

/// Whether a refusal can come when a request has an endpoint.
fn is_routed(kind: Rejection) -> bool {
    !matches!(
        kind,
        Rejection::HeadersTooLarge | Rejection::TargetTooLong | Rejection::UnknownPath
    )
}
