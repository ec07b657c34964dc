//! How an endpoint's sender signs: a preset's name, or a scheme spelled out.

use std::time::Duration;

use serde_json::json;

use super::DAY;
use crate::{
    config::table::Table,
    secret::SecretEncoding,
    signature::{Algorithm, Encoding, Scheme, SchemeSpec, TimestampUnit},
};
pub(super) fn scheme(table: &mut Table) -> Option<Scheme> {
    let presets = Scheme::PRESETS.join(", ");
    if let Some(name) = table.plain("scheme") {
        table.show("scheme", name.clone());
        let scheme = Scheme::preset(&name);
        if scheme.is_none() {
            table.fault("scheme", format!("expected one of {presets}, or a table"));
        }
        return scheme;
    }
    if !table.has("scheme") {
        table.show("scheme", "tinytalk");
        table.table("scheme").end();
        return Scheme::preset("tinytalk");
    }
    let mut own = table.table("scheme");
    let spec = scheme_spec(&mut own);
    let scheme = spec.and_then(|spec| match Scheme::new(spec) {
        Ok(scheme) => Some(scheme),
        Err(error) => {
            own.fault(error.field, format!("expected {}", error.expected));
            None
        }
    });
    let (shown, schema) = own.end();
    table.show("scheme", shown);
    table.describe(
        "scheme",
        json!({"anyOf": [{"enum": Scheme::PRESETS}, schema]}),
    );
    scheme
}

fn scheme_spec(own: &mut Table) -> Option<SchemeSpec> {
    let algorithms = [
        ("hmac-sha256", Algorithm::HmacSha256),
        ("hmac-sha1", Algorithm::HmacSha1),
        ("hmac-sha512", Algorithm::HmacSha512),
    ];
    let encodings = [
        ("hex", Encoding::Hex),
        ("base64", Encoding::Base64),
        ("auto", Encoding::Auto),
    ];
    let units = [("s", TimestampUnit::S), ("ms", TimestampUnit::Ms)];
    let secrets = [
        ("utf8", SecretEncoding::Utf8),
        ("hex", SecretEncoding::Hex),
        ("base64", SecretEncoding::Base64),
    ];
    let header = own.list("header", &[], "a header's name", |text| {
        Some(text.to_owned())
    });
    let key_pointer = own.text("key_pointer");
    let key_header = own.text("key_header");
    let has_key = key_pointer.is_some() || key_header.is_some();
    if !has_key {
        own.show("key_header", "Idempotency-Key");
    }
    Some(SchemeSpec {
        header,
        format: own.text_or("format", "{signature}"),
        algorithm: own.choice("algorithm", "hmac-sha256", &algorithms)?,
        encoding: own.choice("encoding", "hex", &encodings)?,
        content: own.text_or("content", "{body}"),
        timestamp_header: own.text("timestamp_header"),
        timestamp_unit: own.choice("timestamp_unit", "s", &units)?,
        tolerance: own.duration_if("tolerance", Duration::from_secs(1)..=DAY),
        key_header: key_header.or_else(|| (!has_key).then(|| "Idempotency-Key".to_owned())),
        key_pointer,
        event_type_pointer: own.text("event_type_pointer"),
        event_type_header: own.text("event_type_header"),
        signature_prefix: own.text("signature_prefix"),
        secret_encoding: own.choice("secret_encoding", "utf8", &secrets)?,
        secret_prefix: own.text("secret_prefix"),
    })
}
