//! Signature headers of every preset: nothing in them verifies but a tag over the body.
//!
//! Input: `preset number, length header… length second header… body`; a byte 0xff in a header stands for
//! a true signature.
#![no_main]

use std::time::{Duration, SystemTime};

use hookward::{
    secret::Secret,
    signature::{Scheme, Secrets, SignedRequest, ToSign},
};
use hookward_fuzz::{SECRET, take, take_bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

fn secret() -> Secret {
    Secret::new("main".to_owned(), SECRET.as_bytes().to_vec(), None).expect("it is not empty")
}

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let number = take(&mut data) % Scheme::PRESETS.len();
    let scheme = Scheme::preset(Scheme::PRESETS[number]).expect("a preset");
    let texts = [take_bytes(&mut data), take_bytes(&mut data)];
    let body = data;
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let secrets = Secrets::new(scheme.spec().algorithm, vec![secret()]).expect("one secret");
    let to_sign = ToSign {
        id: "id",
        timestamp: now,
        method: "POST",
        url: "/",
        body,
        event_type: None,
    };
    let genuine = scheme.sign(&secret(), &to_sign);
    let mut headers = HeaderMap::new();
    let mut is_signed = false;
    let names: Vec<HeaderName> = genuine.iter().map(|(name, _)| name.clone()).collect();
    for (number, text) in texts
        .iter()
        .enumerate()
        .filter(|(_, text)| !text.is_empty())
    {
        let (name, value) = &genuine[number % genuine.len()];
        let mut filled = Vec::new();
        for byte in *text {
            match byte {
                0xff => filled.extend_from_slice(value.as_bytes()),
                byte => filled.push(*byte),
            }
        }
        is_signed |= number % genuine.len() == 0 && text.contains(&0xff);
        if let Ok(value) = HeaderValue::from_bytes(&filled) {
            headers.append(name, value);
        }
    }
    // What stands beside the signature is as the sender wrote it, unless something else was said.
    for (name, value) in genuine.iter().skip(1) {
        if !headers.contains_key(name) {
            headers.insert(name, value.clone());
        }
    }
    let request = SignedRequest {
        headers: &headers,
        method: "POST",
        url: "/",
    };
    let Ok(mut verification) = scheme.open(&secrets, &request, now) else {
        return;
    };
    for piece in body.chunks(7) {
        verification.update(piece);
    }
    let is_good = verification.finish().is_ok();
    assert!(!is_good || is_signed, "{names:?} {headers:?}");
});
