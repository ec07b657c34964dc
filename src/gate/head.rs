//! What a request's head must say before its body is asked for.
//!
//! Owns these checks, pure but for the configuration they are told; how messages are delimited was
//! `framing`'s, which status a refusal gets is `rejection`'s.

use http::{Method, header, request::Parts};

use super::live::Live;
use crate::{
    endpoint::Endpoint,
    headers,
    rejection::{Malformation, Rejection},
};

/// Malformed, 431 by count, 414: what can be said before the path is looked up.
pub(super) fn check_head<'h>(head: &'h Parts, live: &Live) -> Result<&'h str, Rejection> {
    let malformed = |what| Err(Rejection::Malformed(what));
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) if headers::is_host(host) => Some(host.as_bytes()),
        (None, None) if head.version == http::Version::HTTP_10 => None,
        _ => return malformed(Malformation::Host),
    };
    if let Some(authority) = head.uri.authority() {
        // An absolute target may only repeat the Host (RFC 9112 §3.2.2).
        let same = host.is_some_and(|h| h.eq_ignore_ascii_case(authority.as_str().as_bytes()));
        if !same {
            return malformed(Malformation::Host);
        }
    }
    if head
        .headers
        .keys()
        .any(|name| headers::shadows(name, |plain| live.endpoints.reads(plain)))
    {
        return malformed(Malformation::Shadow);
    }
    let path = head.uri.path();
    let target = head
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    if !path.starts_with('/') || !headers::is_target(target) || head.method == Method::CONNECT {
        return malformed(Malformation::Target);
    }
    if head.headers.len() > live.limits.max_header_fields {
        return Err(Rejection::HeadersTooLarge);
    }
    if target.len() > live.limits.max_target_bytes {
        return Err(Rejection::TargetTooLong);
    }
    Ok(path)
}

/// Refuses a remainder that would climb out of the upstream's path, spelled in any way that some
/// application resolves.
pub(super) fn check_remainder(remainder: &str) -> Result<(), Rejection> {
    let name = |segment: &str| -> String {
        // Some take a segment's parameters (RFC 3986 §3.3) or spaces around it off first.
        let plain = segment.split(';').next().unwrap_or_default();
        plain.trim().to_owned()
    };
    let is_plain = |text: String| {
        let lower = text.to_ascii_lowercase();
        let is_twice_encoded = ["%00", "%25", "%2e", "%2f", "%5c"]
            .iter()
            .any(|code| lower.contains(code));
        let climbs = text
            .split('/')
            .any(|segment| matches!(name(segment).as_str(), "." | ".."));
        !climbs && !is_twice_encoded && !text.contains(char::is_control)
    };
    if remainder.is_empty() || decoded(remainder).is_some_and(is_plain) {
        Ok(())
    } else {
        Err(Rejection::Malformed(Malformation::Target))
    }
}

/// A path with its percent-encoding taken off; `None` where that is broken, hides a slash or is no
/// UTF-8, or where a backslash stands in it.
fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        let mut one = [byte];
        if byte == b'%' {
            hex::decode_to_slice([rest.next()?, rest.next()?], &mut one).ok()?;
        }
        let [plain] = one;
        if plain == b'\\' || (plain == b'/' && byte == b'%') {
            return None;
        }
        bytes.push(plain);
    }
    String::from_utf8(bytes).ok()
}

/// What headers alone decide once the endpoint is known, before the signature: 405, inactive, 413.
pub(super) fn refuse_early(
    endpoint: &Endpoint,
    head: &Parts,
    announced: Option<u64>,
) -> Result<(), Rejection> {
    if head.method != Method::POST {
        return Err(Rejection::Method);
    }
    if !endpoint.active {
        return Err(Rejection::Inactive);
    }
    let limit = u64::try_from(endpoint.max_body).unwrap_or(u64::MAX);
    if announced.is_some_and(|length| length > limit) {
        return Err(Rejection::BodyTooLarge);
    }
    Ok(())
}
