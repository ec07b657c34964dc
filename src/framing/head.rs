//! The head of a request: what its lines say about where the body ends.

use std::ops::Range;

use super::{At, LINE_LIMIT};

/// Bytes of a long request line that are kept until its end is here: they hold what it ends with.
const TAIL: usize = 16;
const CONTENT_LENGTH: &[u8] = b"content-length";
const CODING: &[u8] = b"transfer-encoding";
const EXPECT: &[u8] = b"expect";

/// What the lines of a head have said so far.
#[derive(Debug)]
pub(super) struct Head {
    length: Option<u64>,
    chunked: bool,
    /// The next line is the request line, or the rest of it.
    pub(super) is_first_line: bool,
    /// Spaces in the request line so far.
    spaces: usize,
    /// It began in the bytes at hand, and nothing in it asks for more than they hold.
    pub(super) is_in_hand: bool,
    /// Where in the bytes at hand the digits of `Content-Length` stand.
    pub(super) digits: Range<usize>,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            length: None,
            chunked: false,
            is_first_line: true,
            spaces: 0,
            is_in_hand: false,
            digits: 0..0,
        }
    }
}

impl Head {
    /// Begins one, in the bytes at hand.
    pub(super) fn begin(&mut self) {
        (self.length, self.chunked) = (None, false);
        (self.is_first_line, self.spaces) = (true, 0);
        self.is_in_hand = true;
    }

    /// Takes one line, without its LF, which began at `start`: what the connection is in the middle of
    /// behind it. `None` is ambiguity.
    pub(super) fn line(&mut self, line: &[u8], start: usize) -> Option<At> {
        let line = line.strip_suffix(b"\r")?;
        if line.is_empty() {
            return match (self.chunked, self.length) {
                (true, Some(_)) => None,
                (true, None) => Some(At::ChunkLine),
                (false, None | Some(0)) => Some(At::Between),
                (false, Some(length)) => Some(At::Sized(length)),
            };
        }
        if std::mem::take(&mut self.is_first_line) {
            self.request_line(line)?;
            let is_ours = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
            return is_ours.then_some(At::Head);
        }
        self.header_line(line, line.len() + 1)?;
        if let Some(value) = value_of(line, CONTENT_LENGTH) {
            let digits = std::str::from_utf8(value).ok()?;
            let is_plain = (1..=19).contains(&digits.len())
                && digits.bytes().all(|b| b.is_ascii_digit())
                && self.length.is_none();
            self.length = Some(digits.parse().ok().filter(|_| is_plain)?);
            let place = place_of(line, value)?;
            self.digits = start + place.start..start + place.end;
        } else if let Some(value) = value_of(line, CODING) {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return None;
            }
            self.chunked = true;
        } else if value_of(line, EXPECT).is_some() {
            self.is_in_hand = false;
        }
        Some(At::Head)
    }

    /// What can be said of a head line whose end is not here, and that is too long to be framing. Of a
    /// request line the last bytes are kept, of others nothing.
    pub(super) fn long_line(&mut self, line: &mut Vec<u8>) -> Option<()> {
        if self.is_first_line {
            let settled = line.len().saturating_sub(TAIL);
            self.request_line(line.get(..settled)?)?;
            line.drain(..settled);
        } else {
            self.header_line(line, line.len())?;
            line.clear();
        }
        Some(())
    }

    /// A part of a request line: plain ASCII, no fragment, and two spaces in all of it.
    fn request_line(&mut self, part: &[u8]) -> Option<()> {
        self.spaces += memchr::memchr_iter(b' ', part).count();
        let is_plain = |b: &u8| b.is_ascii_graphic() && *b != b'#' || *b == b' ';
        (self.spaces <= 2 && part.iter().all(is_plain)).then_some(())
    }

    /// A header line, or its beginning, of which so many bytes are here: not folded, and not padded
    /// beyond reason if it is framing.
    fn header_line(&self, line: &[u8], length: usize) -> Option<()> {
        let is_folded = matches!(line.first(), Some(b' ' | b'\t'));
        let is_padded = length > LINE_LIMIT
            && (value_of(line, CONTENT_LENGTH).is_some() || value_of(line, CODING).is_some());
        (!is_folded && !is_padded).then_some(())
    }
}

/// Where `part` lies in `whole`, of which it is a slice.
pub(crate) fn place_of(whole: &[u8], part: &[u8]) -> Option<Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    (start + part.len() <= whole.len()).then(|| start..start + part.len())
}

/// The value of the header line with this lower-case name, spaces around it trimmed.
fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (head, tail) = line.split_at_checked(name.len())?;
    let value = tail
        .strip_prefix(b":")
        .filter(|_| head.eq_ignore_ascii_case(name))?;
    Some(value.trim_ascii())
}

/// Whether these lines, the first of which is not empty, end with CRLF each and hold no other CR or
/// LF. What else is in a line is its parser's.
pub fn has_plain_lines(head: &[u8]) -> bool {
    let is_paired = |at: usize| match head.get(at) {
        Some(b'\r') => head.get(at + 1) == Some(&b'\n'),
        _ => at > 0 && head.get(at - 1) == Some(&b'\r'),
    };
    !head.starts_with(b"\r") && memchr::memchr2_iter(b'\r', b'\n', head).all(is_paired)
}
