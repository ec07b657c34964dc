//! A scheme as data: where the signature stands, how it is written, what it covers.

use std::time::Duration;

use crate::secret::SecretEncoding;

/// The MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC (RFC 2104) with SHA-1: 20 bytes. For senders that have nothing better.
    HmacSha1,
    /// HMAC with SHA-256: 32 bytes.
    HmacSha256,
    /// HMAC with SHA-512: 64 bytes.
    HmacSha512,
}

impl Algorithm {
    /// Bytes in a tag.
    pub fn tag_len(self) -> usize {
        match self {
            Self::HmacSha1 => 20,
            Self::HmacSha256 => 32,
            Self::HmacSha512 => 64,
        }
    }
}

/// How a tag is written in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Hexadecimal, base64 or base64url, told apart by length.
    Auto,
    /// Base64 (RFC 4648 §4), padding optional.
    Base64,
    /// Hexadecimal in either case.
    Hex,
}

/// What a timestamp counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampUnit {
    /// Milliseconds since 1970.
    Ms,
    /// Seconds since 1970.
    S,
}

/// A scheme, spelled out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemeSpec {
    /// The header that carries the signature; exactly one of these may be sent.
    pub header: Vec<String>,
    /// How to read it: one `{signature}`, several between spaces as `v1,{signature}`, or
    /// comma-separated pairs with `{timestamp}` in one.
    pub format: String,
    /// The MAC.
    pub algorithm: Algorithm,
    /// How the tag is written.
    pub encoding: Encoding,
    /// What is signed: `{body}` once, and `{timestamp}`, `{id}`, `{method}`, `{url}`.
    pub content: String,
    /// Where the timestamp stands if not in the signature's header.
    pub timestamp_header: Option<String>,
    /// What it counts.
    pub timestamp_unit: TimestampUnit,
    /// How far a signed timestamp may be from now.
    pub tolerance: Option<Duration>,
    /// The header that carries the idempotency key, `{id}` in the content.
    pub key_header: Option<String>,
    /// Or the JSON pointer to it in the body.
    pub key_pointer: Option<String>,
    /// The JSON pointer to the event's type.
    pub event_type_pointer: Option<String>,
    /// Or the header that carries it.
    pub event_type_header: Option<String>,
    /// Taken off a signature if it is there.
    pub signature_prefix: Option<String>,
    /// How secrets are written, unless the configuration says otherwise.
    pub secret_encoding: SecretEncoding,
    /// Taken off a secret if it is there.
    pub secret_prefix: Option<String>,
}

/// What is wrong with a spelled-out scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// The key.
    pub field: &'static str,
    /// What would be right.
    pub expected: &'static str,
}
