//! An answer, read with no leniency at all, and apart from hookward's own reading.

/// What bytes that an upstream said are.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// A whole answer, which is this many bytes.
    Whole {
        status: u16,
        body: Vec<u8>,
        length: usize,
    },
    /// An answer whose body is whatever comes until the connection ends.
    UntilClose { status: u16, body: Vec<u8> },
    /// Nothing that only one reading fits, or not all of it.
    None,
}

/// Reads the first final answer.
pub fn read(bytes: &[u8]) -> Reading {
    read_from(bytes, 0).unwrap_or(Reading::None)
}

fn read_from(bytes: &[u8], start: usize) -> Option<Reading> {
    let rest = bytes.get(start..)?;
    let end = rest.windows(4).position(|w| w == b"\r\n\r\n")?;
    let mut lines = lines(rest.get(..end)?)?.into_iter();
    let (status, is_latest) = status_line(lines.next()?)?;
    let mut lengths = Vec::new();
    let mut codings = Vec::new();
    for line in lines {
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        match name.to_ascii_lowercase().as_slice() {
            b"content-length" => lengths.push(value),
            b"transfer-encoding" => codings.push(value),
            _ => {}
        }
    }
    let body = start + end + 4;
    if (100..200).contains(&status) {
        let is_plain = status != 101 && lengths.is_empty() && codings.is_empty();
        return if is_plain {
            read_from(bytes, body)
        } else {
            None
        };
    }
    let whole = |content: Vec<u8>, length| Reading::Whole {
        status,
        body: content,
        length,
    };
    let is_bare = matches!(status, 204 | 304);
    match (&lengths[..], &codings[..]) {
        ([], []) if is_bare => Some(whole(Vec::new(), body)),
        ([], []) => Some(Reading::UntilClose {
            status,
            body: bytes.get(body..)?.to_vec(),
        }),
        ([digits], []) => {
            let digits = str::from_utf8(digits).ok()?;
            let is_plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let length: usize = digits.parse().ok().filter(|_| is_plain)?;
            if is_bare {
                return Some(whole(Vec::new(), body));
            }
            let end = body.checked_add(length)?;
            Some(whole(bytes.get(body..end)?.to_vec(), end))
        }
        ([], [coding]) if is_latest && coding.eq_ignore_ascii_case(b"chunked") => {
            if is_bare {
                return Some(whole(Vec::new(), body));
            }
            let (content, length) = chunked(bytes.get(body..)?)?;
            Some(whole(content, body + length))
        }
        _ => None,
    }
}

fn status_line(line: &[u8]) -> Option<(u16, bool)> {
    let (version, rest) = line.split_at_checked(9)?;
    let is_latest = match version {
        b"HTTP/1.1 " => true,
        b"HTTP/1.0 " => false,
        _ => return None,
    };
    let digits = rest.get(..3)?;
    let is_plain =
        digits.iter().all(u8::is_ascii_digit) && matches!(rest.get(3), None | Some(b' '));
    let status = str::from_utf8(digits).ok()?.parse().ok()?;
    (is_plain && status >= 100).then_some((status, is_latest))
}

/// Lines that end with CRLF and hold neither CR nor LF.
fn lines(bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    let is_plain = |line: &&[u8]| !line.iter().any(|b| matches!(b, b'\r' | b'\n'));
    let is_folded = lines
        .iter()
        .skip(1)
        .any(|l| matches!(l.first(), Some(b' ' | b'\t')));
    (lines.iter().all(is_plain) && !is_folded).then_some(lines)
}

/// The content of chunks, and how many bytes they take.
pub fn chunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut content, mut at) = (Vec::new(), 0);
    loop {
        let rest = bytes.get(at..)?;
        let end = rest.windows(2).position(|w| w == b"\r\n")?;
        let line = str::from_utf8(&rest[..end]).ok()?;
        let digits = line.split(';').next()?;
        let is_plain = (1..=16).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_hexdigit())
            && !line.bytes().any(|b| b.is_ascii_control());
        let size = usize::from_str_radix(digits, 16)
            .ok()
            .filter(|_| is_plain)?;
        at += end + 2;
        if size == 0 {
            break;
        }
        let stop = at.checked_add(size)?;
        content.extend_from_slice(bytes.get(at..stop)?);
        (bytes.get(stop..stop.checked_add(2)?)? == b"\r\n").then_some(())?;
        at = stop + 2;
    }
    loop {
        let rest = bytes.get(at..)?;
        let end = rest.windows(2).position(|w| w == b"\r\n")?;
        let line = &rest[..end];
        at += end + 2;
        if line.is_empty() {
            return Some((content, at));
        }
        let colon = line.iter().position(|b| *b == b':')?;
        let is_odd = colon == 0 || line.iter().any(|b| matches!(b, b'\r' | b'\n'));
        (!is_odd).then_some(())?;
    }
}
