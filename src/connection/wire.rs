//! The bytes of one connection: what was read, whose it is, and what is still to come.
//!
//! The HTTP library gets heads, and bodies whose end only their framing tells. A body of announced
//! length behind a head that came in one piece never passes through the library: the gate reads
//! it from here, and from the socket into where it stays.

use std::{
    cell::RefCell,
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::BufMut;
use tokio::io::AsyncReadExt as _;

use crate::{
    framing::{Ambiguous, Framing, Phase},
    stream::Stream,
};

/// Most bytes read from a socket at a time.
const READ_SIZE: usize = 64 * 1024;
/// Buffers of that size kept by one thread: connections take turns, so that few are in use.
const KEPT: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Gives this thread's spare buffers back to the system.
pub(super) fn tidy() {
    SPARE.with_borrow_mut(Vec::clear);
}

/// A socket, and what was read from it too far.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) socket: Stream,
    framing: Framing,
    ahead: Ahead,
    /// Bytes still to come of the body of the request in progress, where the library does not
    /// read it.
    body_left: Option<u64>,
    pub(super) is_at_end: bool,
}

impl Wire {
    pub(super) fn new(socket: Stream) -> Self {
        Self {
            socket,
            framing: Framing::new(),
            ahead: Ahead::default(),
            body_left: None,
            is_at_end: false,
        }
    }

    /// What the connection is in the middle of.
    pub(super) fn phase(&self) -> Phase {
        match self.body_left {
            Some(1..) => Phase::Body,
            Some(0) | None => self.framing.phase(),
        }
    }

    /// What a sender sends in advance takes no more memory than it is long.
    pub(super) fn shrink(&mut self) {
        self.ahead.shrink();
    }

    /// Bytes still to come of a body that is read from here.
    pub(super) fn body_left(&self) -> Option<u64> {
        self.body_left
    }

    /// Whether nothing is at hand, so that the socket has to be asked.
    pub(super) fn is_empty(&self) -> bool {
        self.ahead.unread().is_empty()
    }

    /// Reads once from the socket, at most `most` bytes, behind nothing: what was read before has
    /// been taken.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        let came = self.ahead.poll_fill(&mut self.socket, cx, most);
        if let Poll::Ready(Ok(came)) = came {
            self.is_at_end = came == 0;
        }
        came
    }

    /// Forgets bytes at hand of a body that nobody read; whether it is over.
    pub(super) fn skip_body(&mut self) -> bool {
        let left = self.body_left.unwrap_or(0);
        let here = self.ahead.unread().len().min(clamp(left));
        self.ahead.take(here);
        let left = left.saturating_sub(here as u64);
        self.body_left = (left > 0).then_some(left);
        self.body_left.is_none()
    }

    /// Hands bytes at hand to the library, at most `most`.
    ///
    /// # Errors
    /// [`Ambiguous`] when what comes behind those that went is not to be trusted.
    pub(super) fn pass_on(
        &mut self,
        most: usize,
        put: impl FnOnce(&[u8]),
    ) -> Result<(), Ambiguous> {
        let bytes = self.ahead.unread_mut();
        let here = bytes.len().min(most);
        let bytes = bytes.get_mut(..here).unwrap_or_default();
        let pushed = self.framing.push(bytes);
        let taken = match &pushed {
            Ok(pushed) => pushed.taken,
            Err(ambiguous) => ambiguous.after,
        };
        put(bytes.get(..taken).unwrap_or_default());
        self.ahead.take(taken);
        self.body_left = pushed?.body;
        Ok(())
    }

    /// Puts bytes of the body into `room`, from what is at hand or else from the socket; 0 when
    /// the connection has ended. There has to be room, and something to come.
    pub(super) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut impl BufMut,
    ) -> Poll<io::Result<usize>> {
        let left = self.body_left.unwrap_or(0);
        let most = room.remaining_mut().min(clamp(left));
        let came = if self.is_empty() {
            let mut room = room.limit(most);
            let came = ready!(pin!(self.socket.read_buf(&mut room)).poll(cx))?;
            self.is_at_end = came == 0;
            came
        } else {
            let here = self.ahead.unread().len().min(most);
            room.put_slice(self.ahead.unread().get(..here).unwrap_or_default());
            self.ahead.take(here);
            if here == clamp(left) {
                self.ahead.shrink();
            }
            here
        };
        self.body_left = Some(left.saturating_sub(came as u64));
        Poll::Ready(Ok(came))
    }
}

/// Bytes that were read from a socket and not taken yet.
#[derive(Debug, Default)]
struct Ahead {
    buffer: Vec<u8>,
    taken: usize,
}

impl Ahead {
    fn unread(&self) -> &[u8] {
        self.buffer.get(self.taken..).unwrap_or_default()
    }

    fn unread_mut(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.taken..).unwrap_or_default()
    }

    /// Takes the next bytes off; the buffer goes back when none is left.
    fn take(&mut self, count: usize) {
        self.taken += count;
        if self.unread().is_empty() {
            keep(std::mem::take(&mut self.buffer));
            self.taken = 0;
        }
    }

    /// Moves what is left out of a large buffer.
    fn shrink(&mut self) {
        if self.buffer.capacity() >= READ_SIZE && !self.unread().is_empty() {
            let rest = self.unread().to_vec();
            keep(std::mem::replace(&mut self.buffer, rest));
            self.taken = 0;
        }
    }

    fn poll_fill(
        &mut self,
        socket: &mut Stream,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        let mut buffer = spare.unwrap_or_else(|| Vec::with_capacity(READ_SIZE));
        let came = {
            let mut room = (&mut buffer).limit(most.min(READ_SIZE));
            // Nothing is lost when this future is dropped unfinished: it holds no bytes of its own.
            pin!(socket.read_buf(&mut room)).poll(cx)
        };
        if buffer.is_empty() {
            keep(buffer);
        } else {
            *self = Self { buffer, taken: 0 };
        }
        came
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        keep(std::mem::take(&mut self.buffer));
    }
}

/// Keeps a large buffer for this thread's next read.
fn keep(mut buffer: Vec<u8>) {
    if buffer.capacity() < READ_SIZE {
        return;
    }
    buffer.clear();
    // Not while the thread is being taken apart.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < KEPT {
            spare.push(buffer);
        }
    });
}

fn clamp(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX)
}
