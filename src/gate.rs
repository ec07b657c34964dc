//! One request, from its head to its answer, in the order things happen.
//!
//! Owns the order of the steps and the clock: `now` is read here once and handed down. How a step
//! works is left to its room, and which status a refusal gets to `rejection`. Only a body whose
//! signature was good (or an endpoint that does not enforce yet) passes the line marked below;
//! nothing before it touches the duplicate table or the upstream.

mod disk;
mod fallback;
mod head;
mod identity;
mod live;
mod relay;
mod visit;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header, request::Parts};
use tokio::task::JoinSet;

pub(crate) use self::disk::lane_of;
pub use self::identity::{digest_of, header_key};
pub(crate) use self::identity::{event_type, hash_of};
pub(crate) use self::live::queue_limits;
pub use self::live::{Lane, Live, Refusals, Shared};
use self::{
    head::{check_head, check_remainder, refuse_early},
    identity::is_certain_type,
    relay::Relay,
    visit::{Visit, problem},
};
use crate::{
    body::{self, Body, BodyError},
    connection::{self, Inflow, Verdict, Watch},
    dedup::{Ask, Claim, Decision, Ended, Fingerprint},
    endpoint::{Mode, is_trusted},
    feed::Level,
    kept::Origin,
    metrics::{EventLabel, Outcome},
    rejection::{Malformation, Rejection},
    signature::{Authentic, SignedRequest},
    trace::Trace,
    upstream::{Answer, AnswerBody, UpstreamError},
};

/// A reservation large enough to make the allocator look at what it could give back, in bytes; its
/// memory is never touched.
const PURGE: usize = 4 << 20;
/// A body this long and still unread when its request is refused: its connection is not kept.
const UNREAD_LIMIT: u64 = 64 * 1024;

/// One thread's gate: the running configuration and this thread's upstream connections.
#[derive(Debug)]
pub struct Gate {
    shared: Arc<Shared>,
    lanes: RefCell<Rc<Lanes>>,
    random: RefCell<rand::rngs::StdRng>,
    /// Attempts that go on after their senders were answered; bounded by the upstreams' places.
    tasks: RefCell<JoinSet<()>>,
}

/// The running configuration with this thread's pools beside it, by endpoint number.
#[derive(Debug)]
struct Lanes {
    live: Arc<Live>,
    pools: Vec<Rc<crate::upstream::Pool>>,
}

/// A request that may go on to the upstream.
#[derive(Debug)]
enum Admitted {
    /// Its signature is good.
    Verified(Authentic),
    /// Its signature is not, at an endpoint that does not enforce yet.
    Unenforced,
}

impl Gate {
    /// A gate for one thread.
    pub fn new(shared: Arc<Shared>, live: Arc<Live>) -> Rc<Self> {
        Rc::new(Self {
            shared,
            lanes: RefCell::new(Rc::new(Lanes::new(live))),
            random: RefCell::new(rand::make_rng()),
            tasks: RefCell::default(),
        })
    }

    /// What all threads share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The configuration that runs.
    pub fn live(&self) -> Arc<Live> {
        self.lanes.borrow().live.clone()
    }

    /// Puts another configuration in force. Requests under way end under the one they began with.
    pub fn switch(&self, live: Arc<Live>) {
        *self.lanes.borrow_mut() = Rc::new(Lanes::new(live));
    }

    /// Drops upstream connections that died while idle, and keys whose window is over.
    pub fn sweep(&self, now: Instant) {
        self.lanes
            .borrow()
            .pools
            .iter()
            .for_each(|pool| pool.sweep(now));
        self.shared.table.sweep(now);
        while self.tasks.borrow_mut().try_join_next().is_some() {}
        body::tidy();
        connection::tidy();
        // The allocator gives memory back when something large is freed, and not by itself: after a
        // burst of bodies an idle thread would hold on to it.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(PURGE)));
    }

    /// Waits for the attempts that go on after their senders were answered.
    pub async fn finish(&self) {
        let mut tasks = self.tasks.take();
        while tasks.join_next().await.is_some() {}
    }

    /// Answers one request.
    pub async fn handle(
        &self,
        watch: &Watch,
        request: Request<Inflow<'_>>,
    ) -> Response<AnswerBody> {
        let now = SystemTime::now();
        let level = self.shared.feed.level();
        let mut visit = Visit::begin(now, watch.begin(), level, &mut self.random.borrow_mut());
        let (head, inflow) = request.into_parts();
        visit.trace = Trace::begin(&head.headers, now);
        let outcome = self.pass(watch, &head, inflow, &mut visit).await;
        let mut response = match outcome {
            Ok(response) => response,
            Err(rejection) => problem(rejection, &mut visit),
        };
        let closes = self.shared.is_leaving.load(Ordering::Relaxed) || visit.closes;
        if closes {
            response.headers_mut().insert(header::CONNECTION, CLOSE);
        }
        let ended = visit.answered.unwrap_or_else(Instant::now);
        visit.end(&self.shared, watch.peer, &response, ended);
        if level != Level::Off {
            visit.tell(&self.shared.feed, watch, &head, response.status(), ended);
        }
        watch.answered(ended, closes);
        response
    }

    /// The request's life.
    async fn pass(
        &self,
        watch: &Watch,
        head: &Parts,
        inflow: Inflow<'_>,
        visit: &mut Visit,
    ) -> Result<Response<AnswerBody>, Rejection> {
        let lanes = self.lanes.borrow().clone();
        visit.closes = true;
        let path = check_head(head, &lanes.live)?;

        // Requests beside this one may know a path.
        visit.closes = !matches!(inflow, Inflow::Stream(..));
        let (lane, pool, remainder) = lanes.find(path).ok_or(Rejection::UnknownPath)?;
        visit.enter(lane);
        let endpoint = &*lane.endpoint;
        check_remainder(remainder)?;
        let announced = inflow.announced();
        visit.closes = !inflow.can_be_passed_over(UNREAD_LIMIT);
        refuse_early(endpoint, head, announced)?;

        let signed = SignedRequest {
            headers: &head.headers,
            method: head.method.as_str(),
            url: head
                .uri
                .path_and_query()
                .map_or("/", |target| target.as_str()),
        };
        let verification = endpoint.scheme.open(&endpoint.secrets, &signed, visit.now);
        let mut verification = visit.unless_enforced(endpoint, verification)?;
        let header_key = header_key(endpoint, &head.headers);
        // Whether a request is verified is known after its body only; an unverified one has no key.
        let header_key = match endpoint.enforcement.at(visit.now) {
            true => Ok(header_key?),
            false => header_key,
        };
        self.check_room(lane, header_key.as_ref().ok().copied().flatten(), announced)
            .await?;

        let (mut spent, mut seen) = (Duration::ZERO, None);
        let see = |bytes: &[u8]| {
            if let Some(verification) = &mut verification {
                let start = Instant::now();
                verification.update(bytes);
                let end = Instant::now();
                spent += end - start;
                seen = Some(end);
            }
        };
        let body = body::read(
            inflow,
            announced,
            endpoint.max_body,
            &self.shared.budget,
            see,
        );
        let body = body.await.map_err(|error| unread(error, watch))?;
        visit.closes = false;
        if visit.level == Level::Captured {
            visit.captured = Some(Bytes::copy_from_slice(body.as_bytes()));
        }
        lane.metrics
            .body_bytes
            .observe(visit::float(body.as_bytes().len()));
        let passed = seen.unwrap_or_else(Instant::now);
        let origin = Origin {
            peer: watch.peer_text.as_deref(),
            peer_is_trusted: is_trusted(watch.peer, &lanes.live.trusted_proxies),
            proto: watch.proto,
            remainder,
            received_at: visit.now,
        };
        let mut relay = Relay {
            passed,
            watch,
            lane,
            pool,
            head,
            origin: &origin,
            event_type: None,
            is_keyed: false,
        };
        let admitted = match verification {
            None => Admitted::Unenforced,
            Some(verification) => {
                self.shared
                    .metrics
                    .verify_duration
                    .observe(spent.as_secs_f64());
                let authentic = verification.finish();
                let authentic = visit.unless_enforced(endpoint, authentic);
                if matches!(authentic, Err(Rejection::SignatureMismatch)) {
                    relay.quarantine(visit, &body, "signature_mismatch");
                }
                authentic?.map_or(Admitted::Unenforced, Admitted::Verified)
            }
        };

        // Only what is genuine passes here (or what an endpoint that enforces later lets through).
        relay.event_type = event_type(endpoint, &head.headers, body.as_bytes());
        let Admitted::Verified(authentic) = admitted else {
            let answer = relay.send(visit, &body, false, false).await?;
            return Ok(visit.forwarded(answer, Outcome::Unverified));
        };
        let header_key = header_key?;
        let is_wanted = endpoint.events.allows(relay.event_type.as_deref());
        let is_filtered = !is_wanted && is_certain_type(endpoint, head, &body);
        if !is_wanted && !is_filtered {
            // Others may read another type: a filter loses nothing it does not understand.
            relay.event_type = None;
        }
        visit.event = EventLabel::of(relay.event_type.as_deref());
        lane.metrics.verified(authentic.secret(), visit.now);
        if is_filtered {
            return Ok(visit.acknowledged(Outcome::Filtered));
        }

        let ask;
        (ask, relay.is_keyed) = self.ask(lane, header_key, &body, &authentic, relay.passed)?;
        let claim = match self.claim(&relay, visit, &body, ask)? {
            Claimed::Duplicate => return Ok(visit.acknowledged(Outcome::Duplicate)),
            Claimed::First(claim) => claim,
            Claimed::InFlight(waiter) => {
                // Only the first one's body is needed: a crowd of waiters costs no memory.
                drop(body);
                return match watch.until(visit.deadline(endpoint), waiter).await {
                    Some(Ended::Committed) => Ok(visit.acknowledged(Outcome::Duplicate)),
                    Some(Ended::Released { status }) => Err(visit::first_failed(status)),
                    None => Err(Rejection::InFlight),
                };
            }
        };

        match self.reach(&relay, visit, body, &ask).await {
            Err(rejection) => {
                claim.release(Some(rejection.status(endpoint.reject_status).as_u16()));
                Err(rejection)
            }
            Ok(Reached::Before(remaining)) => {
                claim.commit_for(remaining, Instant::now());
                Ok(visit.acknowledged(Outcome::Duplicate))
            }
            Ok(Reached::Disk) => {
                // The commit that holds the event and its key was synced: from here on 200 is true.
                claim.commit(Instant::now());
                Ok(visit.acknowledged(Outcome::Queued))
            }
            Ok(Reached::Upstream(answer)) => {
                if answer.status.is_success() {
                    // The upstream has said 2xx: from here on the same key is a duplicate.
                    claim.commit(visit.answered.unwrap_or(relay.passed));
                } else {
                    claim.release(Some(answer.status.as_u16()));
                }
                Ok(visit.forwarded(answer, Outcome::Forwarded))
            }
        }
    }

    /// Takes an event as far as its endpoint wants before the sender is answered: to the disk, or
    /// to the upstream.
    async fn reach(
        &self,
        relay: &Relay<'_>,
        visit: &mut Visit,
        body: Body,
        ask: &Ask,
    ) -> Result<Reached, Rejection> {
        let Mode::Relay { fallback } = relay.lane.endpoint.mode else {
            return self.queue(relay, visit, &body, ask).await;
        };
        if let Some(remaining) = self.seen(relay, visit, &body, ask).await? {
            return Ok(Reached::Before(remaining));
        }
        let reached = match fallback {
            // It would overtake an event that was acknowledged before it came.
            Some(_) if self.must_wait(relay, &body).await? => {
                return self.queue(relay, visit, &body, ask).await;
            }
            Some(after) => self.relay_or_keep(relay, visit, body, ask, after).await?,
            None => Reached::Upstream(relay.send(visit, &body, true, relay.is_keyed).await?),
        };
        if matches!(&reached, Reached::Upstream(answer) if answer.status.is_success()) {
            self.remember(relay, visit, ask).await;
        }
        Ok(reached)
    }

    /// What is asked of the duplicate table: the key, and what tells one body from another; and
    /// whether the event carries a key of its own.
    fn ask(
        &self,
        lane: &Lane,
        header_key: Option<&[u8]>,
        body: &Body,
        authentic: &Authentic,
        now: Instant,
    ) -> Result<(Ask, bool), Rejection> {
        let table = &self.shared.table;
        let endpoint = &*lane.endpoint;
        let name = endpoint.name.as_str();
        let (digest, is_own) = digest_of(table, endpoint, header_key, body.as_bytes())?;
        // The tag over the body alone tells bodies apart as well as a hash of the body would, but
        // not beyond a change of secrets: what is put on disk has to.
        let has_disk = lane.queue.is_some();
        let fingerprint: Fingerprint = if endpoint.scheme.signs_body_alone() && !has_disk {
            let basis = u8::try_from(authentic.secret()).unwrap_or(u8::MAX);
            table.fingerprint(name, basis, authentic.tag())
        } else {
            table.fingerprint_of_body(name, &hash_of(table, body.as_bytes()))
        };
        let policy = endpoint.dedup.policy;
        let ask = Ask {
            digest,
            body: Some(fingerprint),
            policy,
            now,
        };
        Ok((ask, is_own))
    }

    fn claim(
        &self,
        relay: &Relay<'_>,
        visit: &Visit,
        body: &Body,
        ask: Ask,
    ) -> Result<Claimed, Rejection> {
        let metrics = &relay.lane.metrics;
        let decision = self.shared.table.claim(ask);
        let key_reused = match &decision {
            Decision::Duplicate { key_reused }
            | Decision::First { key_reused, .. }
            | Decision::InFlight { key_reused, .. } => *key_reused,
            Decision::KeyReuse => true,
            Decision::Full | Decision::Replay => false,
        };
        self.note_reuse(key_reused, relay, visit, body);
        match decision {
            Decision::Duplicate { .. } => Ok(Claimed::Duplicate),
            Decision::First {
                claim, replayed, ..
            } => {
                if replayed {
                    metrics.replays.inc();
                    visit.notice(
                        &self.shared,
                        "body came again under another idempotency key",
                    );
                }
                Ok(Claimed::First(claim))
            }
            Decision::Full => Err(Rejection::Overloaded),
            Decision::InFlight { waiter, .. } => Ok(Claimed::InFlight(waiter)),
            Decision::KeyReuse => Err(Rejection::KeyReuse),
            Decision::Replay => {
                metrics.replays.inc();
                Err(Rejection::Replay)
            }
        }
    }
}

const CLOSE: http::HeaderValue = http::HeaderValue::from_static("close");

/// How far an event came before its sender is answered.
enum Reached {
    /// It was taken before, and its key is for so much longer.
    Before(Duration),
    /// It is on disk, synced.
    Disk,
    /// The upstream answered.
    Upstream(Answer),
}

/// What the duplicate table let happen.
enum Claimed {
    Duplicate,
    First(Claim),
    InFlight(crate::dedup::Waiter),
}

/// Why a body was not read: the connection knows whether it was slow or ambiguous.
fn unread(error: BodyError, watch: &Watch) -> Rejection {
    match (error, watch.verdict()) {
        (BodyError::Overloaded, _) => Rejection::Overloaded,
        (BodyError::TooLarge, _) => Rejection::BodyTooLarge,
        (BodyError::Broken, Some(Verdict::Slow)) => Rejection::Timeout,
        (BodyError::Broken, _) => Rejection::Malformed(Malformation::Framing),
    }
}

/// What an upstream's failure was, for the log.
type Cause = UpstreamError;

/// The status of our own acknowledgement.
const ACKNOWLEDGED: StatusCode = StatusCode::OK;
