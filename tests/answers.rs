//! Every row of the answers table, as a sender sees it.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

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
