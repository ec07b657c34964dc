//! A connection that speaks HTTP/2 (RFC 9113): several requests at a time, each with deadlines of
//! its own, and the connection's.
//!
//! The HTTP library reads and writes through [`CarrierIo`], which looks at what comes before the
//! library does. A request of it looks to the gate like any other: [`received`] makes of its head
//! what HTTP/1.1 would have brought, [`Upload`] is its body, and [`answer`] takes what came of it.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    server::{Builder, SendResponse},
};
use http::{
    HeaderName, HeaderValue, Method, Response, StatusCode, Version, header, request::Parts,
};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Alarm, Inflow, LINGER, Peer, Verdict, Watch, drain, frames::Frames};
use crate::{body, limits::Limits, rejection::Malformation, stream::Stream, upstream::AnswerBody};

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
    /// No more requests are wanted.
    is_leaving: Cell<bool>,
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
            is_leaving: Cell::new(false),
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
        if !self.is_leaving.replace(true) {
            self.wake();
        }
    }

    /// Whether no more requests are wanted.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.get()
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
        let rest = match self.is_leaving.get() {
            true => FAREWELL.min(self.limits.idle_timeout),
            false => self.limits.idle_timeout,
        };
        let (at, verdict) = match self.head_until.get() {
            Some(until) => (until, Verdict::Slow),
            None if self.open.get() == 0 => (self.since.get() + rest, Verdict::Idle),
            None => return Poll::Pending,
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

/// How the answer to a request is begun; shared by who reads its body, which may have to ask for it.
pub(crate) type Respond = Rc<RefCell<SendResponse<Bytes>>>;

/// The body of a request, as it comes.
#[derive(Debug)]
pub struct Upload {
    body: RecvStream,
    /// Who has to be told to go on first.
    waits: Option<Respond>,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let came = self.body.poll_data(cx);
        if came.is_pending()
            && let Some(respond) = self.waits.take()
        {
            let mut go_on = Response::new(());
            *go_on.status_mut() = StatusCode::CONTINUE;
            // One that is gone is noticed by whoever reads on.
            let _ = respond.borrow_mut().send_informational(go_on);
        }
        let Some(data) = ready!(came) else {
            return Poll::Ready(None);
        };
        let data = data?;
        let _ = self.body.flow_control().release_capacity(data.len());
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        match self.body.is_end_stream() {
            true => SizeHint::with_exact(0),
            false => SizeHint::default(),
        }
    }
}

/// The same request with its head as HTTP/1.1 would have brought it, and its body.
///
/// # Errors
/// What is malformed and the library lets pass: a target with bytes that no request line has,
/// a value with spaces around it (RFC 9113 §8.2.1), more than one `Content-Length`.
pub(crate) fn received<'w>(
    head: &mut Parts,
    body: RecvStream,
    respond: &Respond,
    watch: &'w Watch,
) -> Result<Inflow<'w>, Malformation> {
    let target = head
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    if !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Malformation::Target);
    }
    let is_padded = |value: &HeaderValue| {
        let bytes = value.as_bytes();
        bytes.trim_ascii().len() != bytes.len()
    };
    if head.headers.values().any(is_padded) {
        return Err(Malformation::Framing);
    }
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let announced = match (lengths.next(), lengths.next()) {
        (None, _) => body.is_end_stream().then_some(0),
        (Some(length), None) => {
            let digits = length
                .to_str()
                .ok()
                .filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let length = digits.and_then(|digits| digits.parse().ok());
            Some(length.ok_or(Malformation::Framing)?)
        }
        (Some(_), Some(_)) => return Err(Malformation::Framing),
    };
    head.version = Version::HTTP_11;
    // The authority is what Host is elsewhere (§8.3.1); where both are, the gate compares them.
    if let (Some(authority), false) = (
        head.uri.authority(),
        head.headers.contains_key(header::HOST),
    ) {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Malformation::Host)?;
        head.headers.insert(header::HOST, host);
    }
    join_cookies(head);
    let waits = head
        .headers
        .get(header::EXPECT)
        .is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let upload = Upload {
        body,
        waits: waits.then(|| respond.clone()),
    };
    Ok(Inflow::Stream(watch, body::Frames::new(upload), announced))
}

/// Cookies come in several fields and are one elsewhere (RFC 9113 §8.2.3).
fn join_cookies(head: &mut Parts) {
    let mut all = head.headers.get_all(header::COOKIE).iter();
    if let (Some(_), Some(_)) = (all.next(), all.next()) {
        let all: Vec<&[u8]> = head
            .headers
            .get_all(header::COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        // Pieces of values make a value.
        if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
            head.headers.insert(header::COOKIE, joined);
        }
    }
}

/// Fields that say how one connection goes on, and have no meaning here (RFC 9113 §8.2.2).
const OF_A_CONNECTION: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Whether an answer asks its sender to come by another connection the next time.
pub(crate) fn takes_leave(response: &Response<AnswerBody>) -> bool {
    let connection = response.headers().get(header::CONNECTION);
    connection.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

/// Sends an answer to its end. One that is not read in time, or breaks off, ends with a reset, so
/// that a short answer never looks whole. False where the sender does not wait for one any more.
pub(crate) async fn answer(
    respond: &Respond,
    response: Response<AnswerBody>,
    method: &Method,
    watch: &Watch,
) -> bool {
    let (mut head, mut body) = response.into_parts();
    for name in &OF_A_CONNECTION {
        head.headers.remove(name);
    }
    if !head.headers.contains_key(header::DATE) {
        let now = httpdate::fmt_http_date(SystemTime::now());
        if let Ok(now) = HeaderValue::from_str(&now) {
            head.headers.insert(header::DATE, now);
        }
    }
    let is_bare = *method == Method::HEAD || body.is_end_stream();
    if let (Some(length), false) = (
        body.size_hint().exact(),
        head.status == StatusCode::NO_CONTENT,
    ) {
        head.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let begun = respond
        .borrow_mut()
        .send_response(Response::from_parts(head, ()), is_bare);
    let is_begun = begun.is_ok();
    let (Ok(mut stream), false) = (begun, is_bare) else {
        return is_begun;
    };
    if send(&mut stream, &mut body, watch).await.is_none() {
        stream.send_reset(Reason::INTERNAL_ERROR);
    }
    is_begun
}

/// Sends a body; `None` when it could not be sent whole.
async fn send(stream: &mut SendStream<Bytes>, body: &mut AnswerBody, watch: &Watch) -> Option<()> {
    let mut blocked_since = None;
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        let Some(frame) = frame else {
            return stream.send_data(Bytes::new(), true).ok();
        };
        let mut data = frame.ok()?.into_data().unwrap_or_default();
        let is_last = body.is_end_stream();
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let room = poll_fn(|cx| match stream.poll_capacity(cx) {
                Poll::Ready(room) => Poll::Ready(room.and_then(Result::ok)),
                Poll::Pending => {
                    let since = *blocked_since.get_or_insert_with(Instant::now);
                    let until = since + watch.body_timeout;
                    watch.alarm.poll(cx, until).map(|()| None)
                }
            });
            let here = room.await?.min(data.len());
            let piece = data.split_to(here);
            stream.send_data(piece, is_last && data.is_empty()).ok()?;
        }
        if is_last {
            return Some(());
        }
    }
}
