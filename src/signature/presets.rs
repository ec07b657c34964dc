//! Senders' schemes as data.

use std::time::Duration;

use super::{Algorithm, Encoding, SchemeSpec, TimestampUnit};
use crate::secret::SecretEncoding;

/// The scheme most senders share: HMAC-SHA256 over the body alone, in one header.
fn plain(header: &str) -> SchemeSpec {
    SchemeSpec {
        header: vec![header.to_owned()],
        format: "{signature}".to_owned(),
        algorithm: Algorithm::HmacSha256,
        encoding: Encoding::Hex,
        content: "{body}".to_owned(),
        timestamp_header: None,
        timestamp_unit: TimestampUnit::S,
        tolerance: None,
        key_header: None,
        key_pointer: None,
        event_type_pointer: None,
        event_type_header: None,
        signature_prefix: None,
        secret_encoding: SecretEncoding::Utf8,
        secret_prefix: None,
    }
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// The preset with this name.
pub(super) fn spec(name: &str) -> Option<SchemeSpec> {
    Some(match name {
        // Source: Tiny Talk's webhook documentation and public receivers. The encoding is not
        // documented, so all that a 32-byte tag can be written in are read.
        "tinytalk" => SchemeSpec {
            encoding: Encoding::Auto,
            signature_prefix: some("sha256="),
            key_header: some("Idempotency-Key"),
            event_type_pointer: some("/type"),
            ..plain("TinyTalk-Signature")
        },
        // Source: GitHub documentation, "Validating webhook deliveries".
        "github" => SchemeSpec {
            format: "sha256={signature}".to_owned(),
            key_header: some("X-GitHub-Delivery"),
            event_type_header: some("X-GitHub-Event"),
            ..plain("X-Hub-Signature-256")
        },
        // Source: Stripe documentation, "Verify webhook signatures manually".
        "stripe" => SchemeSpec {
            format: "t={timestamp},v1={signature}".to_owned(),
            content: "{timestamp}.{body}".to_owned(),
            tolerance: Some(Duration::from_mins(5)),
            key_pointer: some("/id"),
            event_type_pointer: some("/type"),
            ..plain("Stripe-Signature")
        },
        // Source: the Standard Webhooks specification, "Signature scheme".
        "standard-webhooks" => SchemeSpec {
            format: "v1,{signature}".to_owned(),
            encoding: Encoding::Base64,
            content: "{id}.{timestamp}.{body}".to_owned(),
            timestamp_header: some("webhook-timestamp"),
            tolerance: Some(Duration::from_mins(5)),
            key_header: some("webhook-id"),
            event_type_pointer: some("/type"),
            secret_encoding: SecretEncoding::Base64,
            secret_prefix: some("whsec_"),
            ..plain("webhook-signature")
        },
        _ => return None,
    })
}
