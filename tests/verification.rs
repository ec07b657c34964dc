//! Whose signature passes the real daemon, and whose does not.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::{Sha256, Sha512};
use support::{Act, BODY, Daemon, SECRET, Sender, Upstream, event, sign};

fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn post(sender: &mut Sender, headers: &str, body: &[u8]) -> support::Reply {
    let head = format!(
        "POST /hook HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    sender.send(&[head.as_bytes(), body].concat())
}

/// One endpoint per key, the key in a file in hexadecimal: keys of vectors are binary.
#[test]
fn published_vectors_pass_or_fail_as_published() {
    let upstream = Upstream::new(Act::status(200));
    let directory = std::env::temp_dir().join(format!("hookward-vectors-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let mut cases: Vec<(String, Vec<u8>, String, bool)> = Vec::new();
    for case in vectors("rfc4231_hmac_sha256.json")["rfc4231_hmac_sha256"]
        .as_array()
        .unwrap()
    {
        let text = |name: &str| case[name].as_str().unwrap().to_owned();
        cases.push((
            text("key_hex"),
            hex::decode(text("msg_hex")).unwrap(),
            text("full_hex"),
            true,
        ));
    }
    for group in vectors("wycheproof_hmac_sha256_test.json")["testGroups"]
        .as_array()
        .unwrap()
    {
        for case in group["tests"].as_array().unwrap() {
            let text = |name: &str| case[name].as_str().unwrap().to_owned();
            let is_good = group["tagSize"] == 256 && case["result"] == "valid";
            cases.push((
                text("key"),
                hex::decode(text("msg")).unwrap(),
                text("tag"),
                is_good,
            ));
        }
    }
    assert!(cases.len() >= 174 + 6);
    let mut keys: Vec<&String> = cases.iter().map(|(key, ..)| key).collect();
    keys.sort();
    keys.dedup();
    let mut config = String::new();
    for (number, key) in keys.iter().enumerate() {
        let file = directory.join(format!("key-{number}"));
        std::fs::write(&file, key).unwrap();
        let secrets = format!(
            "secrets = [{{ file = \"{}\", encoding = \"hex\" }}]",
            file.display()
        );
        config += &Daemon::endpoint(
            &format!("v{number}"),
            &format!("/v{number}"),
            &upstream.url(),
            &secrets,
        );
    }
    let daemon = Daemon::with("", &config).start();
    let mut sender = daemon.sender();
    let mut passed = 0;
    for (key, body, tag, is_good) in &cases {
        let number = keys.iter().position(|k| *k == key).unwrap();
        let head = format!(
            "POST /v{number} HTTP/1.1\r\nHost: a\r\nTinyTalk-Signature: {tag}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let reply = sender.send(&[head.as_bytes(), body].concat());
        assert_eq!(
            reply.status,
            if *is_good { 200 } else { 401 },
            "{key} {tag}"
        );
        passed += usize::from(*is_good);
    }
    assert_eq!(upstream.count(), passed);
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn githubs_published_example_passes() {
    let upstream = Upstream::new(Act::status(200));
    let all = vectors("webhook_vectors.json");
    let github = &all["github"];
    let daemon = Daemon::relay(&upstream.url(), "scheme = \"github\"")
        .env("SECRET", github["secret"].as_str().unwrap())
        .start();
    let (header, body) = (
        github["header"].as_str().unwrap(),
        github["payload"].as_str().unwrap(),
    );
    let delivery = "X-GitHub-Delivery: 72d3162e\r\nX-GitHub-Event: push\r\n";
    let send = |header: &str| {
        post(
            &mut daemon.sender(),
            &format!("{header}\r\n{delivery}"),
            body.as_bytes(),
        )
    };
    assert_eq!(send(header).status, 200);
    let message = upstream.next_message();
    assert_eq!(message.value("hookward-event-type"), "push");
    assert_eq!(
        send(header).outcome(),
        "duplicate",
        "the delivery's id is the key"
    );
    assert_eq!(send(&header.replace("3e17", "3e18")).status, 401);
    assert_eq!(send(&header.replace("sha256=", "")).status, 401);
    assert_eq!(
        send(&header.replace("-256", "")).reason(),
        "signature_missing"
    );
}

#[test]
fn standard_webhooks_are_verified_by_id_time_and_body() {
    let upstream = Upstream::new(Act::status(200));
    let all = vectors("webhook_vectors.json");
    let secret = all["standard_webhooks"]["positive"]["secret"]
        .as_str()
        .unwrap();
    let daemon = Daemon::relay(&upstream.url(), "scheme = \"standard-webhooks\"")
        .env("SECRET", secret)
        .start();
    let engine = base64::engine::general_purpose::STANDARD;
    let key = engine
        .decode(secret.strip_prefix("whsec_").unwrap())
        .unwrap();
    let signed = |id: &str, time: u64| {
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(format!("{id}.{time}.{BODY}").as_bytes());
        engine.encode(mac.finalize().into_bytes())
    };
    let send = |id: &str, time: u64, signature: &str| {
        let headers = format!(
            "webhook-id: {id}\r\nwebhook-timestamp: {time}\r\nwebhook-signature: {signature}\r\n"
        );
        post(&mut daemon.sender(), &headers, BODY.as_bytes())
    };
    let tag = signed("msg_1", now());
    assert_eq!(send("msg_1", now(), &format!("v1a,x v1,{tag}")).status, 200);
    // The sender's retry is signed anew, with another time: the same event all the same.
    let later = now() + 2;
    assert_eq!(
        send("msg_1", later, &format!("v1,{}", signed("msg_1", later))).outcome(),
        "duplicate"
    );
    assert_eq!(
        daemon.metric("hookward_key_reuse_total", &[("endpoint", "crm")]),
        0.0
    );
    assert_eq!(
        send("msg_2", now(), &format!("v1,{tag}")).reason(),
        "signature_mismatch"
    );
    for time in [now() - 310, now() + 310] {
        let reply = send("msg_3", time, &format!("v1,{}", signed("msg_3", time)));
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (401, "signature_expired")
        );
    }
    for bad in ["v1,", "v1,g0hM9SsE", &tag, &format!("v2,{tag}")] {
        assert_eq!(
            send("msg_1", now(), bad).reason(),
            "signature_malformed",
            "{bad}"
        );
    }
    for empty in ["", "whsec_"] {
        let (code, said) = Daemon::relay(&upstream.url(), "scheme = \"standard-webhooks\"")
            .env("SECRET", empty)
            .refuse();
        assert_eq!(code, 2, "{said}");
    }
}

#[test]
fn stripe_events_have_their_key_and_type_in_the_body() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "scheme = \"stripe\"").start();
    let send = |body: &str| {
        let time = now();
        let tag = sign(SECRET, format!("{time}.{body}").as_bytes());
        let headers = format!(
            "Stripe-Signature: t={time},v1={},v1={tag},v0=x\r\n",
            "0".repeat(64)
        );
        post(&mut daemon.sender(), &headers, body.as_bytes())
    };
    let body = r#"{"id":"evt_1","object":"event","type":"charge.succeeded"}"#;
    assert_eq!(send(body).outcome(), "forwarded");
    assert_eq!(
        upstream.next_message().value("hookward-event-type"),
        "charge.succeeded"
    );
    assert_eq!(send(body).outcome(), "duplicate");
    assert_eq!(send(&body.replace("evt_1", "evt_2")).outcome(), "forwarded");
}

#[test]
fn a_scheme_can_be_spelled_out() {
    let upstream = Upstream::new(Act::status(200));
    let scheme = "[endpoints.crm.scheme]\nheader = [\"X-Acme-Signature\", \"X-Acme-Old\"]\nformat = \"v={signature}\"\n\
        algorithm = \"hmac-sha512\"\nencoding = \"base64\"\ncontent = \"{method}:{url}:{timestamp}:{body}:end\"\n\
        timestamp_header = \"X-Acme-Time\"\ntimestamp_unit = \"ms\"\ntolerance = \"1m\"\nkey_pointer = \"/meta/id\"\n\
        event_type_header = \"X-Acme-Event\"\n";
    let daemon = Daemon::relay(&upstream.url(), scheme).start();
    let body = r#"{"meta":{"id":7}}"#;
    let send = |header: &str, time: u64| {
        let mut mac = Hmac::<Sha512>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(format!("POST:/hook:{time}:{body}:end").as_bytes());
        let tag = base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes());
        let headers = format!("{header}: v={tag}\r\nX-Acme-Time: {time}\r\nX-Acme-Event: made\r\n");
        post(&mut daemon.sender(), &headers, body.as_bytes())
    };
    assert_eq!(send("X-Acme-Old", now() * 1000).outcome(), "forwarded");
    assert_eq!(upstream.next_message().value("hookward-event-type"), "made");
    assert_eq!(
        send("X-Acme-Signature", now() * 1000).outcome(),
        "duplicate"
    );
    assert_eq!(
        send("X-Acme-Signature", (now() - 70) * 1000).reason(),
        "signature_expired"
    );
    assert_eq!(
        send("X-Acme-Other", now() * 1000).reason(),
        "signature_missing"
    );
}

#[test]
fn any_configured_secret_passes_until_its_end() {
    let upstream = Upstream::new(Act::status(200));
    let secrets = "secrets = [{ name = \"new\", env = \"SECRET\" }, { name = \"old\", env = \"OLD\" }, \
                   { name = \"gone\", env = \"GONE\", not_after = \"2020-01-01T00:00:00Z\" }]";
    let daemon = Daemon::relay(&upstream.url(), secrets)
        .env("OLD", "the-secret-of-last-half-year")
        .env("GONE", "the-secret-of-long-ago")
        .start();
    let send = |secret: &str| {
        let headers = format!("TinyTalk-Signature: {}\r\n", sign(secret, BODY.as_bytes()));
        post(&mut daemon.sender(), &headers, BODY.as_bytes()).status
    };
    assert_eq!(
        (send(SECRET), send("the-secret-of-last-half-year")),
        (200, 200)
    );
    assert_eq!(
        (send("the-secret-of-long-ago"), send("no-secret-at-all")),
        (401, 401)
    );
    for (secret, count) in [("new", 1.0), ("old", 1.0), ("gone", 0.0)] {
        assert_eq!(
            daemon.metric("hookward_secret_matches_total", &[("secret", secret)]),
            count
        );
    }
    let expiry = daemon.metric(
        "hookward_secret_expiry_timestamp_seconds",
        &[("secret", "gone")],
    );
    assert_eq!(expiry, 1_577_836_800.0);
}

#[test]
fn every_byte_and_every_encoding_counts() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut sender = daemon.sender();
    let body: Vec<u8> = (0..=255).collect();
    let hex = sign(SECRET, &body);
    let base64 = base64::engine::general_purpose::STANDARD.encode(hex::decode(&hex).unwrap());
    for signature in [
        hex.clone(),
        hex.to_uppercase(),
        format!("sha256={hex}"),
        base64.clone(),
        base64.replace('+', "-").replace('/', "_"),
        base64.replace('=', ""),
    ] {
        let reply = post(
            &mut sender,
            &format!("TinyTalk-Signature: {signature}\r\n"),
            &body,
        );
        assert_eq!(reply.status, 200, "{signature}");
    }
    for place in [0, 128, 255] {
        let mut other = body.clone();
        other[place] ^= 0x80;
        assert_eq!(
            post(
                &mut sender,
                &format!("TinyTalk-Signature: {hex}\r\n"),
                &other
            )
            .reason(),
            "signature_mismatch"
        );
    }
    assert_eq!(upstream.count(), 6);
    assert_eq!(
        sender.send(&event("k", b"", "")).status,
        200,
        "an empty body is signed too"
    );
}

#[test]
fn a_secret_that_is_empty_or_not_there_stops_the_start() {
    let upstream = Upstream::new(Act::status(200));
    let (code, said) = Daemon::relay(&upstream.url(), "")
        .env("SECRET", "")
        .refuse();
    assert_eq!(code, 2);
    assert!(
        said.contains("endpoints.crm.secrets[0].env: the variable named here is empty"),
        "{said}"
    );
    let (code, said) =
        Daemon::relay(&upstream.url(), "secrets = [{ file = \"/nowhere\" }]").refuse();
    assert_eq!(code, 2);
    assert!(said.contains("endpoints.crm.secrets[0].file"), "{said}");
}

#[test]
fn a_signature_that_is_not_quite_one_is_unreadable() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let hex = sign(SECRET, BODY.as_bytes());
    let tag = hex::decode(&hex).unwrap();
    let engine = base64::engine::general_purpose::STANDARD;
    let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    for bad in [
        String::new(),
        " \t ".to_owned(),
        "sha256=".to_owned(),
        hex[..63].to_owned(),
        hex[..32].to_owned(),
        format!("{hex}0"),
        format!("{hex}00"),
        format!("{}g", &hex[..63]),
        format!("{} {}", &hex[..32], &hex[32..]),
        format!("{hex},{hex}"),
        format!("{hex}, {hex}"),
        format!("\"{hex}\""),
        format!("sha512={hex}"),
        format!("sha256=sha256={hex}"),
        format!("sha256={}", engine.encode(&tag[..31])),
        engine.encode([&tag[..], b"x"].concat()),
        "0".repeat(128),
        "0".repeat(10_000),
        "\u{e9}".repeat(32),
    ] {
        let reply = post(
            &mut daemon.sender(),
            &format!("TinyTalk-Signature: {bad}\r\n"),
            BODY.as_bytes(),
        );
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (401, "signature_malformed"),
            "{bad:?}"
        );
    }
    assert_eq!(upstream.count(), 0);
    let mut sender = daemon.sender();
    for good in [
        format!("  {hex}\t "),
        format!("sha256={}", hex.to_uppercase()),
        format!("sha256={}", engine.encode(&tag)),
        format!("sha256={}", url_safe.encode(&tag)),
    ] {
        let reply = post(
            &mut sender,
            &format!("TinyTalk-Signature: {good}\r\n"),
            BODY.as_bytes(),
        );
        assert_eq!(reply.status, 200, "{good:?}");
    }
}

#[test]
fn only_this_secret_over_these_bytes_will_do() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut sender = daemon.sender();
    let body = "{\"b\": 1, \"a\": \"caf\u{e9}\"}\n";
    let compact: Value = serde_json::from_str(body).unwrap();
    let other_key = sign(&SECRET.to_uppercase(), body.as_bytes());
    for (what, signature) in [
        ("an empty secret", sign("", body.as_bytes())),
        ("another secret", other_key),
        (
            "the secret with a newline",
            sign(&format!("{SECRET}\n"), body.as_bytes()),
        ),
        ("an empty body", sign(SECRET, b"")),
        (
            "the same JSON, written anew",
            sign(SECRET, compact.to_string().as_bytes()),
        ),
        ("the body trimmed", sign(SECRET, body.trim().as_bytes())),
        (
            "the body with CRLF",
            sign(SECRET, body.replace('\n', "\r\n").as_bytes()),
        ),
        (
            "a hash without a key",
            hex::encode(<Sha256 as sha2::Digest>::digest(body)),
        ),
        ("zeros", "0".repeat(64)),
    ] {
        let reply = post(
            &mut sender,
            &format!("TinyTalk-Signature: {signature}\r\n"),
            body.as_bytes(),
        );
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (401, "signature_mismatch"),
            "{what}"
        );
    }
    let own = format!("TinyTalk-Signature: {}\r\n", sign(SECRET, body.as_bytes()));
    assert_eq!(post(&mut sender, &own, body.as_bytes()).status, 200);
    assert_eq!(upstream.next_message().body, body.as_bytes());
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_secret_in_a_file_loses_one_newline_and_nothing_else() {
    let upstream = Upstream::new(Act::status(200));
    let key: Vec<u8> = (0..32).map(|n| n * 7 + 3).collect();
    let engine = base64::engine::general_purpose::STANDARD;
    let plain = "a secret with spaces ".to_owned();
    for (written, encoding, bytes) in [
        (plain.clone(), "utf8", plain.clone().into_bytes()),
        (format!("{plain}\n"), "utf8", plain.clone().into_bytes()),
        (
            format!("{plain}\n\n"),
            "utf8",
            format!("{plain}\n").into_bytes(),
        ),
        (hex::encode(&key), "hex", key.clone()),
        (format!("{}\n", engine.encode(&key)), "base64", key.clone()),
    ] {
        let setup = Daemon::relay(&upstream.url(), "");
        let file = setup.dir().join("secret");
        std::fs::write(&file, &written).unwrap();
        let secrets = format!(
            "secrets = [{{ file = \"{}\", encoding = \"{encoding}\" }}]",
            file.display()
        );
        let daemon = Daemon::relay(&upstream.url(), &secrets).start();
        let mut mac = Hmac::<Sha256>::new_from_slice(&bytes).unwrap();
        mac.update(BODY.as_bytes());
        let tag = hex::encode(mac.finalize().into_bytes());
        let reply = post(
            &mut daemon.sender(),
            &format!("TinyTalk-Signature: {tag}\r\n"),
            BODY.as_bytes(),
        );
        assert_eq!(reply.status, 200, "{written:?} as {encoding}");
    }
}

#[test]
fn a_secret_that_cannot_be_one_is_refused_without_being_shown() {
    let upstream = Upstream::new(Act::status(200));
    for (written, encoding) in [
        ("", "utf8"),
        ("\n", "utf8"),
        ("canary-not-hex", "hex"),
        ("abc", "hex"),
        ("canary!not!base64", "base64"),
    ] {
        let setup = Daemon::relay(&upstream.url(), "");
        let file = setup.dir().join("secret");
        std::fs::write(&file, written).unwrap();
        let secrets = format!(
            "secrets = [{{ file = \"{}\", encoding = \"{encoding}\" }}]",
            file.display()
        );
        let (code, said) = Daemon::relay(&upstream.url(), &secrets).refuse();
        assert_eq!(code, 2, "{written:?} as {encoding}: {said}");
        assert!(said.contains("endpoints.crm.secrets[0]"), "{said}");
        assert!(!said.contains("canary"), "{said}");
    }
    let daemon = Daemon::relay(&upstream.url(), "")
        .env("SECRET", "short-canary")
        .start();
    let warned = daemon.lines().iter().any(|line| line["level"] == "WARN");
    assert!(warned, "under 16 bytes is a warning");
    assert!(!daemon.log().contains("canary"));
}

#[test]
fn a_secret_ends_while_the_daemon_runs() {
    let upstream = Upstream::new(Act::status(200));
    let end = SystemTime::now() + std::time::Duration::from_secs(4);
    let secrets = format!(
        "secrets = [{{ name = \"main\", env = \"SECRET\", not_after = \"{}\" }}, {{ name = \"next\", env = \"NEXT\" }}]",
        humantime::format_rfc3339_seconds(end)
    );
    let daemon = Daemon::relay(&upstream.url(), &secrets)
        .env("NEXT", "the-secret-of-next-half-year")
        .start();
    let send = || {
        let tag = sign(SECRET, BODY.as_bytes());
        let headers = format!("TinyTalk-Signature: {tag}\r\n");
        post(&mut daemon.sender(), &headers, BODY.as_bytes())
    };
    let early = send();
    assert!(
        early.status == 200 || SystemTime::now() >= end - std::time::Duration::from_secs(1),
        "{early:?}"
    );
    support::eventually("the secret is over", || send().status == 401);
    assert_eq!(send().reason(), "signature_mismatch");
    assert!(SystemTime::now() + std::time::Duration::from_secs(1) >= end);
    let next = sign("the-secret-of-next-half-year", BODY.as_bytes());
    let headers = format!("TinyTalk-Signature: {next}\r\n");
    assert_eq!(
        post(&mut daemon.sender(), &headers, BODY.as_bytes()).status,
        200
    );
}

/// The published example is years old: the preset's scheme, spelled out without a tolerance.
#[test]
fn standard_webhooks_published_example_passes() {
    let upstream = Upstream::new(Act::status(200));
    let all = vectors("webhook_vectors.json");
    let (all, example) = (
        &all["standard_webhooks"],
        &all["standard_webhooks"]["positive"],
    );
    let text = |name: &str| example[name].as_str().unwrap();
    let more = "secrets = [{ env = \"SECRET\", encoding = \"base64\" }]\n\
        [endpoints.crm.scheme]\nheader = \"webhook-signature\"\nformat = \"v1,{signature}\"\nencoding = \"base64\"\n\
        content = \"{id}.{timestamp}.{body}\"\ntimestamp_header = \"webhook-timestamp\"\n\
        key_header = \"webhook-id\"\n";
    let daemon = Daemon::relay(&upstream.url(), more)
        .env("SECRET", text("secret").strip_prefix("whsec_").unwrap())
        .start();
    let send = |signature: &str| {
        let headers = format!(
            "webhook-id: {}\r\nwebhook-timestamp: {}\r\nwebhook-signature: {signature}\r\n",
            text("msg_id"),
            example["timestamp"]
        );
        post(&mut daemon.sender(), &headers, text("payload").as_bytes())
    };
    for negative in all["negative"].as_array().unwrap() {
        let header = negative["header"].as_str().unwrap();
        assert_eq!(send(header).status, 401, "{negative}");
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(send(text("signature")).outcome(), "forwarded");
    let several: Vec<_> = all["multi_sig_positive"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap())
        .collect();
    assert_eq!(send(&several.join(" ")).outcome(), "duplicate");
    let empty = [several[0], several[1]].join(" ");
    assert_eq!(send(&empty).status, 401, "none of them is ours");
}

#[test]
fn a_timestamp_is_signed_and_fresh_or_refused() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "scheme = \"stripe\"").start();
    let tag = |time: &str| sign(SECRET, format!("{time}.{BODY}").as_bytes());
    let send = |header: &str| {
        let headers = format!("Stripe-Signature: {header}\r\n");
        post(&mut daemon.sender(), &headers, BODY.as_bytes())
    };
    let fresh = now().to_string();
    for (old, reason) in [
        ((now() - 310).to_string(), "signature_expired"),
        ((now() + 310).to_string(), "signature_expired"),
        ("0".to_owned(), "signature_expired"),
        ("-1".to_owned(), "signature_malformed"),
        ("1e9".to_owned(), "signature_malformed"),
        (String::new(), "signature_malformed"),
        ("99999999999999999999999".to_owned(), "signature_malformed"),
    ] {
        let reply = send(&format!("t={old},v1={}", tag(&old)));
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (401, reason),
            "t={old}"
        );
    }
    let good = tag(&fresh);
    // An old signature under a fresh timestamp: it is part of what is signed.
    let old = tag(&(now() - 310).to_string());
    assert_eq!(
        send(&format!("t={fresh},v1={old}")).reason(),
        "signature_mismatch"
    );
    for bad in [
        format!("v1={good}"),
        format!("t={fresh}"),
        format!("t={fresh},v0={good}"),
        format!("t={fresh},t={fresh},v1={good}"),
        format!("t={fresh},v1="),
    ] {
        assert_eq!(send(&bad).reason(), "signature_malformed", "{bad}");
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(
        send(&format!("v1={good},t={fresh}")).status,
        200,
        "in any order"
    );
}

#[test]
fn a_scheme_can_use_sha_1_and_sign_an_id() {
    let upstream = Upstream::new(Act::status(200));
    let scheme = "[endpoints.crm.scheme]\nheader = \"X-Acme-Signature\"\nalgorithm = \"hmac-sha1\"\n\
        encoding = \"hex\"\ncontent = \"{id}|{body}\"\nkey_header = \"X-Acme-Id\"\n";
    let daemon = Daemon::relay(&upstream.url(), scheme).start();
    let send = |signed_id: &str, id: &str| {
        let mut mac = Hmac::<sha1::Sha1>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(format!("{signed_id}|{BODY}").as_bytes());
        let tag = hex::encode(mac.finalize().into_bytes());
        let headers = format!("X-Acme-Signature: {tag}\r\nX-Acme-Id: {id}\r\n");
        post(&mut daemon.sender(), &headers, BODY.as_bytes())
    };
    assert_eq!(send("7", "7").outcome(), "forwarded");
    assert_eq!(send("7", "7").outcome(), "duplicate");
    assert_eq!(send("7", "8").reason(), "signature_mismatch");
    assert_eq!(upstream.count(), 1);
}
