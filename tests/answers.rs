//! Every row of the answers table, as a sender sees it.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use support::{Act, BODY, Daemon, Sender, Upstream, event, eventually, sign};

fn refused(daemon: &Daemon, request: &[u8]) -> support::Reply {
    let mut sender = daemon.sender();
    sender.try_write(request);
    sender.reply()
}

/// A signed event with one header line replaced or added.
fn with(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(event("k", BODY.as_bytes(), "")).unwrap();
    assert!(text.contains(from), "{from:?}");
    text.replacen(from, to, 1).into_bytes()
}

#[test]
fn an_upstreams_answer_is_relayed_and_named() {
    let upstream = Upstream::new(Act::answer(418, "X-App: 1\r\n", b"short and stout"));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!((reply.status, reply.outcome()), (418, "forwarded"));
    assert_eq!(
        (reply.text().as_str(), reply.header("x-app")),
        ("short and stout", Some("1"))
    );
    let id = reply.header("hookward-event-id").unwrap();
    assert_eq!((id.len(), id.as_bytes()[14]), (36, b'7'), "a UUIDv7: {id}");
    assert_eq!(upstream.next_message().value("hookward-event-id"), id);
}

#[test]
fn our_own_2xx_says_what_became_of_the_event() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "events = [\"contact.created\"]").start();
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!((reply.status, reply.outcome()), (200, "filtered"));
    let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(body["outcome"], "filtered");
    assert_eq!(body["event_id"].as_str(), reply.header("hookward-event-id"));
    let unreadable = daemon.sender().send(&event("k2", b"not json", ""));
    assert_eq!(
        unreadable.outcome(),
        "forwarded",
        "a filter never loses what it does not understand"
    );
    assert_eq!(upstream.count(), 1);
}

#[test]
fn refusals_say_status_reason_and_what_helps() {
    let upstream = Upstream::new(Act::status(200));
    let off = Daemon::endpoint("off", "/off", &upstream.url(), "active = false");
    let strict = Daemon::endpoint(
        "strict",
        "/strict",
        &upstream.url(),
        "dedup = { missing_key = \"reject\" }\nreject_status = 403",
    );
    let small = Daemon::endpoint("small", "/small", &upstream.url(), "max_body = 10");
    let crm = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let daemon = Daemon::with("", &[crm, off, strict, small].concat()).start();

    let signature = sign(support::SECRET, BODY.as_bytes());
    let long = "k".repeat(256);
    let cases: Vec<(Vec<u8>, u16, &str)> = vec![
        (with("POST /hook", "POST /nowhere"), 404, "unknown_path"),
        (with("POST", "GET"), 405, "method"),
        (with("POST", "PUT"), 405, "method"),
        (with("POST /hook", "POST /off"), 503, "inactive"),
        (with("POST /hook", "POST /small"), 413, "body_too_large"),
        (
            with("TinyTalk-Signature", "X-Signature"),
            401,
            "signature_missing",
        ),
        (with(&signature, ""), 401, "signature_malformed"),
        (with(&signature, "abc"), 401, "signature_malformed"),
        (
            with(
                &signature,
                &format!("{signature}\r\nTinyTalk-Signature: {signature}"),
            ),
            401,
            "signature_malformed",
        ),
        (with(&signature, &"0".repeat(64)), 401, "signature_mismatch"),
        (
            with("message.created", "message.deleted"),
            401,
            "signature_mismatch",
        ),
        (
            with("Idempotency-Key: k", "Idempotency-Key: "),
            400,
            "idempotency_key",
        ),
        (
            with("Idempotency-Key: k", &format!("Idempotency-Key: {long}")),
            400,
            "idempotency_key",
        ),
        (
            with(
                "Idempotency-Key: k",
                "Idempotency-Key: k\r\nIdempotency-Key: k",
            ),
            400,
            "idempotency_key",
        ),
        (
            with("POST /hook", "POST /strict").tap("Idempotency-Key: k\r\n", ""),
            400,
            "idempotency_key",
        ),
        (
            with("POST /hook", "POST /strict").tap(&signature, &"0".repeat(64)),
            403,
            "signature_mismatch",
        ),
    ];
    for (request, status, reason) in cases {
        let reply = refused(&daemon, &request);
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (status, reason),
            "{reply:?}"
        );
        let outcome = if status == 404 { "" } else { "rejected" };
        assert_eq!(reply.outcome(), outcome, "{reply:?}");
        assert!(!reply.text().contains(support::SECRET) && !reply.text().contains(&signature));
        let retry = match reason {
            "inactive" => Some("300"),
            _ => None,
        };
        assert_eq!(reply.header("retry-after"), retry);
        assert_eq!(reply.header("allow"), (status == 405).then_some("POST"));
    }
    assert_eq!(upstream.count(), 0, "nothing refused reached the upstream");
    assert_eq!(
        daemon.metric("hookward_rejections_total", &[("reason", "unknown_path")]),
        1.0
    );
    assert_eq!(
        daemon.metric(
            "hookward_rejections_total",
            &[("endpoint", "crm"), ("reason", "method")]
        ),
        2.0
    );
}

trait Tap {
    fn tap(self, from: &str, to: &str) -> Self;
}

impl Tap for Vec<u8> {
    fn tap(self, from: &str, to: &str) -> Self {
        String::from_utf8(self)
            .unwrap()
            .replacen(from, to, 1)
            .into_bytes()
    }
}

#[test]
fn the_first_reason_that_applies_answers() {
    let upstream = Upstream::new(Act::status(200));
    let off = Daemon::endpoint(
        "off",
        "/off",
        &upstream.url(),
        "active = false\nmax_body = 10",
    );
    let small = Daemon::endpoint("small", "/small", &upstream.url(), "max_body = 10");
    let daemon = Daemon::with("", &(off + &small)).start();
    let bare = |line: &str| {
        format!("{line} HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n").into_bytes()
    };
    for (line, reason) in [
        ("GET /nowhere", "unknown_path"),
        ("GET /off", "method"),
        ("POST /off", "inactive"),
        ("POST /small", "body_too_large"),
    ] {
        assert_eq!(refused(&daemon, &bare(line)).reason(), reason, "{line}");
    }
    let missing =
        "POST /small HTTP/1.1\r\nHost: a\r\nIdempotency-Key: \r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(
        refused(&daemon, missing.as_bytes()).reason(),
        "signature_missing"
    );
}

#[test]
fn a_refusal_by_headers_is_sent_without_reading_the_body() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut sender = daemon.sender();
    sender.write(
        b"POST /hook HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 500000\r\n\r\n",
    );
    assert_eq!(sender.reply().reason(), "signature_missing");

    // One that goes on sending can read what was said.
    let mut stubborn = daemon.sender();
    stubborn.write(b"POST /hook HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n");
    for _ in 0..60 {
        if !stubborn.try_write(&[b'x'; 65_536]) {
            break;
        }
    }
    let reply = stubborn.reply();
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (413, "body_too_large")
    );
}

#[test]
fn a_genuine_sender_that_waits_is_told_to_continue() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let request = event("k", BODY.as_bytes(), "Expect: 100-continue\r\n");
    let (head, body) = request.split_at(request.len() - BODY.len());
    let mut sender = daemon.sender();
    assert_eq!(sender.send(head).status, 100);
    assert_eq!(sender.send(body).status, 200);
    assert!(upstream.next_message().values("expect").is_empty());
}

#[test]
fn a_body_too_large_is_refused_as_it_arrives() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "max_body = 2048").start();
    let body = vec![b'x'; 3000];
    let mut request = format!(
        "POST /hook HTTP/1.1\r\nHost: a\r\nTinyTalk-Signature: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        sign(support::SECRET, &body)
    )
    .into_bytes();
    for chunk in body.chunks(1000) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    let reply = refused(&daemon, &request);
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (413, "body_too_large")
    );
    assert_eq!(upstream.count(), 0);
}

#[test]
fn targets_and_headers_over_the_limit_are_refused() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let target = with("POST /hook", &format!("POST /hook?{}", "x".repeat(8200)));
    assert_eq!(refused(&daemon, &target).reason(), "target_too_long");
    let long = with(
        "Host: hooks.example",
        &format!("Host: a\r\nX-Long: {}", "x".repeat(40_000)),
    );
    assert_eq!(refused(&daemon, &long).status, 431);
    let many: String = (0..120).map(|n| format!("X-{n}: 1\r\n")).collect();
    let many = with("Host: hooks.example\r\n", &format!("Host: a\r\n{many}"));
    assert_eq!(refused(&daemon, &many).status, 431);
    eventually("431 is counted", || {
        daemon.metric(
            "hookward_rejections_total",
            &[("reason", "headers_too_large")],
        ) == 2.0
    });
    assert_eq!(upstream.count(), 0);
}

#[test]
fn what_two_parsers_could_read_differently_is_refused_and_the_connection_closed() {
    let upstream = Upstream::new(Act::status(200));
    let prefix = Daemon::endpoint("any", "/any/*", &upstream.url(), "");
    let daemon = Daemon::with(
        "",
        &(Daemon::endpoint("crm", "/hook", &upstream.url(), "") + &prefix),
    )
    .start();
    let length = format!("Content-Length: {}", BODY.len());
    let chunked = |size: &str| {
        with(&length, "Transfer-Encoding: chunked")
            .tap(BODY, &format!("{size}\r\n{BODY}\r\n0\r\n\r\n"))
    };
    let size = format!("{:x}", BODY.len());
    let cases = [
        with(&length, &format!("{length}\r\nTransfer-Encoding: chunked")),
        with(&length, &format!("Transfer-Encoding: chunked\r\n{length}")),
        with(&length, &format!("{length}\r\n{length}")),
        with(&length, &format!("{length}, {}", BODY.len())),
        with(&length, &format!("Content-Length: +{}", BODY.len())),
        with(&length, "Transfer-Encoding: gzip, chunked"),
        with(
            &length,
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ),
        with("Host: hooks.example\r\n", ""),
        with(
            "Host: hooks.example",
            "Host: hooks.example\r\nHost: hooks.example",
        ),
        with("Host: hooks.example", "Host: a b"),
        with("Host: hooks.example", "Host: a/b"),
        with("Host: hooks.example", "Host: "),
        with("POST /hook", "POST http://elsewhere.example/hook"),
        with("POST /hook", "CONNECT /hook"),
        with("POST /hook", "POST *"),
        with("POST /hook", "POST /h\u{f6}ok"),
        with("POST /hook", "POST /hook#x"),
        with("POST /hook", "POST /any/../hook"),
        with("POST /hook", "POST /any/%2e%2e/hook"),
        with("POST /hook", "POST /any/a%2Fb"),
        with("Host: hooks.example\r\n", "Host: a\n"),
        with("Host: hooks.example\r\n", "Host: a\r\n folded\r\n"),
        with("Host: hooks.example\r\n", "Host: a\r\nX-Nul: \0\r\n"),
        with("Host: hooks.example\r\n", "Host: a\r\nX Y: 1\r\n"),
        with("Host: hooks.example\r\n", "Host: a\r\nX-Y : 1\r\n"),
        with(
            "Host: hooks.example\r\n",
            "Host: a\r\nTinyTalk_Signature: 1\r\n",
        ),
        with(
            "Host: hooks.example\r\n",
            "Host: a\r\nIdempotency_Key: 1\r\n",
        ),
        with(
            "Host: hooks.example\r\n",
            "Host: a\r\nHookward_Verified: true\r\n",
        ),
        with(
            "Host: hooks.example\r\n",
            "Host: a\r\nX_Forwarded_For: 1\r\n",
        ),
        with(
            "Host: hooks.example\r\n",
            "Host: a\r\nContent_Length: 1\r\n",
        ),
        chunked(&format!("{size};")),
        chunked(&format!("{size} ")),
        chunked(&format!("0x{size}")),
        chunked(&format!("{size};bad[=x")),
        b"GARBAGE\r\n\r\n".to_vec(),
    ];
    for request in &cases {
        let mut sender = daemon.sender();
        sender.try_write(request);
        let reply = sender.reply();
        let text = String::from_utf8_lossy(request);
        assert_eq!(reply.status, 400, "{text:?}: {reply:?}");
        if reply.header("content-type").is_some() {
            assert!(
                reply.text().contains("urn:hookward:malformed"),
                "{text:?}: {reply:?}"
            );
        }
        assert!(sender.is_closed(), "{text:?}");
    }
    // The same with nothing odd in it passes: the test can fail.
    assert_eq!(refused(&daemon, &chunked(&size)).status, 200);
    assert_eq!(upstream.count(), 1);
    let counted = || {
        daemon.metric(
            "hookward_rejections_total",
            &[("endpoint", ""), ("reason", "malformed")],
        )
    };
    eventually("every one is counted", || {
        let any = daemon.metric(
            "hookward_rejections_total",
            &[("endpoint", "any"), ("reason", "malformed")],
        );
        let crm = daemon.metric(
            "hookward_rejections_total",
            &[("endpoint", "crm"), ("reason", "malformed")],
        );
        counted() + any + crm == cases.len() as f64
    });
}

#[test]
fn whoever_is_too_slow_hears_408_and_is_closed() {
    let upstream = Upstream::new(Act::status(200));
    let limits = "[limits]\nheader_timeout = \"150ms\"\nbody_timeout = \"300ms\"\nidle_timeout = \"200ms\"\n";
    let daemon = Daemon::with(
        "",
        &(limits.to_owned() + &Daemon::endpoint("crm", "/hook", &upstream.url(), "")),
    )
    .start();
    let whole = event("k", BODY.as_bytes(), "");
    for (what, part) in [
        ("silence", 0),
        ("one byte", 1),
        ("half a head", 40),
        ("half a body", whole.len() - 5),
    ] {
        let mut sender = daemon.sender();
        sender.write(&whole[..part]);
        let reply = sender.reply();
        assert_eq!(reply.status, 408, "{what}: {reply:?}");
        assert!(reply.text().contains("urn:hookward:timeout"), "{what}");
        assert!(sender.is_closed(), "{what}");
    }
    // A kept connection that stays idle is closed without a word.
    let mut sender = daemon.sender();
    assert_eq!(sender.send(&whole).status, 200);
    assert!(sender.is_closed());
    assert_eq!(upstream.count(), 1);
    let timeouts = |endpoint| {
        daemon.metric(
            "hookward_rejections_total",
            &[("endpoint", endpoint), ("reason", "timeout")],
        )
    };
    assert_eq!((timeouts(""), timeouts("crm")), (3.0, 1.0));
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let ahead = [
        event("1", BODY.as_bytes(), ""),
        event("1", BODY.as_bytes(), ""),
        event("2", BODY.as_bytes(), ""),
    ];
    let mut sender = daemon.sender();
    sender.write(&ahead.concat());
    let outcomes: Vec<_> = (0..3)
        .map(|_| sender.reply().outcome().to_owned())
        .collect();
    assert_eq!(outcomes, ["forwarded", "duplicate", "forwarded"]);
}

#[test]
fn what_there_is_no_room_for_is_shed_with_503() {
    let upstream = Upstream::new(Act::Wait(b"HTTP/1.1 204 X\r\n\r\n".to_vec()));
    let busy = Daemon::endpoint(
        "crm",
        "/hook",
        &upstream.url(),
        "[endpoints.crm.upstream_options]\nmax_concurrency = 1",
    );
    let daemon = Daemon::with("", &busy).start();
    let mut first = daemon.sender();
    first.write(&event("1", BODY.as_bytes(), ""));
    upstream.next_message();
    let shed = daemon.sender().send(&event("2", BODY.as_bytes(), ""));
    assert_eq!((shed.status, shed.reason().as_str()), (503, "overloaded"));
    assert_eq!(
        (shed.header("retry-after"), shed.outcome()),
        (Some("5"), "rejected")
    );
    upstream.release();
    assert_eq!(first.reply().status, 204);

    let rated = Daemon::endpoint(
        "crm",
        "/hook",
        &upstream.url(),
        "[endpoints.crm.upstream_options]\nrate = \"1/h\"",
    );
    let daemon = Daemon::with("", &rated).start();
    upstream.by_default(Act::status(200));
    assert_eq!(
        daemon
            .sender()
            .send(&event("1", BODY.as_bytes(), ""))
            .status,
        200
    );
    assert_eq!(
        daemon
            .sender()
            .send(&event("2", BODY.as_bytes(), ""))
            .reason(),
        "overloaded"
    );

    let capped = Daemon::with(
        "",
        &("[limits]\nmax_connections = 1\n".to_owned()
            + &Daemon::endpoint("crm", "/hook", &upstream.url(), "")),
    )
    .start();
    let mut held = capped.sender();
    assert_eq!(held.send(&event("1", BODY.as_bytes(), "")).status, 200);
    let mut turned_away = Sender::connect(capped.public);
    let reply = turned_away.reply();
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (503, Some("5"))
    );
}

#[test]
fn the_unfinished_body_whose_last_byte_is_oldest_gives_way() {
    let upstream = Upstream::new(Act::status(200));
    let limits = "[limits]\nmax_body = \"40KiB\"\nmax_buffered = \"64KiB\"\n";
    let daemon = Daemon::with(
        "",
        &(limits.to_owned() + &Daemon::endpoint("crm", "/hook", &upstream.url(), "")),
    )
    .start();
    let body = vec![b'x'; 40 * 1024];
    let request = event("a", &body, "");
    let mut old = daemon.sender();
    old.write(&request[..request.len() - 1]);
    eventually("its bytes are held", || {
        daemon.metric("hookward_buffered_bytes", &[]) >= 40_960.0
    });
    let newcomer = daemon.sender().send(&event("b", &body, ""));
    assert_eq!(newcomer.status, 200);
    let reply = old.reply();
    assert_eq!((reply.status, reply.reason().as_str()), (503, "overloaded"));
    eventually("memory is given back", || {
        daemon.metric("hookward_buffered_bytes", &[]) == 0.0
    });
}

#[test]
fn an_endpoint_that_does_not_enforce_yet_marks_what_is_unverified() {
    let upstream = Upstream::new(Act::status(202));
    let more = "enforce = false\nenforce_from = \"2100-01-01T00:00:00Z\"";
    let daemon = Daemon::relay(&upstream.url(), more).start();
    for request in [
        with("TinyTalk-Signature", "X-None"),
        with("message.created", "message.deleted"),
    ] {
        let reply = daemon.sender().send(&request);
        assert_eq!((reply.status, reply.outcome()), (202, "unverified"));
        assert_eq!(upstream.next_message().value("hookward-verified"), "false");
    }
    // They touched no key: the genuine one passes.
    let genuine = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(genuine.outcome(), "forwarded");
    assert_eq!(upstream.next_message().value("hookward-verified"), "true");
    let past = more.replace("2100", "2020");
    let daemon = Daemon::relay(&upstream.url(), &past).start();
    assert_eq!(
        daemon
            .sender()
            .send(&with("TinyTalk-Signature", "X-None"))
            .status,
        401
    );
}

#[test]
fn every_answer_to_a_routed_request_has_an_id_of_its_own() {
    let upstream = Upstream::new(Act::status(200));
    let off = Daemon::endpoint("off", "/off", &upstream.url(), "active = false");
    let picky = Daemon::endpoint(
        "picky",
        "/picky",
        &upstream.url(),
        "events = [\"contact.created\"]",
    );
    let crm = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let daemon = Daemon::with("", &[crm, off, picky].concat()).start();
    let genuine = event("k", BODY.as_bytes(), "");
    let requests = [
        genuine.clone(),
        genuine,
        with("POST /hook", "POST /picky"),
        with("POST /hook", "POST /off"),
        with("POST", "PATCH"),
        with("TinyTalk-Signature", "X-None"),
        with("message.created", "message.deleted"),
        with("Idempotency-Key: k", "Idempotency-Key: "),
        with("Host: hooks.example", "Host: a\r\nTinyTalk-Signature: x"),
    ];
    let mut ids = std::collections::HashSet::new();
    for request in &requests {
        let reply = refused(&daemon, request);
        let id = reply.header("hookward-event-id").unwrap_or_default();
        let is_v7 = id.len() == 36
            && id.as_bytes()[14] == b'7'
            && b"89ab".contains(&id.as_bytes()[19])
            && id.bytes().all(|b| b"0123456789abcdef-".contains(&b));
        assert!(is_v7, "not a UUIDv7: {reply:?}");
        assert!(ids.insert(id.to_owned()), "twice: {id}");
        let kind = reply.header("content-type");
        match reply.outcome() {
            "forwarded" => {}
            "duplicate" | "filtered" => assert_eq!(kind, Some("application/json")),
            _ => assert_eq!(kind, Some("application/problem+json"), "{reply:?}"),
        }
    }
}

#[test]
fn of_two_reasons_the_earlier_one_answers() {
    let upstream = Upstream::new(Act::status(200));
    let crm = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let off = Daemon::endpoint("off", "/off", &upstream.url(), "active = false");
    let small = Daemon::endpoint("small", "/small", &upstream.url(), "max_body = 10");
    let daemon = Daemon::with("", &[crm, off, small].concat()).start();
    let signature = sign(support::SECRET, BODY.as_bytes());
    let forged = "0".repeat(64);
    let many: String = (0..101).map(|n| format!("X-{n}: 1\r\n")).collect();
    let long = format!("/nowhere?{}", "x".repeat(8200));
    let chunked = with(
        &format!("Content-Length: {}", BODY.len()),
        "Transfer-Encoding: chunked",
    )
    .tap(BODY, &format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len()));
    let cases: Vec<(Vec<u8>, u16, &str)> = vec![
        (
            with("POST /hook", "POST /nowhere").tap("Host: hooks.example", "Host: a b"),
            400,
            "malformed",
        ),
        (
            with("POST /hook", &format!("POST {long}"))
                .tap("Host:", "Hookward_Verified: 1\r\nHost:"),
            400,
            "malformed",
        ),
        (
            with("POST /hook", &format!("POST {long}")),
            414,
            "target_too_long",
        ),
        (
            with(
                "POST /hook",
                &format!("GET {}", long.replace("nowhere", "hook")),
            ),
            414,
            "target_too_long",
        ),
        (with("POST /hook", "GET /off"), 405, "method"),
        (
            with("POST /hook", "POST /off").tap(&signature, "?"),
            503,
            "inactive",
        ),
        (
            with("POST /hook", "POST /small").tap(&signature, "?"),
            413,
            "body_too_large",
        ),
        (
            with(&signature, "?").tap("Idempotency-Key: k", "Idempotency-Key: "),
            401,
            "signature_malformed",
        ),
        (
            with(&signature, &forged).tap("Idempotency-Key: k", "Idempotency-Key: "),
            400,
            "idempotency_key",
        ),
        (
            chunked
                .tap("POST /hook", "POST /small")
                .tap("Idempotency-Key: k", "Idempotency-Key: "),
            400,
            "idempotency_key",
        ),
    ];
    for (request, status, reason) in cases {
        let reply = refused(&daemon, &request);
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (status, reason),
            "{}",
            String::from_utf8_lossy(&request)
        );
    }
    // The library says this one, so only the status is promised.
    let nowhere = with("POST /hook", "POST /nowhere").tap("Host:", &format!("{many}Host:"));
    assert_eq!(refused(&daemon, &nowhere).status, 431);
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_limit_is_met_at_its_last_byte_and_not_before() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "max_body = 2048").start();
    let chunked = |body: &[u8]| {
        let head = format!(
            "POST /hook HTTP/1.1\r\nHost: a\r\nTinyTalk-Signature: {}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
            sign(support::SECRET, body),
            body.len()
        );
        [head.as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
    };
    let (fits, over) = (vec![b'x'; 2048], vec![b'x'; 2049]);
    assert_eq!(refused(&daemon, &event("a", &fits, "")).status, 200);
    assert_eq!(refused(&daemon, &event("b", &over, "")).status, 413);
    assert_eq!(refused(&daemon, &chunked(&fits)).status, 200);
    assert_eq!(refused(&daemon, &chunked(&over)).status, 413);

    let target = |bytes: usize| {
        let query = "x".repeat(bytes - "/hook?".len());
        with("POST /hook", &format!("POST /hook?{query}"))
    };
    assert_eq!(refused(&daemon, &target(8192)).status, 200);
    assert_eq!(refused(&daemon, &target(8193)).status, 414);

    let own = 5; // Host, Content-Type, the signature, Content-Length, the key.
    let fields = |count: usize| {
        let more: String = (own..count).map(|n| format!("X-{n}: 1\r\n")).collect();
        event("k", b"{}", &more)
    };
    assert_eq!(refused(&daemon, &fields(100)).status, 200);
    assert_eq!(refused(&daemon, &fields(101)).status, 431);
}

#[test]
fn a_newcomer_is_turned_away_when_no_body_held_is_unfinished() {
    let answer = b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec();
    let upstream = Upstream::new(Act::Wait(answer));
    let limits = "[limits]\nmax_body = \"40KiB\"\nmax_buffered = \"64KiB\"\n";
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let daemon = Daemon::with("", &(limits.to_owned() + &endpoint)).start();
    let body = vec![b'x'; 40 * 1024];
    let mut first = daemon.sender();
    first.write(&event("a", &body, ""));
    upstream.next_message();
    let newcomer = refused(&daemon, &event("b", &body, ""));
    assert_eq!(
        (newcomer.status, newcomer.reason().as_str()),
        (503, "overloaded")
    );
    assert_eq!(newcomer.header("retry-after"), Some("5"));
    // Want of room is said before anything is said about the signature.
    let mut forged = event("c", &body, "");
    forged.pop();
    forged.push(b'y');
    assert_eq!(refused(&daemon, &forged).reason(), "overloaded");
    upstream.release();
    assert_eq!(first.reply().status, 200);
    upstream.by_default(Act::status(200));
    eventually("there is room again", || {
        refused(&daemon, &event("d", &body, "")).status == 200
    });
    assert_eq!(upstream.count(), 2);
}

#[test]
fn bytes_that_trickle_in_buy_no_time() {
    let upstream = Upstream::new(Act::status(200));
    let limits = "[limits]\nheader_timeout = \"300ms\"\nbody_timeout = \"300ms\"\n";
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let daemon = Daemon::with("", &(limits.to_owned() + &endpoint)).start();
    let head = "POST /hook HTTP/1.1\r\nHost: a\r\nX-Long: ".to_owned();
    let empty = "\r\n".to_owned();
    let body = format!(
        "POST /hook HTTP/1.1\r\nHost: a\r\nTinyTalk-Signature: {}\r\nContent-Length: 500000\r\n\r\n",
        "0".repeat(64)
    );
    for (what, beginning, more) in [
        ("head", head, "x"),
        ("body", body, "x"),
        ("empty lines", empty, "\r\n"),
    ] {
        let mut sender = daemon.sender();
        sender.write(beginning.as_bytes());
        let mut writer = sender.writer();
        let is_over = AtomicBool::new(false);
        let (reply, is_cut_off) = thread::scope(|scope| {
            let trickle = scope.spawn(|| {
                // Thirty times as many bytes as there is time for.
                (0..1000).any(|_| {
                    thread::park_timeout(Duration::from_millis(10));
                    is_over.load(Ordering::SeqCst) || writer.write_all(more.as_bytes()).is_err()
                })
            });
            let reply = sender.reply();
            is_over.store(true, Ordering::SeqCst);
            (reply, trickle.join().unwrap())
        });
        assert!(is_cut_off, "{what}: each byte bought time");
        assert_eq!(reply.status, 408, "{what}: {reply:?}");
        assert!(reply.text().contains("urn:hookward:timeout"), "{what}");
        if what == "body" {
            assert_eq!(
                (reply.reason().as_str(), reply.outcome()),
                ("timeout", "rejected")
            );
        }
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_sender_that_does_not_read_its_answer_is_let_go() {
    let large = vec![b'x'; 24 << 20];
    let upstream = Upstream::new(Act::answer(200, "", &large));
    let limits = "[limits]\nbody_timeout = \"300ms\"\n";
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let daemon = Daemon::with("", &(limits.to_owned() + &endpoint)).start();
    let mut sender = daemon.sender();
    sender.write(&event("k", BODY.as_bytes(), ""));
    upstream.next_message();
    eventually("its connection is closed", || {
        daemon.metric("hookward_connections", &[]) == 0.0
    });
    let came = sender.rest();
    assert!(came.starts_with(b"HTTP/1.1 200") && came.len() < large.len());
}

#[test]
fn one_that_never_stops_sending_is_cut_off() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut sender = daemon.sender();
    sender.write(b"POST /hook HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n");
    let mut pieces = 0;
    while sender.try_write(&[b'x'; 65_536]) {
        pieces += 1;
        assert!(
            pieces < 4096,
            "256 MiB were taken of a request that was refused"
        );
    }
    assert_eq!(upstream.count(), 0);
    eventually("its connection is closed", || {
        daemon.metric("hookward_connections", &[]) == 0.0
    });
}

#[test]
fn a_path_has_one_spelling() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    for path in [
        "/hook/",
        "//hook",
        "/HOOK",
        "/%68ook",
        "/hook;a=b",
        "/./hook",
        "/",
        "/hook%00",
        "/hoo",
        "/hookx",
    ] {
        let reply = refused(&daemon, &with("POST /hook", &format!("POST {path}")));
        assert!(matches!(reply.status, 400 | 404), "{path}: {reply:?}");
    }
    assert_eq!(upstream.count(), 0);
    let query = refused(&daemon, &with("POST /hook", "POST /hook?a=b"));
    assert_eq!(query.status, 200);
    let absolute = with("POST /hook", "POST http://hooks.example/hook").tap("key: k", "key: k2");
    assert_eq!(refused(&daemon, &absolute).status, 200, "the Host's own");
}

#[test]
fn only_post_gets_in() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    for method in [
        "GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post", "POSTER",
    ] {
        let reply = refused(&daemon, &with("POST", method));
        assert_eq!(
            (reply.status, reply.header("allow"), reply.reason().as_str()),
            (405, Some("POST"), "method"),
            "{method}"
        );
    }
    let mut sender = daemon.sender();
    sender.write(b"HEAD /hook HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let answer = String::from_utf8(sender.rest()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\n"),
        "an answer to HEAD has no body"
    );
    assert_eq!(upstream.count(), 0);
}

#[test]
fn http_1_0_is_answered_and_closed_but_not_in_chunks() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let old = with("HTTP/1.1", "HTTP/1.0").tap("Host: hooks.example\r\n", "");
    let mut sender = daemon.sender();
    assert_eq!(sender.send(&old).status, 200);
    assert!(sender.is_closed());
    let message = upstream.next_message();
    assert_eq!(message.value("host"), upstream.address.to_string());
    // RFC 9112 §6.1: there its framing is faulty.
    let chunked = with("HTTP/1.1", "HTTP/1.0")
        .tap(
            &format!("Content-Length: {}", BODY.len()),
            "Transfer-Encoding: chunked",
        )
        .tap(BODY, &format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len()));
    let mut sender = daemon.sender();
    sender.try_write(&chunked);
    assert_eq!(sender.reply().status, 400);
    assert!(sender.is_closed());
    assert_eq!(upstream.count(), 1);
}

#[test]
fn odd_requests_reach_nobody() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let length = format!("Content-Length: {}", BODY.len());
    let coding = |value: &str| {
        with(&length, &format!("Transfer-Encoding: {value}"))
            .tap(BODY, &format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len()))
    };
    let chunks = |text: &str| with(&length, "Transfer-Encoding: chunked").tap(BODY, text);
    let hidden = String::from_utf8(event("hidden", BODY.as_bytes(), "")).unwrap();
    let host = "Host: hooks.example\r\n";
    let cases = [
        // A second request, hidden in what one parser takes for the body of the first.
        chunks(&format!("0\r\n\r\n{hidden}")).tap(
            "Transfer-Encoding",
            "Content-Length: 4\r\nTransfer-Encoding",
        ),
        with(&length, &format!("Content-Length: 0\r\n{length}")).tap(BODY, &hidden),
        coding("xchunked"),
        coding("identity"),
        coding("chunked, identity"),
        coding("chunked, chunked"),
        coding("\x0bchunked"),
        coding("chunked;q=1"),
        coding(""),
        with(&length, "Content-Length: -1"),
        with(&length, "Content-Length: 0x10"),
        with(&length, "Content-Length: "),
        with(&length, "Content-Length: 1 1"),
        with(&length, "Content-Length: 99999999999999999999"),
        with(&length, "Content-Length : 3"),
        chunks(&format!("fffffffffffffffff\r\n{BODY}\r\n0\r\n\r\n")),
        chunks(&format!("-{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len())),
        chunks(&format!("{:x}\n{BODY}\n0\n\n", BODY.len())),
        chunks(&format!("{:x}\r\n{BODY}0\r\n\r\n", BODY.len())),
        chunks(&format!("\r\n{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len())),
        with(host, "Host: a\rX: 1\r\n"),
        with(host, "Host: a\r\n: empty\r\n"),
        with(host, "Host: a\r\nX\u{e9}: 1\r\n"),
        with(host, "Host: a\r\nno colon\r\n"),
        with(host, "Host: a\r\nHookward-Event_Id: 1\r\n"),
        with(host, "Host: a\r\ntinytalk_signature: 1\r\n"),
        with(host, "Host: a\r\nX-Forwarded_Proto: https\r\n"),
        with(host, "Host: a\r\nTransfer_Encoding: chunked\r\n"),
        with(host, " Host: a\r\n"),
        with(host, "Host: a@b\r\n"),
        with(host, "Host: a:port\r\n"),
        with("POST /hook HTTP/1.1", "POST /hook"),
        with("POST /hook HTTP/1.1", "POST  /hook HTTP/1.1"),
        with("POST /hook HTTP/1.1", "POST /hook HTTP/1.1 "),
        with("POST /hook HTTP/1.1", "POST /hook HTTP/9.9"),
        with("POST /hook HTTP/1.1", "POST hook HTTP/1.1"),
        with(
            "POST /hook HTTP/1.1",
            "POST https://hooks.example:1/hook HTTP/1.1",
        ),
        with("POST /hook", "POST /hook\u{0}"),
        with("POST /hook", "CONNECT hooks.example:80"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello \r\n\r\n".to_vec(),
    ];
    let mut wrong = Vec::new();
    for request in &cases {
        let mut sender = daemon.sender();
        sender.try_write(request);
        let answer = String::from_utf8_lossy(&sender.rest()).into_owned();
        let is_one = answer.matches("HTTP/1.1 ").count() == 1;
        if !answer.starts_with("HTTP/1.1 400 ") || !is_one || upstream.count() > 0 {
            wrong.push((String::from_utf8_lossy(request).into_owned(), answer));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Another protocol's greeting: what is said to it is open, that it ends here is not.
    let mut sender = daemon.sender();
    sender.try_write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let answer = sender.rest();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "));
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_good_request_before_a_bad_one_is_answered_first() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let bad = with("Host: hooks.example", "Host: a\r\nHost: b");
    let mut sender = daemon.sender();
    sender.write(
        &[
            event("1", BODY.as_bytes(), ""),
            bad,
            event("2", BODY.as_bytes(), ""),
        ]
        .concat(),
    );
    assert_eq!(sender.reply().outcome(), "forwarded");
    assert_eq!(sender.reply().status, 400);
    assert!(sender.is_closed(), "nothing after a bad one is looked at");
    assert_eq!(upstream.count(), 1);
}
