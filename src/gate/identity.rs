//! What a verified request says of its event: which one it is, and of which type.
//!
//! Owns where key and type are looked for and what is wrong with a key; whether the event was seen
//! before is the duplicate table's to say.

use http::{HeaderMap, request::Parts};

use crate::{
    body::Body,
    dedup::{BodyHash, Digest, Table},
    endpoint::{Endpoint, MissingKey},
    event,
    rejection::{KeyFault, Rejection},
    signature::{EventTypeSource, KeySource},
};

/// Most bytes in an idempotency key.
const KEY_LIMIT: usize = 255;

/// The keyed digest of an event's idempotency key, in a header or in the body, or of the body in
/// its stead, and whether it is a key of its own; `None` where nothing protects it from being
/// taken twice.
///
/// # Errors
/// [`Rejection::IdempotencyKey`] when the key is empty, too long, or absent and required.
pub fn digest_of(
    table: &Table,
    endpoint: &Endpoint,
    header_key: Option<&[u8]>,
    body: &[u8],
) -> Result<(Option<Digest>, bool), Rejection> {
    let fault = |fault| Err(Rejection::IdempotencyKey(fault));
    let name = endpoint.name.as_str();
    let pointed = match endpoint.scheme.key_source() {
        KeySource::Pointer(pointer) => event::text_at(body, pointer),
        KeySource::Header(_) | KeySource::None => None,
    };
    match header_key.or(pointed.as_deref().map(str::as_bytes)) {
        Some([]) => fault(KeyFault::Empty),
        Some(key) if key.len() > KEY_LIMIT => fault(KeyFault::Long),
        Some(key) => Ok((Some(table.digest(name, key)), true)),
        None => match endpoint.dedup.missing_key {
            MissingKey::Body => {
                let digest = table.digest_of_body(name, &hash_of(table, body));
                Ok((Some(digest), false))
            }
            MissingKey::Forward => Ok((None, false)),
            MissingKey::Reject => fault(KeyFault::Absent),
        },
    }
}

/// The keyed hash of a whole body.
pub(crate) fn hash_of(table: &Table, body: &[u8]) -> BodyHash {
    let mut hasher = table.body_hasher();
    hasher.update(body);
    hasher.finish()
}

/// The idempotency key in a header, where the scheme keeps it there.
///
/// # Errors
/// [`Rejection::IdempotencyKey`] when it is empty, too long, there twice, or absent and required.
pub fn header_key<'h>(
    endpoint: &Endpoint,
    headers: &'h HeaderMap,
) -> Result<Option<&'h [u8]>, Rejection> {
    let fault = |fault| Err(Rejection::IdempotencyKey(fault));
    let KeySource::Header(name) = endpoint.scheme.key_source() else {
        return Ok(None);
    };
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) if endpoint.dedup.missing_key == MissingKey::Reject => fault(KeyFault::Absent),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => fault(KeyFault::Twice),
        (Some(key), None) if key.is_empty() => fault(KeyFault::Empty),
        (Some(key), None) if key.len() > KEY_LIMIT => fault(KeyFault::Long),
        (Some(key), None) => Ok(Some(key.as_bytes())),
    }
}

/// The event's type: in a header or in the body, where it can be read.
pub(crate) fn event_type(endpoint: &Endpoint, headers: &HeaderMap, body: &[u8]) -> Option<String> {
    match endpoint.scheme.event_type_source() {
        EventTypeSource::Header(name) => headers.get(name)?.to_str().ok().map(str::to_owned),
        EventTypeSource::Pointer(pointer) => event::text_at(body, pointer),
        EventTypeSource::None => None,
    }
}

/// Whether everybody who reads the event's type reads the same.
pub(super) fn is_certain_type(endpoint: &Endpoint, head: &Parts, body: &Body) -> bool {
    match endpoint.scheme.event_type_source() {
        EventTypeSource::Header(name) => head.headers.get_all(name).iter().count() == 1,
        EventTypeSource::Pointer(pointer) => event::is_certain(body.as_bytes(), pointer),
        EventTypeSource::None => false,
    }
}
