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
mod exchange;
mod once;
mod places;
mod progress;

use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

pub(crate) use self::exchange::Connection;
pub(crate) use self::once::Asker;
pub use self::{
    answer::AnswerBody,
    connect::{Misfit, TlsFault},
    places::{Load, Permit},
    progress::Progress,
};
use self::{
    answer::{Head, Passing, Rest, Unintelligible},
    connect::Route,
};
use crate::{
    endpoint,
    headers::{self, RequestHead},
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

impl Upstream {
    /// Prepares an upstream; `before` is the same one under the previous configuration.
    ///
    /// # Errors
    /// What is wrong with its host or certificates.
    pub fn new(settings: &endpoint::Upstream, before: Option<&Self>) -> Result<Self, Misfit> {
        Ok(Self {
            route: Route::new(&settings.transport, settings.connect_timeout, &settings.tls)?
                .within(settings.allow.clone()),
            load: before.map_or_else(Arc::default, |before| before.load.clone()),
            max_concurrency: settings.max_concurrency.get(),
            rate: settings.rate,
            connect_retry: settings.connect_retry,
        })
    }
}

/// One thread's idle connections to one upstream.
#[derive(Debug)]
pub struct Pool {
    upstream: Arc<Upstream>,
    idle: RefCell<Vec<Connection>>,
    spare: RefCell<Vec<Vec<u8>>>,
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

#[cfg(test)]
mod tests;
