//! Why a request was refused, and what the sender hears: the one table from reason to status.
//!
//! Owns statuses, reason labels, titles and details, and the problem document (RFC 9457) made of
//! them. Every text here is constant: nothing a stranger sent, and nothing about a secret, can
//! reach an answer. Raising a reason is left to the rooms that find it.

use http::{HeaderValue, Response, StatusCode, header};

/// Seconds in `Retry-After` of a refusal that a retry may outlive.
const RETRY_SOON: HeaderValue = HeaderValue::from_static("5");
/// Seconds in `Retry-After` of an endpoint that an operator switched off.
const RETRY_LATER: HeaderValue = HeaderValue::from_static("300");

/// What is wrong with an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// The endpoint requires one and there is none.
    Absent,
    /// It is there, without a character.
    Empty,
    /// It is over 255 bytes.
    Long,
    /// It was sent more than once.
    Twice,
}

/// Whose framing or head cannot be trusted, and in which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformation {
    /// Body framing that two parsers could read differently, or a body that broke off.
    Framing,
    /// `Host` absent, doubled, not a host, or at odds with the target.
    Host,
    /// HTTP without TLS where TLS is spoken.
    PlainText,
    /// A header whose name, with `_` read as `-`, is one we read or set.
    Shadow,
    /// A target that is not an origin-form path, or that climbs out of its endpoint.
    Target,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The body is over the endpoint's `max_body`.
    BodyTooLarge,
    /// The header section is over its limit in bytes or fields.
    HeadersTooLarge,
    /// The idempotency key cannot be used.
    IdempotencyKey(KeyFault),
    /// The endpoint is switched off.
    Inactive,
    /// The first delivery of this key did not end within this one's deadline.
    InFlight,
    /// The first delivery of this key, which this one waited for, ended with this status.
    FirstFailed(StatusCode),
    /// A key that came with another body before.
    KeyReuse,
    /// Framing, `Host`, target or header names are not to be trusted.
    Malformed(Malformation),
    /// Not POST.
    Method,
    /// No room: bodies, connections, keys in flight, or the upstream's own bounds.
    Overloaded,
    /// The endpoint holds as many undelivered events as it may.
    QueueFull,
    /// A body that came under another key before.
    Replay,
    /// Signed outside the tolerance.
    SignatureExpired,
    /// A signature header that cannot be read, or came twice.
    SignatureMalformed,
    /// A signature that no secret makes.
    SignatureMismatch,
    /// No signature header.
    SignatureMissing,
    /// The disk takes nothing now.
    Storage,
    /// The request target is over its limit.
    TargetTooLong,
    /// Headers or body came too slowly.
    Timeout,
    /// No endpoint at this path.
    UnknownPath,
    /// The upstream did not answer within the deadline.
    UpstreamTimeout,
    /// The upstream refused, reset or broke off.
    UpstreamUnreachable,
}

/// Whose fault a refusal is: decides the log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// We, or the operator: too much at once, or switched off.
    Ours,
    /// The sender, or a stranger.
    Sender,
    /// The application behind.
    Upstream,
}

impl Rejection {
    /// One of each kind, for the metrics that exist from the start.
    pub const KINDS: [Self; 21] = [
        Self::BodyTooLarge,
        Self::HeadersTooLarge,
        Self::IdempotencyKey(KeyFault::Absent),
        Self::Inactive,
        Self::InFlight,
        Self::KeyReuse,
        Self::Malformed(Malformation::Framing),
        Self::Method,
        Self::Overloaded,
        Self::QueueFull,
        Self::Replay,
        Self::SignatureExpired,
        Self::SignatureMalformed,
        Self::SignatureMismatch,
        Self::SignatureMissing,
        Self::Storage,
        Self::TargetTooLong,
        Self::Timeout,
        Self::UnknownPath,
        Self::UpstreamTimeout,
        Self::UpstreamUnreachable,
    ];

    /// The reason as in metrics, logs and the problem's `type`.
    pub fn label(self) -> &'static str {
        match self {
            Self::BodyTooLarge => "body_too_large",
            Self::HeadersTooLarge => "headers_too_large",
            Self::IdempotencyKey(_) => "idempotency_key",
            Self::Inactive => "inactive",
            Self::InFlight | Self::FirstFailed(_) => "in_flight",
            Self::KeyReuse => "key_reuse",
            Self::Malformed(_) => "malformed",
            Self::Method => "method",
            Self::Overloaded => "overloaded",
            Self::QueueFull => "queue_full",
            Self::Replay => "replay",
            Self::SignatureExpired => "signature_expired",
            Self::SignatureMalformed => "signature_malformed",
            Self::SignatureMismatch => "signature_mismatch",
            Self::SignatureMissing => "signature_missing",
            Self::Storage => "storage",
            Self::TargetTooLong => "target_too_long",
            Self::Timeout => "timeout",
            Self::UnknownPath => "unknown_path",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamUnreachable => "upstream_unreachable",
        }
    }

    /// The status the sender sees; `signature` is the endpoint's `reject_status`.
    pub fn status(self, signature: StatusCode) -> StatusCode {
        match self {
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::IdempotencyKey(_) | Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Inactive
            | Self::InFlight
            | Self::Overloaded
            | Self::QueueFull
            | Self::Storage => StatusCode::SERVICE_UNAVAILABLE,
            Self::FirstFailed(status) => status,
            Self::KeyReuse | Self::Replay => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::SignatureExpired => StatusCode::UNAUTHORIZED,
            Self::SignatureMalformed | Self::SignatureMismatch | Self::SignatureMissing => {
                signature
            }
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::UpstreamUnreachable => StatusCode::BAD_GATEWAY,
        }
    }

    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        match self {
            Self::Inactive | Self::Overloaded | Self::QueueFull | Self::Storage => Fault::Ours,
            Self::FirstFailed(_)
            | Self::InFlight
            | Self::UpstreamTimeout
            | Self::UpstreamUnreachable => Fault::Upstream,
            Self::BodyTooLarge
            | Self::HeadersTooLarge
            | Self::IdempotencyKey(_)
            | Self::KeyReuse
            | Self::Malformed(_)
            | Self::Method
            | Self::Replay
            | Self::SignatureExpired
            | Self::SignatureMalformed
            | Self::SignatureMismatch
            | Self::SignatureMissing
            | Self::TargetTooLong
            | Self::Timeout
            | Self::UnknownPath => Fault::Sender,
        }
    }

    /// Whether the sender's request was at fault before an upstream was asked: `rejected`, not
    /// `failed`.
    pub fn is_refusal(self) -> bool {
        match self.fault() {
            Fault::Ours | Fault::Sender => true,
            Fault::Upstream => false,
        }
    }

    /// What an operator can do where it is for them to do something.
    pub fn remedy(self) -> Option<&'static str> {
        if self == Self::QueueFull {
            Some(
                "more comes than the upstream takes: see hookward queue stats; mend the upstream, \
                 drop dead letters, or raise max_pending_bytes and max_stored_bytes",
            )
        } else if self == Self::Storage {
            Some("see data_dir's disk, and the error logged before")
        } else {
            None
        }
    }

    /// Whether nothing more can be read from this connection.
    pub fn closes(self) -> bool {
        matches!(
            self,
            Self::Malformed(_) | Self::Timeout | Self::HeadersTooLarge
        )
    }

    /// `Retry-After`, in seconds, where a retry may fare better.
    pub fn retry_after(self) -> Option<HeaderValue> {
        match self {
            Self::Inactive => Some(RETRY_LATER),
            Self::InFlight | Self::Overloaded | Self::QueueFull | Self::Storage => Some(RETRY_SOON),
            Self::FirstFailed(status) if status == StatusCode::SERVICE_UNAVAILABLE => {
                Some(RETRY_SOON)
            }
            Self::BodyTooLarge
            | Self::FirstFailed(_)
            | Self::HeadersTooLarge
            | Self::IdempotencyKey(_)
            | Self::KeyReuse
            | Self::Malformed(_)
            | Self::Method
            | Self::Replay
            | Self::SignatureExpired
            | Self::SignatureMalformed
            | Self::SignatureMismatch
            | Self::SignatureMissing
            | Self::TargetTooLong
            | Self::Timeout
            | Self::UnknownPath
            | Self::UpstreamTimeout
            | Self::UpstreamUnreachable => None,
        }
    }

    /// A few words that name the refusal.
    pub fn title(self) -> &'static str {
        match self {
            Self::BodyTooLarge => "Body too large",
            Self::HeadersTooLarge => "Header section too large",
            Self::IdempotencyKey(_) => "Unusable idempotency key",
            Self::Inactive => "Endpoint switched off",
            Self::InFlight => "First delivery still in flight",
            Self::FirstFailed(_) => "First delivery failed",
            Self::KeyReuse => "Idempotency key used with another body",
            Self::Malformed(_) => "Malformed request",
            Self::Method => "Method not allowed",
            Self::Overloaded => "Overloaded",
            Self::QueueFull => "Queue full",
            Self::Replay => "Body already delivered under another key",
            Self::SignatureExpired => "Signature expired",
            Self::SignatureMalformed => "Signature unreadable",
            Self::SignatureMismatch => "Signature does not match",
            Self::SignatureMissing => "Signature missing",
            Self::Storage => "Storage unavailable",
            Self::TargetTooLong => "Request target too long",
            Self::Timeout => "Request too slow",
            Self::UnknownPath => "No endpoint here",
            Self::UpstreamTimeout => "Upstream timed out",
            Self::UpstreamUnreachable => "Upstream unreachable",
        }
    }

    /// One sentence: what was wrong and what would be right.
    pub fn detail(self) -> &'static str {
        match self {
            Self::BodyTooLarge => "The body is larger than this endpoint accepts.",
            Self::HeadersTooLarge => "The header section has too many bytes or fields.",
            Self::IdempotencyKey(KeyFault::Absent) => {
                "This endpoint requires an idempotency key; send one with every event."
            }
            Self::IdempotencyKey(KeyFault::Empty) => {
                "The idempotency key is empty; send 1 to 255 bytes."
            }
            Self::IdempotencyKey(KeyFault::Long) => {
                "The idempotency key is too long; send 1 to 255 bytes."
            }
            Self::IdempotencyKey(KeyFault::Twice) => {
                "The idempotency key was sent more than once; send it once."
            }
            Self::Inactive => "This endpoint is switched off; retry later.",
            Self::InFlight => {
                "The first delivery of this idempotency key has not ended yet; retry later."
            }
            Self::FirstFailed(_) => {
                "The first delivery of this idempotency key failed while this one waited; retry."
            }
            Self::KeyReuse => "This idempotency key was used with another body; use a fresh one.",
            Self::Malformed(Malformation::Framing) => {
                "The message's framing is ambiguous or its body broke off."
            }
            Self::Malformed(Malformation::Host) => {
                "Send exactly one valid Host header that agrees with the target."
            }
            Self::Malformed(Malformation::PlainText) => {
                "This address speaks HTTPS, and the request came without TLS."
            }
            Self::Malformed(Malformation::Shadow) => {
                "A header name contains an underscore where a hyphen is meant."
            }
            Self::Malformed(Malformation::Target) => {
                "Send a plain path as target, without dot segments or encoded slashes."
            }
            Self::Method => "Webhooks are sent with POST.",
            Self::Overloaded => "There is no room for this request now; retry later.",
            Self::QueueFull => {
                "Too many events wait for delivery; nothing of this one was kept, retry later."
            }
            Self::Replay => "This body was delivered under another idempotency key.",
            Self::SignatureExpired => {
                "The signed timestamp is too far from this server's clock; sign again."
            }
            Self::SignatureMalformed => {
                "The signature header cannot be read; send it once, in the scheme's format."
            }
            Self::SignatureMismatch => {
                "The signature was not made over exactly these bytes with the shared secret."
            }
            Self::SignatureMissing => "The signature header is absent.",
            Self::Storage => "The event could not be put on disk; retry later.",
            Self::TargetTooLong => "The request target is longer than this server accepts.",
            Self::Timeout => "The headers or the body did not arrive in time.",
            Self::UnknownPath => "No endpoint is configured at this path.",
            Self::UpstreamTimeout => {
                "The application did not answer in time; it may have acted on the event."
            }
            Self::UpstreamUnreachable => {
                "The application refused, reset or broke off; it may have acted on the event."
            }
        }
    }

    /// Its place in [`Rejection::KINDS`].
    pub fn number(self) -> usize {
        match self {
            Self::BodyTooLarge => 0,
            Self::HeadersTooLarge => 1,
            Self::IdempotencyKey(_) => 2,
            Self::Inactive => 3,
            Self::InFlight | Self::FirstFailed(_) => 4,
            Self::KeyReuse => 5,
            Self::Malformed(_) => 6,
            Self::Method => 7,
            Self::Overloaded => 8,
            Self::QueueFull => 9,
            Self::Replay => 10,
            Self::SignatureExpired => 11,
            Self::SignatureMalformed => 12,
            Self::SignatureMismatch => 13,
            Self::SignatureMissing => 14,
            Self::Storage => 15,
            Self::TargetTooLong => 16,
            Self::Timeout => 17,
            Self::UnknownPath => 18,
            Self::UpstreamTimeout => 19,
            Self::UpstreamUnreachable => 20,
        }
    }

    /// The problem document (RFC 9457 §3) as JSON; `instance`, a relative reference, is the event id
    /// (no character of it needs escaping).
    pub fn problem(self, status: StatusCode, instance: &str) -> String {
        let parts = [
            "{\"type\":\"urn:hookward:",
            self.label(),
            "\",\"title\":\"",
            self.title(),
            "\",\"status\":",
            status.as_str(),
            ",\"detail\":\"",
            self.detail(),
            "\",\"instance\":\"",
            instance,
            "\"}",
        ];
        // Joined, not formatted: floods of forged requests are answered with it.
        parts.concat()
    }
}

/// A whole answer for a connection on which no request can be answered any more: the head could
/// not be read, or did not come in time, or there is no room for the connection.
pub fn parting_answer(rejection: Rejection) -> Vec<u8> {
    let status = rejection.status(StatusCode::UNAUTHORIZED);
    let body = parting_problem(rejection);
    let retry = match rejection.retry_after() {
        Some(_) => "retry-after: 5\r\n",
        None => "",
    };
    let answer = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\n{retry}connection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        body.len()
    );
    answer.into_bytes()
}

/// The same for a request on a connection that goes on.
pub fn parting_response(rejection: Rejection) -> Response<String> {
    let mut response = Response::new(parting_problem(rejection));
    *response.status_mut() = rejection.status(StatusCode::UNAUTHORIZED);
    let length = response.body().len();
    let headers = response.headers_mut();
    let problem = HeaderValue::from_static("application/problem+json");
    headers.insert(header::CONTENT_TYPE, problem);
    headers.insert(header::CONTENT_LENGTH, length.into());
    if let Some(seconds) = rejection.retry_after() {
        headers.insert(header::RETRY_AFTER, seconds);
    }
    response
}

/// The problem document of a request without an event id.
fn parting_problem(rejection: Rejection) -> String {
    format!(
        r#"{{"type":"urn:hookward:{}","title":"{}","status":{},"detail":"{}"}}"#,
        rejection.label(),
        rejection.title(),
        rejection.status(StatusCode::UNAUTHORIZED).as_u16(),
        rejection.detail()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_json_that_names_its_reason_and_status() {
        for rejection in Rejection::KINDS {
            let status = rejection.status(StatusCode::UNAUTHORIZED);
            let problem = rejection.problem(status, "0190-id");
            let problem: serde_json::Value = serde_json::from_str(&problem).unwrap();
            assert_eq!(
                problem["type"],
                format!("urn:hookward:{}", rejection.label())
            );
            assert_eq!(problem["status"], status.as_u16());
            assert_eq!(problem["instance"], "0190-id");
            assert_eq!(Rejection::KINDS[rejection.number()], rejection);
        }
    }

    #[test]
    fn an_endpoints_own_status_covers_signatures_alone() {
        let own = StatusCode::FORBIDDEN;
        assert_eq!(Rejection::SignatureMissing.status(own), own);
        assert_eq!(
            Rejection::SignatureExpired.status(own),
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(
            Rejection::Method.status(own),
            StatusCode::METHOD_NOT_ALLOWED
        );
    }

    #[test]
    fn reasons_have_distinct_labels() {
        let labels: std::collections::HashSet<_> =
            Rejection::KINDS.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), Rejection::KINDS.len());
    }
}
