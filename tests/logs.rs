//! What an operator reads in the log, and what nobody can keep out of it.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use support::{Act, BODY, Daemon, Upstream, event, eventually};

#[test]
fn a_strangers_flood_hides_no_failure_of_the_upstream() {
    let upstream = Upstream::new(Act::Close);
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut stranger = daemon.sender();
    let forged = String::from_utf8(event("k", BODY.as_bytes(), "")).unwrap();
    let forged = forged.replace("message", "massage");
    for round in 0..3 {
        for _ in 0..40 {
            assert_eq!(stranger.send(forged.as_bytes()).status, 401);
        }
        let genuine = event(&format!("k{round}"), BODY.as_bytes(), "");
        let reply = daemon.sender().send(&genuine);
        assert_eq!(reply.status, 502);
        let id = reply.header("hookward-event-id").unwrap();
        daemon.wait_for_log(id);
        let line = daemon.lines().into_iter().find(|l| l["event_id"] == id);
        assert_eq!(line.unwrap()["message"], "delivery failed");
    }
}

#[test]
fn what_is_refused_before_it_is_a_request_has_a_line_with_its_peer() {
    let upstream = Upstream::new(Act::status(200));
    let limits = "[limits]\nheader_timeout = \"300ms\"\nmax_connections = 1\n";
    let daemon = Daemon::with(
        limits,
        &Daemon::endpoint("crm", "/hook", &upstream.url(), ""),
    )
    .start();
    let too_large = format!(
        "POST /hook HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(40_000)
    );
    for (status, reason, request) in [
        (431, "headers_too_large", too_large.as_str()),
        (
            400,
            "malformed",
            "POST /hook HTTP/1.1\r\nHost: a\nb\r\n\r\n",
        ),
        (408, "timeout", "POST /ho"),
    ] {
        let mut sender = daemon.sender();
        sender.write(request.as_bytes());
        assert_eq!(sender.reply().status, status);
        daemon.wait_for_log(&format!("\"reason\":\"{reason}\""));
        drop(sender);
        eventually("the connection has ended", || {
            daemon.metric("hookward_connections", &[]) == 0.0
        });
    }
    let mut first = daemon.sender();
    assert_eq!(first.send(&event("k", BODY.as_bytes(), "")).status, 200);
    assert_eq!(daemon.sender().reply().status, 503);
    daemon.wait_for_log("\"reason\":\"overloaded\"");
    let lines = daemon.lines();
    let of = |reason: &str| {
        let mut lines = lines.iter().filter(|l| l["reason"] == reason);
        (lines.next().unwrap().clone(), lines.next().cloned())
    };
    for (reason, status, message, level) in [
        ("headers_too_large", 431, "refused", "INFO"),
        ("malformed", 400, "refused", "INFO"),
        ("timeout", 408, "refused", "INFO"),
        ("overloaded", 503, "shed", "WARN"),
    ] {
        let (line, second) = of(reason);
        assert_eq!(second, None);
        assert_eq!(line["status"], status);
        assert_eq!(line["message"], message);
        assert_eq!(line["level"], level);
        assert_eq!(line["peer"], "127.0.0.1");
    }
}
