//! Where one HTTP/1.1 message ends and the next begins, read more strictly than a parser must.
//!
//! [`Framing`] watches the bytes of a connection on their way to the HTTP library and stops at the first
//! that two parsers could read differently (RFC 9112 §2.2, §6.3, §7.1, §11.2): a bare LF, a folded
//! header line, more than one `Content-Length`, a `Content-Length` beside a `Transfer-Encoding`,
//! any coding but a single `chunked`, and chunk framing with anything unusual in it. Whatever
//! passes is read by the library in the same way. [`Chunks`] undoes the chunked coding of an
//! upstream's answer under the same rules, and [`has_plain_lines`] looks at its head. It is pure, and
//! owns no deadline.
//!
//! What the lines of a head say is `head`'s, what those of a chunked body say `chunks`'; here is how a
//! connection goes from one to the next.

mod chunks;
mod head;

pub(crate) use self::head::place_of;
pub use self::{
    chunks::{Chunks, Piece},
    head::has_plain_lines,
};
use self::{
    chunks::{chunk_size, is_field},
    head::Head,
};

/// Longest line of framing, its CR included, in bytes; a longer head line is no framing, and a longer
/// chunk line is refused.
const LINE_LIMIT: usize = 256;
/// Most bytes in a trailer section.
const TRAILERS_LIMIT: usize = 8 * 1024;

/// Bytes that are not to be trusted, and where they begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguous {
    /// How many bytes before it were fine.
    pub after: usize,
}

/// What [`Framing::push`] took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// How many bytes.
    pub taken: usize,
    /// They end with a whole head, and this many bytes of body follow that the HTTP library will
    /// not ask for.
    pub body: Option<u64>,
}

/// What the connection is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing: the next byte begins a request.
    Between,
    /// A request line or header section.
    Head,
    /// A body.
    Body,
}

/// The place in the stream of requests.
#[derive(Debug)]
pub struct Framing {
    at: At,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    head: Head,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Between,
    Head,
    /// A head line that is too long to be framing, up to its end.
    HeadRest {
        last: u8,
    },
    Sized(u64),
    ChunkLine,
    Chunk(u64),
    /// The line end after a chunk; how many of its two bytes came.
    ChunkEnd(u8),
    Trailers(usize),
}

impl Default for Framing {
    fn default() -> Self {
        Self::new()
    }
}

impl Framing {
    /// At the beginning of a connection.
    pub fn new() -> Self {
        Self {
            at: At::Between,
            line: Vec::new(),
            head: Head::default(),
        }
    }

    /// What the connection is in the middle of.
    pub fn phase(&self) -> Phase {
        match self.at {
            At::Between => Phase::Between,
            At::Head | At::HeadRest { .. } => Phase::Head,
            At::Sized(_) | At::ChunkLine | At::Chunk(_) | At::ChunkEnd(_) | At::Trailers(_) => {
                Phase::Body
            }
        }
    }

    /// Follows the next bytes of the connection, at most to the end of one request.
    ///
    /// Where a head came in one piece and announces a body by its length, it takes the head alone
    /// and leaves the body to the caller: the digits of `Content-Length` are overwritten with
    /// zeros, so that the HTTP library, which gets what was taken, looks for no body. A request
    /// that waits for `100 Continue`, a head in pieces and a chunked body are the library's.
    ///
    /// # Errors
    /// [`Ambiguous`] at the first byte of a line that is not to be trusted; nothing after it may
    /// reach the HTTP library.
    pub fn push(&mut self, bytes: &mut [u8]) -> Result<Pushed, Ambiguous> {
        self.head.is_in_hand = false;
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            let was_between = self.at == At::Between;
            let left = self.step(rest, taken).ok_or(Ambiguous { after: taken })?;
            taken = bytes.len() - left.len();
            if let (At::Sized(length), true) = (self.at, self.head.is_in_hand) {
                if let Some(digits) = bytes.get_mut(self.head.digits.clone()) {
                    digits.fill(b'0');
                }
                self.at = At::Between;
                let body = Some(length);
                return Ok(Pushed { taken, body });
            }
            if self.at == At::Between && !was_between {
                break;
            }
        }
        Ok(Pushed { taken, body: None })
    }

    /// Takes one line, or as much of a body as there is; `None` is ambiguity. `start`: where in the
    /// bytes at hand the rest begins.
    fn step<'b>(&mut self, rest: &'b [u8], start: usize) -> Option<&'b [u8]> {
        let first = *rest.first()?;
        match self.at {
            // Empty lines before a request line are passed over (RFC 9112 §2.2).
            At::Between if matches!(first, b'\r' | b'\n') && self.line.is_empty() => {
                if first == b'\n' {
                    return None;
                }
                self.line.push(first);
                rest.get(1..)
            }
            At::Between if !self.line.is_empty() => {
                self.line.clear();
                if first == b'\n' { rest.get(1..) } else { None }
            }
            At::Between => {
                self.head.begin();
                self.at = At::Head;
                Some(rest)
            }
            At::Head => match memchr::memchr(b'\n', rest) {
                Some(end) => {
                    let (line, next) = (rest.get(..end)?, rest.get(end + 1..)?);
                    if self.line.is_empty() {
                        self.at = self.head.line(line, start)?;
                    } else {
                        let mut whole = std::mem::take(&mut self.line);
                        whole.extend_from_slice(line);
                        self.at = self.head.line(&whole, start)?;
                        whole.clear();
                        self.line = whole;
                    }
                    Some(next)
                }
                None if self.line.len() + rest.len() > LINE_LIMIT => {
                    self.line.extend_from_slice(rest);
                    self.at = At::HeadRest {
                        last: *rest.last()?,
                    };
                    self.head.long_line(&mut self.line)?;
                    Some(&[])
                }
                None => {
                    self.line.extend_from_slice(rest);
                    Some(&[])
                }
            },
            At::HeadRest { last } => self.head_rest(rest, start, last),
            At::Sized(left) => {
                let (rest, left) = skip(rest, left)?;
                self.at = if left == 0 {
                    At::Between
                } else {
                    At::Sized(left)
                };
                Some(rest)
            }
            At::Chunk(left) => {
                let (rest, left) = skip(rest, left)?;
                self.at = if left == 0 {
                    At::ChunkEnd(0)
                } else {
                    At::Chunk(left)
                };
                Some(rest)
            }
            At::ChunkEnd(0) if first == b'\r' => {
                self.at = At::ChunkEnd(1);
                rest.get(1..)
            }
            At::ChunkEnd(1) if first == b'\n' => {
                self.at = At::ChunkLine;
                rest.get(1..)
            }
            At::ChunkEnd(_) => None,
            At::ChunkLine => {
                let (line, rest) = self.short_line(rest)?;
                if let Some(line) = line {
                    self.at = match chunk_size(&line)? {
                        0 => At::Trailers(0),
                        size => At::Chunk(size),
                    };
                }
                Some(rest)
            }
            At::Trailers(seen) => {
                let length = rest.len();
                let (line, rest) = self.short_line(rest)?;
                let seen = seen + (length - rest.len());
                if seen > TRAILERS_LIMIT {
                    return None;
                }
                self.at = match line {
                    Some(line) if line.is_empty() => At::Between,
                    Some(line) if !is_field(&line) => return None,
                    Some(_) | None => At::Trailers(seen),
                };
                Some(rest)
            }
        }
    }

    /// More of a long line of the head, of which `last` was the last byte so far.
    fn head_rest<'b>(&mut self, rest: &'b [u8], start: usize, last: u8) -> Option<&'b [u8]> {
        let end = memchr::memchr(b'\n', rest);
        let part = rest.get(..end.unwrap_or(rest.len()))?;
        let last = part.last().copied().unwrap_or(last);
        if self.head.is_first_line {
            self.line.extend_from_slice(part);
        }
        let Some(end) = end else {
            self.at = At::HeadRest { last };
            self.head.long_line(&mut self.line)?;
            return Some(&[]);
        };
        self.at = At::Head;
        if self.head.is_first_line {
            let tail = std::mem::take(&mut self.line);
            self.at = self.head.line(&tail, start)?;
        }
        rest.get(end + 1..).filter(|_| last == b'\r')
    }

    /// A line of chunked framing, without its CRLF; `None` inside while its end is on the way.
    fn short_line<'b>(&mut self, rest: &'b [u8]) -> Option<(Option<Vec<u8>>, &'b [u8])> {
        let end = memchr::memchr(b'\n', rest);
        let (part, next) = match end {
            Some(end) => (rest.get(..end)?, rest.get(end + 1..)?),
            None => (rest, &[][..]),
        };
        let limit = if self.at == At::ChunkLine {
            LINE_LIMIT
        } else {
            TRAILERS_LIMIT
        };
        if self.line.len() + part.len() > limit {
            return None;
        }
        self.line.extend_from_slice(part);
        if end.is_none() {
            return Some((None, next));
        }
        let mut line = std::mem::take(&mut self.line);
        (line.pop() == Some(b'\r')).then_some((Some(line), next))
    }
}

fn skip(rest: &[u8], left: u64) -> Option<(&[u8], u64)> {
    let here = u64::try_from(rest.len()).ok()?.min(left);
    Some((rest.get(usize::try_from(here).ok()?..)?, left - here))
}

#[cfg(test)]
mod tests;
