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

#[test]
fn a_copy_past_its_own_deadline_is_sent_away_and_the_first_goes_on() {
    let upstream = Upstream::new(Act::Wait(LATER.to_vec()));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut first = daemon.sender();
    first.write(&event("k", BODY.as_bytes(), ""));
    upstream.next_message();
    // The first keeps the deadline it began with; the copy comes under a shorter one.
    let path = daemon.dir.0.join("hookward.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    let shorter = config.replace("path = ", "deadline = \"200ms\"\npath = ");
    std::fs::write(&path, shorter).unwrap();
    daemon.signal(rustix::process::Signal::HUP);
    eventually("the deadline is another", || {
        daemon.metric("hookward_config_reloads_total", &[]) == 1.0
    });
    let copy = send(&daemon, "k", BODY);
    assert_eq!(
        (copy.status, copy.outcome(), copy.reason().as_str()),
        (503, "failed", "in_flight")
    );
    assert_eq!(copy.header("retry-after"), Some("5"));
    upstream.release();
    let reply = first.reply();
    assert_eq!((reply.status, reply.outcome()), (201, "forwarded"));
    assert_eq!(send(&daemon, "k", BODY).outcome(), "duplicate");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_relay_runs_on_when_its_sender_crashes() {
    let upstream = Upstream::new(Act::Wait(LATER.to_vec()));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut sender = daemon.sender();
    sender.write(&event("k", BODY.as_bytes(), ""));
    upstream.next_message();
    sender.reset();
    // Its retry comes while the first is still under way: it waits, and hears the truth.
    let mut retry = daemon.sender();
    retry.write(&event("k", BODY.as_bytes(), ""));
    eventually("the retry is in", || {
        daemon.metric("hookward_in_flight", &[("endpoint", "crm")]) >= 2.0 || upstream.count() > 1
    });
    upstream.release();
    let reply = retry.reply();
    assert_eq!((reply.status, reply.outcome()), (200, "duplicate"));
    assert_eq!(upstream.count(), 1);
}

#[test]
fn copies_that_hang_up_leave_the_others_alone() {
    let upstream = Upstream::new(Act::Wait(LATER.to_vec()));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let request = event("k", BODY.as_bytes(), "");
    let mut senders: Vec<_> = (0..6).map(|_| daemon.sender()).collect();
    senders[0].write(&request);
    upstream.next_message();
    senders[1..].iter_mut().for_each(|s| s.write(&request));
    eventually("all are in flight", || {
        daemon.metric("hookward_in_flight", &[("endpoint", "crm")]) == 6.0
    });
    // The first and some of those that wait for it go away, in both manners.
    let mut left = senders.split_off(4);
    for (number, mut sender) in senders.into_iter().enumerate() {
        if number % 2 == 0 {
            sender.hang_up();
        } else {
            sender.reset();
        }
    }
    upstream.release();
    for sender in &mut left {
        let reply = sender.reply();
        assert_eq!((reply.status, reply.outcome()), (200, "duplicate"));
    }
    assert_eq!(upstream.count(), 1);
    eventually("nothing is left in flight", || {
        daemon.metric("hookward_in_flight", &[("endpoint", "crm")]) == 0.0
    });
}

#[test]
fn one_key_at_two_endpoints_is_two_keys() {
    let upstream = Upstream::new(Act::status(200));
    let two = Daemon::endpoint("two", "/two", &upstream.url(), "");
    let config = Daemon::endpoint("crm", "/hook", &upstream.url(), "") + &two;
    let daemon = Daemon::with("", &config).start();
    let elsewhere = String::from_utf8(event("k", BODY.as_bytes(), "")).unwrap();
    let elsewhere = elsewhere.replacen("/hook", "/two", 1);
    for outcome in ["forwarded", "duplicate"] {
        assert_eq!(send(&daemon, "k", BODY).outcome(), outcome);
        let reply = daemon.sender().send(elsewhere.as_bytes());
        assert_eq!(reply.outcome(), outcome);
    }
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_key_is_any_bytes_up_to_255_compared_exactly() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let longest = "k".repeat(255);
    let almost = format!("{}j", &longest[..254]);
    let keys = [
        longest.as_str(),
        &almost,
        "a",
        "A",
        "a b",
        "a, b",
        "\"a\"",
        "0",
        "00",
        "\u{e9}",
        "%61",
    ];
    for key in keys {
        assert_eq!(send(&daemon, key, BODY).outcome(), "forwarded", "{key:?}");
    }
    for key in keys {
        assert_eq!(send(&daemon, key, BODY).outcome(), "duplicate", "{key:?}");
    }
    assert_eq!(upstream.count(), keys.len());
    let too_long = send(&daemon, &"k".repeat(256), BODY);
    assert_eq!(
        (too_long.status, too_long.reason().as_str()),
        (400, "idempotency_key")
    );
}

#[test]
fn the_least_recently_used_key_goes_out_first() {
    let upstream = Upstream::new(Act::status(200));
    let dedup = "[dedup]\ncapacity = 8\n".to_owned();
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let daemon = Daemon::with("", &(dedup + &endpoint)).start();
    for n in 0..40 {
        assert_eq!(send(&daemon, &n.to_string(), BODY).outcome(), "forwarded");
    }
    assert_eq!(send(&daemon, "39", BODY).outcome(), "duplicate");
    assert_eq!(send(&daemon, "0", BODY).outcome(), "forwarded");
    assert!(daemon.metric("hookward_dedup_entries", &[]) <= 8.0);
    assert!(daemon.metric("hookward_dedup_evictions_total", &[("cause", "capacity")]) >= 32.0);
}

#[test]
fn keys_whose_window_is_over_are_let_go_and_counted() {
    let upstream = Upstream::new(Act::status(200));
    // A small table is looked through as a whole each time.
    let dedup = "[dedup]\ncapacity = 100\nwindow = \"100ms\"\n".to_owned();
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let daemon = Daemon::with("", &(dedup + &endpoint)).start();
    for key in ["a", "b", "c"] {
        assert_eq!(send(&daemon, key, BODY).outcome(), "forwarded");
    }
    eventually("they are gone", || {
        daemon.metric("hookward_dedup_entries", &[]) == 0.0
    });
    let expired = daemon.metric("hookward_dedup_evictions_total", &[("cause", "expired")]);
    assert_eq!(expired, 3.0);
}

#[test]
fn another_body_under_a_key_in_flight_is_what_the_endpoint_says() {
    for (policy, status, reason) in [("duplicate", 200, ""), ("reject", 422, "key_reuse")] {
        let upstream = Upstream::new(Act::Wait(LATER.to_vec()));
        let more = format!("dedup = {{ key_reuse = \"{policy}\" }}");
        let daemon = Daemon::relay(&upstream.url(), &more).start();
        let mut first = daemon.sender();
        first.write(&event("k", BODY.as_bytes(), ""));
        upstream.next_message();
        let mut other = daemon.sender();
        other.write(&event("k", b"{\"other\":1}", ""));
        eventually("it is counted", || {
            daemon.metric("hookward_key_reuse_total", &[("endpoint", "crm")]) == 1.0
                || daemon.metric("hookward_rejections_total", &[("reason", "key_reuse")]) == 1.0
        });
        upstream.release();
        assert_eq!(first.reply().status, 201, "{policy}");
        let reply = other.reply();
        assert_eq!(reply.status, status, "{policy}: {reply:?}");
        if !reason.is_empty() {
            assert_eq!(reply.reason(), reason);
        }
        assert_eq!(upstream.count(), 1, "{policy}");
        let reused = daemon.metric("hookward_key_reuse_total", &[("endpoint", "crm")]);
        assert_eq!(reused, 1.0, "{policy}");
    }
}

#[test]
fn what_was_filtered_or_refused_takes_no_key() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "events = [\"contact.created\"]").start();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "filtered");
    let wanted = "{\"type\":\"contact.created\"}";
    assert_eq!(send(&daemon, "k", wanted).outcome(), "forwarded");
    assert_eq!(send(&daemon, "k", wanted).outcome(), "duplicate");
    assert_eq!(upstream.count(), 1);
}
