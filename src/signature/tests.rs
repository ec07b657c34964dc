use base64::Engine as _;
use http::HeaderValue;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::secret::Secret;

const KEY: &[u8] = b"a-secret-of-thirty-two-bytes-ab!";

fn secret(bytes: &[u8]) -> Secret {
    Secret::new("main".to_owned(), bytes.to_vec(), None).unwrap()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(
            HeaderName::try_from(*name).unwrap(),
            HeaderValue::try_from(*value).unwrap(),
        );
    }
    map
}

fn check(
    scheme: &Scheme,
    key: &[u8],
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> Result<(), VerifyError> {
    let secrets = Secrets::new(scheme.spec().algorithm, vec![secret(key)]).unwrap();
    let request = SignedRequest {
        headers,
        method: "POST",
        url: "/hook?x=1",
    };
    let mut verification = scheme.open(&secrets, &request, now)?;
    // As it arrives: in pieces.
    body.chunks(7).for_each(|chunk| verification.update(chunk));
    verification.finish().map(drop)
}

fn tinytalk(signature: &str) -> Result<(), VerifyError> {
    let scheme = Scheme::preset("tinytalk").unwrap();
    check(
        &scheme,
        KEY,
        &headers(&[("tinytalk-signature", signature)]),
        b"body",
        at(0),
    )
}

fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn rfc_4231_is_met() {
    let scheme = Scheme::preset("tinytalk").unwrap();
    let vectors = vectors("rfc4231_hmac_sha256.json");
    let cases = vectors["rfc4231_hmac_sha256"].as_array().unwrap();
    assert!(cases.len() >= 6);
    for case in cases {
        let bytes = |name: &str| hex::decode(case[name].as_str().unwrap()).unwrap();
        let full = case["full_hex"].as_str().unwrap();
        let sent = headers(&[("tinytalk-signature", full)]);
        assert_eq!(
            check(&scheme, &bytes("key_hex"), &sent, &bytes("msg_hex"), at(0)),
            Ok(())
        );
    }
}

#[test]
fn wycheproof_is_met_and_its_truncated_tags_are_refused() {
    let scheme = Scheme::preset("tinytalk").unwrap();
    let vectors = vectors("wycheproof_hmac_sha256_test.json");
    let mut count = 0;
    for group in vectors["testGroups"].as_array().unwrap() {
        for case in group["tests"].as_array().unwrap() {
            count += 1;
            let bytes = |name: &str| hex::decode(case[name].as_str().unwrap()).unwrap();
            let sent = headers(&[("tinytalk-signature", case["tag"].as_str().unwrap())]);
            let is_whole = group["tagSize"] == 256;
            let outcome = check(&scheme, &bytes("key"), &sent, &bytes("msg"), at(0));
            let expected = if !is_whole {
                Err(VerifyError::Malformed)
            } else if case["result"] == "valid" {
                Ok(())
            } else {
                Err(VerifyError::Mismatch)
            };
            assert_eq!(outcome, expected, "case {}", case["tcId"]);
        }
    }
    assert_eq!(count, 174);
}

#[test]
fn githubs_published_example_is_met() {
    let scheme = Scheme::preset("github").unwrap();
    let vectors = vectors("webhook_vectors.json");
    let github = &vectors["github"];
    let (name, value) = github["header"].as_str().unwrap().split_once(": ").unwrap();
    let key = github["secret"].as_str().unwrap().as_bytes();
    let body = github["payload"].as_str().unwrap().as_bytes();
    assert_eq!(
        check(&scheme, key, &headers(&[(name, value)]), body, at(0)),
        Ok(())
    );
    let bare = value.strip_prefix("sha256=").unwrap();
    let outcome = check(&scheme, key, &headers(&[(name, bare)]), body, at(0));
    assert_eq!(outcome, Err(VerifyError::Malformed));
}

#[test]
fn standard_webhooks_examples_are_met() {
    let scheme = Scheme::preset("standard-webhooks").unwrap();
    let vectors = vectors("webhook_vectors.json");
    let (good, all) = (
        &vectors["standard_webhooks"]["positive"],
        &vectors["standard_webhooks"],
    );
    let key = scheme
        .decode_secret(good["secret"].as_str().unwrap().as_bytes())
        .unwrap();
    let stamp = good["timestamp"].as_u64().unwrap();
    let with = |signature: &str, now: u64| {
        let sent = headers(&[
            ("webhook-id", good["msg_id"].as_str().unwrap()),
            ("webhook-timestamp", &stamp.to_string()),
            ("webhook-signature", signature),
        ]);
        check(
            &scheme,
            &key,
            &sent,
            good["payload"].as_str().unwrap().as_bytes(),
            at(now),
        )
    };
    let signature = good["signature"].as_str().unwrap();
    assert_eq!(with(signature, stamp), Ok(()));
    for (distance, expected) in [(300, Ok(())), (301, Err(VerifyError::Expired))] {
        assert_eq!(
            with(signature, stamp + distance),
            expected,
            "{distance} s old"
        );
        assert_eq!(
            with(signature, stamp - distance),
            expected,
            "{distance} s ahead"
        );
    }
    let dotted = headers(&[
        ("webhook-id", "msg.1"),
        ("webhook-timestamp", &stamp.to_string()),
        ("webhook-signature", signature),
    ]);
    let outcome = check(&scheme, &key, &dotted, b"x", at(stamp));
    assert_eq!(
        outcome,
        Err(VerifyError::Malformed),
        "an id that could be cut in two places"
    );
    let many: Vec<_> = all["multi_sig_positive"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap())
        .collect();
    assert_eq!(with(&many.join(" "), stamp), Ok(()));
    for negative in all["negative"].as_array().unwrap() {
        let outcome = with(negative["header"].as_str().unwrap(), stamp);
        assert!(
            matches!(outcome, Err(VerifyError::Malformed | VerifyError::Mismatch)),
            "{negative}: {outcome:?}"
        );
    }
    for empty in all["secrets_that_must_be_refused"].as_array().unwrap() {
        let bytes = scheme
            .decode_secret(empty.as_str().unwrap().as_bytes())
            .unwrap();
        assert!(Secret::new("x".into(), bytes, None).is_err());
    }
}

#[test]
fn stripes_pairs_come_in_any_order_and_signatures_may_repeat() {
    let scheme = Scheme::preset("stripe").unwrap();
    let tag = hex::encode(verification::tag(
        Algorithm::HmacSha256,
        &secret(KEY),
        b"1000.body",
    ));
    let other = "0".repeat(64);
    let with = |value: &str| {
        check(
            &scheme,
            KEY,
            &headers(&[("stripe-signature", value)]),
            b"body",
            at(1000),
        )
    };
    for good in [
        format!("t=1000,v1={tag}"),
        format!("v1={tag},t=1000"),
        format!("t=1000, v1={other}, v1={tag}, v0=whatever"),
    ] {
        assert_eq!(with(&good), Ok(()), "{good}");
    }
    for bad in [
        format!("v1={tag}"),
        "t=1000".to_owned(),
        format!("t=1000,t=1000,v1={tag}"),
        format!("t=,v1={tag}"),
        format!("t=+1000,v1={tag}"),
        format!("t=1000,v1={tag},junk"),
        format!("t=1000,v1={}", vec![tag.clone(); 17].join(",v1=")),
        "t=1000,v1=".to_owned(),
    ] {
        assert_eq!(with(&bad), Err(VerifyError::Malformed), "{bad}");
    }
    assert_eq!(
        with(&format!("t=1001,v1={tag}")),
        Err(VerifyError::Mismatch)
    );
}

#[test]
fn tinytalks_tag_is_read_in_every_encoding() {
    let tag = verification::tag(Algorithm::HmacSha256, &secret(KEY), b"body");
    let engines = base64::engine::general_purpose::STANDARD;
    let (hex, base64) = (hex::encode(&tag), engines.encode(&tag));
    let url = base64.replace('+', "-").replace('/', "_");
    let written = [
        hex.clone(),
        hex.to_uppercase(),
        base64.clone(),
        url.clone(),
        base64.replace('=', ""),
        url.replace('=', ""),
    ];
    for text in &written {
        assert_eq!(tinytalk(text), Ok(()), "{text}");
        assert_eq!(tinytalk(&format!("sha256={text}")), Ok(()), "{text}");
        assert_eq!(tinytalk(&format!("  {text} ")), Ok(()), "{text}");
    }
}

#[test]
fn a_tag_that_begins_as_the_prefix_does_is_read_whole() {
    let mut spec = Scheme::preset("tinytalk").unwrap().spec().clone();
    let to_sign = ToSign {
        id: "",
        timestamp: at(0),
        method: "POST",
        url: "/hook?x=1",
        body: b"body",
        event_type: None,
    };
    for encoding in [Encoding::Auto, Encoding::Base64, Encoding::Hex] {
        (spec.encoding, spec.signature_prefix) = (encoding, None);
        let fields = Scheme::new(spec.clone())
            .unwrap()
            .sign(&secret(KEY), &to_sign);
        let (name, written) = &fields[0];
        let written = written.to_str().unwrap();
        let prefix = &written[..2];
        spec.signature_prefix = Some(prefix.to_owned());
        let scheme = Scheme::new(spec.clone()).unwrap();
        for text in [written, &format!("{prefix}{written}")] {
            let sent = headers(&[(name.as_str(), text)]);
            assert_eq!(check(&scheme, KEY, &sent, b"body", at(0)), Ok(()), "{text}");
        }
        let twice = format!("{prefix}{prefix}{written}");
        let sent = headers(&[(name.as_str(), &twice)]);
        let outcome = check(&scheme, KEY, &sent, b"body", at(0));
        assert_eq!(outcome, Err(VerifyError::Malformed), "{twice}");
    }
}

#[test]
fn each_way_to_be_unreadable_is_told_from_being_wrong() {
    let good = hex::encode(verification::tag(
        Algorithm::HmacSha256,
        &secret(KEY),
        b"body",
    ));
    for bad in [
        "",
        " ",
        "sha256=",
        "abc",
        &good[1..],
        &format!("{good}0"),
        &format!("{good}zz"),
        "g".repeat(64).as_str(),
    ] {
        assert_eq!(tinytalk(bad), Err(VerifyError::Malformed), "{bad:?}");
    }
    assert_eq!(tinytalk(&"0".repeat(64)), Err(VerifyError::Mismatch));
    let scheme = Scheme::preset("tinytalk").unwrap();
    let none = check(&scheme, KEY, &HeaderMap::new(), b"body", at(0));
    assert_eq!(none, Err(VerifyError::Missing));
    let twice = headers(&[("tinytalk-signature", &good), ("tinytalk-signature", &good)]);
    assert_eq!(
        check(&scheme, KEY, &twice, b"body", at(0)),
        Err(VerifyError::Malformed)
    );
    let mut foreign = HeaderMap::new();
    foreign.insert(
        "tinytalk-signature",
        HeaderValue::from_bytes(b"\xff\xfe").unwrap(),
    );
    assert_eq!(
        check(&scheme, KEY, &foreign, b"body", at(0)),
        Err(VerifyError::Malformed)
    );
}

#[test]
fn any_secret_may_match_and_an_expired_one_does_not() {
    let scheme = Scheme::preset("tinytalk").unwrap();
    let old = Secret::new("old".into(), b"old".to_vec(), Some(at(100))).unwrap();
    let secrets = Secrets::new(Algorithm::HmacSha256, vec![old, secret(KEY)]).unwrap();
    let verify = |key: &[u8], now| {
        let tag = hex::encode(verification::tag(
            Algorithm::HmacSha256,
            &secret(key),
            b"body",
        ));
        let sent = headers(&[("tinytalk-signature", &tag)]);
        let request = SignedRequest {
            headers: &sent,
            method: "POST",
            url: "/",
        };
        let mut verification = scheme.open(&secrets, &request, at(now)).unwrap();
        verification.update(b"body");
        verification.finish().map(|authentic| authentic.secret())
    };
    assert_eq!(verify(KEY, 0), Ok(1));
    assert_eq!(verify(b"old", 99), Ok(0));
    assert_eq!(verify(b"old", 100), Err(VerifyError::Mismatch));
    assert_eq!(verify(b"other", 0), Err(VerifyError::Mismatch));
}

#[test]
fn a_scheme_that_proves_nothing_is_refused() {
    let base = Scheme::preset("standard-webhooks").unwrap().spec().clone();
    let field = |change: fn(&mut SchemeSpec)| {
        let mut spec = base.clone();
        change(&mut spec);
        Scheme::new(spec).unwrap_err().field
    };
    assert_eq!(field(|s| s.header.clear()), "header");
    assert_eq!(field(|s| s.header = vec!["not a name".into()]), "header");
    assert_eq!(field(|s| s.content = "{timestamp}".into()), "content");
    assert_eq!(field(|s| s.content = "{body}{body}".into()), "content");
    assert_eq!(field(|s| s.content = "{secret}{body}".into()), "content");
    assert_eq!(field(|s| s.format = "v1".into()), "format");
    // No header could be written so, nor one so written be read.
    assert_eq!(field(|s| s.format = "v\0{signature}".into()), "format");
    assert_eq!(field(|s| s.format = "v\u{e9}{signature}".into()), "format");
    assert_eq!(field(|s| s.timestamp_header = None), "timestamp_header");
    assert_eq!(field(|s| s.content = "{body}".into()), "tolerance");
    assert_eq!(field(|s| s.key_header = None), "key_header");
    assert_eq!(field(|s| s.key_pointer = Some("/id".into())), "key_pointer");
    assert_eq!(
        field(|s| s.event_type_pointer = Some("type".into())),
        "event_type_pointer"
    );
}

#[test]
fn nothing_secret_is_printed() {
    let scheme = Scheme::preset("tinytalk").unwrap();
    let secret = secret(KEY);
    let tag = hex::encode(verification::tag(Algorithm::HmacSha256, &secret, b"body"));
    let text = format!("{secret:?}");
    let secrets = Secrets::new(Algorithm::HmacSha256, vec![secret]).unwrap();
    let sent = headers(&[("tinytalk-signature", &tag)]);
    let request = SignedRequest {
        headers: &sent,
        method: "POST",
        url: "/",
    };
    let verification = scheme.open(&secrets, &request, at(0)).unwrap();
    let text = format!("{text} {secrets:?} {verification:?}");
    let text = format!("{text} {:?}", verification.finish());
    assert!(
        !text.contains("thirty") && !text.contains(&tag) && !text.contains("97, 45"),
        "{text}"
    );
}

#[test]
fn a_mismatch_is_explained_by_the_slip_that_would_have_matched() {
    let scheme = Scheme::preset("tinytalk").unwrap();
    let json = "{\"a\": \"\u{fc}/x\", \"b\": [1, 2]}";
    let explain_with = |key: &[u8], signed: &[u8], written: &[u8], got: &[u8]| {
        let tag = hex::encode(verification::tag(
            Algorithm::HmacSha256,
            &secret(key),
            signed,
        ));
        let sent = headers(&[("tinytalk-signature", &tag)]);
        let case = explain::Case {
            scheme: &scheme,
            headers: &sent,
            method: "POST",
            url: "/",
            body: got,
            now: at(0),
        };
        explain::explain(&case, written).findings.join(" ")
    };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, json.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let long = "x".repeat(5000);
    let python = "{\"a\": \"\\u00fc/x\", \"b\": [1, 2]}";
    type Slip<'s> = (&'s [u8], &'s [u8], &'s [u8], &'s [u8], &'s str);
    let cases: [Slip<'_>; 12] = [
        (b"k1", b"body", b" k1\n", b"body", "the secret trimmed"),
        (
            b"k1\n",
            b"body",
            b"k1",
            b"body",
            "a newline at the end of the secret",
        ),
        (
            b"\x01\x02",
            b"body",
            b"0102",
            b"body",
            "decoded from hexadecimal",
        ),
        (
            b"key!",
            b"body",
            b"a2V5IQ==",
            b"body",
            "decoded from base64",
        ),
        (b"k", b"body", b"k", b"body\n", "final newline taken off"),
        (
            b"k",
            b"body\n",
            b"k",
            b"body",
            "a newline added at the end of the body",
        ),
        (b"k", b"a\r\nb", b"k", b"a\nb", "LF turned into CRLF"),
        (b"k", b"a\nb", b"k", b"a\r\nb", "CRLF turned into LF"),
        (
            b"k",
            b"{\"a\":\"\xc3\xbc/x\",\"b\":[1,2]}",
            b"k",
            json.as_bytes(),
            "compact JSON",
        ),
        (b"k", python.as_bytes(), b"k", json.as_bytes(), "Python"),
        (b"k", json.as_bytes(), b"k", &gzip, "unpacked from gzip"),
        (
            b"k",
            &long.as_bytes()[..4096],
            b"k",
            long.as_bytes(),
            "common buffer size",
        ),
    ];
    for (key, signed, written, got, part) in cases {
        let told = explain_with(key, signed, written, got);
        assert!(told.contains(part), "{part:?} in {told:?}");
    }
    assert_eq!(explain_with(b"k", b"body", b"k", b"body"), "");
    assert!(explain_with(b"k", b"body", b"other", b"body").contains("No usual slip"));
    let sha1 = hex::encode(verification::tag(
        Algorithm::HmacSha1,
        &secret(KEY),
        b"body",
    ));
    let sent = headers(&[("tinytalk-signature", &sha1)]);
    let case = explain::Case {
        scheme: &scheme,
        headers: &sent,
        method: "POST",
        url: "/",
        body: b"body",
        now: at(0),
    };
    assert!(
        explain::explain(&case, KEY)
            .findings
            .join(" ")
            .contains("HMAC-SHA1")
    );
    let sent = headers(&[("x-hub-signature-256", "sha256=00")]);
    let case = explain::Case {
        headers: &sent,
        ..case
    };
    assert!(
        explain::explain(&case, KEY)
            .findings
            .join(" ")
            .contains("as github does")
    );
}

proptest! {
    #[test]
    fn what_a_scheme_signs_it_verifies_and_one_flipped_bit_it_does_not(
        preset in prop::sample::select(Scheme::PRESETS),
        key in prop::collection::vec(any::<u8>(), 1..80),
        body in prop::collection::vec(any::<u8>(), 1..300),
        id in "[a-zA-Z0-9_-]{1,40}",
        flip in any::<prop::sample::Index>(),
        now in 1_u64..4_000_000_000,
    ) {
        let scheme = Scheme::preset(preset).unwrap();
        let signed = scheme.sign(&secret(&key), &ToSign {
            id: &id, timestamp: at(now), method: "POST", url: "/hook?x=1", body: &body, event_type: Some("push"),
        });
        let signed: HeaderMap = signed.into_iter().collect();
        prop_assert_eq!(check(&scheme, &key, &signed, &body, at(now)), Ok(()));
        let mut other = body.clone();
        let place = flip.index(other.len());
        other[place] ^= 1;
        prop_assert_eq!(check(&scheme, &key, &signed, &other, at(now)), Err(VerifyError::Mismatch));
    }
}
