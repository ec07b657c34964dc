//! One event to the application: a connection, one request, its answer.
//!
//! Owns the connections to an upstream, how many may be used at a time, and what a failed attempt
//! was. A request goes out once; a second time only when a reused connection turned out to be dead
//! and the event cannot have been acted on twice (an idempotency key, or not one byte written). It
//! leaves what the request says to `headers`, deadlines to the gate, and trying again later to
//! whoever queues events.
//!
//! HTTP/1.1 is spoken here and not through a client library for three things such a library does
//! not tell: how many bytes of a request were written before its connection died, an answer that
//! comes before the request was read, and an answer that two parsers could read differently.

mod answer;
mod connect;
mod once;

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio::io::AsyncWrite as _;

pub use self::answer::AnswerBody;
pub use self::connect::{Misfit, TlsFault};
pub(crate) use self::once::Asker;
use self::{
    answer::{Head, Passing, Rest, Unintelligible, poll_fill, take_head},
    connect::Route,
};
use crate::{
    endpoint,
    framing::Piece,
    headers::{self, RequestHead},
    stream::Stream,
};

/// An answer up to this size is read whole before its head goes to the sender, so that a break-off
/// in the middle of it is a failure and not a torso; in bytes.
const HELD_LIMIT: usize = 64 * 1024;
/// A body up to this size is copied behind its head, so that both go out by send, which costs the
/// system less than a vector of two; in bytes.
const JOINED_LIMIT: usize = 8 * 1024;
/// A body above this size goes out at once, while it is still in the processor's cache; in bytes.
const GATHERED_LIMIT: usize = 64 * 1024;
/// Room for a request with a small body, in bytes; the most that is kept of it, and how often.
const REQUEST_ROOM: usize = 4 * 1024;
const ROOM_LIMIT: usize = 2 * JOINED_LIMIT;
const SPARE_ROOMS: usize = 64;
/// How long a connection may be idle: not longer than a name's addresses are believed, and short of
/// what forgets idle connections on the way.
const IDLE_LIFE: Duration = Duration::from_secs(30);
/// First and longest pause between two attempts to connect.
const CONNECT_PAUSES: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_millis(500));

/// How long the rest of an answer is waited for that nobody reads: its end lets the connection be
/// used again, but no upstream that is slow to say it keeps its place for that.
const UNHEARD_PATIENCE: Duration = Duration::from_secs(1);
/// When it is worth asking again for a place that another thread may free.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Longest time to the next place by rate; a slow rate is asked again.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Why an upstream gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamError {
    /// The connection ended before a whole answer.
    BrokeOff,
    /// No connection could be made.
    Connect(io::ErrorKind),
    /// A connection, but no TLS session on it.
    Tls(TlsFault),
    /// What came was no HTTP/1.1 answer that only one reading fits.
    Unintelligible,
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BrokeOff => f.write_str("the upstream closed the connection before it answered"),
            Self::Connect(kind) => write!(f, "the upstream could not be reached: {kind}"),
            Self::Tls(fault) => write!(f, "the upstream could not be reached: {fault}"),
            Self::Unintelligible => f.write_str("the upstream's answer is not plain HTTP/1.1"),
        }
    }
}

impl std::error::Error for UpstreamError {}

impl From<Unintelligible> for UpstreamError {
    fn from(_: Unintelligible) -> Self {
        Self::Unintelligible
    }
}

/// What all threads share about one upstream: the way to it, and how busy it may be.
#[derive(Debug)]
pub struct Upstream {
    route: Route,
    load: Arc<Load>,
    max_concurrency: usize,
    rate: Option<endpoint::Rate>,
    connect_retry: Duration,
}

/// How busy an upstream is; it outlives a change of configuration.
#[derive(Debug)]
pub struct Load {
    running: AtomicUsize,
    bucket: Mutex<Option<Bucket>>,
}

/// Tokens for a bounded rate.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// The right to have one request at the upstream.
#[derive(Debug)]
#[must_use = "the upstream counts as busy for as long as this lives"]
pub struct Permit(Arc<Load>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Upstream {
    /// Prepares an upstream; `before` is the same one under the previous configuration.
    ///
    /// # Errors
    /// What is wrong with its host or certificates.
    pub fn new(settings: &endpoint::Upstream, before: Option<&Self>) -> Result<Self, Misfit> {
        let fresh = || {
            Arc::new(Load {
                running: AtomicUsize::new(0),
                bucket: Mutex::new(None),
            })
        };
        Ok(Self {
            route: Route::new(&settings.transport, settings.connect_timeout, &settings.tls)?
                .within(settings.allow.clone()),
            load: before.map_or_else(fresh, |before| before.load.clone()),
            max_concurrency: settings.max_concurrency.get(),
            rate: settings.rate,
            connect_retry: settings.connect_retry,
        })
    }

    /// Takes a place at the upstream; `None` when it is busy to its bound.
    pub fn enter(&self, now: Instant) -> Option<Permit> {
        let take = |running: usize| (running < self.max_concurrency).then_some(running + 1);
        let running = &self.load.running;
        running
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .ok()?;
        let permit = Permit(self.load.clone());
        let Some(rate) = self.rate else {
            return Some(permit);
        };
        let mut bucket = self.load.bucket();
        let tokens = rate.tokens(*bucket, now);
        let enough = tokens >= 1.0;
        *bucket = Some(Bucket {
            tokens: if enough { tokens - 1.0 } else { tokens },
            at: now,
        });
        enough.then_some(permit)
    }

    /// How many places there are, none of which is taken by asking; where there is none, after how
    /// long it is worth asking again.
    pub fn room(&self, now: Instant) -> Result<usize, Duration> {
        let running = self.load.running.load(Ordering::Acquire);
        let free = self.max_concurrency.saturating_sub(running);
        if free == 0 {
            return Err(BUSY_PAUSE);
        }
        let Some(rate) = self.rate else {
            return Ok(free);
        };
        let tokens = rate.tokens(*self.load.bucket(), now);
        if tokens < 1.0 {
            let wait = Duration::try_from_secs_f64((1.0 - tokens) / rate.per_second);
            return Err(wait.unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE));
        }
        // One at a time is soon enough: whoever got one asks again.
        Ok(1)
    }
}

impl endpoint::Rate {
    fn tokens(self, bucket: Option<Bucket>, now: Instant) -> f64 {
        let burst = self.per_second.max(1.0);
        let Some(last) = bucket else { return burst };
        let grown = now.saturating_duration_since(last.at).as_secs_f64() * self.per_second;
        (last.tokens + grown).min(burst)
    }
}

impl Load {
    fn bucket(&self) -> MutexGuard<'_, Option<Bucket>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread's idle connections to one upstream.
#[derive(Debug)]
pub struct Pool {
    upstream: Arc<Upstream>,
    idle: RefCell<Vec<Connection>>,
    spare: RefCell<Vec<Vec<u8>>>,
}

/// An open connection and what was read from it too far.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    buffer: BytesMut,
    /// The addresses it was made under.
    generation: usize,
    /// When it was first seen idle.
    idle_since: Option<Instant>,
}

/// An answer of the upstream.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its end-to-end headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: AnswerBody,
}

/// How far an attempt has come; kept up to date, so that it tells of one that was given up as well.
#[derive(Debug, Default)]
pub struct Progress {
    resends: Cell<u32>,
    accepted: Cell<Option<StatusCode>>,
    is_unheard: Cell<bool>,
}

impl Progress {
    /// Of an attempt whose answer nobody waits for but for its head.
    pub fn unheard() -> Self {
        let progress = Self::default();
        progress.is_unheard.set(true);
        progress
    }

    /// Nobody waits for the answer's body any more.
    pub fn goes_unheard(&self) {
        self.is_unheard.set(true);
    }

    /// Waits for a body; `None`: nobody waits for it, and it did not come soon after its head.
    async fn unless_unheard<T>(&self, body: impl Future<Output = T>) -> Option<T> {
        let mut body = std::pin::pin!(body);
        let mut patience = None;
        poll_fn(|cx| {
            if let Poll::Ready(body) = body.as_mut().poll(cx) {
                return Poll::Ready(Some(body));
            }
            if !self.is_unheard.get() {
                return Poll::Pending;
            }
            let sleep = || Box::pin(tokio::time::sleep(UNHEARD_PATIENCE));
            patience
                .get_or_insert_with(sleep)
                .as_mut()
                .poll(cx)
                .map(|()| None)
        })
        .await
    }

    /// How often the request has been sent again since the first time.
    pub fn resends(&self) -> u32 {
        self.resends.get()
    }

    /// The 2xx that the head of an answer held; the rest of the answer may not have come.
    pub fn accepted(&self) -> Option<StatusCode> {
        self.accepted.get()
    }
}

/// How one attempt ended short of an answer.
struct Failure {
    error: UpstreamError,
    /// Bytes of the request that were handed to the system.
    written: usize,
    /// Bytes of an answer that came.
    answered: bool,
}

impl Failure {
    /// What it was, on this connection. TLS 1.3 lets a client speak before the upstream has looked
    /// at its certificate (RFC 8446 §4.4.2.4): what comes first on a connection may be a refusal.
    fn of(self, connection: &Connection, is_reused: bool) -> UpstreamError {
        let is_first = !is_reused && !self.answered;
        match (self.error, &connection.stream) {
            (UpstreamError::BrokeOff, Stream::Tls(_)) if is_first => {
                UpstreamError::Tls(TlsFault::Ended)
            }
            (error, _) => error,
        }
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self {
            upstream,
            idle: RefCell::default(),
            spare: RefCell::default(),
        }
    }

    /// Room for a request: used before, where possible, since fresh room costs more than what is
    /// written into it.
    pub fn spare_room(&self) -> Vec<u8> {
        let spare = self.spare.borrow_mut().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(REQUEST_ROOM))
    }

    /// Keeps room for the next request.
    fn keep_room(&self, mut room: Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_ROOMS && room.capacity() <= ROOM_LIMIT {
            room.clear();
            spare.push(room);
        }
    }

    /// Closes connections that the upstream has closed, that something unasked-for came on, that
    /// were idle for long or lead to where the upstream's name did before. Renews what the name
    /// leads to while there are any.
    pub fn sweep(&self, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            self.upstream.route.renew();
        }
        let generation = self.upstream.route.generation();
        idle.retain_mut(|connection| {
            let since = *connection.idle_since.get_or_insert(now);
            connection.generation == generation
                && now.saturating_duration_since(since) < IDLE_LIFE
                && connection.stream.is_quiet()
        });
    }

    /// The idle connection used last, if one still lives.
    fn reuse(&self) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let mut connection = idle.pop()?;
            let is_current = connection.generation == self.upstream.route.generation();
            if is_current && connection.stream.is_quiet() {
                connection.idle_since = None;
                return Some(connection);
            }
        }
    }

    /// Sends one request and reads its answer: whole if it is small, else its head.
    ///
    /// `permit` is held until the answer has come, its body included.
    /// `keyed`: the event carries an idempotency key, so that an application can tell a second
    /// attempt from a second event.
    /// `patience` bounds how long a longer body may take.
    /// `progress` tells how far it has come. Where it says that nobody waits for the body, the body
    /// may be left out of the answer, and the connection closed before its end.
    ///
    /// # Errors
    /// See [`UpstreamError`]. The caller bounds the time: dropping the future closes the
    /// connection.
    pub async fn send(
        self: &Rc<Self>,
        permit: Permit,
        mut head: RequestHead,
        body: &[u8],
        keyed: bool,
        patience: Duration,
        progress: &Progress,
    ) -> Result<Answer, UpstreamError> {
        let sent = self.exchange(&mut head, body, keyed, progress).await;
        self.keep_room(head.into_room());
        let (connection, answer) = sent?;
        if answer.status.is_success() {
            progress.accepted.set(Some(answer.status));
        }
        self.receive(permit, connection, answer, patience, progress)
            .await
    }

    /// Sends one request, a second time where that is safe, and reads the head of its answer.
    async fn exchange(
        &self,
        head: &mut RequestHead,
        body: &[u8],
        keyed: bool,
        progress: &Progress,
    ) -> Result<(Connection, Head), UpstreamError> {
        let body = if body.len() <= JOINED_LIMIT {
            head.join(body)
        } else {
            body
        };
        if body.len() <= GATHERED_LIMIT {
            after_all_that_is_ready().await;
        }
        let (mut connection, mut is_reused) = match self.reuse() {
            Some(connection) => (connection, true),
            None => (self.connect().await?, false),
        };
        let mut attempt = 1;
        loop {
            let failure = match connection.exchange(head.for_attempt(attempt), body).await {
                Ok(head) => return Ok((connection, head)),
                Err(failure) => failure,
            };
            let is_dead = matches!(
                failure.error,
                UpstreamError::BrokeOff | UpstreamError::Tls(_)
            ) && !failure.answered;
            if !is_reused || !is_dead || !(keyed || failure.written == 0) {
                return Err(failure.of(&connection, is_reused));
            }
            connection = self.connect().await?;
            progress.resends.set(progress.resends.get() + 1);
            (attempt, is_reused) = (2, false);
        }
    }

    /// Opens a connection. Boxed: it is rare, and a TLS handshake's state is large.
    fn connect(&self) -> Pin<Box<dyn Future<Output = Result<Connection, UpstreamError>> + '_>> {
        Box::pin(self.keep_connecting())
    }

    /// Opens a connection, again and again for as long as `connect_retry` says.
    async fn keep_connecting(&self) -> Result<Connection, UpstreamError> {
        let started = Instant::now();
        let (mut pause, longest) = CONNECT_PAUSES;
        loop {
            match self.upstream.route.connect().await {
                Ok((stream, generation)) => {
                    return Ok(Connection {
                        stream,
                        buffer: BytesMut::new(),
                        generation,
                        idle_since: None,
                    });
                }
                Err(error) if started.elapsed() + pause > self.upstream.connect_retry => {
                    let tls = TlsFault::of(&error).map(UpstreamError::Tls);
                    return Err(tls.unwrap_or(UpstreamError::Connect(error.kind())));
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Reads the body that belongs to a head, or leaves it to be passed on.
    async fn receive(
        self: &Rc<Self>,
        permit: Permit,
        mut connection: Connection,
        head: Head,
        patience: Duration,
        progress: &Progress,
    ) -> Result<Answer, UpstreamError> {
        let Head {
            status,
            mut headers,
            mut rest,
            keeps_alive,
        } = head;
        headers::strip_answer(&mut headers);
        let mut held = BytesMut::new();
        let is_long = matches!(rest, Rest::Length(length) if length > HELD_LIMIT as u64);
        let is_whole = if is_long {
            Some(false)
        } else {
            let hold = connection.hold(&mut rest, &mut held);
            progress.unless_unheard(hold).await.transpose()?
        };
        let body = if is_whole == Some(true) {
            let whole = held;
            // Whatever follows an answer was not asked for: such a connection is not used again.
            if keeps_alive && connection.buffer.is_empty() {
                self.idle.borrow_mut().push(connection);
            }
            AnswerBody::held(whole.freeze())
        } else if is_whole.is_none() {
            AnswerBody::held(Bytes::new())
        } else {
            let deadline = Box::pin(tokio::time::sleep(patience));
            AnswerBody::passing(Passing {
                held,
                connection,
                rest,
                deadline,
                _permit: permit,
            })
        };
        Ok(Answer {
            status,
            headers,
            body,
        })
    }
}

impl Connection {
    async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| poll_fill(&mut self.stream, &mut self.buffer, cx)).await
    }

    /// Reads the rest of an answer as far as it is held; whether that is all of it.
    async fn hold(&mut self, rest: &mut Rest, held: &mut BytesMut) -> Result<bool, UpstreamError> {
        while held.len() <= HELD_LIMIT {
            match rest.next(&mut self.buffer)? {
                Some(Piece::Data(data)) if held.is_empty() => *held = data.into(),
                Some(Piece::Data(data)) => held.extend_from_slice(&data),
                Some(Piece::End | Piece::More) => return Ok(true),
                None => match self.fill().await {
                    Ok(0) if matches!(rest, Rest::UntilClose) => return Ok(true),
                    Ok(0) | Err(_) => return Err(UpstreamError::BrokeOff),
                    Ok(_) => {}
                },
            }
        }
        Ok(false)
    }

    /// Writes a request and reads the head of its answer, which may come before all is written.
    ///
    /// Then a refusal is taken at once, and nothing more is written; an acceptance counts only when
    /// the whole request has gone out, because an event of which only the beginning was sent has not
    /// been delivered.
    async fn exchange(&mut self, head: &[u8], body: &[u8]) -> Result<Head, Failure> {
        let mut going = Going {
            written: 0,
            writing: Writing::Going,
            accepted: None,
        };
        poll_fn(|cx| self.poll_exchange(cx, head, body, &mut going))
            .await
            .map_err(|error| Failure {
                error,
                written: going.written,
                answered: going.accepted.is_some() || !self.buffer.is_empty(),
            })
    }

    fn poll_exchange(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
        going: &mut Going,
    ) -> Poll<Result<Head, UpstreamError>> {
        if going.writing == Writing::Going {
            going.writing = self.poll_write(cx, head, body, &mut going.written);
        }
        loop {
            match (going.accepted.take(), going.writing) {
                (Some(answer), Writing::Done) => return Poll::Ready(Ok(answer)),
                (Some(_), Writing::Failed) => return Poll::Ready(Err(UpstreamError::BrokeOff)),
                (accepted, _) => going.accepted = accepted,
            }
            // What else it says is read meanwhile, so that neither side waits for the other.
            if going.accepted.is_some() && self.buffer.len() >= HELD_LIMIT {
                return Poll::Pending;
            }
            match poll_fill(&mut self.stream, &mut self.buffer, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(UpstreamError::BrokeOff)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(broke_off(&error))),
                Poll::Ready(Ok(_)) if going.accepted.is_some() => continue,
                Poll::Ready(Ok(_)) => {}
            }
            match take_head(&mut self.buffer) {
                Ok(None) => {}
                Ok(Some(answer)) if answer.status.is_success() => going.accepted = Some(answer),
                Ok(Some(mut answer)) => {
                    // Half a request stays on this connection: nothing may follow it.
                    answer.keeps_alive &= going.writing == Writing::Done;
                    return Poll::Ready(Ok(answer));
                }
                Err(Unintelligible) => return Poll::Ready(Err(UpstreamError::Unintelligible)),
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
        written: &mut usize,
    ) -> Writing {
        loop {
            let head_left = head.get(*written..).unwrap_or_default();
            let body_left = body
                .get(written.saturating_sub(head.len())..)
                .unwrap_or_default();
            let stream = Pin::new(&mut self.stream);
            let sent = match (head_left, body_left) {
                ([], []) => break,
                ([], rest) | (rest, []) => stream.poll_write(cx, rest),
                (head, body) => {
                    stream.poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(body)])
                }
            };
            match sent {
                Poll::Pending => return Writing::Going,
                // An answer may have come all the same: reading decides.
                Poll::Ready(Ok(0) | Err(_)) => return Writing::Failed,
                Poll::Ready(Ok(n)) => *written += n,
            }
        }
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => Writing::Going,
            Poll::Ready(Ok(())) => Writing::Done,
            Poll::Ready(Err(_)) => Writing::Failed,
        }
    }
}

/// What a failed read says about an answer that did not come.
fn broke_off(error: &io::Error) -> UpstreamError {
    match TlsFault::of(error) {
        Some(TlsFault::Declined) => UpstreamError::Tls(TlsFault::Declined),
        _ => UpstreamError::BrokeOff,
    }
}

/// Lets every task that is ready run first.
///
/// What was read in one turn of the loop is then sent in one go: the upstream is woken once for
/// many requests and not once for each, which costs less than any of them.
async fn after_all_that_is_ready() {
    let mut is_behind = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_behind, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// How far a request and its answer are.
struct Going {
    written: usize,
    writing: Writing,
    /// The head of a 2xx that came before the request was written.
    accepted: Option<Head>,
}

/// How far the writing of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    Done,
    Failed,
    Going,
}

#[cfg(test)]
mod tests;
