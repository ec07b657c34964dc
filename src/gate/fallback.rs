//! A relay that falls back to the disk: the upstream's answer if a good one comes in time, else 200
//! for an event on disk.
//!
//! Exactly one of the two: once the event is on disk the sender hears 200, whatever the upstream
//! still says. The attempt that was running then goes on to its end in a task of this thread, and
//! counts as the event's first.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use http::StatusCode;

use super::{
    Gate, Reached, Relay,
    disk::{BRIEFLY, length, refusal},
    live::Lane,
    visit::Visit,
};
use crate::{
    attempt::Ended,
    body::Body,
    dedup::Ask,
    queue::{AppendError, AppendedLeased, Lease},
    rejection::Rejection,
    upstream::{Answer, Progress},
};

/// What part of a deadline is left for the commit when the upstream has been waited for.
const FOR_THE_COMMIT: u32 = 10;

type Attempt = Pin<Box<dyn Future<Output = Result<Answer, Ended>>>>;

/// What is known of the attempt when the event went to disk.
struct Running {
    attempt: Attempt,
    ended: Option<Result<Answer, Ended>>,
    progress: Rc<Progress>,
    began: Instant,
}

/// Whether an answer says that a later attempt may fare better.
fn falls_back(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
        )
}

impl Gate {
    /// Relays an event, or keeps it when no good answer came `after` a time.
    pub(super) async fn relay_or_keep(
        &self,
        relay: &Relay<'_>,
        visit: &mut Visit,
        body: Body,
        ask: &Ask,
        after: Duration,
    ) -> Result<Reached, Rejection> {
        let endpoint = &relay.lane.endpoint;
        let body = Rc::new(body);
        let progress = Rc::new(Progress::default());
        let mut attempt = relay.attempt(visit, &body, progress.clone())?;
        let deadline = visit.deadline(endpoint);
        let reserve = endpoint.deadline / FOR_THE_COMMIT;
        let fall_at = (relay.passed + after).min(deadline.checked_sub(reserve).unwrap_or(deadline));
        let mut ended = relay.watch.until(fall_at, attempt.as_mut()).await;
        if let Some(Ok(answer)) = &ended
            && !falls_back(answer.status)
        {
            return relay.answered(visit, ended).map(Reached::Upstream);
        }
        let append = relay.keep(visit, &body, ask);
        match along(append, &mut attempt, &mut ended).await {
            Ok(AppendedLeased::Leased { lease, key_reused }) => {
                self.note_reuse(key_reused, relay, visit, &body);
                let lane = relay.lane.clone();
                let running = Running {
                    attempt,
                    ended,
                    progress,
                    began: relay.passed,
                };
                let finish = finish(lane, lease, running);
                self.tasks.borrow_mut().spawn_local(finish);
                return Ok(Reached::Disk);
            }
            Ok(AppendedLeased::Duplicate { key_reused }) => {
                self.note_reuse(key_reused, relay, visit, &body);
                return Ok(Reached::Before(BRIEFLY));
            }
            Err(Rejection::KeyReuse) => {
                self.note_reuse(true, relay, visit, &body);
                return Err(Rejection::KeyReuse);
            }
            // There is no disk to fall back to: what the upstream says has to do.
            Err(_) => visit.notice(&self.shared, "no room on disk to fall back to"),
        }
        if ended.is_none() {
            ended = relay.watch.until(deadline, attempt).await;
        }
        relay.answered(visit, ended).map(Reached::Upstream)
    }
}

impl Relay<'_> {
    /// The one attempt, which owns what it needs and so can outlive the request.
    fn attempt(
        &self,
        visit: &Visit,
        body: &Rc<Body>,
        progress: Rc<Progress>,
    ) -> Result<Attempt, Rejection> {
        let permit = self.lane.upstream.enter(self.passed);
        let permit = permit.ok_or(Rejection::Overloaded)?;
        let head = self.request_head(visit, body, true);
        let (pool, body, keyed) = (self.pool.clone(), body.clone(), self.is_keyed);
        let limit = self.lane.endpoint.queueing.attempt_timeout;
        let told = visit.attempt(&self.lane.endpoint);
        Ok(Box::pin(async move {
            let sent = pool.send(permit, head, body.as_bytes(), keyed, limit, &progress);
            let ended = match tokio::time::timeout(limit, sent).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(Ended::Failed(error)),
                Err(_elapsed) => Err(Ended::TimedOut(limit)),
            };
            match &ended {
                Ok(answer) => told.end(Ok(answer.status)),
                Err(cause) => told.end(Err(cause)),
            }
            ended
        }))
    }

    async fn keep(
        &self,
        visit: &Visit,
        body: &Body,
        ask: &Ask,
    ) -> Result<AppendedLeased, Rejection> {
        let event = self.event(visit, body, ask)?;
        let place = self.lane.place(length(&event))?;
        place
            .append_leased(event)
            .await
            .map_err(|error| match error {
                AppendError::KeyReuse => Rejection::KeyReuse,
                AppendError::Refused(refused) => refusal(refused),
            })
    }

    /// Counts what an attempt came to while the sender was waiting for it.
    fn answered(
        &self,
        visit: &mut Visit,
        ended: Option<Result<Answer, Ended>>,
    ) -> Result<Answer, Rejection> {
        let metrics = &self.lane.metrics;
        match ended {
            Some(Ok(answer)) => {
                let answered = Instant::now();
                visit.answered = Some(answered);
                metrics.upstream_answered(answer.status, answered - self.passed);
                Ok(answer)
            }
            Some(Err(Ended::Failed(error))) => {
                metrics.upstream_errors.inc();
                visit.cause = Some(error);
                Err(Rejection::UpstreamUnreachable)
            }
            Some(Err(Ended::Answered { .. } | Ended::TimedOut(_))) | None => {
                metrics.upstream_errors.inc();
                Err(Rejection::UpstreamTimeout)
            }
        }
    }
}

/// Runs an append to its end while the attempt goes on beside it.
async fn along<T>(
    append: impl Future<Output = T>,
    attempt: &mut Attempt,
    ended: &mut Option<Result<Answer, Ended>>,
) -> T {
    let mut append = std::pin::pin!(append);
    poll_fn(|cx| {
        if ended.is_none()
            && let Poll::Ready(end) = attempt.as_mut().poll(cx)
        {
            *ended = Some(end);
        }
        append.as_mut().poll(cx)
    })
    .await
}

/// Waits for the end of the attempt and puts it on disk.
async fn finish(lane: Arc<Lane>, mut lease: Lease, running: Running) {
    let ended = match running.ended {
        Some(ended) => ended,
        None => running.attempt.await,
    };
    let ended = match ended {
        Ok(answer) => Ended::answered(answer.status, &answer.headers, SystemTime::now()),
        Err(ended) => ended.given(&running.progress),
    };
    match ended.status() {
        Some(status) => {
            let took = running.began.elapsed();
            lane.metrics.upstream_answered(status, took);
        }
        None => lane.metrics.upstream_errors.inc(),
    }
    lease.sent_again(running.progress.resends());
    let (event_id, settled) = (lease.id(), lane.judge(&lease, ended));
    if let Err(error) = lease.settle(settled).await {
        let endpoint = &lane.endpoint.name;
        tracing::warn!(%endpoint, %event_id, %error, "the end of an attempt was not noted");
    }
}
