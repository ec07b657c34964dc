//! One sender's connection: its bytes, its deadlines, its end.
//!
//! Owns every deadline a connection can miss (no first byte, slow head, slow body, slow reader,
//! idle), with one timer for all of them, and the strict look at framing before the HTTP library
//! sees a byte. What a request means is left to the gate; who may connect, to the server.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, Take},
    time::Sleep,
};

use crate::{
    body::Budget,
    framing::{Framing, Phase},
    limits::Limits,
    rejection::{Malformation, Rejection, parting_answer},
};

/// How long, and for how many bytes, a sender is listened to after the last answer, so that it can
/// read that answer before the connection is reset.
const LINGER: (Duration, u64) = (Duration::from_secs(2), 8 << 20);
/// Unfinished bodies beyond which each connection reads in small pieces: two thousand slow bodies
/// must not pin two thousand large read buffers.
const CROWD: usize = 64;
/// Such a small piece, in bytes: below what makes the HTTP library grow its buffer.
const SMALL_READ: u64 = 8 * 1024 - 1;

/// What a connection and the gate tell each other about one sender.
#[derive(Debug)]
pub struct Watch {
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
    is_first: Cell<bool>,
    body_until: Cell<Option<Instant>>,
    blocked_since: Cell<Option<Instant>>,
    verdict: Cell<Option<Verdict>>,
    /// The verdict was the answer to a request.
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
    pub fn new(peer: Option<IpAddr>, proto: &'static str, limits: &Limits) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            peer,
            peer_text: peer.map(|peer| peer.to_canonical().to_string()),
            proto,
            header_timeout: limits.header_timeout,
            body_timeout: limits.body_timeout,
            idle_timeout: limits.idle_timeout,
            timer: RefCell::new(Box::pin(tokio::time::sleep(limits.header_timeout))),
            since: Cell::new(now),
            is_first: Cell::new(true),
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

    /// Ends a request: from here on the connection is idle.
    pub fn answered(&self, now: Instant) {
        self.body_until.set(None);
        self.blocked_since.set(None);
        self.is_first.set(false);
        self.is_said.set(self.verdict.get().is_some());
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

    /// By when bytes have to come, and what is said if they do not.
    fn read_deadline(&self, phase: Phase) -> (Instant, Verdict) {
        let since = self.since.get();
        match (phase, self.body_until.get()) {
            (_, Some(until)) => (until, Verdict::Slow),
            (Phase::Between, None) if !self.is_first.get() => {
                (since + self.idle_timeout, Verdict::Idle)
            }
            (Phase::Between | Phase::Head, None) => (since + self.header_timeout, Verdict::Slow),
            (Phase::Body, None) => (since + self.body_timeout, Verdict::Slow),
        }
    }
}

/// A sender's socket as the HTTP library sees it.
#[derive(Debug)]
pub struct Io<S> {
    socket: Take<S>,
    framing: Framing,
    watch: Rc<Watch>,
    budget: Arc<Budget>,
    is_at_end: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    /// Puts a socket under watch.
    pub fn new(socket: S, watch: Rc<Watch>, budget: Arc<Budget>) -> Self {
        let socket = socket.take(u64::MAX);
        Self {
            socket,
            framing: Framing::new(),
            watch,
            budget,
            is_at_end: false,
        }
    }

    /// Ends the connection: says why if the sender does not know yet, closes our side, and listens
    /// for a bounded time so that a sender that goes on sending can read what was said.
    ///
    /// `unsaid` is what no HTTP answer was given for. Resolves within 2 × the linger time.
    pub async fn finish(mut self, unsaid: Option<Rejection>) {
        if let Some(rejection) = unsaid {
            let answer = parting_answer(rejection);
            let write = self.socket.get_mut().write_all(&answer);
            let _ = tokio::time::timeout(LINGER.0, write).await;
        }
        if self.socket.get_mut().shutdown().await.is_err() || self.is_at_end {
            return;
        }
        self.socket.set_limit(LINGER.1);
        // The buffer is on the stack only while it is used: it is no part of every connection.
        let drain = poll_fn(|cx| {
            let mut sink = [0; 8 * 1024];
            loop {
                let mut buffer = ReadBuf::new(&mut sink);
                match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                    Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        let _ = tokio::time::timeout(LINGER.0, drain).await;
    }

    /// What to tell a sender whose connection ended without a request that could be answered.
    pub fn unsaid(&self) -> Option<Rejection> {
        if self.watch.is_said.get() || self.watch.body_until.get().is_some() {
            return None;
        }
        match self.watch.verdict()? {
            Verdict::Ambiguous => Some(Rejection::Malformed(Malformation::Framing)),
            Verdict::Slow => Some(Rejection::Timeout),
            Verdict::Idle | Verdict::SlowReader => None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Io<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.watch.verdict().is_some() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let phase = this.framing.phase();
        let is_crowded = phase == Phase::Body && this.budget.waiting() > CROWD;
        this.socket
            .set_limit(if is_crowded { SMALL_READ } else { u64::MAX });
        let before = buf.filled().len();
        let Poll::Ready(outcome) = Pin::new(&mut this.socket).poll_read(cx, buf) else {
            let (at, verdict) = this.watch.read_deadline(phase);
            return this.watch.poll_deadline(cx, at).map(|()| {
                this.watch.verdict.set(Some(verdict));
                Err(io::ErrorKind::TimedOut.into())
            });
        };
        outcome?;
        let came = buf.filled().get(before..).unwrap_or_default();
        this.is_at_end = came.is_empty();
        if phase == Phase::Between && this.watch.body_until.get().is_none() && !came.is_empty() {
            this.watch.since.set(Instant::now());
        }
        if let Err(ambiguous) = this.framing.push(came) {
            this.watch.verdict.set(Some(Verdict::Ambiguous));
            if ambiguous.after == 0 {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            buf.set_filled(before + ambiguous.after);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    /// Bounds how long our answer may stay unread, from the first moment it could not be sent on.
    fn bound<T>(&self, cx: &mut Context<'_>, sent: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if sent.is_ready() {
            return sent;
        }
        let since = self.watch.blocked_since.get().unwrap_or_else(Instant::now);
        self.watch.blocked_since.set(Some(since));
        self.watch
            .poll_deadline(cx, since + self.watch.body_timeout)
            .map(|()| {
                self.watch.verdict.set(Some(Verdict::SlowReader));
                Err(io::ErrorKind::TimedOut.into())
            })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Io<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(this.socket.get_mut()).poll_write(cx, buf);
        this.bound(cx, sent)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(this.socket.get_mut()).poll_write_vectored(cx, bufs);
        this.bound(cx, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().socket.get_mut()).poll_flush(cx)
    }

    /// Does nothing: closing is [`Io::finish`]'s, which can say something first.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
