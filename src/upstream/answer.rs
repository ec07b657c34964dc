//! An upstream's answer: its head, read strictly, and its body, held or passed on.

use std::{
    fmt, io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tokio::io::AsyncReadExt as _;

use super::{Connection, Permit};
use crate::{
    framing::{Chunks, Piece, has_plain_lines, place_of},
    stream::Stream,
};

/// Most bytes in the head of an answer.
const HEAD_LIMIT: usize = 64 * 1024;
/// Most fields in the head of an answer.
const FIELDS_LIMIT: usize = 128;
/// Room made for each read from an upstream, in bytes.
const READ_SIZE: usize = 8 * 1024;

/// An answer that is not HTTP/1.1 as we accept it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unintelligible;

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) rest: Rest,
    /// The upstream keeps the connection open afterwards.
    pub(super) keeps_alive: bool,
}

/// How much of an answer's body is still to come (RFC 9112 §6.3).
#[derive(Debug)]
pub(super) enum Rest {
    Chunked(Chunks),
    Length(u64),
    UntilClose,
}

impl Rest {
    /// Takes what has arrived; `None` when more bytes are needed.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Piece>, Unintelligible> {
        match self {
            Self::Length(0) => Ok(Some(Piece::End)),
            Self::Length(_) | Self::UntilClose if buffer.is_empty() => Ok(None),
            Self::Length(left) => {
                let here = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                *left = left.saturating_sub(here as u64);
                Ok(Some(Piece::Data(buffer.split_to(here).freeze())))
            }
            Self::UntilClose => Ok(Some(Piece::Data(buffer.split().freeze()))),
            Self::Chunked(chunks) => match chunks.next(buffer) {
                Ok(Piece::More) => Ok(None),
                Ok(piece) => Ok(Some(piece)),
                Err(_) => Err(Unintelligible),
            },
        }
    }
}

/// Takes the head of a final answer out of the buffer; `None` when more bytes are needed.
///
/// Interim answers (1xx) are passed over; one that claims to have a body is refused, and so is a
/// switch of protocols, which nobody asked for, and framing that two parsers could read differently.
pub(super) fn take_head(buffer: &mut BytesMut) -> Result<Option<Head>, Unintelligible> {
    loop {
        // Not set up: that would cost as much as the parsing.
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_LIMIT];
        let mut parsed = httparse::Response::new(&mut []);
        let strict = httparse::ParserConfig::default();
        let length =
            match strict.parse_response_with_uninit_headers(&mut parsed, buffer, &mut fields) {
                Ok(httparse::Status::Complete(length)) if length <= HEAD_LIMIT => length,
                Ok(httparse::Status::Partial) if buffer.len() < HEAD_LIMIT => return Ok(None),
                Ok(_) | Err(_) => return Err(Unintelligible),
            };
        // The parser takes bare LF for line ends, and passes over empty lines.
        if !buffer.get(..length).is_some_and(has_plain_lines) {
            return Err(Unintelligible);
        }
        let is_latest = parsed.version == Some(1);
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or(Unintelligible)?;
        if status.is_informational() {
            let is_framing = |name: &str| {
                let is = |other: HeaderName| name.eq_ignore_ascii_case(other.as_str());
                is(header::CONTENT_LENGTH) || is(header::TRANSFER_ENCODING)
            };
            let is_odd = !is_latest || parsed.headers.iter().any(|field| is_framing(field.name));
            if is_odd || status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Unintelligible);
            }
            let _ = buffer.split_to(length);
            continue;
        }
        // Values become slices of the head's own bytes, which nothing else is read into.
        let places: Vec<_> = parsed
            .headers
            .iter()
            .map(|field| {
                (
                    HeaderName::from_bytes(field.name.as_bytes()),
                    place_of(buffer, field.value),
                )
            })
            .collect();
        let head = buffer.split_to(length).freeze();
        let mut headers = HeaderMap::with_capacity(places.len() + 4);
        for (name, place) in places {
            let value = place.map(|place| head.slice(place)).ok_or(Unintelligible)?;
            let value = HeaderValue::from_maybe_shared(value).map_err(|_| Unintelligible)?;
            headers.append(name.map_err(|_| Unintelligible)?, value);
        }
        let rest = framing(status, &headers, is_latest)?;
        let keeps_alive = is_latest
            && !says_close(&headers)
            && !matches!(rest, Rest::UntilClose)
            && !belies_itself(status, &headers);
        return Ok(Some(Head {
            status,
            headers,
            rest,
            keeps_alive,
        }));
    }
}

fn framing(
    status: StatusCode,
    headers: &HeaderMap,
    is_latest: bool,
) -> Result<Rest, Unintelligible> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let (coding, length) = (codings.next(), lengths.next());
    if codings.next().is_some() || lengths.next().is_some() {
        return Err(Unintelligible);
    }
    let rest = match (coding, length) {
        (Some(_), Some(_)) => return Err(Unintelligible),
        (Some(coding), None) => {
            if !is_latest || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err(Unintelligible);
            }
            Rest::Chunked(Chunks::default())
        }
        (None, Some(length)) => {
            let digits = length.to_str().map_err(|_| Unintelligible)?;
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Unintelligible);
            }
            Rest::Length(digits.parse().map_err(|_| Unintelligible)?)
        }
        (None, None) => Rest::UntilClose,
    };
    // These have no body whatever their headers say (RFC 9110 §6.4.1).
    let is_bare = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    Ok(if is_bare { Rest::Length(0) } else { rest })
}

/// A 204 has no body (RFC 9110 §15.3.5), whose length or coding it may not announce either: what
/// comes behind one that does is nobody's.
fn belies_itself(status: StatusCode, headers: &HeaderMap) -> bool {
    let announces = |name| headers.get(name).is_some_and(|value| value != "0");
    status == StatusCode::NO_CONTENT
        && (announces(header::CONTENT_LENGTH) || announces(header::TRANSFER_ENCODING))
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        let options = value.to_str().unwrap_or("close").split(',');
        options
            .map(str::trim)
            .any(|option| option.eq_ignore_ascii_case("close"))
    })
}

/// Reads once into the buffer; how many bytes came, 0 at the end.
pub(super) fn poll_fill(
    stream: &mut Stream,
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buffer.capacity() - buffer.len() < READ_SIZE / 2 {
        buffer.reserve(READ_SIZE);
    }
    // Nothing is lost when this future is dropped unfinished: it holds no bytes of its own.
    std::pin::pin!(stream.read_buf(buffer)).poll(cx)
}

/// The body of an answer on its way to the sender.
#[derive(Debug)]
pub struct AnswerBody(Inner);

enum Inner {
    Held(Bytes),
    Made(Pin<Box<dyn Body<Data = Bytes, Error = io::Error>>>),
    Passing(Box<Passing>),
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held(_) => "Held",
            Self::Made(_) => "Made",
            Self::Passing(_) => "Passing",
        })
    }
}

/// A body that is passed on while it arrives.
#[derive(Debug)]
pub(super) struct Passing {
    pub(super) held: BytesMut,
    pub(super) connection: Connection,
    pub(super) rest: Rest,
    pub(super) deadline: Pin<Box<tokio::time::Sleep>>,
    /// The upstream is busy with this request until its answer is over.
    pub(super) _permit: Permit,
}

impl AnswerBody {
    /// A body that is here.
    pub fn held(bytes: impl Into<Bytes>) -> Self {
        Self(Inner::Held(bytes.into()))
    }

    /// A body that is made while it is sent.
    pub fn made(body: impl Body<Data = Bytes, Error = io::Error> + 'static) -> Self {
        Self(Inner::Made(Box::pin(body)))
    }

    pub(super) fn passing(passing: Passing) -> Self {
        Self(Inner::Passing(Box::new(passing)))
    }

    /// Whether the body is here, so that the sender's wait depends on the upstream no longer.
    pub fn is_held(&self) -> bool {
        matches!(self.0, Inner::Held(_))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.get_mut().0 {
            Inner::Held(bytes) if bytes.is_empty() => Poll::Ready(None),
            Inner::Held(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Inner::Made(body) => body.as_mut().poll_frame(cx),
            Inner::Passing(passing) => passing.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Held(bytes) => bytes.is_empty(),
            Inner::Made(body) => body.is_end_stream(),
            Inner::Passing(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Held(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Made(body) => body.size_hint(),
            Inner::Passing(passing) => match passing.rest {
                Rest::Length(left) => SizeHint::with_exact(left + passing.held.len() as u64),
                Rest::Chunked(_) | Rest::UntilClose => SizeHint::default(),
            },
        }
    }
}

impl Passing {
    /// A break-off ends the body with an error, so that the sender's connection breaks too: a
    /// short answer never looks whole.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.held.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.held.split().freeze()))));
        }
        let broken = || Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
        loop {
            match self.rest.next(&mut self.connection.buffer) {
                Err(Unintelligible) => return broken(),
                Ok(Some(Piece::Data(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Some(_end)) => return Poll::Ready(None),
                Ok(None) => {}
            }
            if self.deadline.as_mut().poll(cx).is_ready() {
                return broken();
            }
            let connection = &mut self.connection;
            match ready!(poll_fill(
                &mut connection.stream,
                &mut connection.buffer,
                cx
            )) {
                Ok(0) if matches!(self.rest, Rest::UntilClose) => return Poll::Ready(None),
                Ok(0) | Err(_) => return broken(),
                Ok(_) => {}
            }
        }
    }
}
