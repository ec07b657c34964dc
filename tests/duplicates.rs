//! One event, one delivery: also at the same time, also when the first one fails.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::thread;

use support::{Act, BODY, Daemon, Upstream, event, eventually};

const LATER: &[u8] = b"HTTP/1.1 201 X\r\nContent-Length: 0\r\n\r\n";

fn send(daemon: &Daemon, key: &str, body: &str) -> support::Reply {
    daemon.sender().send(&event(key, body.as_bytes(), ""))
}

#[test]
fn a_delivered_key_is_acknowledged_and_not_delivered_again() {
    let upstream = Upstream::new(Act::status(202));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    assert_eq!(
        (
            send(&daemon, "k", BODY).status,
            send(&daemon, "other", "{}").status
        ),
        (202, 202)
    );
    for _ in 0..3 {
        let again = send(&daemon, "k", BODY);
        assert_eq!((again.status, again.outcome()), (200, "duplicate"));
        let body: serde_json::Value = serde_json::from_slice(&again.body).unwrap();
        assert_eq!(body["outcome"], "duplicate");
    }
    assert_eq!(upstream.count(), 2);
    assert_eq!(daemon.metric("hookward_dedup_entries", &[]), 2.0);
}

#[test]
fn copies_at_the_same_time_reach_the_upstream_once() {
    for copies in [2, 10, 50] {
        let upstream = Upstream::new(Act::Wait(LATER.to_vec()));
        let daemon = Daemon::relay(&upstream.url(), "").start();
        let replies = at_once(&daemon, &upstream, copies);
        let mut outcomes: Vec<_> = replies.iter().map(|r| (r.status, r.outcome())).collect();
        outcomes.sort_unstable();
        assert_eq!(outcomes.pop(), Some((201, "forwarded")));
        assert!(
            outcomes.iter().all(|o| *o == (200, "duplicate")),
            "{outcomes:?}"
        );
        assert_eq!(upstream.count(), 1);
    }
}

#[test]
fn copies_share_the_first_ones_failure_and_a_retry_gets_through() {
    for copies in [2, 50] {
        for (answer, status) in [
            (b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n".to_vec(), 500),
            (b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n".to_vec(), 503),
            (b"nonsense\r\n\r\n".to_vec(), 502),
        ] {
            let upstream = Upstream::new(Act::Wait(answer));
            let daemon = Daemon::relay(&upstream.url(), "").start();
            let replies = at_once(&daemon, &upstream, copies);
            assert!(replies.iter().all(|r| r.status == status), "{replies:?}");
            let waited: Vec<_> = replies
                .iter()
                .filter(|r| r.header("content-type") == Some("application/problem+json"))
                .map(support::Reply::reason)
                .collect();
            let in_flight = waited.iter().filter(|r| *r == "in_flight").count();
            assert_eq!(in_flight, copies - 1, "{waited:?}");
            assert_eq!(upstream.count(), 1);
            upstream.by_default(Act::status(200));
            assert_eq!(send(&daemon, "k", BODY).outcome(), "forwarded");
        }
    }
}

/// Sends one event on many connections, lets the upstream answer when all of them are in flight,
/// and gathers the answers.
fn at_once(daemon: &Daemon, upstream: &Upstream, copies: usize) -> Vec<support::Reply> {
    thread::scope(|scope| {
        let copies_sent: Vec<_> = (0..copies)
            .map(|_| scope.spawn(|| send(daemon, "k", BODY)))
            .collect();
        upstream.next_message();
        #[expect(clippy::cast_precision_loss, reason = "at most fifty")]
        let all = copies as f64;
        eventually("all are in flight", || {
            daemon.metric("hookward_in_flight", &[("endpoint", "crm")]) == all
        });
        upstream.release();
        copies_sent.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn a_copy_that_waits_past_its_own_deadline_hears_503() {
    let upstream = Upstream::new(Act::Wait(LATER.to_vec()));
    let daemon = Daemon::relay(&upstream.url(), "deadline = \"700ms\"").start();
    let mut first = daemon.sender();
    first.write(&event("k", BODY.as_bytes(), ""));
    upstream.next_message();
    // The copy's clock starts with its first byte, well before its last.
    let request = event("k", BODY.as_bytes(), "");
    let mut copy = daemon.sender();
    copy.write(&request);
    let (failed, shed) = (first.reply(), copy.reply());
    assert_eq!(
        (failed.status, failed.reason().as_str()),
        (504, "upstream_timeout")
    );
    assert!(matches!(shed.status, 503 | 504), "{shed:?}");
    assert_eq!(
        (shed.reason().as_str(), shed.outcome()),
        ("in_flight", "failed")
    );
}

#[test]
fn a_window_ends() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "dedup = { window = \"100ms\" }").start();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "forwarded");
    eventually("the key is free again", || {
        send(&daemon, "k", BODY).outcome() == "forwarded"
    });
    assert_eq!(upstream.count(), 2);
}

#[test]
fn an_event_without_a_key_is_what_the_endpoint_says() {
    let upstream = Upstream::new(Act::status(200));
    let forward = Daemon::relay(&upstream.url(), "").start();
    for _ in 0..2 {
        assert_eq!(send(&forward, "", BODY).outcome(), "forwarded");
    }
    let by_body = Daemon::relay(&upstream.url(), "dedup = { missing_key = \"body\" }").start();
    assert_eq!(send(&by_body, "", BODY).outcome(), "forwarded");
    assert_eq!(send(&by_body, "", BODY).outcome(), "duplicate");
    assert_eq!(send(&by_body, "", "{\"other\":1}").outcome(), "forwarded");
    let reject = Daemon::relay(&upstream.url(), "dedup = { missing_key = \"reject\" }").start();
    assert_eq!(send(&reject, "", BODY).reason(), "idempotency_key");
}

#[test]
fn a_key_with_another_body_is_what_the_endpoint_says() {
    let upstream = Upstream::new(Act::status(200));
    for (policy, status, outcome) in [
        ("duplicate", 200, "duplicate"),
        ("forward", 200, "forwarded"),
        ("reject", 422, "rejected"),
    ] {
        let more = format!("dedup = {{ key_reuse = \"{policy}\" }}");
        let daemon = Daemon::relay(&upstream.url(), &more).start();
        assert_eq!(send(&daemon, "k", BODY).outcome(), "forwarded");
        let other = send(&daemon, "k", "{\"other\":1}");
        assert_eq!(
            (other.status, other.outcome()),
            (status, outcome),
            "{policy}"
        );
        if policy == "reject" {
            assert_eq!(other.reason(), "key_reuse");
        }
        assert_eq!(
            daemon.metric("hookward_key_reuse_total", &[("endpoint", "crm")]),
            1.0,
            "{policy}"
        );
    }
}

#[test]
fn a_body_under_another_key_is_what_the_endpoint_says() {
    let upstream = Upstream::new(Act::status(200));
    for (policy, outcome, counted) in [
        ("flag", "forwarded", 1.0),
        ("off", "forwarded", 0.0),
        ("reject", "rejected", 1.0),
    ] {
        let more = format!("dedup = {{ replay = \"{policy}\" }}");
        let daemon = Daemon::relay(&upstream.url(), &more).start();
        assert_eq!(send(&daemon, "k", BODY).outcome(), "forwarded");
        let other = send(&daemon, "fresh", BODY);
        assert_eq!(other.outcome(), outcome, "{policy}");
        if policy == "reject" {
            assert_eq!((other.status, other.reason().as_str()), (422, "replay"));
        }
        assert_eq!(
            daemon.metric("hookward_replays_total", &[("endpoint", "crm")]),
            counted,
            "{policy}"
        );
    }
}

#[test]
fn whatever_fails_gives_its_key_back() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "deadline = \"300ms\"").start();
    upstream.then([
        Act::status(500),
        Act::status(302),
        Act::status(404),
        Act::AnswerAndClose(b"HTTP/1.1 200".to_vec()),
        Act::Hang,
    ]);
    for status in [500, 302, 404, 502, 504] {
        assert_eq!(send(&daemon, "k", BODY).status, status);
    }
    assert_eq!(send(&daemon, "k", BODY).outcome(), "forwarded");
    assert_eq!(send(&daemon, "k", BODY).outcome(), "duplicate");
}

#[test]
fn what_is_not_verified_takes_no_key() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let forged = String::from_utf8(event("k", BODY.as_bytes(), ""))
        .unwrap()
        .replace("message", "massage");
    assert_eq!(daemon.sender().send(forged.as_bytes()).status, 401);
    assert_eq!(send(&daemon, "k", BODY).outcome(), "forwarded");
}

#[test]
fn a_relay_runs_on_when_its_sender_hangs_up() {
    let upstream = Upstream::new(Act::Wait(LATER.to_vec()));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut sender = daemon.sender();
    sender.write(&event("k", BODY.as_bytes(), ""));
    upstream.next_message();
    sender.hang_up();
    drop(sender);
    upstream.release();
    eventually("the key is done", || {
        daemon.metric("hookward_dedup_entries", &[]) == 1.0
    });
    assert_eq!(send(&daemon, "k", BODY).outcome(), "duplicate");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_sender_that_hangs_up_in_the_middle_of_its_body_leaves_nothing() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let request = event("k", BODY.as_bytes(), "");
    let mut sender = daemon.sender();
    sender.write(&request[..request.len() - 1]);
    eventually("it is being read", || {
        daemon.metric("hookward_buffered_bytes", &[]) > 0.0
    });
    drop(sender);
    eventually("nothing is held", || {
        daemon.metric("hookward_buffered_bytes", &[]) == 0.0
    });
    assert_eq!(send(&daemon, "k", BODY).outcome(), "forwarded");
    assert_eq!(upstream.count(), 1);
}
