//! One request by HTTP/2 as the gate sees it, like any other: [`received`] makes of its head what
//! HTTP/1.1 would have brought, [`Upload`] is its body, and [`answer`] takes what came of it.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{
    HeaderName, HeaderValue, Method, Response, StatusCode, Version, header, request::Parts,
};
use http_body::{Body, Frame, SizeHint};

use crate::{
    body,
    connection::{Inflow, LINGER, Watch},
    rejection::Malformation,
    upstream::AnswerBody,
};

/// How the answer to a request is begun; shared by who reads its body, which may have to ask for it.
pub(crate) type Respond = Rc<RefCell<SendResponse<Bytes>>>;

/// What comes of a request's body; shared by who reads it, and who passes over what nobody read.
pub(crate) type Coming = Rc<RefCell<RecvStream>>;

/// The body of a request, as it comes.
#[derive(Debug)]
pub struct Upload {
    body: Coming,
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
        let came = self.body.borrow_mut().poll_data(cx);
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
        let mut body = self.body.borrow_mut();
        let _ = body.flow_control().release_capacity(data.len());
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        match self.body.borrow().is_end_stream() {
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
    body: &Coming,
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
        (None, _) => body.borrow().is_end_stream().then_some(0),
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
        body: body.clone(),
        waits: waits.then(|| respond.clone()),
    };
    Ok(Inflow::Stream(watch, body::Frames::new(upload), announced))
}

/// Passes over what nobody read, for a bounded time: who goes on sending and finds its stream reset
/// may not read the answer.
pub(crate) async fn pass_over(body: &Coming) {
    let (time, mut left) = LINGER;
    let rest = poll_fn(|cx| {
        let mut body = body.borrow_mut();
        while left > 0 && !body.is_end_stream() {
            let Some(Ok(data)) = ready!(body.poll_data(cx)) else {
                break;
            };
            let _ = body.flow_control().release_capacity(data.len());
            left = left.saturating_sub(data.len());
        }
        Poll::Ready(())
    });
    let _ = tokio::time::timeout(time, rest).await;
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
