//! A connection that speaks HTTP/2 (RFC 9113): several requests at a time, each with deadlines of
//! its own, and the connection's.
//!
//! The HTTP library reads and writes through [`CarrierIo`], which looks at what comes before the
//! library does. What a request of it looks like to the gate is [`exchange`]'s.

pub(crate) mod exchange;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use h2::{Reason, server::Builder};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Alarm, LINGER, Peer, Verdict, Watch, drain, frames::Frames};
use crate::{limits::Limits, stream::Stream};

/// Requests under way at a time on one connection, those whose sender gave them up included.
const MAX_STREAMS: u32 = 100;
/// What may be on its way to us without having been read, for one request and for all, in bytes.
const WINDOWS: (u32, u32) = (256 << 10, 1 << 20);
/// What waits to be sent for one request, in bytes.
const SEND_BUFFER: usize = 64 << 10;
/// Faulty streams that are forgiven on one connection.
const MAX_FAULTS: usize = 256;
/// How long a sender has to take leave when nothing is under way any more.
const FAREWELL: Duration = Duration::from_secs(1);

/// One sender's connection.
#[derive(Debug)]
pub(crate) struct Carrier {
    socket: RefCell<Stream>,
    frames: RefCell<Frames>,
    alarm: Alarm,
    peer: Peer,
    limits: Limits,
    /// When the last header section began.
    began: Cell<Instant>,
    /// By when the header section under way, or the first one, has to be here.
    head_until: Cell<Option<Instant>>,
    /// When the last request under way ended.
    since: Cell<Instant>,
    /// Requests under way.
    open: Cell<u32>,
    blocked_since: Cell<Option<Instant>>,
    /// Since when no more requests are wanted.
    leaving_since: Cell<Option<Instant>>,
    is_flooded: Cell<bool>,
    is_at_end: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Carrier {
    /// A connection that was accepted at a moment.
    pub(crate) fn new(socket: Stream, peer: Peer, limits: &Limits, accepted: Instant) -> Rc<Self> {
        Rc::new(Self {
            socket: RefCell::new(socket),
            frames: RefCell::new(Frames::new(accepted)),
            alarm: Alarm::new(limits),
            peer,
            limits: *limits,
            began: Cell::new(accepted),
            head_until: Cell::new(Some(accepted + limits.header_timeout)),
            since: Cell::new(accepted),
            open: Cell::new(0),
            blocked_since: Cell::new(None),
            leaving_since: Cell::new(None),
            is_flooded: Cell::new(false),
            is_at_end: Cell::new(false),
            waker: RefCell::default(),
        })
    }

    /// The library, within our bounds.
    pub(crate) fn builder(&self) -> Builder {
        let mut builder = Builder::new();
        let (one, all) = WINDOWS;
        let head = u32::try_from(self.limits.max_header_bytes).unwrap_or(u32::MAX);
        builder
            .max_concurrent_streams(MAX_STREAMS)
            .initial_window_size(one)
            .initial_connection_window_size(all)
            .max_header_list_size(head)
            .max_send_buffer_size(SEND_BUFFER)
            .max_local_error_reset_streams(Some(MAX_FAULTS));
        builder
    }

    /// Begins a request, whose head is here; `None` when there are too many.
    pub(crate) fn enter(self: &Rc<Self>) -> Option<Passage> {
        if self.open.get() >= MAX_STREAMS {
            return None;
        }
        self.open.set(self.open.get() + 1);
        let watch = Watch::new(self.peer.clone(), &self.limits, self.began.get());
        Some(Passage {
            carrier: self.clone(),
            watch,
        })
    }

    /// Where it comes from.
    pub(crate) fn ip(&self) -> Option<std::net::IpAddr> {
        self.peer.ip
    }

    /// Asks for no more requests.
    pub(crate) fn leave(&self) {
        if !self.is_leaving() {
            self.leaving_since.set(Some(Instant::now()));
            self.wake();
        }
    }

    /// Whether no more requests are wanted.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving_since.get().is_some()
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Ready when the connection cannot go on, and why. To be polled when the library waits.
    pub(crate) fn poll_overdue(&self, cx: &mut Context<'_>) -> Poll<Verdict> {
        self.waker
            .borrow_mut()
            .get_or_insert_with(|| cx.waker().clone());
        if self.is_flooded.get() {
            return Poll::Ready(Verdict::Ambiguous);
        }
        let is_idle = self.open.get() == 0;
        let (at, verdict) = match (self.leaving_since.get(), self.head_until.get()) {
            // Whoever has not begun by then has heard that it need not.
            (Some(since), _) if is_idle => (since.max(self.since.get()) + FAREWELL, Verdict::Idle),
            (_, Some(until)) => (until, Verdict::Slow),
            (None, None) if is_idle => (self.since.get() + self.limits.idle_timeout, Verdict::Idle),
            (_, None) => return Poll::Pending,
        };
        self.alarm.poll(cx, at).map(|()| verdict)
    }

    /// What a sender is told whose connection cannot go on (RFC 9113 §7).
    pub(crate) fn reason(verdict: Verdict) -> Reason {
        match verdict {
            Verdict::Idle => Reason::NO_ERROR,
            Verdict::Ambiguous | Verdict::Slow | Verdict::SlowReader => Reason::ENHANCE_YOUR_CALM,
        }
    }

    /// Closes our side, and listens for a bounded time so that what was said can be read.
    pub(crate) async fn finish(&self) {
        let close = poll_fn(|cx| Pin::new(&mut *self.socket.borrow_mut()).poll_shutdown(cx));
        let is_closed = matches!(tokio::time::timeout(LINGER.0, close).await, Ok(Ok(())));
        if is_closed && !self.is_at_end.get() {
            drain(|cx, buffer| Pin::new(&mut *self.socket.borrow_mut()).poll_read(cx, buffer))
                .await;
        }
    }

    /// Follows what was read.
    fn heard(&self, bytes: &[u8]) {
        let now = Instant::now();
        match self.frames.borrow_mut().push(bytes, now) {
            Err(_) => self.is_flooded.set(true),
            Ok(news) => {
                if news.began {
                    self.began.set(now);
                    let until = self.head_until.get();
                    self.head_until
                        .set(until.or(Some(now + self.limits.header_timeout)));
                }
                if news.ended {
                    self.head_until.set(None);
                }
            }
        }
    }

    /// Bounds how long what we send may stay unread, from the first moment it could not be sent.
    fn bound<T>(&self, cx: &mut Context<'_>, sent: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if sent.is_ready() {
            return sent;
        }
        let since = self.blocked_since.get().unwrap_or_else(Instant::now);
        self.blocked_since.set(Some(since));
        let until = since + self.limits.body_timeout;
        self.alarm
            .poll(cx, until)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// A request under way on a connection.
#[derive(Debug)]
pub(crate) struct Passage {
    carrier: Rc<Carrier>,
    /// What the gate sees of it.
    pub(crate) watch: Watch,
}

impl Drop for Passage {
    fn drop(&mut self) {
        let carrier = &self.carrier;
        carrier.open.set(carrier.open.get().saturating_sub(1));
        if carrier.open.get() == 0 {
            carrier.since.set(Instant::now());
            carrier.wake();
        }
    }
}

/// A sender's connection as the HTTP library sees it.
#[derive(Debug)]
pub(crate) struct CarrierIo(pub(crate) Rc<Carrier>);

impl AsyncRead for CarrierIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let carrier = &*self.0;
        // Nothing more of a flood is read; what is owed can still be sent.
        if carrier.is_flooded.get() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *carrier.socket.borrow_mut()).poll_read(cx, buffer))?;
        let came = buffer.filled().get(before..).unwrap_or_default();
        carrier.is_at_end.set(came.is_empty());
        carrier.heard(came);
        if carrier.is_flooded.get() {
            buffer.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CarrierIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut *self.0.socket.borrow_mut()).poll_write(cx, bytes);
        self.0.bound(cx, sent)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut *self.0.socket.borrow_mut()).poll_flush(cx);
        if flushed.is_ready() {
            // Everything is on its way: whoever reads slowly from here on begins anew.
            self.0.blocked_since.set(None);
        }
        self.0.bound(cx, flushed)
    }

    /// Does nothing: closing is [`Carrier::finish`]'s.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
