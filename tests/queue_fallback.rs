//! A relay with a disk to fall back to: the upstream's answer in time, or 200 for what is on disk.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use rustix::process::Signal;
use support::{Act, BODY, Daemon, Upstream, event, eventually};

const FALLBACK: &str = "fallback = \"queue\"\nfallback_after = \"300ms\"\n\
                        [endpoints.crm.queue]\nretry = [\"50ms\", \"50ms\", \"50ms\"]\n";

fn daemon(url: &str, more: &str) -> Daemon {
    Daemon::relay(url, &format!("{FALLBACK}{more}"))
        .on_disk()
        .start()
}

fn send(daemon: &Daemon, key: &str) -> support::Reply {
    daemon.sender().send(&event(key, BODY.as_bytes(), ""))
}

fn deliveries(daemon: &Daemon, result: &str) -> f64 {
    let labels = [("endpoint", "crm"), ("result", result)];
    daemon.metric("hookward_deliveries_total", &labels)
}

#[test]
fn an_answer_in_time_is_relayed_and_nothing_is_kept() {
    for status in [200, 201, 302, 400, 404, 409, 422] {
        let upstream = Upstream::new(Act::status(status));
        let daemon = daemon(&upstream.url(), "");
        let reply = send(&daemon, "k");
        assert_eq!((reply.status, reply.outcome()), (status, "forwarded"));
        assert_eq!(reply.body, b"done");
        assert_eq!(upstream.count(), 1);
        let pending = [("endpoint", "crm"), ("state", "pending")];
        assert_eq!(daemon.metric("hookward_queue_events", &pending), 0.0);
        assert_eq!(deliveries(&daemon, "delivered"), 0.0);
    }
}

#[test]
fn what_fails_is_acknowledged_from_disk_and_delivered_by_a_second_attempt() {
    let acts = [500, 502, 503, 504, 408, 429].map(Act::status);
    for act in acts.into_iter().chain([Act::Close, Act::Reset]) {
        let upstream = Upstream::new(Act::status(200));
        upstream.then([act.clone()]);
        let daemon = daemon(&upstream.url(), "");
        let reply = send(&daemon, "k");
        assert_eq!((reply.status, reply.outcome()), (200, "queued"), "{act:?}");
        let attempts = [upstream.next_message(), upstream.next_message()];
        let id = reply.header("hookward-event-id").unwrap();
        for (message, number) in attempts.iter().zip(["1", "2"]) {
            assert_eq!(message.value("hookward-event-id"), id);
            assert_eq!(message.value("hookward-attempt"), number);
            assert_eq!(message.body, BODY.as_bytes());
        }
        eventually("it is delivered", || {
            deliveries(&daemon, "delivered") == 1.0
        });
        assert_eq!(deliveries(&daemon, "retry"), 1.0);
        assert_eq!(upstream.count(), 2);
        assert_eq!(send(&daemon, "k").outcome(), "duplicate");
    }
}

#[test]
fn an_upstream_that_is_not_there_is_fallen_back_from() {
    let address = Upstream::nobody();
    let daemon = daemon(&format!("http://{address}/in"), "");
    assert_eq!(send(&daemon, "k").outcome(), "queued");
    let upstream = Upstream::at(address, Act::status(200));
    let message = upstream.next_message();
    assert_eq!(message.value("idempotency-key"), "k");
    eventually("it is delivered", || {
        deliveries(&daemon, "delivered") == 1.0
    });
}

#[test]
fn the_attempt_under_way_goes_on_and_its_success_is_the_delivery() {
    let answer = b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec();
    let upstream = Upstream::new(Act::Wait(answer));
    let daemon = daemon(&upstream.url(), "");
    let reply = send(&daemon, "k");
    assert_eq!((reply.status, reply.outcome()), (200, "queued"));
    assert_eq!(upstream.next_message().value("hookward-attempt"), "1");
    assert_eq!(deliveries(&daemon, "delivered"), 0.0);
    upstream.release();
    eventually("it is delivered", || {
        deliveries(&daemon, "delivered") == 1.0
    });
    let pending = [("endpoint", "crm"), ("state", "pending")];
    eventually("none is left", || {
        daemon.metric("hookward_queue_events", &pending) == 0.0
    });
    let daemon = daemon.end(Signal::KILL).start();
    assert_eq!(send(&daemon, "k").outcome(), "duplicate");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn the_attempt_under_way_goes_on_and_its_failure_is_the_first_of_the_schedule() {
    let answer = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n".to_vec();
    let upstream = Upstream::new(Act::status(200));
    upstream.then([Act::Wait(answer)]);
    let daemon = daemon(&upstream.url(), "");
    assert_eq!(send(&daemon, "k").outcome(), "queued");
    upstream.next_message();
    assert_eq!(upstream.count(), 1);
    upstream.release();
    assert_eq!(upstream.next_message().value("hookward-attempt"), "2");
    eventually("it is delivered", || {
        deliveries(&daemon, "delivered") == 1.0
    });
}

#[test]
fn the_attempt_under_way_ends_at_its_timeout() {
    let upstream = Upstream::new(Act::status(200));
    upstream.then([Act::Hang]);
    let daemon = daemon(&upstream.url(), "attempt_timeout = \"1s\"");
    assert_eq!(send(&daemon, "k").outcome(), "queued");
    upstream.next_message();
    assert_eq!(upstream.next_message().value("hookward-attempt"), "2");
}

#[test]
fn a_crash_after_the_fallback_loses_nothing() {
    let upstream = Upstream::new(Act::status(200));
    upstream.then([Act::Hang]);
    let daemon = daemon(&upstream.url(), "");
    let reply = send(&daemon, "k");
    assert_eq!(reply.outcome(), "queued");
    upstream.next_message();
    let _daemon = daemon.end(Signal::KILL).start();
    let message = upstream.next_message();
    assert_eq!(message.value("hookward-attempt"), "2");
    let id = reply.header("hookward-event-id").unwrap();
    assert_eq!(message.value("hookward-event-id"), id);
}

#[test]
fn the_end_waits_for_the_attempt_under_way() {
    let answer = b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec();
    let upstream = Upstream::new(Act::Wait(answer));
    let mut daemon = daemon(&upstream.url(), "");
    assert_eq!(send(&daemon, "k").outcome(), "queued");
    upstream.next_message();
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("\"stopping\"");
    upstream.release();
    assert!(daemon.wait().success());
    let daemon = daemon.end_of_it().start();
    assert_eq!(send(&daemon, "k").outcome(), "duplicate");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_duplicate_of_one_under_way_hears_what_became_of_it() {
    let upstream = Upstream::new(Act::Hang);
    let daemon = daemon(&upstream.url(), "");
    let outcomes = std::thread::scope(|scope| {
        let copies: Vec<_> = (0..5)
            .map(|_| scope.spawn(|| send(&daemon, "k").outcome().to_owned()))
            .collect();
        let mut outcomes: Vec<_> = copies.into_iter().map(|c| c.join().unwrap()).collect();
        outcomes.sort();
        outcomes
    });
    let expected = ["duplicate", "duplicate", "duplicate", "duplicate", "queued"];
    assert_eq!(outcomes, expected);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn without_room_on_disk_the_sender_hears_the_upstream() {
    let upstream = Upstream::new(Act::status(500));
    let more = "max_pending_bytes = \"3KiB\"\n";
    let bounded = format!("max_body = \"2KiB\"\n{FALLBACK}{more}").replace("\"50ms\"", "\"1h\"");
    let daemon = Daemon::relay(&upstream.url(), &bounded).on_disk().start();
    let mut queued = 0;
    let relayed = loop {
        let reply = send(&daemon, &format!("k-{queued}"));
        if reply.outcome() != "queued" {
            break reply;
        }
        queued += 1;
        assert!(queued < 50, "nothing is relayed");
    };
    assert!(queued > 0);
    assert_eq!((relayed.status, relayed.outcome()), (500, "forwarded"));
    assert_eq!(relayed.body, b"done");
    upstream.by_default(Act::Close);
    assert_eq!(send(&daemon, "other").reason(), "upstream_unreachable");
    // Neither took the key: the sender's retry gets through.
    upstream.by_default(Act::status(200));
    assert_eq!(send(&daemon, "other").outcome(), "forwarded");
}

#[test]
fn a_second_sending_on_a_fresh_connection_is_counted() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), FALLBACK)
        .replace("threads = 2", "threads = 1")
        .on_disk()
        .start();
    assert_eq!(send(&daemon, "first").outcome(), "forwarded");
    assert_eq!(upstream.next_message().connection, 1);
    // The idle connection breaks off as it is used again, and so does the fresh one.
    upstream.then([Act::Close, Act::Close]);
    let numbers = |_| upstream.next_message().value("hookward-attempt").to_owned();
    assert_eq!(send(&daemon, "k").outcome(), "queued");
    assert_eq!([0; 3].map(numbers), ["1", "2", "3"]);
}

#[test]
fn a_2xx_whose_answer_does_not_end_is_the_delivery() {
    let endless = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n".to_vec();
    let upstream = Upstream::new(Act::Parts(endless, Vec::new()));
    let daemon = daemon(&upstream.url(), "attempt_timeout = \"1h\"\n");
    assert_eq!(send(&daemon, "k").outcome(), "queued");
    eventually("it is delivered", || {
        assert_eq!(deliveries(&daemon, "retry"), 0.0);
        deliveries(&daemon, "delivered") == 1.0
    });
    assert_eq!(upstream.count(), 1);
}

/// An event of a conversation, sent under its number as key.
fn say(daemon: &Daemon, conversation: &str, number: u32) -> support::Reply {
    let body = format!(r#"{{"payload":{{"conversationId":"{conversation}"}},"n":{number}}}"#);
    daemon
        .sender()
        .send(&event(&number.to_string(), body.as_bytes(), ""))
}

#[test]
fn a_later_event_of_the_same_order_waits_behind_one_that_fell_back() {
    let answer = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n".to_vec();
    let upstream = Upstream::new(Act::status(200));
    upstream.then([Act::Wait(answer)]);
    let daemon = daemon(&upstream.url(), "ordering = \"/payload/conversationId\"\n");
    let key = || {
        let message = upstream.next_message();
        message.value("idempotency-key").to_owned()
    };
    // On disk, and its first attempt still runs.
    assert_eq!(say(&daemon, "a", 1).outcome(), "queued");
    assert_eq!(key(), "1");
    assert_eq!(say(&daemon, "a", 2).outcome(), "queued");
    assert_eq!(say(&daemon, "a", 3).outcome(), "queued");
    assert_eq!(say(&daemon, "a", 3).outcome(), "duplicate");
    // Others pass by.
    assert_eq!(say(&daemon, "b", 4).outcome(), "forwarded");
    assert_eq!(key(), "4");
    assert_eq!(upstream.count(), 2);
    let daemon = daemon.end(Signal::KILL).start();
    assert_eq!([0; 3].map(|_| key()), ["1", "2", "3"]);
    let mut number = 5;
    eventually("it relays again", || {
        number += 1;
        let delivered = deliveries(&daemon, "delivered") >= 3.0;
        delivered && say(&daemon, "a", number).outcome() == "forwarded"
    });
    upstream.release();
}

#[test]
fn an_event_that_cannot_wait_behind_an_earlier_one_is_refused_and_not_let_past() {
    let upstream = Upstream::new(Act::status(503));
    let order = "ordering = \"endpoint\"\nmax_pending_bytes = \"2KiB\"\n";
    let bounded = format!("max_body = \"2KiB\"\n{FALLBACK}{order}").replace("\"50ms\"", "\"1h\"");
    let daemon = Daemon::relay(&upstream.url(), &bounded).on_disk().start();
    assert_eq!(say(&daemon, "a", 0).outcome(), "queued");
    upstream.by_default(Act::status(200));
    let mut number = 1;
    let refused = loop {
        let reply = say(&daemon, "a", number);
        if reply.outcome() != "queued" {
            break reply;
        }
        number += 1;
        assert!(number < 50, "nothing is refused");
    };
    assert_eq!(
        (refused.status, refused.reason().as_str()),
        (503, "queue_full")
    );
    assert_eq!(upstream.count(), 1);
}
