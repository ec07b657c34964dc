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
