//! Requests out of fuzzed bytes, with a signature over a body where they ask for one.

use crate::{tag, take_bytes};

/// Bytes to be sent, and the body over which a signature in them is made.
pub struct Signed<'d> {
    /// Where they are cut, each place counted from the one before.
    pub cuts: &'d [u8],
    /// The body.
    pub body: &'d [u8],
    /// What is sent.
    pub bytes: Vec<u8>,
}

/// Reads `length cuts… length body… bytes`; in the bytes `{sig}` stands for a signature's whole line,
/// and `{body}` for the body.
pub fn signed(mut data: &[u8]) -> Signed<'_> {
    let (cuts, body) = (take_bytes(&mut data), take_bytes(&mut data));
    let line = format!("TinyTalk-Signature: {}\r\n", tag(body));
    let bytes = replace(data, b"{sig}", line.as_bytes());
    let bytes = replace(&bytes, b"{body}", body);
    Signed { cuts, body, bytes }
}

pub(crate) fn replace(bytes: &[u8], mark: &[u8], with: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(mark.len()).position(|window| window == mark) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(with);
        rest = &rest[at + mark.len()..];
    }
    out.extend_from_slice(rest);
    out
}
