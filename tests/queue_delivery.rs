//! What was acknowledged is delivered: as it came, again until it is taken, in order where that is
//! asked for, and never in the way of others.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::time::{Duration, Instant};

use support::{Act, BODY, Daemon, Upstream, event, eventually};

const QUICK: &str = "[endpoints.crm.queue]\nretry = [\"50ms\", \"50ms\", \"50ms\", \"50ms\"]\n";

fn send(daemon: &Daemon, key: &str, body: &str) -> support::Reply {
    daemon.sender().send(&event(key, body.as_bytes(), ""))
}

fn deliveries(daemon: &Daemon, result: &str) -> f64 {
    let labels = [("endpoint", "crm"), ("result", result)];
    daemon.metric("hookward_deliveries_total", &labels)
}

#[test]
fn a_queued_event_is_acknowledged_and_delivered_as_it_came() {
    let upstream = Upstream::new(Act::status(204));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let more = "X-Trace: a\r\nX-Trace: b\r\nHookward-Verified: no\r\n";
    let reply = daemon.sender().send(&event("k-1", BODY.as_bytes(), more));
    assert_eq!((reply.status, reply.outcome()), (200, "queued"));
    let said: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    let id = reply.header("hookward-event-id").unwrap();
    assert_eq!(
        (&said["outcome"], &said["event_id"]),
        (&"queued".into(), &id.into())
    );

    let message = upstream.next_message();
    assert_eq!(message.body, BODY.as_bytes());
    assert!(
        message.head.starts_with("POST /in HTTP/1.1\r\n"),
        "{}",
        message.head
    );
    assert_eq!(message.value("hookward-event-id"), id);
    assert_eq!(message.value("hookward-attempt"), "1");
    assert_eq!(message.value("hookward-verified"), "true");
    assert_eq!(message.value("hookward-endpoint"), "crm");
    assert_eq!(message.value("hookward-event-type"), "message.created");
    assert_eq!(message.value("idempotency-key"), "k-1");
    assert_eq!(message.values("x-trace"), ["a", "b"]);
    assert_eq!(message.value("x-forwarded-for"), "127.0.0.1");
    assert_eq!(message.value("content-length"), BODY.len().to_string());
    let signature = support::sign(support::SECRET, BODY.as_bytes());
    assert_eq!(message.value("tinytalk-signature"), signature);
    eventually("it is counted", || deliveries(&daemon, "delivered") == 1.0);
}

#[test]
fn the_answer_does_not_wait_for_the_upstream() {
    let upstream = Upstream::new(Act::Wait(
        b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
    assert_eq!(deliveries(&daemon, "delivered"), 0.0);
    upstream.next_message();
    upstream.release();
    eventually("it is delivered", || {
        deliveries(&daemon, "delivered") == 1.0
    });
}

#[test]
fn a_failed_attempt_is_made_again_under_the_same_id_until_it_is_taken() {
    let upstream = Upstream::new(Act::status(200));
    upstream.then([
        Act::status(500),
        Act::Close,
        Act::status(302),
        Act::status(404),
    ]);
    let daemon = Daemon::queue(&upstream.url(), QUICK).start();
    let reply = send(&daemon, "k", BODY);
    let received_at: Vec<_> = (1..=5)
        .map(|attempt| {
            let message = upstream.next_message();
            let id = reply.header("hookward-event-id").unwrap();
            assert_eq!(message.value("hookward-event-id"), id);
            assert_eq!(message.value("hookward-attempt"), attempt.to_string());
            assert_eq!(message.body, BODY.as_bytes());
            message.value("hookward-received-at").to_owned()
        })
        .collect();
    assert!(
        received_at.windows(2).all(|w| w[0] == w[1]),
        "{received_at:?}"
    );
    eventually("it is delivered", || {
        deliveries(&daemon, "delivered") == 1.0
    });
    assert_eq!(deliveries(&daemon, "retry"), 4.0);
    let failed: Vec<_> = daemon
        .lines()
        .into_iter()
        .filter(|line| line["message"] == "delivery failed")
        .collect();
    assert_eq!(failed.len(), 4, "{failed:?}");
    assert!(
        failed
            .iter()
            .all(|line| line["event_id"] == *reply.header("hookward-event-id").unwrap())
    );
}

#[test]
fn an_event_is_given_up_after_its_schedule_or_at_a_permanent_status() {
    for (act, attempts) in [(Act::status(503), 5), (Act::status(422), 1)] {
        let upstream = Upstream::new(act);
        let daemon = Daemon::queue(&upstream.url(), QUICK).start();
        assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
        eventually("it is a dead letter", || deliveries(&daemon, "dead") == 1.0);
        assert_eq!(upstream.count(), attempts);
        let state = [("endpoint", "crm"), ("state", "dead")];
        eventually("it is shown", || {
            daemon.metric("hookward_queue_events", &state) == 1.0
        });
        let lines = daemon.lines();
        let dead = lines
            .iter()
            .find(|l| l["message"] == "event is a dead letter");
        assert_eq!(dead.unwrap()["level"], "WARN");
    }
}

#[test]
fn retry_after_is_honoured() {
    let upstream = Upstream::new(Act::status(200));
    upstream.then([Act::answer(503, "Retry-After: 1\r\n", b"")]);
    let daemon = Daemon::queue(&upstream.url(), QUICK).start();
    send(&daemon, "k", BODY);
    upstream.next_message();
    let first = Instant::now();
    upstream.next_message();
    assert!(
        first.elapsed() >= Duration::from_millis(950),
        "{:?}",
        first.elapsed()
    );
}

#[test]
fn an_attempt_that_takes_too_long_is_ended_and_made_again() {
    let upstream = Upstream::new(Act::status(200));
    upstream.then([Act::Hang]);
    let more = format!("{QUICK}attempt_timeout = \"100ms\"");
    let daemon = Daemon::queue(&upstream.url(), &more).start();
    send(&daemon, "k", BODY);
    assert_eq!(upstream.next_message().value("hookward-attempt"), "1");
    assert_eq!(upstream.next_message().value("hookward-attempt"), "2");
}

#[test]
fn while_the_upstream_is_down_only_probes_count_as_attempts() {
    let address = Upstream::nobody();
    let url = format!("http://{address}/in");
    let daemon = Daemon::queue(&url, QUICK.replace("\"50ms\"", "\"1s\"").as_str()).start();
    for number in 0..50 {
        assert_eq!(send(&daemon, &number.to_string(), BODY).outcome(), "queued");
    }
    daemon.wait_for_log("upstream is down");
    eventually("a probe went out", || deliveries(&daemon, "retry") >= 2.0);
    let upstream = Upstream::at(address, Act::status(200));
    let attempts: Vec<u32> = (0..50)
        .map(|_| {
            upstream
                .next_message()
                .value("hookward-attempt")
                .parse()
                .unwrap()
        })
        .collect();
    let later = attempts.iter().filter(|attempt| **attempt > 1).count();
    assert!(later <= 10, "{attempts:?}");
    daemon.wait_for_log("upstream is back");
    eventually("all are delivered", || {
        deliveries(&daemon, "delivered") == 50.0
    });
    assert_eq!(deliveries(&daemon, "dead"), 0.0);
}

#[test]
fn at_most_max_concurrency_attempts_run_at_a_time() {
    let answer = b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec();
    let upstream = Upstream::new(Act::Wait(answer));
    let more = "[endpoints.crm.upstream_options]\nmax_concurrency = 2\n";
    let daemon = Daemon::queue(&upstream.url(), more).start();
    for number in 0..10 {
        assert_eq!(send(&daemon, &number.to_string(), BODY).outcome(), "queued");
    }
    for delivered in 0..10 {
        upstream.next_message();
        let running = upstream.count() - delivered;
        assert!(running <= 2, "{running} at a time");
        upstream.release();
    }
    eventually("all are delivered", || {
        deliveries(&daemon, "delivered") == 10.0
    });
}

#[test]
fn a_rate_is_kept_by_waiting_and_nothing_is_shed() {
    let upstream = Upstream::new(Act::status(200));
    let more = "[endpoints.crm.upstream_options]\nrate = \"20/s\"\n";
    let daemon = Daemon::queue(&upstream.url(), more).start();
    let began = Instant::now();
    for number in 0..40 {
        assert_eq!(send(&daemon, &number.to_string(), BODY).outcome(), "queued");
    }
    eventually("all are delivered", || {
        deliveries(&daemon, "delivered") == 40.0
    });
    // Twenty at once, the other twenty at twenty a second.
    assert!(
        began.elapsed() >= Duration::from_millis(900),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_duplicate_is_acknowledged_and_not_delivered_again() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
    for _ in 0..3 {
        let again = send(&daemon, "k", BODY);
        assert_eq!((again.status, again.outcome()), (200, "duplicate"));
    }
    assert_eq!(send(&daemon, "other", "{}").outcome(), "queued");
    eventually("both are delivered", || {
        deliveries(&daemon, "delivered") == 2.0
    });
    assert_eq!(upstream.count(), 2);
}

#[test]
fn copies_at_the_same_time_are_one_event() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let outcomes: Vec<String> = std::thread::scope(|scope| {
        let copies: Vec<_> = (0..32)
            .map(|_| scope.spawn(|| send(&daemon, "k", BODY).outcome().to_owned()))
            .collect();
        copies.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let queued = outcomes.iter().filter(|o| *o == "queued").count();
    let duplicates = outcomes.iter().filter(|o| *o == "duplicate").count();
    assert_eq!((queued, duplicates), (1, 31), "{outcomes:?}");
    eventually("it is delivered", || {
        deliveries(&daemon, "delivered") == 1.0
    });
    assert_eq!(upstream.count(), 1);
}

#[test]
fn what_is_refused_or_filtered_never_reaches_the_disk() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "events = [\"contact.created\"]").start();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "filtered");
    let forged = event("f", BODY.as_bytes(), "").into_iter();
    let forged: Vec<u8> = String::from_utf8(forged.collect())
        .unwrap()
        .replace("\"hi\"", "\"ho\"")
        .into_bytes();
    assert_eq!(daemon.sender().send(&forged).reason(), "signature_mismatch");
    let good = r#"{"type":"contact.created"}"#;
    assert_eq!(send(&daemon, "g", good).outcome(), "queued");
    assert_eq!(upstream.next_message().body, good.as_bytes());
    eventually("it is delivered", || {
        deliveries(&daemon, "delivered") == 1.0
    });
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_key_with_another_body_is_what_the_endpoint_says() {
    let upstream = Upstream::new(Act::status(200));
    for (policy, outcome) in [
        ("duplicate", "duplicate"),
        ("forward", "queued"),
        ("reject", "rejected"),
    ] {
        let more = format!("dedup = {{ key_reuse = \"{policy}\" }}");
        let daemon = Daemon::queue(&upstream.url(), &more).start();
        assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
        // What the store says counts as much as what the table remembers.
        let daemon = daemon.end(rustix::process::Signal::TERM).start();
        let reply = send(&daemon, "k", "{}");
        assert_eq!(reply.outcome(), outcome, "{policy}");
        let reused = daemon.metric("hookward_key_reuse_total", &[("endpoint", "crm")]);
        assert_eq!(reused, 1.0, "{policy}");
    }
}

#[test]
fn the_queues_metrics_exist_from_the_start() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let text = daemon.ask("/metrics").text();
    for series in [
        "hookward_queue_events{endpoint=\"crm\",state=\"pending\"} 0",
        "hookward_queue_events{endpoint=\"crm\",state=\"dead\"} 0",
        "hookward_queue_bytes 0",
        "hookward_queue_pending_bytes{endpoint=\"crm\"} 0",
        "hookward_queue_pending_limit_bytes{endpoint=\"crm\"} 1073741824",
        "hookward_queue_oldest_event_age_seconds{endpoint=\"crm\"} 0",
        "hookward_deliveries_total{endpoint=\"crm\",result=\"delivered\"} 0",
        "hookward_deliveries_total{endpoint=\"crm\",result=\"retry\"} 0",
        "hookward_deliveries_total{endpoint=\"crm\",result=\"dead\"} 0",
        "hookward_delivery_attempts{endpoint=\"crm\"} 0",
        "hookward_commit_duration_seconds_count ",
        "hookward_commit_batch_events ",
        "hookward_rejections_total{endpoint=\"crm\",reason=\"queue_full\"} 0",
        "hookward_rejections_total{endpoint=\"crm\",reason=\"storage\"} 0",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(series)),
            "{series} in\n{text}"
        );
    }
    assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
    assert!(daemon.metric("hookward_commit_duration_seconds_count", &[]) >= 1.0);
    assert_eq!(daemon.metric("hookward_commit_batch_events", &[]), 1.0);
    let queued = [
        ("endpoint", "crm"),
        ("outcome", "queued"),
        ("code", "2xx"),
        ("event", "message.created"),
    ];
    assert_eq!(daemon.metric("hookward_requests_total", &queued), 1.0);
}

#[test]
fn a_body_sent_again_under_another_key_is_refused_where_that_is_asked_for() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "dedup = { replay = \"reject\" }").start();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
    let reply = send(&daemon, "other", BODY);
    assert_eq!((reply.status, reply.reason().as_str()), (422, "replay"));
    upstream.next_message();
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_2xx_whose_answer_does_not_end_is_a_delivery() {
    let endless = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n".to_vec();
    for act in [
        Act::Parts(endless.clone(), Vec::new()),
        Act::AnswerAndClose(endless),
    ] {
        let upstream = Upstream::new(act.clone());
        let more = format!("{QUICK}attempt_timeout = \"200ms\"");
        let daemon = Daemon::queue(&upstream.url(), &more).start();
        send(&daemon, "k", BODY);
        eventually("it is delivered", || {
            assert_eq!(deliveries(&daemon, "retry"), 0.0, "{act:?}");
            deliveries(&daemon, "delivered") == 1.0
        });
        assert_eq!(upstream.count(), 1);
    }
}
