//! HTTP/2 frames (RFC 9113 §4.1) out of fuzzed bytes, their lengths always true, so that what is in them
//! is what varies.

use crate::{
    requests::{Signed, replace},
    tag, take, take_bytes,
};

/// What every connection begins with: the preface, and no settings.
const BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
/// Kinds of frames, those that no document knows and the two below included.
const KINDS: usize = 13;
/// Stands for DATA with the body.
const BODY: usize = 11;
/// Stands for HEADERS with fields that are written as text.
const FIELDS: usize = 12;

/// Reads `length cuts… length body…`, then frames, each `kind flags stream length content…`. Fields are
/// `name: value` between line feeds, where `{sig}` stands for a signature.
pub fn signed(mut data: &[u8]) -> Signed<'_> {
    let (cuts, body) = (take_bytes(&mut data), take_bytes(&mut data));
    let tag = tag(body);
    let mut bytes = BEGINNING.to_vec();
    while !data.is_empty() {
        let (kind, flags, stream) = (take(&mut data) % KINDS, take(&mut data), take(&mut data));
        let content = take_bytes(&mut data);
        let (kind, content) = match kind {
            BODY => (DATA, body.to_vec()),
            FIELDS => (HEADERS, fields(&replace(content, b"{sig}", tag.as_bytes()))),
            kind => (u8::try_from(kind).unwrap_or(u8::MAX), content.to_vec()),
        };
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_be_bytes()[1..]);
        bytes.extend_from_slice(&[kind, u8::try_from(flags).unwrap_or(u8::MAX), 0, 0, 0]);
        bytes.push(u8::try_from(stream).unwrap_or(u8::MAX));
        bytes.extend_from_slice(&content);
    }
    Signed { cuts, body, bytes }
}

/// A header section of literals that nobody has to remember (RFC 7541 §6.2.2).
fn fields(text: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let colon = line.windows(2).position(|w| w == b": ");
        let at = colon.unwrap_or(line.len());
        block.push(0);
        for text in [&line[..at], line.get(at + 2..).unwrap_or_default()] {
            write_length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// An integer of seven bits and as many more as it needs (RFC 7541 §5.1).
fn write_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        block.push(u8::try_from(length).expect("seven bits"));
        return;
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).expect("seven bits") | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).expect("seven bits"));
}
