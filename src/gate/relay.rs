//! Handing one event to its upstream.
//!
//! Owns the head that the upstream gets and what an attempt of the gate counts; how bytes get there
//! is `upstream`'s.

use std::{rc::Rc, sync::Arc, time::Instant};

use http::request::Parts;

use super::{live::Lane, visit::Visit};
use crate::{
    body::Body,
    connection::Watch,
    headers::{self, Forward, RequestHead},
    kept::Origin,
    rejection::Rejection,
    upstream::{Answer, Progress},
};

/// Handing one event to its upstream, or to the disk on its way there.
pub(super) struct Relay<'a> {
    pub(super) watch: &'a Watch,
    pub(super) lane: &'a Arc<Lane>,
    pub(super) pool: &'a Rc<crate::upstream::Pool>,
    pub(super) head: &'a Parts,
    pub(super) origin: &'a Origin<'a>,
    pub(super) event_type: Option<String>,
    /// The event carries an idempotency key of its own.
    pub(super) is_keyed: bool,
    /// When the whole body had been verified.
    pub(super) passed: Instant,
}

impl Relay<'_> {
    /// The head of the request that the upstream gets.
    pub(super) fn request_head(&self, visit: &Visit, body: &Body, verified: bool) -> RequestHead {
        let endpoint = &*self.lane.endpoint;
        let upstream = &endpoint.upstream;
        let (origin, event_type) = (self.origin, self.event_type.as_deref());
        let target = upstream.target(origin.remainder, self.head.uri.query());
        let forward = Forward {
            target: &target,
            authority: &upstream.authority,
            extra: &upstream.headers,
            endpoint: endpoint.name.as_str(),
            event_id: visit.id(),
            event_type: event_type.filter(|t| headers::is_plain_event_type(t)),
            verified,
            received_at: origin.received_at,
            peer: origin.peer,
            peer_is_trusted: origin.peer_is_trusted,
            proto: origin.proto,
            body_len: body.as_bytes().len(),
        };
        let is_protected =
            |name: &http::HeaderName| endpoint.scheme.header_names().any(|n| n == name);
        let room = self.pool.spare_room();
        headers::request_head(room, &self.head.headers, &forward, is_protected)
    }

    /// Sends the event within the endpoint's deadline and counts what came back.
    pub(super) async fn send(
        &self,
        visit: &mut Visit,
        body: &Body,
        verified: bool,
        keyed: bool,
    ) -> Result<Answer, Rejection> {
        let endpoint = &*self.lane.endpoint;
        // A place at the upstream is for what is genuine: strangers' slow bodies hold none.
        let permit = self
            .lane
            .upstream
            .enter(self.passed)
            .ok_or(Rejection::Overloaded)?;
        let head = self.request_head(visit, body, verified);
        let (progress, patience) = (Progress::default(), endpoint.deadline);
        let attempt = visit.attempt(endpoint);
        let sent = self
            .pool
            .send(permit, head, body.as_bytes(), keyed, patience, &progress);
        let metrics = &self.lane.metrics;
        match self.watch.until(visit.deadline(endpoint), sent).await {
            Some(Ok(answer)) => {
                let answered = Instant::now();
                visit.answered = Some(answered);
                metrics.upstream_answered(answer.status, answered - self.passed);
                attempt.end(Ok(answer.status));
                Ok(answer)
            }
            Some(Err(error)) => {
                attempt.end(Err(&error));
                metrics.upstream_errors.inc();
                visit.cause = Some(error);
                Err(Rejection::UpstreamUnreachable)
            }
            None => {
                attempt.end(Err(&"no answer in time"));
                metrics.upstream_errors.inc();
                Err(Rejection::UpstreamTimeout)
            }
        }
    }
}
