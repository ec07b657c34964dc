//! Schemes spelled out: whatever is accepted verifies what it signs, and nothing else.
//!
//! Input: `switches, length format… length content… length prefix… body`.
#![no_main]

use std::time::{Duration, SystemTime};

use hookward::{
    secret::{Secret, SecretEncoding},
    signature::{
        Algorithm, Encoding, Scheme, SchemeSpec, Secrets, SignedRequest, TimestampUnit, ToSign,
        VerifyError,
    },
};
use hookward_fuzz::{SECRET, take, take_bytes};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

fn text(data: &mut &[u8]) -> Option<String> {
    String::from_utf8(take_bytes(data).to_vec()).ok()
}

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let switches = take(&mut data);
    let is = |bit: u32| switches & (1 << bit) != 0;
    let (Some(format), Some(content), Some(prefix)) =
        (text(&mut data), text(&mut data), text(&mut data))
    else {
        return;
    };
    let spec = SchemeSpec {
        header: vec!["X-Signature".to_owned()],
        format,
        algorithm: [
            Algorithm::HmacSha1,
            Algorithm::HmacSha256,
            Algorithm::HmacSha512,
        ][switches % 3],
        encoding: [Encoding::Auto, Encoding::Base64, Encoding::Hex][switches / 3 % 3],
        content,
        timestamp_header: is(4).then(|| "X-Timestamp".to_owned()),
        timestamp_unit: if is(5) {
            TimestampUnit::Ms
        } else {
            TimestampUnit::S
        },
        tolerance: is(6).then_some(Duration::from_secs(300)),
        key_header: is(7).then(|| "X-Id".to_owned()),
        key_pointer: None,
        event_type_pointer: None,
        event_type_header: None,
        signature_prefix: Some(prefix).filter(|prefix| !prefix.is_empty()),
        secret_encoding: SecretEncoding::Utf8,
        secret_prefix: None,
    };
    let Ok(scheme) = Scheme::new(spec) else {
        return;
    };
    let secret =
        || Secret::new("s".to_owned(), SECRET.as_bytes().to_vec(), None).expect("not empty");
    let secrets = Secrets::new(scheme.spec().algorithm, vec![secret()]).expect("one secret");
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let to_sign = ToSign {
        id: "id",
        timestamp: now,
        method: "POST",
        url: "/hook?a",
        body: data,
        event_type: None,
    };
    let mut headers = HeaderMap::new();
    for (name, value) in scheme.sign(&secret(), &to_sign) {
        headers.append(name, value);
    }
    let verify = |headers: &HeaderMap, body: &[u8]| {
        let request = SignedRequest {
            headers,
            method: "POST",
            url: "/hook?a",
        };
        let mut verification = scheme.open(&secrets, &request, now)?;
        verification.update(body);
        verification.finish().map(drop)
    };
    let outcome = verify(&headers, data);
    // Where a signed value holds the text that ends it, nobody could tell where it ends.
    let is_cut = scheme.spec().content != "{body}" && outcome == Err(VerifyError::Malformed);
    if is_cut {
        return;
    }
    assert_eq!(outcome, Ok(()), "{:?}", scheme.spec());
    let other = [data, b"!"].concat();
    assert!(
        verify(&headers, &other).is_err(),
        "another body: {:?}",
        scheme.spec()
    );
    headers.insert("x-signature", HeaderValue::from_static(""));
    assert!(
        verify(&headers, data).is_err(),
        "no signature: {:?}",
        scheme.spec()
    );
});
