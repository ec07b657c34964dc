//! Header rules: what is taken off a message, and what is set on it.
//!
//! Owns the hop-by-hop rule of RFC 9110 §7.6.1 with its one exception (a `Connection` header can
//! never name away what we verify by), the `Hookward-*` and forwarding headers, and the head of
//! the request an upstream gets. Pure: heads go in, bytes and decisions come out.

use std::{io::Write as _, time::SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// `Hookward-Outcome`.
pub const OUTCOME: HeaderName = HeaderName::from_static("hookward-outcome");
/// `Hookward-Event-Id`.
pub const EVENT_ID: HeaderName = HeaderName::from_static("hookward-event-id");

/// Longest event type that is passed on, in bytes.
pub const EVENT_TYPE_LIMIT: usize = 128;

/// Whether this event type can be written into a header: visible ASCII, at most
/// [`EVENT_TYPE_LIMIT`] bytes, not empty.
pub fn is_plain_event_type(event_type: &str) -> bool {
    (1..=EVENT_TYPE_LIMIT).contains(&event_type.len())
        && event_type.bytes().all(|b| b.is_ascii_graphic())
}

/// Whether a name, with `_` read as `-`, is one we read or set ourselves: an upstream that maps
/// both to one variable (RFC 3875 §4.1.18) would take the stranger's value for ours.
///
/// `reads` says which further names the endpoints' schemes read.
pub fn shadows(name: &HeaderName, reads: impl FnOnce(&HeaderName) -> bool) -> bool {
    let text = name.as_str();
    if !text.contains('_') {
        return false;
    }
    let plain = text.replace('_', "-");
    let ours = plain.starts_with("hookward-")
        || plain.starts_with("x-forwarded-")
        || plain.starts_with("content-")
        || matches!(
            plain.as_str(),
            "connection"
                | "forwarded"
                | "host"
                | "idempotency-key"
                | "keep-alive"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "via"
        );
    ours || HeaderName::from_bytes(plain.as_bytes()).is_ok_and(|name| reads(&name))
}

/// Whether this can stand in a request line: visible ASCII.
///
/// A URI's parser takes more, and HTTP/2 brings what HTTP/1.1 could not say.
pub fn is_target(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}

/// Whether a `Host` value is `uri-host [":" port]` (RFC 9110 §7.2) and not empty.
pub fn is_host(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let (host, port) = match bytes.iter().rposition(|&b| b == b':') {
        Some(colon) if !bytes.ends_with(b"]") => {
            let (host, port) = bytes.split_at(colon);
            (host, port.get(1..).unwrap_or_default())
        }
        _ => (bytes, &b""[..]),
    };
    let host_is_fine = match host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]")) {
        Some(literal) => {
            !literal.is_empty()
                && literal
                    .iter()
                    .all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
        }
        None => {
            !host.is_empty()
                && host.iter().all(|b| {
                    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'%')
                })
        }
    };
    host_is_fine && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

/// Names that end at this hop whatever `Connection` says (RFC 9110 §7.6.1), and those that
/// describe framing, which is set anew.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "content-length"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// The names that a message's `Connection` headers declare to end at this hop.
///
/// Almost always none: `keep-alive` and `close` are not names of headers.
struct Named<'h>(Vec<&'h str>);

impl<'h> Named<'h> {
    fn of(headers: &'h HeaderMap) -> Self {
        let mut named = Vec::new();
        for value in headers.get_all(header::CONNECTION) {
            let options = value.to_str().unwrap_or_default().split(',').map(str::trim);
            named.extend(options.filter(|o| {
                !o.is_empty()
                    && !o.eq_ignore_ascii_case("keep-alive")
                    && !o.eq_ignore_ascii_case("close")
            }));
        }
        Self(named)
    }

    fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|named| named.eq_ignore_ascii_case(name))
    }
}

/// What a request towards the upstream says besides what the sender said.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// Path and query, beginning with `/`.
    pub target: &'a str,
    /// `Host` where the sender sent none.
    pub authority: &'a str,
    /// Set last; they replace the sender's.
    pub extra: &'a [(HeaderName, HeaderValue)],
    /// The endpoint's name.
    pub endpoint: &'a str,
    /// The event's id.
    pub event_id: &'a str,
    /// The event's type, where it is plain (see [`is_plain_event_type`]).
    pub event_type: Option<&'a str>,
    /// Whether the signature was good.
    pub verified: bool,
    /// When the request came.
    pub received_at: SystemTime,
    /// The address of who sent it, as far as the socket tells.
    pub peer: Option<&'a str>,
    /// Whether that peer's `X-Forwarded-*` and `Forwarded` are kept.
    pub peer_is_trusted: bool,
    /// `http` or `https`: how it came.
    pub proto: &'static str,
    /// Bytes in the body.
    pub body_len: usize,
}

/// The head of a request, with the attempt's number left open so that a second attempt costs
/// no second head.
#[derive(Debug)]
pub struct RequestHead {
    bytes: Vec<u8>,
    attempt_at: usize,
    /// Digits of the number that stands there.
    digits: usize,
    /// The attempt's number when it is sent for the first time.
    first: u32,
}

impl RequestHead {
    /// The bytes, sent for the first (1) or second (2) time.
    pub fn for_attempt(&mut self, attempt: u8) -> &[u8] {
        self.number(self.first.saturating_add(u32::from(attempt.max(1) - 1)));
        &self.bytes
    }

    /// The room that it was written into.
    pub fn into_room(self) -> Vec<u8> {
        self.bytes
    }

    /// Counts attempts from this number on; earlier ones were other requests.
    pub fn count_from(&mut self, first: u32) {
        self.first = first.max(1);
    }

    fn number(&mut self, attempt: u32) {
        let at = self.attempt_at;
        if let (0..=9, 1, Some(digit)) = (attempt, self.digits, self.bytes.get_mut(at)) {
            *digit = b'0' + u8::try_from(attempt).unwrap_or(9);
            return;
        }
        let text = attempt.to_string();
        self.bytes.splice(at..at + self.digits, text.bytes());
        self.digits = text.len();
    }

    /// Takes the body in behind the head; what is then left of it to be sent is nothing.
    pub fn join<'b>(&mut self, body: &[u8]) -> &'b [u8] {
        self.bytes.extend_from_slice(body);
        &[]
    }
}

/// Writes the head of the one request that the upstream gets, into `out`, which is empty.
///
/// End-to-end headers keep their values and, within one name, their order. `is_protected` names
/// what a `Connection` header cannot take away beside `Host` and `Content-*`.
pub fn request_head(
    mut out: Vec<u8>,
    headers: &HeaderMap,
    forward: &Forward<'_>,
    is_protected: impl Fn(&HeaderName) -> bool,
) -> RequestHead {
    let named = Named::of(headers);
    out.extend_from_slice(b"POST ");
    out.extend_from_slice(forward.target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if !headers.contains_key(header::HOST) && !forward.extra.iter().any(|(n, _)| n == header::HOST)
    {
        field(&mut out, "host", forward.authority.as_bytes());
    }
    for (name, value) in headers {
        let text = name.as_str();
        let keep = match text.as_bytes().first() {
            Some(b'c' | b'k' | b'p' | b't' | b'u') => !is_hop_by_hop(text),
            Some(b'e') => text != "expect",
            Some(b'f') => text != "forwarded" || forward.peer_is_trusted,
            Some(b'h') => !text.starts_with("hookward-"),
            // The three we set are written below, together with what a trusted peer said.
            Some(b'x') => match text {
                "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" => false,
                _ => !text.starts_with("x-forwarded-") || forward.peer_is_trusted,
            },
            _ => true,
        };
        let named_away = || {
            named.contains(text)
                && !text.starts_with("content-")
                && text != "host"
                && !is_protected(name)
        };
        let replaced = || forward.extra.iter().any(|(extra, _)| extra == name);
        if keep
            && (named.0.is_empty() || !named_away())
            && (forward.extra.is_empty() || !replaced())
        {
            field(&mut out, text, value.as_bytes());
        }
    }
    forwarding(&mut out, headers, forward);
    for (name, value) in forward.extra {
        field(&mut out, name.as_str(), value.as_bytes());
    }
    field(
        &mut out,
        "hookward-verified",
        if forward.verified { b"true" } else { b"false" },
    );
    field(&mut out, "hookward-endpoint", forward.endpoint.as_bytes());
    field(&mut out, "hookward-event-id", forward.event_id.as_bytes());
    if let Some(event_type) = forward.event_type {
        field(&mut out, "hookward-event-type", event_type.as_bytes());
    }
    out.extend_from_slice(b"hookward-attempt: ");
    let attempt_at = out.len();
    out.extend_from_slice(b"1\r\nhookward-received-at: ");
    write_to(
        &mut out,
        humantime::format_rfc3339_millis(forward.received_at),
    );
    out.extend_from_slice(b"\r\ncontent-length: ");
    write_to(&mut out, forward.body_len);
    out.extend_from_slice(b"\r\n\r\n");
    RequestHead {
        bytes: out,
        attempt_at,
        digits: 1,
        first: 1,
    }
}

/// `X-Forwarded-For/-Proto/-Host` and `Via`. What a trusted peer said stays: its list of
/// addresses grows by its own, its word on protocol and host stands.
fn forwarding(out: &mut Vec<u8>, headers: &HeaderMap, forward: &Forward<'_>) {
    if forward.peer_is_trusted {
        for value in headers.get_all("x-forwarded-for") {
            field(out, "x-forwarded-for", value.as_bytes());
        }
    }
    if let Some(peer) = forward.peer {
        field(out, "x-forwarded-for", peer.as_bytes());
    }
    let (proto, host) = if forward.peer_is_trusted {
        (
            headers.get("x-forwarded-proto"),
            headers.get("x-forwarded-host"),
        )
    } else {
        (None, None)
    };
    let proto = proto.map_or(forward.proto.as_bytes(), HeaderValue::as_bytes);
    field(out, "x-forwarded-proto", proto);
    let host = host.or_else(|| headers.get(header::HOST));
    let host = host.map_or(forward.authority.as_bytes(), HeaderValue::as_bytes);
    field(out, "x-forwarded-host", host);
    field(out, "via", b"1.1 hookward");
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_to(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    write!(out, "{value}").expect("a Vec takes whatever is written");
}

/// Takes off an upstream's answer what ends at this hop, and every `Hookward-*`, which is ours
/// to set.
pub fn strip_answer(headers: &mut HeaderMap) {
    let named: Vec<String> = Named::of(headers)
        .0
        .iter()
        .map(|n| n.to_ascii_lowercase())
        .collect();
    let doomed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let text = name.as_str();
            is_hop_by_hop(text)
                || text.starts_with("hookward-")
                || named
                    .iter()
                    .any(|n| n == text && !n.starts_with("content-"))
        })
        .cloned()
        .collect();
    for name in doomed {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests;
