//! A request as it is kept: what was received, byte for byte, and what was known of its sender.
//!
//! Nothing is decided when a request is kept: the head that an upstream gets is written at each
//! attempt, by the configuration of that moment. What the connection knew goes along as fields
//! whose names begin with `:`, which no header's name can.

use std::{net::IpAddr, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};

use crate::{
    endpoint::Endpoint,
    headers::{self, Forward, RequestHead},
    queue::{BadRecord, Record, TooLong},
    signature::SignedRequest,
};

const PEER: &str = ":peer";
const PROTO: &str = ":proto";
const REMAINDER: &str = ":remainder";
const TRUSTED: &str = ":trusted";

/// What is known of a request beside itself.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The address of who sent it, as far as the socket tells.
    pub peer: Option<&'a str>,
    /// Whether that peer's `X-Forwarded-*` are kept.
    pub peer_is_trusted: bool,
    /// `http` or `https`: how it came.
    pub proto: &'static str,
    /// What of its path lies beyond the endpoint's.
    pub remainder: &'a str,
    /// When it came.
    pub received_at: SystemTime,
}

/// Writes a request down.
///
/// # Errors
/// [`TooLong`] for parts that the limits on requests do not let in.
pub fn record(head: &Parts, origin: &Origin<'_>, body: &[u8]) -> Result<Bytes, TooLong> {
    let known = [
        (PROTO, Some(origin.proto)),
        (PEER, origin.peer),
        (TRUSTED, origin.peer_is_trusted.then_some("")),
        (
            REMAINDER,
            Some(origin.remainder).filter(|rest| !rest.is_empty()),
        ),
    ];
    let known = known.into_iter().filter_map(|(name, value)| {
        let value = Bytes::copy_from_slice(value?.as_bytes());
        Some((Bytes::from_static(name.as_bytes()), value))
    });
    // Who read the body has overwritten what was announced in the head.
    let length = HeaderValue::from(body.len());
    let received = head.headers.iter().map(|(name, value)| {
        let value = if *name == header::CONTENT_LENGTH {
            &length
        } else {
            value
        };
        (
            Bytes::copy_from_slice(name.as_str().as_bytes()),
            Bytes::copy_from_slice(value.as_bytes()),
        )
    });
    let target = head.uri.path_and_query().map_or("/", |t| t.as_str());
    Record {
        received_at: origin.received_at,
        method: Bytes::copy_from_slice(head.method.as_str().as_bytes()),
        target: Bytes::copy_from_slice(target.as_bytes()),
        headers: known.chain(received).collect(),
        body: Bytes::copy_from_slice(body),
    }
    .encode()
}

/// A request that was kept.
#[derive(Debug)]
pub struct Kept {
    /// When it came.
    pub received_at: SystemTime,
    /// Its path and query.
    pub target: String,
    /// Its headers, in their order within one name.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The address of who sent it.
    pub peer: Option<String>,
    method: Method,
    peer_is_trusted: bool,
    proto: &'static str,
    remainder: String,
}

impl Kept {
    /// Reads a record back.
    ///
    /// # Errors
    /// See [`BadRecord`].
    pub fn read(bytes: Bytes) -> Result<Self, BadRecord> {
        let record = Record::decode(bytes)?;
        // All of it is written into heads again, where a line end would begin another line.
        let text = |bytes: &Bytes, is_plain: fn(&str) -> bool| {
            let text = str::from_utf8(bytes).ok().filter(|text| is_plain(text));
            text.map(str::to_owned).ok_or(BadRecord::Part)
        };
        let mut kept = Self {
            received_at: record.received_at,
            target: text(&record.target, headers::is_target)?,
            headers: HeaderMap::with_capacity(record.headers.len()),
            body: record.body,
            peer: None,
            method: Method::from_bytes(&record.method).map_err(|_| BadRecord::Part)?,
            peer_is_trusted: false,
            proto: "http",
            remainder: String::new(),
        };
        for (name, value) in record.headers {
            match str::from_utf8(&name).unwrap_or_default() {
                PEER => kept.peer = Some(text(&value, |peer| peer.parse::<IpAddr>().is_ok())?),
                PROTO if value == "https" => kept.proto = "https",
                REMAINDER => kept.remainder = text(&value, headers::is_target)?,
                TRUSTED => kept.peer_is_trusted = true,
                // Known to a later version, and of no use here.
                known if known.starts_with(':') => {}
                _ => {
                    let name = HeaderName::from_bytes(&name).map_err(|_| BadRecord::Part)?;
                    let value =
                        HeaderValue::from_maybe_shared(value).map_err(|_| BadRecord::Part)?;
                    kept.headers.append(name, value);
                }
            }
        }
        Ok(kept)
    }

    /// What of it its sender may have signed.
    pub fn signed(&self) -> SignedRequest<'_> {
        SignedRequest {
            headers: &self.headers,
            method: self.method.as_str(),
            url: &self.target,
        }
    }

    /// Writes the head that the upstream gets at the attempt with this number.
    pub fn request_head(
        &self,
        endpoint: &Endpoint,
        event_id: &str,
        event_type: Option<&str>,
        attempt: u32,
    ) -> RequestHead {
        let upstream = &endpoint.upstream;
        let query = self.target.split_once('?').map(|(_, query)| query);
        let target = upstream.target(&self.remainder, query);
        let forward = Forward {
            target: &target,
            authority: &upstream.authority,
            extra: &upstream.headers,
            endpoint: endpoint.name.as_str(),
            event_id,
            event_type: event_type.filter(|t| headers::is_plain_event_type(t)),
            verified: true,
            received_at: self.received_at,
            peer: self.peer.as_deref(),
            peer_is_trusted: self.peer_is_trusted,
            proto: self.proto,
            body_len: self.body.len(),
        };
        let is_protected = |name: &HeaderName| endpoint.scheme.header_names().any(|n| n == name);
        let mut head = headers::request_head(Vec::new(), &self.headers, &forward, is_protected);
        head.count_from(attempt);
        head
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head() -> Parts {
        let request = Request::post("/hook/deeper?a=1&b=%20")
            .header("host", "hooks.example")
            .header("x-twice", "first")
            .header("x-twice", HeaderValue::from_bytes(b"caf\xe9").unwrap())
            .header("tinytalk-signature", "aa");
        request.body(()).unwrap().into_parts().0
    }

    fn origin() -> Origin<'static> {
        Origin {
            peer: Some("203.0.113.9"),
            peer_is_trusted: true,
            proto: "https",
            remainder: "deeper",
            received_at: SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_500),
        }
    }

    #[test]
    fn a_request_comes_back_as_it_was_received() {
        let record = record(&head(), &origin(), b"\0body\xff").unwrap();
        let kept = Kept::read(record).unwrap();
        assert_eq!(kept.headers, head().headers);
        let twice: Vec<_> = kept.headers.get_all("x-twice").iter().collect();
        assert_eq!(twice, ["first".as_bytes(), b"caf\xe9"]);
        assert_eq!(&kept.body[..], b"\0body\xff");
        assert_eq!(kept.received_at, origin().received_at);
        assert_eq!(kept.peer.as_deref(), Some("203.0.113.9"));
        assert_eq!((kept.peer_is_trusted, kept.proto), (true, "https"));
        assert_eq!(kept.remainder, "deeper");
        let signed = kept.signed();
        assert_eq!(
            (signed.method, signed.url),
            ("POST", "/hook/deeper?a=1&b=%20")
        );
    }

    #[test]
    fn what_is_not_known_of_a_sender_is_not_made_up() {
        let nobody = Origin {
            peer: None,
            peer_is_trusted: false,
            proto: "http",
            remainder: "",
            ..origin()
        };
        let kept = Kept::read(record(&head(), &nobody, b"").unwrap()).unwrap();
        assert_eq!(
            (kept.peer, kept.peer_is_trusted, kept.proto),
            (None, false, "http")
        );
        assert_eq!(kept.remainder, "");
    }

    #[test]
    fn what_a_later_version_knows_besides_is_passed_over() {
        let record = Record {
            received_at: SystemTime::UNIX_EPOCH,
            method: Bytes::from_static(b"POST"),
            target: Bytes::from_static(b"/"),
            headers: vec![(Bytes::from_static(b":later"), Bytes::from_static(b"x"))],
            body: Bytes::new(),
        };
        let kept = Kept::read(record.encode().unwrap()).unwrap();
        assert!(kept.headers.is_empty());
    }

    #[test]
    fn a_record_that_is_no_request_is_refused() {
        for (target, name, value) in [
            (&b"/\xff"[..], &b"x"[..], &b""[..]),
            (b"/\xc3\xa9", b"x", b""),
            (b"/a b", b"x", b""),
            (b"/\r\nX: 1", b"x", b""),
            (b"/", b"bad name", b""),
            (b"/", b"", b""),
            (b"/", b"x", b"\r\nY: 1"),
            (b"/", REMAINDER.as_bytes(), b"a HTTP/1.1\r\nX: 1"),
            (b"/", PEER.as_bytes(), b"127.0.0.1\r\nX: 1"),
        ] {
            let record = Record {
                received_at: SystemTime::UNIX_EPOCH,
                method: Bytes::from_static(b"POST"),
                target: Bytes::from_static(target),
                headers: vec![(Bytes::from_static(name), Bytes::from_static(value))],
                body: Bytes::new(),
            };
            let read = Kept::read(record.encode().unwrap());
            assert_eq!(read.err(), Some(BadRecord::Part), "{name:?}");
        }
    }
}
