//! One request and its answer on one connection.
//!
//! Owns the order of bytes in both directions, and what is known of a request whose answer did not
//! come; which connection it is, and whether the request goes out again, is the pool's.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use bytes::BytesMut;
use tokio::io::AsyncWrite as _;

use super::{
    HELD_LIMIT, TlsFault, UpstreamError,
    answer::{Head, Rest, Unintelligible, poll_fill, take_head},
};
use crate::{framing::Piece, stream::Stream};

/// An open connection and what was read from it too far.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) stream: Stream,
    pub(super) buffer: BytesMut,
    /// The addresses it was made under.
    pub(super) generation: usize,
    /// When it was first seen idle.
    pub(super) idle_since: Option<Instant>,
}

impl Connection {
    async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| poll_fill(&mut self.stream, &mut self.buffer, cx)).await
    }

    /// Reads the rest of an answer as far as it is held; whether that is all of it.
    pub(super) async fn hold(
        &mut self,
        rest: &mut Rest,
        held: &mut BytesMut,
    ) -> Result<bool, UpstreamError> {
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
    pub(super) async fn exchange(&mut self, head: &[u8], body: &[u8]) -> Result<Head, Failure> {
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

/// How one attempt ended short of an answer.
pub(super) struct Failure {
    pub(super) error: UpstreamError,
    /// Bytes of the request that were handed to the system.
    pub(super) written: usize,
    /// Bytes of an answer that came.
    pub(super) answered: bool,
}

impl Failure {
    /// What it was, on this connection. TLS 1.3 lets a client speak before the upstream has looked
    /// at its certificate (RFC 8446 §4.4.2.4): what comes first on a connection may be a refusal.
    pub(super) fn of(self, connection: &Connection, is_reused: bool) -> UpstreamError {
        let is_first = !is_reused && !self.answered;
        match (self.error, &connection.stream) {
            (UpstreamError::BrokeOff, Stream::Tls(_)) if is_first => {
                UpstreamError::Tls(TlsFault::Ended)
            }
            (error, _) => error,
        }
    }
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
