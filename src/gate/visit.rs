//! What is known about the request in hand, and what is told about it when it ends.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts};
use rand::Rng as _;
use uuid::Uuid;

use super::{
    ACKNOWLEDGED, Cause,
    live::{Lane, Shared},
};
use crate::{
    connection::Watch,
    endpoint::Endpoint,
    feed::{Captured, Feed, Level, Seen},
    headers::{EVENT_ID, OUTCOME},
    metrics::{EndpointMetrics, EventLabel, Outcome},
    rejection::{Fault, Rejection},
    signature::VerifyError,
    trace::{self, Delivery, Ending, Trace},
    upstream::{Answer, AnswerBody},
};

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const ALLOW: HeaderValue = HeaderValue::from_static("POST");

/// One request on its way through the gate.
pub(super) struct Visit {
    /// The wall clock when it was read.
    pub(super) now: SystemTime,
    /// Its first byte.
    pub(super) began: Instant,
    /// Its type, as far as it is proven.
    pub(super) event: EventLabel,
    /// Whether its connection can carry another request.
    pub(super) closes: bool,
    /// When the upstream's answer came.
    pub(super) answered: Option<Instant>,
    /// What is kept of it for whoever watches.
    pub(super) level: Level,
    /// Its body, where that is kept.
    pub(super) captured: Option<Bytes>,
    /// What failed at the upstream.
    pub(super) cause: Option<Cause>,
    /// What is told of it to a tracing backend.
    pub(super) trace: Trace,
    lane: Option<(Arc<Endpoint>, Arc<EndpointMetrics>)>,
    outcome: Option<Outcome>,
    rejection: Option<Rejection>,
    id: [u8; 36],
}

impl Visit {
    pub(super) fn begin(
        now: SystemTime,
        began: Instant,
        level: Level,
        random: &mut rand::rngs::StdRng,
    ) -> Self {
        let millis = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let mut bytes = [0; 10];
        random.fill_bytes(&mut bytes);
        let millis = u64::try_from(millis).unwrap_or_default();
        let mut id = [0; 36];
        uuid::Builder::from_unix_timestamp_millis(millis, &bytes)
            .into_uuid()
            .hyphenated()
            .encode_lower(&mut id);
        Self {
            now,
            began,
            event: EventLabel::NONE,
            closes: false,
            answered: None,
            level,
            captured: None,
            cause: None,
            trace: Trace::default(),
            lane: None,
            outcome: None,
            rejection: None,
            id,
        }
    }

    /// The event id: a UUIDv7 (RFC 9562 §5.7) in lower case.
    pub(super) fn id(&self) -> &str {
        str::from_utf8(&self.id).unwrap_or_default()
    }

    pub(super) fn uuid(&self) -> Uuid {
        Uuid::try_parse_ascii(&self.id).unwrap_or_default()
    }

    pub(super) fn enter(&mut self, lane: &Lane) {
        lane.metrics.in_flight.inc();
        self.lane = Some((lane.endpoint.clone(), lane.metrics.clone()));
    }

    /// The attempt to deliver it that is told of to a tracing backend.
    pub(super) fn attempt(&self, endpoint: &Endpoint) -> trace::Attempt {
        self.trace.attempt(Delivery {
            endpoint: endpoint.name.as_str(),
            event_id: self.id(),
            number: 1,
        })
    }

    /// By when the sender has to hear something.
    pub(super) fn deadline(&self, endpoint: &Endpoint) -> Instant {
        self.began + endpoint.deadline
    }

    /// A refused signature is no refusal at an endpoint that does not enforce yet: `None`.
    pub(super) fn unless_enforced<T>(
        &self,
        endpoint: &Endpoint,
        outcome: Result<T, VerifyError>,
    ) -> Result<Option<T>, Rejection> {
        match outcome {
            Ok(good) => Ok(Some(good)),
            Err(_) if !endpoint.enforcement.at(self.now) => Ok(None),
            Err(VerifyError::Expired) => Err(Rejection::SignatureExpired),
            Err(VerifyError::Malformed) => Err(Rejection::SignatureMalformed),
            Err(VerifyError::Mismatch) => Err(Rejection::SignatureMismatch),
            Err(VerifyError::Missing) => Err(Rejection::SignatureMissing),
        }
    }

    /// Our own 2xx.
    pub(super) fn acknowledged(&mut self, outcome: Outcome) -> Response<AnswerBody> {
        self.outcome = Some(outcome);
        let (label, id) = (outcome.label(), self.id());
        let body = [r#"{"outcome":""#, label, r#"","event_id":""#, id, r#""}"#].concat();
        let mut response = Response::new(AnswerBody::held(body));
        *response.status_mut() = ACKNOWLEDGED;
        response.headers_mut().insert(header::CONTENT_TYPE, JSON);
        self.name(response.headers_mut());
        response
    }

    /// The upstream's answer.
    pub(super) fn forwarded(&mut self, answer: Answer, outcome: Outcome) -> Response<AnswerBody> {
        self.outcome = Some(outcome);
        let mut response = Response::new(answer.body);
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        self.name(response.headers_mut());
        response
    }

    /// Says which request this answers and what became of it.
    fn name(&self, headers: &mut HeaderMap) {
        if let Some(outcome) = self.outcome {
            headers.insert(OUTCOME, HeaderValue::from_static(outcome.label()));
        }
        if let Ok(id) = HeaderValue::from_bytes(&self.id) {
            headers.insert(EVENT_ID, id);
        }
    }

    /// Counts and logs the end.
    pub(super) fn end(
        &mut self,
        shared: &Shared,
        peer: Option<IpAddr>,
        response: &Response<AnswerBody>,
        ended: Instant,
    ) {
        let status = response.status();
        let took = ended.saturating_duration_since(self.began);
        if let Some((_, metrics)) = &self.lane {
            let outcome = self.outcome.unwrap_or(Outcome::Rejected);
            metrics.answered(self.event, outcome, status, took);
            if let Some(rejection) = self.rejection {
                metrics.refused(rejection);
            }
        } else if let Some(rejection) = self.rejection {
            shared.metrics.refused_unrouted(rejection);
        }
        let endpoint = self
            .lane
            .as_ref()
            .map_or("", |(endpoint, _)| endpoint.name.as_str());
        if let Some(rejection) = self.rejection {
            self.log_refusal(shared, rejection, endpoint, peer, status, ended);
        }
        std::mem::take(&mut self.trace).end(Ending {
            endpoint,
            event_id: str::from_utf8(&self.id).unwrap_or_default(),
            status,
            outcome: self.outcome.map(Outcome::label),
            reason: self.rejection.map(Rejection::label),
        });
        if shared.access_log.load(Ordering::Relaxed) {
            tracing::info!(
                endpoint,
                event_id = self.id(),
                status = status.as_u16(),
                outcome = self.outcome.map(Outcome::label),
                seconds = took.as_secs_f64(),
                peer = peer.map(tracing::field::display),
                "request"
            );
        }
    }

    /// Tells whoever watches.
    pub(super) fn tell(
        &mut self,
        feed: &Feed,
        watch: &Watch,
        head: &Parts,
        status: StatusCode,
        ended: Instant,
    ) {
        let target = head.uri.path_and_query().map_or("/", |t| t.as_str());
        let body = self.captured.take();
        let is_captured = self.level == Level::Captured;
        let endpoint = self.lane.as_ref().map(|(endpoint, _)| &endpoint.name);
        feed.push(Seen {
            event_id: self.id().to_owned(),
            at: self.now,
            endpoint: endpoint.map(ToString::to_string),
            method: head.method.to_string(),
            target: Seen::cut(target),
            peer: watch.peer_text.as_deref().map(str::to_owned),
            event: self.event.label(),
            status: status.as_u16(),
            outcome: self.outcome.map(Outcome::label),
            reason: self.rejection.map(Rejection::label),
            took: ended.saturating_duration_since(self.began),
            captured: is_captured.then(|| Captured::new(&head.headers, target, body)),
        });
    }

    /// Logs something odd about an event that goes on all the same; sampled, because a sender may
    /// do it all day.
    pub(super) fn notice(&self, shared: &Shared, what: &'static str) {
        let Some(suppressed) = shared.notices.admit(self.began) else {
            return;
        };
        let endpoint = self
            .lane
            .as_ref()
            .map_or("", |(endpoint, _)| endpoint.name.as_str());
        tracing::warn!(endpoint, event_id = self.id(), suppressed, "{what}");
    }

    fn log_refusal(
        &self,
        shared: &Shared,
        rejection: Rejection,
        endpoint: &str,
        peer: Option<IpAddr>,
        status: StatusCode,
        ended: Instant,
    ) {
        let Some(suppressed) = shared.refusals.admit(rejection.fault(), ended) else {
            return;
        };
        let (event_id, reason, status) = (self.id(), rejection.label(), status.as_u16());
        let peer = peer.map(tracing::field::display);
        match rejection.fault() {
            Fault::Sender => {
                tracing::info!(
                    endpoint, event_id, reason, status, peer, suppressed, "refused"
                );
            }
            Fault::Ours => {
                let remedy = rejection.remedy();
                tracing::warn!(
                    endpoint, event_id, reason, status, peer, suppressed, remedy, "shed"
                );
            }
            Fault::Upstream => {
                let cause = self.cause.map(tracing::field::display);
                tracing::warn!(
                    endpoint,
                    event_id,
                    reason,
                    status,
                    cause,
                    suppressed,
                    "delivery failed"
                );
            }
        }
    }
}

impl Drop for Visit {
    /// Also when the request's task is dropped half-way.
    fn drop(&mut self) {
        if let Some((_, metrics)) = &self.lane {
            metrics.in_flight.dec();
        }
    }
}

/// The answer to a refusal or failure.
pub(super) fn problem(rejection: Rejection, visit: &mut Visit) -> Response<AnswerBody> {
    let signature = visit
        .lane
        .as_ref()
        .map(|(endpoint, _)| endpoint.reject_status);
    let status = rejection.status(signature.unwrap_or(StatusCode::UNAUTHORIZED));
    visit.closes |= rejection.closes();
    visit.rejection = Some(rejection);
    if visit.lane.is_some() && !matches!(rejection, Rejection::Malformed(_)) {
        let outcome = if rejection.is_refusal() {
            Outcome::Rejected
        } else {
            Outcome::Failed
        };
        visit.outcome = Some(outcome);
    }
    let mut response = Response::new(AnswerBody::held(rejection.problem(status, visit.id())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, PROBLEM);
    if let Some(seconds) = rejection.retry_after() {
        headers.insert(header::RETRY_AFTER, seconds);
    }
    if rejection == Rejection::Method {
        headers.insert(header::ALLOW, ALLOW);
    }
    visit.name(headers);
    response
}

/// The status of a first delivery that was waited for; one that ended without a word was ours.
pub(super) fn first_failed(status: Option<u16>) -> Rejection {
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    Rejection::FirstFailed(status.unwrap_or(StatusCode::BAD_GATEWAY))
}

/// A size as a metric takes it.
#[expect(
    clippy::cast_precision_loss,
    reason = "a body's size is far below 2^52"
)]
pub(super) fn float(size: usize) -> f64 {
    size as f64
}
