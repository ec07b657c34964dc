//! The chunked coding (RFC 9112 §7.1): its lines, and undoing it.

use bytes::{Bytes, BytesMut};

use super::{Ambiguous, LINE_LIMIT, TRAILERS_LIMIT};

/// The chunked coding of an answer, undone piece by piece.
#[derive(Debug, Default)]
pub struct Chunks {
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
pub enum Piece {
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
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Piece, Ambiguous> {
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

/// The size on a chunk line: hex digits, then extensions of the plain form
/// `*( ";" token [ "=" ( token / quoted-string without escapes ) ] )` (RFC 9112 §7.1.1).
pub(super) fn chunk_size(line: &[u8]) -> Option<u64> {
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

/// Whether a line is a header field: a name, a colon, and a value without control characters
/// (RFC 9110 §5.1, §5.5).
pub(super) fn is_field(line: &[u8]) -> bool {
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
