//! Idempotency keys in a header or in the body: the same key is the same, another is another, and what
//! is in the body is what a JSON parser finds there.
//!
//! Input: `length pointer… length key… length other key… body`.
#![no_main]

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use hookward::{
    dedup::{Ask, Decision, HashKeys, KeyReuse, Policy, Replay, Table},
    event,
    gate::{digest_of, header_key},
};
use hookward_fuzz::{config, take_bytes};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

struct Fixture {
    endpoint: Arc<hookward::endpoint::Endpoint>,
    table: Arc<Table>,
}

thread_local! {
    static FIXTURE: Fixture = fixture();
}

fn fixture() -> Fixture {
    let text = "[endpoints.crm]\npath = \"/hook\"\nupstream = \"http://localhost:1\"\n\
                secrets = [{ name = \"main\", env = \"SECRET\" }]\n";
    let config = config("keys.toml", text).expect("a good configuration");
    let endpoint = config
        .endpoints
        .iter()
        .next()
        .expect("the one there is")
        .clone();
    let capacity = NonZeroUsize::new(64).expect("not zero");
    let table = Table::new(capacity, 8, HashKeys::new([1, 2]), Instant::now());
    Fixture { endpoint, table }
}

fn check_key(fixture: &Fixture, key: &[u8], other: &[u8]) {
    let Fixture { endpoint, table } = fixture;
    let mut headers = HeaderMap::new();
    let (Ok(value), Ok(second)) = (HeaderValue::from_bytes(key), HeaderValue::from_bytes(other))
    else {
        return;
    };
    headers.insert("idempotency-key", value);
    let Ok(read) = header_key(endpoint, &headers) else {
        assert!(key.is_empty() || key.len() > 255, "only then");
        return;
    };
    assert_eq!(read, Some(key));
    let digest = |key| {
        digest_of(table, endpoint, key, b"")
            .map(|(digest, _)| digest)
            .ok()
            .flatten()
    };
    assert!(digest(read).is_some());
    assert_eq!(digest(read), digest(Some(key)));
    assert_eq!(digest(read) == digest(Some(other)), key == other);
    let ask = Ask {
        digest: digest(read),
        body: None,
        policy: Policy {
            window: Duration::from_secs(60),
            key_reuse: KeyReuse::Duplicate,
            replay: Replay::Off,
        },
        now: Instant::now(),
    };
    table.clear();
    let Decision::First { claim, .. } = table.claim(ask) else {
        panic!("the first is the first");
    };
    assert!(matches!(table.claim(ask), Decision::InFlight { .. }));
    claim.commit(Instant::now());
    assert!(matches!(table.claim(ask), Decision::Duplicate { .. }));
    headers.append("idempotency-key", second);
    assert!(
        header_key(endpoint, &headers).is_err(),
        "twice is once too often"
    );
}

/// What a parser of whole documents finds, where it takes the body for JSON.
fn reference(body: &[u8], pointer: &str) -> Option<Option<String>> {
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(match document.pointer(pointer) {
        Some(serde_json::Value::String(text)) => Some(text.clone()),
        Some(serde_json::Value::Number(number)) if number.is_u64() || number.is_i64() => {
            Some(number.to_string())
        }
        _ => None,
    })
}

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let pointer = take_bytes(&mut data);
    let (key, other) = (take_bytes(&mut data), take_bytes(&mut data));
    FIXTURE.with(|fixture| check_key(fixture, key, other));
    let Ok(pointer) = str::from_utf8(pointer) else {
        return;
    };
    let found = event::text_at(data, pointer);
    if event::is_certain(data, pointer) && pointer.starts_with('/') {
        // Certain is what every parser reads: one of whole documents too.
        if let Some(expected) = reference(data, pointer) {
            assert_eq!(found, expected, "{pointer:?}");
        }
    }
});
