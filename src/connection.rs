//! One sender's connection: its bytes, its deadlines, its end.
//!
//! Owns every deadline a connection can miss (no first byte, slow head, slow body, slow reader,
//! idle), with one timer for all of them, and the strict look at framing before the HTTP library
//! sees a byte. The library gets heads and chunked bodies through [`Io`]; other bodies the gate
//! reads itself, through [`Inflow`]. What a request means is left to the gate; who may connect, to
//! the server.

mod wire;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::BufMut;
use hyper::{
    body::{Body as _, Incoming},
    rt::{Read, ReadBufCursor, Write},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::Sleep,
};

use self::wire::Wire;
use crate::{
    body::{BodyError, Budget, Frames, Source},
    framing::Phase,
    limits::Limits,
    rejection::{Malformation, Rejection, parting_answer},
    stream::Stream,
};

/// How long, and for how many bytes, a sender is listened to after the last answer, so that it can
/// read that answer before the connection is reset.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 8 << 20);
/// Unfinished bodies beyond which each connection reads in small pieces: two thousand slow bodies
/// must not pin two thousand large read buffers.
const CROWD: usize = 64;
/// Such a small piece, in bytes: below what makes the HTTP library grow its buffer.
const SMALL_READ: usize = 8 * 1024 - 1;

/// Gives back to the system what this thread keeps for its next read; to be called now and then.
pub fn tidy() {
    wire::tidy();
}

/// One sender's connection, as the HTTP library and the gate share it.
#[derive(Debug)]
pub struct Watch {
    wire: RefCell<Wire>,
    budget: Arc<Budget>,
    /// The other end, if it is an IP socket.
    pub peer: Option<IpAddr>,
    /// The same, written out once for all requests.
    pub peer_text: Option<String>,
    /// `http` or `https`.
    pub proto: &'static str,
    header_timeout: Duration,
    body_timeout: Duration,
    idle_timeout: Duration,
    timer: RefCell<Pin<Box<Sleep>>>,
    /// First byte of the request in progress; before it, the moment the connection became idle.
    since: Cell<Instant>,
    /// A byte of the next request has come, were it of an empty line before it.
    has_begun: Cell<bool>,
    /// By when its head has to be here. The first one's time begins with the connection.
    head_until: Cell<Option<Instant>>,
    body_until: Cell<Option<Instant>>,
    blocked_since: Cell<Option<Instant>>,
    verdict: Cell<Option<Verdict>>,
    /// Nothing more is to be said: the last answer ended the connection, or said the verdict.
    is_said: Cell<bool>,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Framing that is not to be trusted.
    Ambiguous,
    /// Idle for long enough; nothing is owed.
    Idle,
    /// Headers or body came too slowly.
    Slow,
    /// Our answer was not read in time.
    SlowReader,
}

impl Watch {
    /// A watch over a connection that was just accepted.
    pub(crate) fn new(
        socket: Stream,
        peer: Option<IpAddr>,
        limits: &Limits,
        budget: Arc<Budget>,
    ) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            wire: RefCell::new(Wire::new(socket)),
            budget,
            peer,
            peer_text: peer.map(|peer| peer.to_canonical().to_string()),
            proto: "http",
            header_timeout: limits.header_timeout,
            body_timeout: limits.body_timeout,
            idle_timeout: limits.idle_timeout,
            timer: RefCell::new(Box::pin(tokio::time::sleep(limits.header_timeout))),
            since: Cell::new(now),
            has_begun: Cell::new(false),
            head_until: Cell::new(Some(now + limits.header_timeout)),
            body_until: Cell::new(None),
            blocked_since: Cell::new(None),
            verdict: Cell::new(None),
            is_said: Cell::new(false),
        })
    }

    /// Begins a request, whose head is here: when its first byte came.
    pub fn begin(&self) -> Instant {
        self.body_until
            .set(Some(self.since.get() + self.body_timeout));
        self.since.get()
    }

    /// Ends a request: from here on the connection is idle, or over if its answer `closes` it.
    pub fn answered(&self, now: Instant, closes: bool) {
        self.body_until.set(None);
        self.blocked_since.set(None);
        self.has_begun.set(false);
        self.head_until.set(None);
        self.is_said.set(closes || self.verdict.get().is_some());
        self.since.set(now);
    }

    /// Why the connection cannot go on, if it cannot.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict.get()
    }

    /// Runs a future until a moment; `None` when that came first.
    pub async fn until<F: Future>(&self, at: Instant, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll_deadline(cx, at).map(|()| None),
        })
        .await
    }

    /// Ready when `at` has come. The one timer is moved only when it would ring too late; when it
    /// rings too early it is set anew.
    fn poll_deadline(&self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let mut timer = self.timer.borrow_mut();
        let at = tokio::time::Instant::from_std(at);
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = tokio::time::Instant::now();
            if now >= at {
                return Poll::Ready(());
            }
            // Rings early rather than at an idle connection's far end, so that the next request's
            // nearer deadline finds it set.
            let soonest = self.header_timeout.min(self.body_timeout);
            timer.as_mut().reset(at.min(now + soonest));
        }
        Poll::Pending
    }

    /// Notes that bytes came, of which the first begins a request.
    fn heard(&self) {
        if self.body_until.get().is_some() || self.has_begun.replace(true) {
            return;
        }
        let now = Instant::now();
        self.since.set(now);
        if self.head_until.get().is_none() {
            self.head_until.set(Some(now + self.header_timeout));
        }
    }

    /// By when bytes have to come, and what is said if they do not.
    fn read_deadline(&self, phase: Phase) -> (Instant, Verdict) {
        let since = self.since.get();
        if let Some(until) = self.body_until.get() {
            return (until, Verdict::Slow);
        }
        match (phase, self.head_until.get()) {
            (Phase::Body, _) => (since + self.body_timeout, Verdict::Slow),
            (Phase::Between | Phase::Head, Some(until)) => (until, Verdict::Slow),
            (Phase::Between, None) => (since + self.idle_timeout, Verdict::Idle),
            (Phase::Head, None) => (since + self.header_timeout, Verdict::Slow),
        }
    }

    /// Reads from the socket, or ends the connection when nothing came in time.
    fn poll_wire<T>(
        &self,
        cx: &mut Context<'_>,
        phase: Phase,
        read: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(came) = read(cx) {
            return Poll::Ready(came);
        }
        let (at, verdict) = self.read_deadline(phase);
        self.poll_deadline(cx, at).map(|()| {
            self.verdict.set(Some(verdict));
            Err(io::ErrorKind::TimedOut.into())
        })
    }

    /// What is to be read of the body of the request that has begun.
    pub fn inflow(&self, incoming: Incoming) -> Inflow<'_> {
        let mut wire = self.wire.borrow_mut();
        match wire.body_left() {
            Some(length) => Inflow::Here(self, length),
            None => {
                wire.shrink();
                let length = incoming.size_hint().exact();
                Inflow::Library(Frames::new(incoming), length)
            }
        }
    }

    /// Ends the connection: says why if the sender does not know yet, closes our side, and listens
    /// for a bounded time so that a sender that goes on sending can read what was said.
    ///
    /// `unsaid` is what no HTTP answer was given for. Resolves within 3 × the linger time.
    pub async fn finish(&self, unsaid: Option<Rejection>) {
        let (time, most) = LINGER;
        if let Some(rejection) = unsaid {
            let answer = parting_answer(rejection);
            let mut left = answer.as_slice();
            let write =
                poll_fn(|cx| pin!(self.wire.borrow_mut().socket.write_all_buf(&mut left)).poll(cx));
            let _ = tokio::time::timeout(time, write).await;
        }
        let close = poll_fn(|cx| Pin::new(&mut self.wire.borrow_mut().socket).poll_shutdown(cx));
        let is_closed = matches!(tokio::time::timeout(time, close).await, Ok(Ok(())));
        if !is_closed || self.wire.borrow().is_at_end {
            return;
        }
        // The buffer is on the stack only while it is used: it is no part of every connection.
        let mut left = most;
        let drain = poll_fn(|cx| {
            let mut wire = self.wire.borrow_mut();
            let mut sink = [0; 8 * 1024];
            while left > 0 {
                let mut buffer = ReadBuf::new(&mut sink);
                match ready!(Pin::new(&mut wire.socket).poll_read(cx, &mut buffer)) {
                    Ok(()) if !buffer.filled().is_empty() => {
                        left = left.saturating_sub(buffer.filled().len());
                    }
                    Ok(()) | Err(_) => break,
                }
            }
            Poll::Ready(())
        });
        let _ = tokio::time::timeout(time, drain).await;
    }

    /// What to tell a sender whose connection ended without a request that could be answered.
    pub fn unsaid(&self) -> Option<Rejection> {
        if self.is_said.get() || self.body_until.get().is_some() {
            return None;
        }
        match self.verdict()? {
            Verdict::Ambiguous => Some(Rejection::Malformed(Malformation::Framing)),
            Verdict::Slow => Some(Rejection::Timeout),
            Verdict::Idle | Verdict::SlowReader => None,
        }
    }
}

/// A request's body, to be read.
#[derive(Debug)]
pub enum Inflow<'w> {
    /// From the connection, this many bytes.
    Here(&'w Watch, u64),
    /// From the HTTP library.
    Library(Frames<Incoming>, Option<u64>),
}

impl Inflow<'_> {
    /// Its length, where that was announced.
    pub fn announced(&self) -> Option<u64> {
        match self {
            Self::Here(_, length) => Some(*length),
            Self::Library(_, length) => *length,
        }
    }

    /// Whether the connection can go on with this body unread: it is here, and not longer than
    /// `most` bytes.
    pub fn can_be_passed_over(&self, most: u64) -> bool {
        match self {
            Self::Here(_, length) => *length <= most,
            Self::Library(_, length) => *length == Some(0),
        }
    }
}

impl Source for Inflow<'_> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut impl BufMut,
    ) -> Poll<Result<Option<usize>, BodyError>> {
        let watch = match self {
            Self::Here(watch, _) => watch,
            Self::Library(frames, _) => return frames.poll_read(cx, room),
        };
        let mut wire = watch.wire.borrow_mut();
        if wire.body_left() == Some(0) {
            return Poll::Ready(Ok(None));
        }
        if room.remaining_mut() == 0 {
            return Poll::Ready(Ok(Some(0)));
        }
        let came = watch.poll_wire(cx, Phase::Body, |cx| wire.poll_body(cx, room));
        match ready!(came) {
            Ok(0) | Err(_) => Poll::Ready(Err(BodyError::Broken)),
            Ok(came) => Poll::Ready(Ok(Some(came))),
        }
    }
}

/// A sender's connection as the HTTP library sees it.
#[derive(Debug)]
pub struct Io(pub Rc<Watch>);

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut room: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let watch = &*self.0;
        if watch.verdict().is_some() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let mut wire = watch.wire.borrow_mut();
        let mut most = room.remaining();
        // A body that nobody read is passed over before the next head.
        while !wire.skip_body() || wire.is_empty() {
            let phase = wire.phase();
            let is_libraries = phase == Phase::Body && wire.body_left().is_none();
            if is_libraries && watch.budget.waiting() > CROWD {
                most = most.min(SMALL_READ);
            }
            let most = if is_libraries { most } else { usize::MAX };
            let came = ready!(watch.poll_wire(cx, phase, |cx| wire.poll_fill(cx, most)))?;
            if came == 0 {
                return Poll::Ready(Ok(()));
            }
            if phase != Phase::Body {
                watch.heard();
            }
        }
        if let Err(ambiguous) = wire.pass_on(most, |bytes| room.put_slice(bytes)) {
            watch.verdict.set(Some(Verdict::Ambiguous));
            if ambiguous.after == 0 {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Io {
    /// Bounds how long our answer may stay unread, from the first moment it could not be sent on.
    fn bound<T>(&self, cx: &mut Context<'_>, sent: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let watch = &*self.0;
        if sent.is_ready() {
            return sent;
        }
        let since = watch.blocked_since.get().unwrap_or_else(Instant::now);
        watch.blocked_since.set(Some(since));
        watch
            .poll_deadline(cx, since + watch.body_timeout)
            .map(|()| {
                watch.verdict.set(Some(Verdict::SlowReader));
                Err(io::ErrorKind::TimedOut.into())
            })
    }
}

impl Write for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.0.wire.borrow_mut().socket).poll_write(cx, bytes);
        self.bound(cx, sent)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.wire.borrow_mut().socket).poll_flush(cx)
    }

    /// Does nothing: closing is [`Watch::finish`]'s, which can say something first.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
