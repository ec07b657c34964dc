//! Bytes ↔ record: what of a request is kept, so that it can be sent again byte for byte.
//!
//! Pure. A record is `version:u8`, `received_at:i64` (Unix milliseconds), then, each behind its
//! length, method, target, header fields and body; numbers are big-endian. A checksum over the
//! record and everything that decides where it goes is kept beside it, see [`checksum`].

use std::time::{Duration, SystemTime};

use bytes::{Buf as _, BufMut as _, Bytes};
use uuid::Uuid;

use crate::endpoint::EndpointName;

/// The version written; the only one read.
const VERSION: u8 = 1;

/// One request as it is to be sent on.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// When its last byte had been received; kept to the millisecond.
    pub received_at: SystemTime,
    /// The method, at most 65,535 bytes.
    pub method: Bytes,
    /// The path's remainder and the query, as the endpoint's upstream is to see them; at most
    /// 65,535 bytes.
    pub target: Bytes,
    /// Names and values in their order, at most 65,535 of them; a name has at most 65,535 bytes.
    pub headers: Vec<(Bytes, Bytes)>,
    /// The raw body.
    pub body: Bytes,
}

/// Shows sizes: what a sender wrote is not for logs.
impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("headers", &self.headers.len())
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// A part that is longer than its length field can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRecord {
    /// They end too early or too late.
    Length,
    /// Something in them no request can hold.
    Part,
    /// They were written by a newer hookward.
    Version(u8),
}

impl std::fmt::Display for BadRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length => f.write_str("the record's lengths do not add up"),
            Self::Part => f.write_str("the record holds what no request can"),
            Self::Version(version) => {
                write!(
                    f,
                    "the record has version {version}, this hookward reads {VERSION}"
                )
            }
        }
    }
}

impl Record {
    /// Writes it down.
    ///
    /// # Errors
    /// [`TooLong`] when a part exceeds its documented bound, or the body 4 GiB.
    pub fn encode(&self) -> Result<Bytes, TooLong> {
        let headers: usize = self
            .headers
            .iter()
            .map(|(n, v)| n.len() + v.len() + 6)
            .sum();
        let fixed = self.method.len() + self.target.len() + 32;
        let mut out = Vec::with_capacity(fixed + headers + self.body.len());
        out.put_u8(VERSION);
        out.put_i64(unix_millis(self.received_at));
        put_short(&mut out, &self.method)?;
        put_short(&mut out, &self.target)?;
        out.put_u16(self.headers.len().try_into().map_err(|_| TooLong)?);
        for (name, value) in &self.headers {
            put_short(&mut out, name)?;
            put_long(&mut out, value)?;
        }
        put_long(&mut out, &self.body)?;
        Ok(out.into())
    }

    /// Reads it back; parts share the bytes' memory.
    ///
    /// # Errors
    /// See [`BadRecord`].
    pub fn decode(mut bytes: Bytes) -> Result<Self, BadRecord> {
        let version = bytes.try_get_u8().map_err(|_| BadRecord::Length)?;
        if version != VERSION {
            return Err(BadRecord::Version(version));
        }
        let received_at = bytes.try_get_i64().map_err(|_| BadRecord::Length)?;
        let method = take_short(&mut bytes)?;
        let target = take_short(&mut bytes)?;
        let count = bytes.try_get_u16().map_err(|_| BadRecord::Length)?;
        let headers = (0..count)
            .map(|_| Ok((take_short(&mut bytes)?, take_long(&mut bytes)?)))
            .collect::<Result<_, _>>()?;
        let body = take_long(&mut bytes)?;
        if bytes.has_remaining() {
            return Err(BadRecord::Length);
        }
        Ok(Self {
            received_at: from_unix_millis(received_at),
            method,
            target,
            headers,
            body,
        })
    }
}

/// CRC-32C over a record and what decides whose it is and where it goes.
///
/// A flipped bit in any of them is found before the event is delivered. It protects against
/// disks, not against people: who can write the store can write the checksum.
pub(super) fn checksum(
    endpoint: &EndpointName,
    id: Uuid,
    event_type: Option<&str>,
    record: &[u8],
) -> u32 {
    let crc = crc32c::crc32c(endpoint.as_str().as_bytes());
    let crc = crc32c::crc32c_append(crc, &[0, u8::from(event_type.is_some())]);
    let crc = crc32c::crc32c_append(crc, event_type.unwrap_or_default().as_bytes());
    let crc = crc32c::crc32c_append(crc, id.as_bytes());
    crc32c::crc32c_append(crc, record)
}

/// Milliseconds since 1970; 0 before, the largest number far beyond.
pub(super) fn unix_millis(time: SystemTime) -> i64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    since.as_millis().try_into().unwrap_or(i64::MAX)
}

/// The last millisecond that is written with a year of four digits (RFC 3339 §5.6).
pub(super) const LATEST: i64 = 253_402_300_799_999;

/// The time a number of milliseconds after 1970; what cannot be a time, from a damaged row, is the
/// nearest that can: 1970 or the end of the year 9999.
pub(super) fn from_unix_millis(millis: i64) -> SystemTime {
    let since = Duration::from_millis(u64::try_from(millis.min(LATEST)).unwrap_or_default());
    SystemTime::UNIX_EPOCH
        .checked_add(since)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn put_short(out: &mut Vec<u8>, part: &[u8]) -> Result<(), TooLong> {
    out.put_u16(part.len().try_into().map_err(|_| TooLong)?);
    out.put_slice(part);
    Ok(())
}

fn put_long(out: &mut Vec<u8>, part: &[u8]) -> Result<(), TooLong> {
    out.put_u32(part.len().try_into().map_err(|_| TooLong)?);
    out.put_slice(part);
    Ok(())
}

fn take_short(bytes: &mut Bytes) -> Result<Bytes, BadRecord> {
    let length = bytes.try_get_u16().map_err(|_| BadRecord::Length)?;
    take(bytes, length.into())
}

fn take_long(bytes: &mut Bytes) -> Result<Bytes, BadRecord> {
    let length = bytes.try_get_u32().map_err(|_| BadRecord::Length)?;
    take(
        bytes,
        usize::try_from(length).map_err(|_| BadRecord::Length)?,
    )
}

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, BadRecord> {
    if length > bytes.remaining() {
        return Err(BadRecord::Length);
    }
    Ok(bytes.split_to(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(limit: usize) -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..limit).prop_map(Bytes::from)
    }

    fn record() -> impl Strategy<Value = Record> {
        let headers = prop::collection::vec((bytes(20), bytes(40)), 0..8);
        let parts = (
            0..i64::MAX / 2_000_000,
            bytes(8),
            bytes(60),
            headers,
            bytes(400),
        );
        parts.prop_map(|(at, method, target, headers, body)| Record {
            received_at: from_unix_millis(at),
            method,
            target,
            headers,
            body,
        })
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_went_in(record in record()) {
            prop_assert_eq!(Record::decode(record.encode().unwrap()), Ok(record));
        }

        #[test]
        fn a_record_cut_short_or_drawn_out_is_refused(record in record(), cut in any::<prop::sample::Index>()) {
            let whole = record.encode().unwrap();
            let cut = cut.index(whole.len());
            prop_assert!(Record::decode(whole.slice(..cut)).is_err());
            let longer: Bytes = [&whole[..], b"x"].concat().into();
            prop_assert_eq!(Record::decode(longer), Err(BadRecord::Length));
        }

        #[test]
        fn foreign_bytes_never_panic(foreign in bytes(300)) {
            let _ = Record::decode(foreign);
        }
    }

    #[test]
    fn a_newer_record_is_named_as_such() {
        assert_eq!(
            Record::decode(Bytes::from_static(&[9, 0])),
            Err(BadRecord::Version(9))
        );
    }

    #[test]
    fn a_name_longer_than_its_length_field_is_refused() {
        let record = Record {
            received_at: SystemTime::UNIX_EPOCH,
            method: Bytes::from_static(b"POST"),
            target: Bytes::new(),
            headers: vec![(vec![b'a'; 65_536].into(), Bytes::new())],
            body: Bytes::new(),
        };
        assert_eq!(record.encode(), Err(TooLong));
    }

    #[test]
    fn the_checksum_covers_everything_that_decides_where_an_event_goes() {
        let crm = EndpointName::new("crm").unwrap();
        let id = Uuid::from_u128(7);
        let crc = checksum(&crm, id, Some("a"), b"record");
        let erp = EndpointName::new("erp").unwrap();
        for other in [
            checksum(&erp, id, Some("a"), b"record"),
            checksum(&crm, Uuid::from_u128(6), Some("a"), b"record"),
            checksum(&crm, id, None, b"record"),
            checksum(&crm, id, Some(""), b"record"),
            checksum(&crm, id, Some("b"), b"record"),
            checksum(&crm, id, Some("a"), b"recorc"),
        ] {
            assert_ne!(crc, other);
        }
    }
}
