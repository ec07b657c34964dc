//! A connection that speaks HTTP/1.1: a strict look at framing before the HTTP library sees a
//! byte, and the deadlines between requests and within them.
//!
//! The library gets heads and chunked bodies through [`Io`]; other bodies the gate reads itself,
//! through [`Inflow`].

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
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
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::{Inflow, LINGER, Peer, Verdict, Watch, drain, wire::Wire};
use crate::{
    body::{BodyError, Budget, Frames},
    framing::Phase,
    limits::Limits,
    rejection::{Malformation, Rejection, parting_answer},
    stream::Stream,
};

/// Unfinished bodies beyond which each connection reads in small pieces: two thousand slow bodies
/// must not pin two thousand large read buffers.
const CROWD: usize = 64;
/// Such a small piece, in bytes: below what makes the HTTP library grow its buffer.
const SMALL_READ: usize = 8 * 1024 - 1;

/// Turns of the event loop for which an answer is held back: one more than a request to an upstream
/// (see `upstream`). Each side is then woken once for all that the loop has for it, and those who
/// have work to do before those who only wait: it costs less, and nobody waits longer.
const TURNS_HELD: u8 = 2;

/// One sender's connection, as the HTTP library and the gate share it.
#[derive(Debug)]
pub struct Line {
    /// What the gate sees of it.
    pub(crate) watch: Watch,
    wire: RefCell<Wire>,
    budget: Arc<Budget>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// A byte of the next request has come, were it of an empty line before it.
    has_begun: Cell<bool>,
    /// By when its head has to be here. The first one's time begins with the connection.
    head_until: Cell<Option<Instant>>,
    blocked_since: Cell<Option<Instant>>,
    /// Turns of the loop before the answer goes out.
    turns_left: Cell<u8>,
    /// Nothing more is to be said: the last answer ended the connection, or said the verdict.
    is_said: Cell<bool>,
}

impl Line {
    /// A connection that was accepted at a moment.
    pub(crate) fn new(
        socket: Stream,
        peer: Peer,
        limits: &Limits,
        budget: Arc<Budget>,
        accepted: Instant,
    ) -> Rc<Self> {
        Rc::new(Self {
            watch: Watch::new(peer, limits, accepted),
            wire: RefCell::new(Wire::new(socket)),
            budget,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            has_begun: Cell::new(false),
            head_until: Cell::new(Some(accepted + limits.header_timeout)),
            blocked_since: Cell::new(None),
            turns_left: Cell::new(0),
            is_said: Cell::new(false),
        })
    }

    /// Begins to wait for the next request, the answer to the last one being on its way: at once, or
    /// when others that are ready have had their turn.
    pub(crate) fn rest(&self, can_wait: bool) {
        self.turns_left.set(if can_wait { TURNS_HELD } else { 0 });
        self.blocked_since.set(None);
        self.has_begun.set(false);
        self.head_until.set(None);
        self.is_said
            .set(self.watch.is_over.get() || self.watch.verdict().is_some());
    }

    /// Notes that bytes came, of which the first begins a request.
    fn heard(&self) {
        if self.watch.body_until.get().is_some() || self.has_begun.replace(true) {
            return;
        }
        let now = Instant::now();
        self.watch.since.set(now);
        if self.head_until.get().is_none() {
            self.head_until.set(Some(now + self.header_timeout));
        }
    }

    /// By when bytes have to come, and what is said if they do not.
    fn read_deadline(&self, phase: Phase) -> (Instant, Verdict) {
        let since = self.watch.since.get();
        if let Some(until) = self.watch.body_until.get() {
            return (until, Verdict::Slow);
        }
        match (phase, self.head_until.get()) {
            (Phase::Body, _) => (since + self.watch.body_timeout, Verdict::Slow),
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
        self.watch.alarm.poll(cx, at).map(|()| {
            self.watch.verdict.set(Some(verdict));
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

    /// Puts the next bytes of a body that is read from here into `room`, as [`Source::poll_read`].
    ///
    /// [`Source::poll_read`]: crate::body::Source::poll_read
    pub(super) fn poll_body(
        &self,
        cx: &mut Context<'_>,
        room: &mut impl BufMut,
    ) -> Poll<Result<Option<usize>, BodyError>> {
        let mut wire = self.wire.borrow_mut();
        if wire.body_left() == Some(0) {
            return Poll::Ready(Ok(None));
        }
        if room.remaining_mut() == 0 {
            return Poll::Ready(Ok(Some(0)));
        }
        let came = self.poll_wire(cx, Phase::Body, |cx| wire.poll_body(cx, room));
        match ready!(came) {
            Ok(0) | Err(_) => Poll::Ready(Err(BodyError::Broken)),
            Ok(came) => Poll::Ready(Ok(Some(came))),
        }
    }

    /// Ends the connection: says why if the sender does not know yet, closes our side, and listens
    /// for a bounded time so that a sender that goes on sending can read what was said.
    ///
    /// `unsaid` is what no HTTP answer was given for. Resolves within 3 × the linger time.
    pub async fn finish(&self, unsaid: Option<Rejection>) {
        let (time, _) = LINGER;
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
        drain(|cx, buffer| Pin::new(&mut self.wire.borrow_mut().socket).poll_read(cx, buffer))
            .await;
    }

    /// What to tell a sender whose connection ended without a request that could be answered.
    pub fn unsaid(&self) -> Option<Rejection> {
        if self.is_said.get() || self.watch.body_until.get().is_some() {
            return None;
        }
        match self.watch.verdict()? {
            Verdict::Ambiguous => Some(Rejection::Malformed(Malformation::Framing)),
            Verdict::Slow => Some(Rejection::Timeout),
            Verdict::Idle | Verdict::SlowReader => None,
        }
    }
}

/// A sender's connection as the HTTP library sees it.
#[derive(Debug)]
pub(crate) struct Io(pub(crate) Rc<Line>);

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut room: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let line = &*self.0;
        if line.watch.verdict().is_some() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let mut wire = line.wire.borrow_mut();
        let mut most = room.remaining();
        // A body that nobody read is passed over before the next head.
        while !wire.skip_body() || wire.is_empty() {
            let phase = wire.phase();
            let is_libraries = phase == Phase::Body && wire.body_left().is_none();
            if is_libraries && line.budget.waiting() > CROWD {
                most = most.min(SMALL_READ);
            }
            let most = if is_libraries { most } else { usize::MAX };
            let came = ready!(line.poll_wire(cx, phase, |cx| wire.poll_fill(cx, most)))?;
            if came == 0 {
                return Poll::Ready(Ok(()));
            }
            if phase != Phase::Body {
                line.heard();
            }
        }
        if let Err(ambiguous) = wire.pass_on(most, |bytes| room.put_slice(bytes)) {
            line.watch.verdict.set(Some(Verdict::Ambiguous));
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
        let line = &*self.0;
        if sent.is_ready() {
            return sent;
        }
        let since = line.blocked_since.get().unwrap_or_else(Instant::now);
        line.blocked_since.set(Some(since));
        line.watch
            .alarm
            .poll(cx, since + line.watch.body_timeout)
            .map(|()| {
                line.watch.verdict.set(Some(Verdict::SlowReader));
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
        if let Some(left) = self.0.turns_left.get().checked_sub(1) {
            self.0.turns_left.set(left);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let sent = Pin::new(&mut self.0.wire.borrow_mut().socket).poll_write(cx, bytes);
        self.bound(cx, sent)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.0.wire.borrow_mut().socket).poll_flush(cx);
        self.bound(cx, flushed)
    }

    /// Does nothing: closing is [`Watch::finish`]'s, which can say something first.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
