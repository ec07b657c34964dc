//! Where one HTTP/1.1 message ends and the next begins, read more strictly than a parser must.
//!
//! [`Framing`] watches the bytes of a connection on their way to the HTTP library and stops at the first
//! that two parsers could read differently (RFC 9112 §2.2, §6.3, §7.1, §11.2): a bare LF, a folded
//! header line, more than one `Content-Length`, a `Content-Length` beside a `Transfer-Encoding`,
//! any coding but a single `chunked`, and chunk framing with anything unusual in it. Whatever
//! passes is read by the library in the same way. [`Chunks`] undoes the chunked coding of an
//! upstream's answer under the same rules, and [`has_plain_lines`] looks at its head. It is pure, and
//! owns no deadline.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Longest piece of framing kept while the rest of its line is on the way, in bytes; a longer
/// head line is no framing, and a longer chunk line is refused.
const LINE_LIMIT: usize = 256;
const CONTENT_LENGTH: &[u8] = b"content-length";
const CODING: &[u8] = b"transfer-encoding";
const EXPECT: &[u8] = b"expect";
/// Most bytes in a trailer section.
const TRAILERS_LIMIT: usize = 8 * 1024;

/// Bytes that are not to be trusted, and where they begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ambiguous {
    /// How many bytes before it were fine.
    pub(crate) after: usize,
}

/// What [`Framing::push`] took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// How many bytes.
    pub(crate) taken: usize,
    /// They end with a whole head, and this many bytes of body follow that the HTTP library will
    /// not ask for.
    pub(crate) body: Option<u64>,
}

/// What the connection is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing: the next byte begins a request.
    Between,
    /// A request line or header section.
    Head,
    /// A body.
    Body,
}

/// The place in the stream of requests.
#[derive(Debug)]
pub(crate) struct Framing {
    at: At,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// What the header lines so far say about the body.
    length: Option<u64>,
    chunked: bool,
    first_line: bool,
    /// The head began in the bytes at hand, and nothing in it asks for more than they hold.
    is_in_hand: bool,
    /// Where in the bytes at hand the digits of `Content-Length` stand.
    digits: Range<usize>,
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

impl Framing {
    pub(crate) fn new() -> Self {
        Self {
            at: At::Between,
            line: Vec::new(),
            length: None,
            chunked: false,
            first_line: true,
            is_in_hand: false,
            digits: 0..0,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
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
    pub(crate) fn push(&mut self, bytes: &mut [u8]) -> Result<Pushed, Ambiguous> {
        self.is_in_hand = false;
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            let was_between = self.at == At::Between;
            let left = self.step(rest, taken).ok_or(Ambiguous { after: taken })?;
            taken = bytes.len() - left.len();
            if let (At::Sized(length), true) = (self.at, self.is_in_hand) {
                if let Some(digits) = bytes.get_mut(self.digits.clone()) {
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
                (self.length, self.chunked, self.first_line) = (None, false, true);
                self.is_in_hand = true;
                self.at = At::Head;
                Some(rest)
            }
            At::Head => match memchr::memchr(b'\n', rest) {
                Some(end) => {
                    let (line, next) = (rest.get(..end)?, rest.get(end + 1..)?);
                    if self.line.is_empty() {
                        self.head_line(line, start)?;
                    } else {
                        let mut whole = std::mem::take(&mut self.line);
                        whole.extend_from_slice(line);
                        self.head_line(&whole, start)?;
                        whole.clear();
                        self.line = whole;
                    }
                    Some(next)
                }
                None if self.line.len() + rest.len() > LINE_LIMIT => {
                    // Padded beyond reason if it is a framing header, and of no interest if not.
                    let mut whole = std::mem::take(&mut self.line);
                    whole.extend_from_slice(rest);
                    self.check_beginning(&whole)?;
                    if value_of(&whole, CONTENT_LENGTH)
                        .or(value_of(&whole, CODING))
                        .is_some()
                    {
                        return None;
                    }
                    self.at = At::HeadRest {
                        last: *whole.last()?,
                    };
                    Some(&[])
                }
                None => {
                    self.line.extend_from_slice(rest);
                    Some(&[])
                }
            },
            At::HeadRest { last } => match memchr::memchr(b'\n', rest) {
                Some(end) => {
                    let before = if end == 0 { last } else { *rest.get(end - 1)? };
                    self.first_line = false;
                    self.at = At::Head;
                    if before == b'\r' {
                        rest.get(end + 1..)
                    } else {
                        None
                    }
                }
                None => {
                    self.at = At::HeadRest {
                        last: *rest.last()?,
                    };
                    Some(&[])
                }
            },
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

    /// One line of the head, without its LF, which began at `start`.
    fn head_line(&mut self, line: &[u8], start: usize) -> Option<()> {
        let line = line.strip_suffix(b"\r")?;
        if line.is_empty() {
            self.at = match (self.chunked, self.length) {
                (true, Some(_)) => return None,
                (true, None) => At::ChunkLine,
                (false, None | Some(0)) => At::Between,
                (false, Some(length)) => At::Sized(length),
            };
            return Some(());
        }
        self.check_beginning(line)?;
        if std::mem::take(&mut self.first_line) {
            return Some(());
        }
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
        Some(())
    }

    /// What can be said of a head line from its beginning: no folding, and a request line of
    /// plain ASCII with single spaces and no fragment.
    fn check_beginning(&self, line: &[u8]) -> Option<()> {
        let fine = if self.first_line {
            line.iter()
                .all(|&b| b.is_ascii_graphic() && b != b'#' || b == b' ')
                && memchr::memchr_iter(b' ', line).count() <= 2
        } else {
            !matches!(line.first(), Some(b' ' | b'\t'))
        };
        fine.then_some(())
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

/// The chunked coding of an answer, undone piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    at: ChunksAt,
}

#[derive(Clone, Copy, Debug, Default)]
enum ChunksAt {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailers(usize),
    End,
}

/// What [`Chunks::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes of the body.
    Data(Bytes),
    /// The body is complete; what is left in the buffer came after it.
    End,
    /// More bytes are needed.
    More,
}

impl Chunks {
    /// Takes the next piece out of what has arrived. Trailers are dropped.
    ///
    /// # Errors
    /// [`Ambiguous`] when the coding is not the plain one.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Piece, Ambiguous> {
        const BAD: Ambiguous = Ambiguous { after: 0 };
        loop {
            self.at = match self.at {
                ChunksAt::Size => match line_of(buffer, LINE_LIMIT)? {
                    None => return Ok(Piece::More),
                    Some(line) => match chunk_size(&line).ok_or(BAD)? {
                        0 => ChunksAt::Trailers(0),
                        size => ChunksAt::Data(size),
                    },
                },
                ChunksAt::Data(0) => ChunksAt::DataEnd,
                ChunksAt::Data(_) if buffer.is_empty() => return Ok(Piece::More),
                ChunksAt::Data(left) => {
                    let here = usize::try_from(left)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    let data = buffer.split_to(here).freeze();
                    self.at = ChunksAt::Data(left.saturating_sub(here as u64));
                    return Ok(Piece::Data(data));
                }
                ChunksAt::DataEnd => match line_of(buffer, 2)? {
                    None => return Ok(Piece::More),
                    Some(line) if line.is_empty() => ChunksAt::Size,
                    Some(_) => return Err(BAD),
                },
                ChunksAt::Trailers(seen) => match line_of(buffer, TRAILERS_LIMIT)? {
                    None => return Ok(Piece::More),
                    Some(line) if line.is_empty() => ChunksAt::End,
                    Some(line) if seen + line.len() > TRAILERS_LIMIT => return Err(BAD),
                    Some(line) if !is_field(&line) => return Err(BAD),
                    Some(line) => ChunksAt::Trailers(seen + line.len() + 2),
                },
                ChunksAt::End => return Ok(Piece::End),
            };
        }
    }
}

/// The next whole line, without its CRLF.
fn line_of(buffer: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, Ambiguous> {
    const BAD: Ambiguous = Ambiguous { after: 0 };
    let Some(end) = memchr::memchr(b'\n', buffer) else {
        return if buffer.len() > limit {
            Err(BAD)
        } else {
            Ok(None)
        };
    };
    let mut line = buffer.split_to(end + 1);
    if end > limit || !line.ends_with(b"\r\n") {
        return Err(BAD);
    }
    line.truncate(end - 1);
    Ok(Some(line))
}

fn skip(rest: &[u8], left: u64) -> Option<(&[u8], u64)> {
    let here = u64::try_from(rest.len()).ok()?.min(left);
    Some((rest.get(usize::try_from(here).ok()?..)?, left - here))
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
pub(crate) fn has_plain_lines(head: &[u8]) -> bool {
    let is_paired = |at: usize| match head.get(at) {
        Some(b'\r') => head.get(at + 1) == Some(&b'\n'),
        _ => at > 0 && head.get(at - 1) == Some(&b'\r'),
    };
    !head.starts_with(b"\r") && memchr::memchr2_iter(b'\r', b'\n', head).all(is_paired)
}

/// Whether a line is a header field: a name, a colon, and a value without control characters
/// (RFC 9110 §5.1, §5.5).
fn is_field(line: &[u8]) -> bool {
    let Some(colon) = memchr::memchr(b':', line) else {
        return false;
    };
    let (name, value) = line.split_at(colon);
    is_token(name) && value.iter().all(|&b| b == b'\t' || !b.is_ascii_control())
}

/// Whether this is a token (RFC 9110 §5.6.2).
fn is_token(text: &[u8]) -> bool {
    let is_part = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    !text.is_empty() && text.iter().all(is_part)
}

/// The size on a chunk line: hex digits, then extensions of the plain form
/// `*( ";" token [ "=" ( token / quoted-string without escapes ) ] )` (RFC 9112 §7.1.1).
fn chunk_size(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    let (size, extensions) = match text.split_once(';') {
        Some((size, extensions)) => (size, Some(extensions)),
        None => (text, None),
    };
    let is_quoted = |t: &str| {
        let inner = t.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
        inner.is_some_and(|i| {
            i.bytes()
                .all(|b| (b' '..=b'~').contains(&b) && !b"\"\\;".contains(&b))
        })
    };
    let is_extension = |e: &str| match e.split_once('=') {
        Some((name, value)) => {
            is_token(name.as_bytes()) && (is_token(value.as_bytes()) || is_quoted(value))
        }
        None => is_token(e.as_bytes()),
    };
    let plain = (1..=16).contains(&size.len())
        && size.bytes().all(|b| b.is_ascii_hexdigit())
        && extensions.is_none_or(|e| e.split(';').all(is_extension));
    plain.then(|| u64::from_str_radix(size, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

    /// A connection: the framing, and the bodies that it leaves to its caller.
    struct Follower {
        framing: Framing,
        body: u64,
    }

    impl Follower {
        fn new() -> Self {
            let framing = Framing::new();
            Self { framing, body: 0 }
        }

        /// Follows a piece; where it stops being trustworthy.
        fn push(&mut self, piece: &[u8]) -> Result<(), usize> {
            let mut bytes = piece.to_vec();
            let mut at = 0;
            while at < bytes.len() {
                let skipped = usize::try_from(self.body).unwrap().min(bytes.len() - at);
                self.body -= skipped as u64;
                at += skipped;
                let pushed = self.framing.push(&mut bytes[at..]);
                let pushed = pushed.map_err(|ambiguous| at + ambiguous.after)?;
                at += pushed.taken;
                self.body = pushed.body.unwrap_or(self.body);
            }
            Ok(())
        }

        fn phase(&self) -> Phase {
            if self.body > 0 {
                Phase::Body
            } else {
                self.framing.phase()
            }
        }
    }

    fn push(text: &str) -> Result<Phase, usize> {
        // Whole, byte by byte, and cut in two anywhere: always the same.
        let outcome = |pieces: &[&[u8]]| {
            let mut follower = Follower::new();
            pieces
                .iter()
                .try_for_each(|p| follower.push(p).map_err(|_| ()))?;
            Ok(follower.phase())
        };
        let whole: Result<Phase, ()> = outcome(&[text.as_bytes()]);
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(outcome(&bytes), whole, "byte by byte: {text:?}");
        for cut in 0..text.len() {
            let (a, b) = text.as_bytes().split_at(cut);
            assert_eq!(outcome(&[a, b]), whole, "cut at {cut}: {text:?}");
        }
        let mut follower = Follower::new();
        follower.push(text.as_bytes()).map(|()| follower.phase())
    }

    #[test]
    fn the_library_sees_no_length_of_a_body_that_it_does_not_get() {
        let head = format!("{HEAD}content-length:  12 \r\nX: 1\r\n\r\n");
        let mut bytes = format!("{head}Hello, world").into_bytes();
        let pushed = Framing::new().push(&mut bytes);
        let (taken, body) = (head.len(), Some(12));
        assert_eq!(pushed, Ok(Pushed { taken, body }));
        let masked = head.replace("12", "00");
        assert_eq!(bytes, format!("{masked}Hello, world").into_bytes());
    }

    #[test]
    fn a_body_is_the_librarys_when_its_head_came_in_pieces_or_waits_to_be_asked() {
        let asks = format!("{HEAD}Content-Length: 3\r\nExpect: 100-continue\r\n\r\nabc");
        let plain = format!("{HEAD}Content-Length: 3\r\n\r\nabc");
        let mut bytes = asks.clone().into_bytes();
        let (taken, body) = (asks.len(), None);
        assert_eq!(Framing::new().push(&mut bytes), Ok(Pushed { taken, body }));
        assert_eq!(bytes, asks.into_bytes());
        for cut in 1..plain.len() - 4 {
            let mut framing = Framing::new();
            let mut first = plain.as_bytes()[..cut].to_vec();
            let mut second = plain.as_bytes()[cut..].to_vec();
            framing.push(&mut first).unwrap();
            let (taken, body) = (second.len(), None);
            assert_eq!(framing.push(&mut second), Ok(Pushed { taken, body }));
            assert_eq!([first, second].concat(), plain.as_bytes(), "cut at {cut}");
        }
    }

    #[test]
    fn no_more_than_one_request_is_taken_at_a_time() {
        let chunked = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n");
        for request in [chunked, format!("{HEAD}\r\n")] {
            let mut bytes = request.repeat(2).into_bytes();
            let (taken, body) = (request.len(), None);
            assert_eq!(Framing::new().push(&mut bytes), Ok(Pushed { taken, body }));
        }
    }

    #[test]
    fn requests_end_where_their_framing_says() {
        let requests = [
            format!("{HEAD}\r\n"),
            format!("{HEAD}Content-Length: 3\r\n\r\nabc"),
            format!("{HEAD}Content-Length: 0\r\n\r\n"),
            format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            format!(
                "{HEAD}Transfer-Encoding: Chunked\r\n\r\nA;x=y;z=\"q\"\r\n0123456789\r\n0\r\nT: 1\r\n\r\n"
            ),
        ];
        for request in &requests {
            assert_eq!(push(request), Ok(Phase::Between), "{request:?}");
            assert_eq!(push(&format!("\r\n{request}{request}")), Ok(Phase::Between));
            assert_eq!(push(&format!("{request}P")), Ok(Phase::Head));
        }
        assert_eq!(
            push(&format!("{HEAD}Content-Length: 4\r\n\r\nabc")),
            Ok(Phase::Body)
        );
        let long = format!("{HEAD}X: {}\r\nContent-Length: 1\r\n\r\n", "x".repeat(400));
        assert_eq!(push(&long), Ok(Phase::Body));
    }

    #[test]
    fn whatever_two_parsers_could_read_differently_is_refused() {
        let bad = [
            "POST / HTTP/1.1\nHost: a\r\n\r\n".to_owned(),
            "POST /\u{e9} HTTP/1.1\r\n\r\n".to_owned(),
            "POST /a#b HTTP/1.1\r\n\r\n".to_owned(),
            "POST  / HTTP/1.1\r\n\r\n".to_owned(),
            "\n".to_owned(),
            format!("{HEAD}X: 1\n\r\n"),
            format!("{HEAD}\n"),
            format!("{HEAD} folded\r\n\r\n"),
            format!("{HEAD}Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
            format!("{HEAD}Content-Length: 1, 1\r\n\r\nx"),
            format!("{HEAD}Content-Length: +1\r\n\r\nx"),
            format!("{HEAD}Content-Length: \r\n\r\nx"),
            format!("{HEAD}Content-Length: 99999999999999999999\r\n\r\n"),
            format!("{HEAD}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            format!("{HEAD}Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"),
            format!("{HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n"),
            format!("{HEAD}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
            format!("{HEAD}Transfer-Encoding: identity\r\n\r\n"),
        ];
        for text in &bad {
            assert!(push(text).is_err(), "{text:?}");
        }
        for line in [
            "5;", "5 ", " 5", "5;bad[=x", "0x5", "", "5;a=", "-1", "5;;a", "1\u{e9}",
        ] {
            let text = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{line}\r\nabcde\r\n");
            assert!(push(&text).is_err(), "{line:?}");
        }
        let torn = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n");
        assert!(push(&torn).is_err());
    }

    #[test]
    fn chunks_are_joined_however_they_are_cut() {
        let text = b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nT: 1\r\n\r\nrest";
        for cut in 0..text.len() {
            let (a, b) = text.split_at(cut);
            let (mut chunks, mut buffer, mut body) = (Chunks::default(), BytesMut::from(a), vec![]);
            let mut came = Some(b);
            loop {
                match chunks.next(&mut buffer).unwrap() {
                    Piece::Data(data) => body.extend_from_slice(&data),
                    Piece::More => buffer.extend_from_slice(came.take().unwrap()),
                    Piece::End => break,
                }
            }
            buffer.extend_from_slice(came.unwrap_or_default());
            assert_eq!(
                (body.as_slice(), &buffer[..]),
                (&b"abcd"[..], &b"rest"[..]),
                "cut at {cut}"
            );
        }
        for bad in ["3\nabc", "3\r\nabcd\r\n", "x\r\n", "3 \r\nabc\r\n"] {
            let (mut chunks, mut buffer) = (Chunks::default(), BytesMut::from(bad));
            let outcome = std::iter::repeat_with(|| chunks.next(&mut buffer))
                .find(|o| !matches!(o, Ok(Piece::Data(_))));
            assert!(matches!(outcome, Some(Err(_))), "{bad:?}");
        }
    }

    #[test]
    fn every_line_of_a_plain_head_ends_with_cr_and_lf() {
        for plain in ["HTTP/1.1 200 OK\r\n\r\n", "a\r\nb\r\n\r\n", "a", ""] {
            assert!(has_plain_lines(plain.as_bytes()), "{plain:?}");
        }
        for bad in [
            "\r\na\r\n\r\n",
            "\na",
            "a\n\r\n",
            "a\r\n\n",
            "a\rb\r\n",
            "a\r\r\n",
            "a\r",
        ] {
            assert!(!has_plain_lines(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn trailers_are_fields() {
        let trailed =
            |line: &str| format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\n{line}\r\n\r\n");
        for line in ["X: 1", "X:", "x-y_z!:\t\u{e9} "] {
            assert_eq!(push(&trailed(line)), Ok(Phase::Between), "{line:?}");
        }
        for line in [
            "X",
            ": 1",
            "X : 1",
            " X: 1",
            "X: \0",
            "X: 1\r2",
            "X\u{e9}: 1",
        ] {
            assert!(push(&trailed(line)).is_err(), "{line:?}");
        }
    }

    #[test]
    fn what_came_before_ambiguity_is_told_apart() {
        let first = format!("{HEAD}\r\n");
        let both = format!("{first}POST / HTTP/1.1\nHost: a\r\n\r\n");
        assert_eq!(push(&both), Err(first.len()));
        let torn = format!("{HEAD}X: 1\n\r\n");
        let ambiguous = Framing::new().push(&mut torn.clone().into_bytes());
        assert_eq!(ambiguous, Err(Ambiguous { after: HEAD.len() }));
    }
}
