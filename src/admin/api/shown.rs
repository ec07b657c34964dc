//! Requests as they are shown: credentials masked, signatures cut short, bodies as they are.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName};
use serde_json::{Value, json};

use crate::{endpoint::Endpoint, feed::is_credential};

/// Characters of a signature that are shown: enough to see how it is written, too few to send the
/// request again.
const SIGNATURE_SHOWN: usize = 12;

pub(super) fn name(endpoint: &Endpoint) -> &str {
    endpoint.name.as_str()
}

/// A header's value as it is shown.
fn value(name: &HeaderName, value: &str, endpoint: Option<&Endpoint>) -> String {
    if is_credential(name) {
        return "***".to_owned();
    }
    let is_signature = match endpoint {
        Some(endpoint) => endpoint.scheme.signature_headers().contains(name),
        None => name.as_str().contains("signature"),
    };
    let length = value.chars().count();
    if is_signature && length > SIGNATURE_SHOWN {
        let start: String = value.chars().take(SIGNATURE_SHOWN).collect();
        return format!("{start}… ({length} characters)");
    }
    value.to_owned()
}

/// Headers as pairs.
pub(super) fn headers(headers: &HeaderMap, endpoint: Option<&Endpoint>) -> Value {
    let pair = |(name, text): (&HeaderName, &http::HeaderValue)| {
        let text = String::from_utf8_lossy(text.as_bytes());
        json!([name.as_str(), value(name, &text, endpoint)])
    };
    headers.iter().map(pair).collect()
}

/// A body under the key that says what it is.
pub(super) fn body(bytes: &[u8]) -> (&'static str, Value) {
    match str::from_utf8(bytes) {
        Ok(text) => ("body", text.into()),
        Err(_) => ("body_base64", STANDARD.encode(bytes).into()),
    }
}

/// Masks the headers of a request that `control` shows.
pub(super) fn mask_request(shown: &mut Value, endpoint: Option<&Endpoint>) {
    let pairs = shown.pointer_mut("/request/headers");
    for pair in pairs.and_then(Value::as_array_mut).into_iter().flatten() {
        let Some([name, text]) = pair.as_array_mut().map(Vec::as_mut_slice) else {
            continue;
        };
        let parsed = name.as_str().and_then(|name| name.parse().ok());
        if let (Some(name), Some(plain)) = (parsed, text.as_str()) {
            *text = value(&name, plain, endpoint).into();
        }
    }
}
