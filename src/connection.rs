//! One sender's connection: its bytes, its deadlines, its end.
//!
//! Owns every deadline a connection can miss (no first byte, slow handshake, slow head, slow body,
//! slow reader, idle), and how it begins (`opening`). What the HTTP library reads and writes goes
//! through `http1` or `http2`; of that the gate sees a [`Watch`] and the request's [`Inflow`], and cannot
//! tell which protocol it came by. What a request means is left to the gate; who may connect, to
//! the server.

mod frames;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod opening;
pub mod preamble;
mod wire;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::BufMut;
use hyper::body::Incoming;
use tokio::{io::ReadBuf, time::Sleep};

use self::{http1::Line, http2::exchange::Upload};
use crate::{
    body::{BodyError, Frames, Source},
    limits::Limits,
};

/// How long, and for how many bytes, a sender is listened to after the last answer, so that it can
/// read that answer before the connection is reset.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 8 << 20);

/// Gives back to the system what this thread keeps for its next read; to be called now and then.
pub fn tidy() {
    wire::tidy();
}

/// Who asks, since when, and until when, as the gate knows it.
#[derive(Debug)]
pub struct Watch {
    /// The other end, if it is an IP socket.
    pub peer: Option<IpAddr>,
    /// The same, written out once for all requests.
    pub peer_text: Option<Rc<str>>,
    /// `http` or `https`.
    pub proto: &'static str,
    body_timeout: Duration,
    alarm: Alarm,
    /// First byte of the request in progress; before it, the moment the connection became idle.
    since: Cell<Instant>,
    body_until: Cell<Option<Instant>>,
    verdict: Cell<Option<Verdict>>,
    /// The last answer ended the connection.
    is_over: Cell<bool>,
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

/// Where a connection comes from, and how.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    ip: Option<IpAddr>,
    text: Option<Rc<str>>,
    proto: &'static str,
}

impl Peer {
    /// The other end, if it is an IP socket, in its canonical form, and whether it is reached by TLS.
    pub(crate) fn new(ip: Option<IpAddr>, is_secure: bool) -> Self {
        Self {
            ip,
            text: ip.map(|ip| ip.to_string().into()),
            proto: if is_secure { "https" } else { "http" },
        }
    }
}

impl Watch {
    /// A watch over a connection that began, or became idle, at a moment.
    pub(crate) fn new(peer: Peer, limits: &Limits, since: Instant) -> Self {
        Self {
            peer: peer.ip,
            peer_text: peer.text,
            proto: peer.proto,
            body_timeout: limits.body_timeout,
            alarm: Alarm::new(limits),
            since: Cell::new(since),
            body_until: Cell::new(None),
            verdict: Cell::new(None),
            is_over: Cell::new(false),
        }
    }

    /// Begins a request, whose head is here: when its first byte came.
    pub fn begin(&self) -> Instant {
        self.body_until
            .set(Some(self.since.get() + self.body_timeout));
        self.since.get()
    }

    /// Ends a request: from here on the connection is idle, or over if its answer `closes` it.
    pub fn answered(&self, now: Instant, closes: bool) {
        self.is_over.set(closes);
        self.body_until.set(None);
        self.since.set(now);
    }

    /// Why the connection cannot go on, if it cannot.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict.get()
    }

    /// Ready when the body of the request in progress is overdue.
    fn poll_slow<T>(&self, cx: &mut Context<'_>) -> Poll<Result<T, BodyError>> {
        let Some(until) = self.body_until.get() else {
            return Poll::Pending;
        };
        self.alarm.poll(cx, until).map(|()| {
            self.verdict.set(Some(Verdict::Slow));
            Err(BodyError::Broken)
        })
    }

    /// Runs a future until a moment; `None` when that came first.
    pub async fn until<F: Future>(&self, at: Instant, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.alarm.poll(cx, at).map(|()| None),
        })
        .await
    }
}

/// Listens to a sender for a bounded time, and forgets what it says.
async fn drain(mut read: impl FnMut(&mut Context<'_>, &mut ReadBuf<'_>) -> Poll<io::Result<()>>) {
    let (time, mut left) = LINGER;
    // The buffer is on the stack only while it is used: it is no part of every connection.
    let drain = poll_fn(|cx| {
        let mut sink = [0; 8 * 1024];
        while left > 0 {
            let mut buffer = ReadBuf::new(&mut sink);
            match ready!(read(cx, &mut buffer)) {
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

/// One timer for whatever may be missed next.
#[derive(Debug)]
struct Alarm {
    timer: RefCell<Pin<Box<Sleep>>>,
    /// The nearest a deadline can be, from the moment it is set.
    soonest: Duration,
}

impl Alarm {
    fn new(limits: &Limits) -> Self {
        Self {
            timer: RefCell::new(Box::pin(tokio::time::sleep(limits.header_timeout))),
            soonest: limits.header_timeout.min(limits.body_timeout),
        }
    }

    /// Ready when `at` has come. The timer is moved only when it would ring too late; when it
    /// rings too early it is set anew.
    fn poll(&self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
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
            timer.as_mut().reset(at.min(now + self.soonest));
        }
        Poll::Pending
    }
}

/// A request's body, to be read.
#[derive(Debug)]
pub enum Inflow<'w> {
    /// From the connection, this many bytes.
    Here(&'w Line, u64),
    /// From the HTTP library.
    Library(Frames<Incoming>, Option<u64>),
    /// One of several under way on a connection.
    Stream(&'w Watch, Frames<Upload>, Option<u64>),
}

impl Inflow<'_> {
    /// Its length, where that was announced.
    pub fn announced(&self) -> Option<u64> {
        match self {
            Self::Here(_, length) => Some(*length),
            Self::Library(_, length) | Self::Stream(_, _, length) => *length,
        }
    }

    /// Whether the connection can go on with this body unread: it is here, and not longer than
    /// `most` bytes.
    pub fn can_be_passed_over(&self, most: u64) -> bool {
        match self {
            Self::Here(_, length) => *length <= most,
            Self::Library(_, length) => *length == Some(0),
            Self::Stream(..) => true,
        }
    }
}

impl Source for Inflow<'_> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut impl BufMut,
    ) -> Poll<Result<Option<usize>, BodyError>> {
        match self {
            Self::Here(line, _) => line.poll_body(cx, room),
            Self::Library(frames, _) => frames.poll_read(cx, room),
            Self::Stream(watch, frames, _) => match frames.poll_read(cx, room) {
                Poll::Pending => watch.poll_slow(cx),
                came @ Poll::Ready(_) => came,
            },
        }
    }
}
