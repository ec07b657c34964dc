//! One request, from its head to its answer, in the order things happen.
//!
//! Owns the order of the steps and the clock: `now` is read here once and handed down. How a step
//! works is left to its room, and which status a refusal gets to `rejection`. Only a body whose
//! signature was good (or an endpoint that does not enforce yet) passes the line marked below;
//! nothing before it touches the duplicate table or the upstream.

mod disk;
mod fallback;
mod live;
mod visit;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header, request::Parts};
use tokio::task::JoinSet;

pub(crate) use self::disk::lane_of;
pub(crate) use self::live::queue_limits;
pub use self::live::{Lane, Live, Refusals, Shared};
use self::visit::{Visit, problem};
use crate::{
    body::{self, Body, BodyError},
    connection::{self, Inflow, Verdict, Watch},
    dedup::{Ask, BodyHash, Claim, Decision, Digest, Ended, Fingerprint, Table},
    endpoint::{Endpoint, MissingKey, Mode, is_trusted},
    event,
    feed::Level,
    headers::{self, Forward, RequestHead},
    kept::Origin,
    metrics::{EventLabel, Outcome},
    rejection::{KeyFault, Malformation, Rejection},
    signature::{Authentic, EventTypeSource, KeySource, SignedRequest},
    trace::Trace,
    upstream::{Answer, AnswerBody, Progress, UpstreamError},
};

/// Most bytes in an idempotency key.
const KEY_LIMIT: usize = 255;
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

/// Malformed, 431 by count, 414: what can be said before the path is looked up.
fn check_head<'h>(head: &'h Parts, live: &Live) -> Result<&'h str, Rejection> {
    let malformed = |what| Err(Rejection::Malformed(what));
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) if headers::is_host(host) => Some(host.as_bytes()),
        (None, None) if head.version == http::Version::HTTP_10 => None,
        _ => return malformed(Malformation::Host),
    };
    if let Some(authority) = head.uri.authority() {
        // An absolute target may only repeat the Host (RFC 9112 §3.2.2).
        let same = host.is_some_and(|h| h.eq_ignore_ascii_case(authority.as_str().as_bytes()));
        if !same {
            return malformed(Malformation::Host);
        }
    }
    if head
        .headers
        .keys()
        .any(|name| headers::shadows(name, |plain| live.endpoints.reads(plain)))
    {
        return malformed(Malformation::Shadow);
    }
    let path = head.uri.path();
    let target = head
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    if !path.starts_with('/') || !headers::is_target(target) || head.method == Method::CONNECT {
        return malformed(Malformation::Target);
    }
    if head.headers.len() > live.limits.max_header_fields {
        return Err(Rejection::HeadersTooLarge);
    }
    if target.len() > live.limits.max_target_bytes {
        return Err(Rejection::TargetTooLong);
    }
    Ok(path)
}

/// Refuses a remainder that would climb out of the upstream's path, spelled in any way that some
/// application resolves.
fn check_remainder(remainder: &str) -> Result<(), Rejection> {
    let name = |segment: &str| -> String {
        // Some take a segment's parameters (RFC 3986 §3.3) or spaces around it off first.
        let plain = segment.split(';').next().unwrap_or_default();
        plain.trim().to_owned()
    };
    let is_plain = |text: String| {
        let lower = text.to_ascii_lowercase();
        let is_twice_encoded = ["%00", "%25", "%2e", "%2f", "%5c"]
            .iter()
            .any(|code| lower.contains(code));
        let climbs = text
            .split('/')
            .any(|segment| matches!(name(segment).as_str(), "." | ".."));
        !climbs && !is_twice_encoded && !text.contains(char::is_control)
    };
    if remainder.is_empty() || decoded(remainder).is_some_and(is_plain) {
        Ok(())
    } else {
        Err(Rejection::Malformed(Malformation::Target))
    }
}

/// A path with its percent-encoding taken off; `None` where that is broken, hides a slash or is no
/// UTF-8, or where a backslash stands in it.
fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        let mut one = [byte];
        if byte == b'%' {
            hex::decode_to_slice([rest.next()?, rest.next()?], &mut one).ok()?;
        }
        let [plain] = one;
        if plain == b'\\' || (plain == b'/' && byte == b'%') {
            return None;
        }
        bytes.push(plain);
    }
    String::from_utf8(bytes).ok()
}

/// What headers alone decide once the endpoint is known, before the signature: 405, inactive, 413.
fn refuse_early(
    endpoint: &Endpoint,
    head: &Parts,
    announced: Option<u64>,
) -> Result<(), Rejection> {
    if head.method != Method::POST {
        return Err(Rejection::Method);
    }
    if !endpoint.active {
        return Err(Rejection::Inactive);
    }
    let limit = u64::try_from(endpoint.max_body).unwrap_or(u64::MAX);
    if announced.is_some_and(|length| length > limit) {
        return Err(Rejection::BodyTooLarge);
    }
    Ok(())
}

/// The keyed digest of an event's idempotency key, in a header or in the body, or of the body in
/// its stead, and whether it is a key of its own; `None` where nothing protects it from being
/// taken twice.
///
/// # Errors
/// [`Rejection::IdempotencyKey`] when the key is empty, too long, or absent and required.
pub fn digest_of(
    table: &Table,
    endpoint: &Endpoint,
    header_key: Option<&[u8]>,
    body: &[u8],
) -> Result<(Option<Digest>, bool), Rejection> {
    let fault = |fault| Err(Rejection::IdempotencyKey(fault));
    let name = endpoint.name.as_str();
    let pointed = match endpoint.scheme.key_source() {
        KeySource::Pointer(pointer) => event::text_at(body, pointer),
        KeySource::Header(_) | KeySource::None => None,
    };
    match header_key.or(pointed.as_deref().map(str::as_bytes)) {
        Some([]) => fault(KeyFault::Empty),
        Some(key) if key.len() > KEY_LIMIT => fault(KeyFault::Long),
        Some(key) => Ok((Some(table.digest(name, key)), true)),
        None => match endpoint.dedup.missing_key {
            MissingKey::Body => {
                let digest = table.digest_of_body(name, &hash_of(table, body));
                Ok((Some(digest), false))
            }
            MissingKey::Forward => Ok((None, false)),
            MissingKey::Reject => fault(KeyFault::Absent),
        },
    }
}

/// The keyed hash of a whole body.
pub(crate) fn hash_of(table: &Table, body: &[u8]) -> BodyHash {
    let mut hasher = table.body_hasher();
    hasher.update(body);
    hasher.finish()
}

/// The idempotency key in a header, where the scheme keeps it there.
///
/// # Errors
/// [`Rejection::IdempotencyKey`] when it is empty, too long, there twice, or absent and required.
pub fn header_key<'h>(
    endpoint: &Endpoint,
    headers: &'h HeaderMap,
) -> Result<Option<&'h [u8]>, Rejection> {
    let fault = |fault| Err(Rejection::IdempotencyKey(fault));
    let KeySource::Header(name) = endpoint.scheme.key_source() else {
        return Ok(None);
    };
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) if endpoint.dedup.missing_key == MissingKey::Reject => fault(KeyFault::Absent),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => fault(KeyFault::Twice),
        (Some(key), None) if key.is_empty() => fault(KeyFault::Empty),
        (Some(key), None) if key.len() > KEY_LIMIT => fault(KeyFault::Long),
        (Some(key), None) => Ok(Some(key.as_bytes())),
    }
}

/// The event's type: in a header or in the body, where it can be read.
pub(crate) fn event_type(endpoint: &Endpoint, headers: &HeaderMap, body: &[u8]) -> Option<String> {
    match endpoint.scheme.event_type_source() {
        EventTypeSource::Header(name) => headers.get(name)?.to_str().ok().map(str::to_owned),
        EventTypeSource::Pointer(pointer) => event::text_at(body, pointer),
        EventTypeSource::None => None,
    }
}

/// Whether everybody who reads the event's type reads the same.
fn is_certain_type(endpoint: &Endpoint, head: &Parts, body: &Body) -> bool {
    match endpoint.scheme.event_type_source() {
        EventTypeSource::Header(name) => head.headers.get_all(name).iter().count() == 1,
        EventTypeSource::Pointer(pointer) => event::is_certain(body.as_bytes(), pointer),
        EventTypeSource::None => false,
    }
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

/// Handing one event to its upstream, or to the disk on its way there.
struct Relay<'a> {
    watch: &'a Watch,
    lane: &'a Arc<Lane>,
    pool: &'a Rc<crate::upstream::Pool>,
    head: &'a Parts,
    origin: &'a Origin<'a>,
    event_type: Option<String>,
    /// The event carries an idempotency key of its own.
    is_keyed: bool,
    /// When the whole body had been verified.
    passed: Instant,
}

impl Relay<'_> {
    /// The head of the request that the upstream gets.
    fn request_head(&self, visit: &Visit, body: &Body, verified: bool) -> RequestHead {
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
    async fn send(
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

/// What an upstream's failure was, for the log.
type Cause = UpstreamError;

/// The status of our own acknowledgement.
const ACKNOWLEDGED: StatusCode = StatusCode::OK;

#[cfg(test)]
mod tests;
