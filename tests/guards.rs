//! What nobody smuggles past the gate towards the application.

mod support;

use support::{Act, BODY, Daemon, Upstream, event};

#[test]
fn a_twin_of_a_header_that_the_operator_sets_is_refused() {
    let upstream = Upstream::new(Act::status(200));
    let options = "[endpoints.crm.upstream_options]\nheaders = { X-Api-Key = \"ours\" }\n";
    let daemon = Daemon::relay(&upstream.url(), options).start();
    for twin in ["X_Api_Key", "x-api_key"] {
        let request = event("k", BODY.as_bytes(), &format!("{twin}: evil\r\n"));
        let reply = daemon.sender().send(&request);
        assert_eq!((reply.status, reply.reason().as_str()), (400, "malformed"));
    }
    assert_eq!(upstream.count(), 0);
    let other = event("k", BODY.as_bytes(), "X_Other: fine\r\n");
    assert_eq!(daemon.sender().send(&other).status, 200);
    assert_eq!(upstream.next_message().value("x-api-key"), "ours");
}

#[test]
fn no_remainder_climbs_out_of_the_upstreams_path() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::with("", &Daemon::endpoint("crm", "/hook/*", &upstream.url(), "")).start();
    let ask = |remainder: &str| {
        let request = String::from_utf8(event("", BODY.as_bytes(), "")).unwrap();
        let request = request.replacen("/hook", &format!("/hook/{remainder}"), 1);
        daemon.sender().send(request.as_bytes())
    };
    for climbing in [
        "..",
        "a/../b",
        "a/./b",
        "%2e%2E/x",
        ".%2e/x",
        "..;/admin",
        "..;a=b/admin",
        ".;/x",
        "%2e%2e;x/admin",
        "a/..%3b/admin",
        "a/..%3Bq/admin",
        "..%00/x",
        "a%00",
        "..%20/x",
        "%09../x",
        "a%0d%0ab",
        "..\\x",
        "%5c..%5cx",
        "a%2fb",
        "..%c0%afx",
        "%c0%ae%c0%ae/x",
        "%252e%252e/x",
        "%25252e%25252e/x",
        "%252fetc",
        "%2",
        "%zz",
    ] {
        let reply = ask(climbing);
        // The HTTP library answers some of them before there is a request.
        assert_eq!(reply.status, 400, "{climbing}");
    }
    assert_eq!(upstream.count(), 0);
    for (plain, seen) in [
        ("a;b=c/d", "/in/a;b=c/d"),
        ("...", "/in/..."),
        ("a..b/.c", "/in/a..b/.c"),
        ("100%25", "/in/100%25"),
        ("gr%C3%BC%C3%9Fe", "/in/gr%C3%BC%C3%9Fe"),
    ] {
        assert_eq!(ask(plain).status, 200, "{plain}");
        let line = format!("POST {seen} HTTP/1.1");
        let head = upstream.next_message().head;
        assert!(head.starts_with(&line), "{line} in {head}");
    }
}

#[test]
fn what_is_unverified_meets_no_fault_of_its_key() {
    let upstream = Upstream::new(Act::status(200));
    let more = "enforce = false\nenforce_from = \"2100-01-01T00:00:00Z\"\n\
                dedup = { missing_key = \"reject\" }\n";
    let daemon = Daemon::relay(&upstream.url(), more).start();
    let twice = "Idempotency-Key: a\r\nIdempotency-Key: b\r\n";
    let empty = "Idempotency-Key:\r\n";
    for keys in ["", twice, empty] {
        let genuine = String::from_utf8(event("", BODY.as_bytes(), keys)).unwrap();
        let forged = genuine.replace("message", "massage");
        let unsigned = genuine.replace("TinyTalk-Signature", "X-Other");
        for request in [forged, unsigned] {
            let reply = daemon.sender().send(request.as_bytes());
            assert_eq!((reply.status, reply.outcome()), (200, "unverified"));
        }
        let reply = daemon.sender().send(genuine.as_bytes());
        assert_eq!(reply.reason(), "idempotency_key", "a verified one does");
    }
    assert_eq!(upstream.count(), 6);
}
