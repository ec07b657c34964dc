//! What an operator sees and does: metrics, health, logs, reload, the end.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    os::unix::fs::symlink,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use rustix::process::Signal;
use support::{Act, BODY, Daemon, SECRET, Sender, Upstream, event, eventually, sign};

#[test]
fn metrics_exist_from_the_start_under_their_documented_names() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let reply = daemon.ask("/metrics");
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let text = reply.text();
    for series in [
        "hookward_requests_total{code=\"2xx\",endpoint=\"crm\",event=\"message.created\",outcome=\"forwarded\"} 0",
        "hookward_rejections_total{endpoint=\"crm\",reason=\"signature_mismatch\"} 0",
        "hookward_rejections_total{endpoint=\"\",reason=\"malformed\"} 0",
        "hookward_request_duration_seconds_count{endpoint=\"crm\",outcome=\"forwarded\"} 0",
        "hookward_verify_duration_seconds_count 0",
        "hookward_upstream_duration_seconds_count{endpoint=\"crm\"} 0",
        "hookward_upstream_responses_total{class=\"error\",endpoint=\"crm\"} 0",
        "hookward_upstream_responses_total{class=\"2xx\",endpoint=\"crm\"} 0",
        "hookward_request_body_bytes_count{endpoint=\"crm\"} 0",
        "hookward_connections 0",
        "hookward_in_flight{endpoint=\"crm\"} 0",
        "hookward_buffered_bytes 0",
        "hookward_dedup_entries 0",
        "hookward_dedup_evictions_total{cause=\"capacity\"} 0",
        "hookward_dedup_evictions_total{cause=\"expired\"} 0",
        "hookward_key_reuse_total{endpoint=\"crm\"} 0",
        "hookward_replays_total{endpoint=\"crm\"} 0",
        "hookward_secret_matches_total{endpoint=\"crm\",secret=\"main\"} 0",
        "hookward_config_reloads_total 0",
        "hookward_config_reload_failures_total 0",
        "hookward_config_last_reload_successful 1",
        "hookward_config_last_reload_success_timestamp_seconds ",
        "hookward_build_info{revision=\"",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "process_open_fds ",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(series)),
            "{series} in\n{text}"
        );
    }
    assert!(
        !text.contains("hookward_last_verified_timestamp_seconds{"),
        "absent until the first"
    );
    let undescribed = text
        .lines()
        .filter(|l| l.starts_with("# HELP") && l.split(' ').count() < 5);
    assert_eq!(undescribed.count(), 0);
}

#[test]
fn requests_are_counted_under_bounded_labels() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut sender = daemon.sender();
    sender.send(&event("1", BODY.as_bytes(), ""));
    sender.send(&event("1", BODY.as_bytes(), ""));
    sender.send(&event("2", br#"{"type":"made.up"}"#, ""));
    sender.send(&event("3", b"{}", ""));
    let count = |event: &str, outcome: &str| {
        daemon.metric(
            "hookward_requests_total",
            &[("event", event), ("outcome", outcome), ("code", "2xx")],
        )
    };
    assert_eq!(count("message.created", "forwarded"), 1.0);
    assert_eq!(count("message.created", "duplicate"), 1.0);
    assert_eq!(
        (count("other", "forwarded"), count("none", "forwarded")),
        (1.0, 1.0)
    );
    assert_eq!(
        daemon.metric("hookward_verify_duration_seconds_count", &[]),
        4.0
    );
    assert_eq!(
        daemon.metric(
            "hookward_upstream_duration_seconds_count",
            &[("endpoint", "crm")]
        ),
        3.0
    );
    assert!(
        daemon.metric(
            "hookward_last_verified_timestamp_seconds",
            &[("endpoint", "crm")]
        ) > 1.7e9
    );
    assert_eq!(daemon.metric("hookward_connections", &[]), 1.0);
    assert!(!daemon.ask("/metrics").text().contains("made.up"));
}

#[test]
fn health_is_answered_beside_the_requests() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    assert_eq!(
        (daemon.ask("/livez").status, daemon.ask("/readyz").status),
        (200, 200)
    );
    assert_eq!(daemon.ask("/nothing").status, 404);
    let check = |address: &str| {
        Command::new(env!("CARGO_BIN_EXE_hookward"))
            .args(["healthcheck", "--admin", address])
            .output()
            .unwrap()
    };
    assert!(check(&daemon.admin.to_string()).status.success());
    let nobody = check(&Upstream::nobody().to_string());
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).lines().count() == 1);
    let mut sender = daemon.sender();
    sender.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(sender.reply().status, 404, "not on the public listener");
}

#[test]
fn refusals_are_logged_with_their_event_id_and_floods_are_sampled() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut sender = daemon.sender();
    let forged = String::from_utf8(event("k", BODY.as_bytes(), ""))
        .unwrap()
        .replace("message", "massage");
    let reply = sender.send(forged.as_bytes());
    let id = reply.header("hookward-event-id").unwrap();
    daemon.wait_for_log(id);
    let log = daemon.log();
    let line = log.lines().find(|l| l.contains(id)).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (line["reason"].as_str(), line["endpoint"].as_str()),
        (Some("signature_mismatch"), Some("crm"))
    );
    for _ in 0..500 {
        sender.send(forged.as_bytes());
    }
    let lines = daemon
        .log()
        .lines()
        .filter(|l| l.contains("signature_mismatch"))
        .count();
    assert!(lines < 250, "{lines} lines for 501 refusals");
}

#[test]
fn neither_secrets_nor_bodies_are_shown_anywhere() {
    let upstream = Upstream::new(Act::status(200));
    let canaries = [
        "canary-secret-0123456789",
        "canary-body",
        "canary-key",
        "canary-header",
        "canary-query",
    ];
    let access = "[log]\naccess = true\n".to_owned();
    let daemon = Daemon::with(
        "",
        &(access + &Daemon::endpoint("crm", "/hook", &upstream.url(), "deadline = \"300ms\"")),
    )
    .env("SECRET", canaries[0])
    .env("HOOKWARD_LOG", "trace")
    .start();
    let body = format!(r#"{{"type":"{}","x":"{}"}}"#, canaries[1], canaries[1]);
    let request = |signature: &str, key: &str| {
        format!(
            "POST /hook?{} HTTP/1.1\r\nHost: a\r\nX-Canary: {}\r\nTinyTalk-Signature: {signature}\r\n\
             Idempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n{body}",
            canaries[4],
            canaries[3],
            body.len()
        )
    };
    let tag = sign(canaries[0], body.as_bytes());
    upstream.then([
        Act::status(500),
        Act::Hang,
        Act::AnswerAndClose(canaries[1].as_bytes().to_vec()),
    ]);
    for key in [canaries[2], "b", "c", "d", "d"] {
        daemon.sender().send(request(&tag, key).as_bytes());
    }
    daemon.sender().send(request(canaries[3], "e").as_bytes());
    daemon
        .sender()
        .send(request(&tag.replace('a', "b"), "f").as_bytes());
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("reloaded");
    let shown = daemon.log() + &daemon.ask("/metrics").text();
    assert!(shown.contains("\"status\":500"), "{shown}");
    for canary in canaries.iter().chain([&tag.as_str()]) {
        assert!(!shown.contains(canary), "{canary} in\n{shown}");
    }
}

/// Sends events on two kept connections, each reconnecting when it is asked to, until told to stop;
/// counts the answers and panics at any that is not 200.
fn under_load(daemon: &Daemon, act: impl FnOnce(&AtomicUsize)) {
    let (answered, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for worker in 0..2 {
            let (answered, is_over) = (&answered, &is_over);
            scope.spawn(move || {
                let mut sender = daemon.sender();
                for n in 0.. {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    let reply = sender.send(&event(&format!("{worker}-{n}"), BODY.as_bytes(), ""));
                    assert_eq!(reply.status, 200, "{reply:?}");
                    answered.fetch_add(1, Ordering::SeqCst);
                    if reply.header("connection") == Some("close") {
                        break;
                    }
                }
            });
        }
        act(&answered);
        is_over.store(true, Ordering::SeqCst);
    });
}

fn after(answered: &AtomicUsize, more: usize) {
    let start = answered.load(Ordering::SeqCst);
    eventually("requests go on", || {
        answered.load(Ordering::SeqCst) >= start + more
    });
}

#[test]
fn a_reload_under_load_fails_no_request() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let path = daemon.dir.0.join("hookward.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let replace = |text: &str| {
        let next = daemon.dir.write("next", text);
        std::fs::rename(next, &path).unwrap();
    };
    under_load(&daemon, |answered| {
        after(answered, 20);
        // Good: a second endpoint appears.
        replace(&(good.clone() + &Daemon::endpoint("two", "/two", &upstream.url(), "")));
        eventually("the reload is counted", || {
            daemon.metric("hookward_config_reloads_total", &[]) == 1.0
        });
        after(answered, 20);
        // Bad: it changes nothing, and says so.
        replace(&good.replace("upstream", "upstraem"));
        eventually("the failure is counted", || {
            daemon.metric("hookward_config_reload_failures_total", &[]) == 1.0
        });
        assert_eq!(
            daemon.metric("hookward_config_last_reload_successful", &[]),
            0.0
        );
        daemon.wait_for_log("did you mean upstream?");
        after(answered, 20);
        // Half-written: the same.
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        eventually("that one too", || {
            daemon.metric("hookward_config_reload_failures_total", &[]) >= 2.0
        });
        after(answered, 20);
        replace(&good);
        eventually("it recovers", || {
            daemon.metric("hookward_config_last_reload_successful", &[]) == 1.0
        });
        after(answered, 20);
    });
    let request = String::from_utf8(event("two", BODY.as_bytes(), ""))
        .unwrap()
        .replacen("/hook", "/two", 1);
    assert_eq!(
        daemon.sender().send(request.as_bytes()).status,
        404,
        "the good one has no second endpoint"
    );
}

#[test]
fn what_cannot_change_while_it_runs_is_refused() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let path = daemon.dir.0.join("hookward.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("threads = 2", "threads = 3")).unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("server.threads: needs a restart to change");
    assert_eq!(
        daemon.metric("hookward_config_reload_failures_total", &[]),
        1.0
    );
    assert_eq!(
        daemon
            .sender()
            .send(&event("k", BODY.as_bytes(), ""))
            .status,
        200
    );
}

#[test]
fn a_secret_that_is_swapped_as_kubernetes_does_is_read_again() {
    let upstream = Upstream::new(Act::status(200));
    let setup = Daemon::relay(&upstream.url(), "");
    let mount = setup.dir().join("mount");
    for (version, secret) in [
        ("v1", "the-first-secret-of-all"),
        ("v2", "the-second-secret-of-all"),
    ] {
        std::fs::create_dir_all(mount.join(version)).unwrap();
        std::fs::write(mount.join(version).join("key"), format!("{secret}\n")).unwrap();
    }
    symlink("v1", mount.join("..data")).unwrap();
    symlink("..data/key", mount.join("key")).unwrap();
    let secrets = format!(
        "secrets = [{{ file = \"{}\" }}]",
        mount.join("key").display()
    );
    let daemon = Daemon::relay(&upstream.url(), &secrets).start();
    let send = |secret: &str, key: &str| {
        let request = String::from_utf8(event(key, BODY.as_bytes(), "")).unwrap();
        let own = request.replace(
            &sign(SECRET, BODY.as_bytes()),
            &sign(secret, BODY.as_bytes()),
        );
        daemon.sender().send(own.as_bytes()).status
    };
    assert_eq!(
        (
            send("the-first-secret-of-all", "1"),
            send("the-second-secret-of-all", "2")
        ),
        (200, 401)
    );
    symlink("v2", mount.join("..next")).unwrap();
    std::fs::rename(mount.join("..next"), mount.join("..data")).unwrap();
    eventually("it is read again", || {
        daemon.metric("hookward_config_reloads_total", &[]) == 1.0
    });
    assert_eq!(
        (
            send("the-first-secret-of-all", "3"),
            send("the-second-secret-of-all", "4")
        ),
        (401, 200)
    );
    drop(setup);
}

#[test]
fn told_to_end_it_fails_no_request_on_an_accepted_connection() {
    let upstream = Upstream::new(Act::status(200));
    let mut daemon = Daemon::relay(&upstream.url(), "").start();
    under_load(&daemon, |answered| {
        after(answered, 50);
        daemon.signal(Signal::TERM);
        daemon.wait_for_log("\"message\":\"stopped\"");
    });
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_request_in_flight_finishes_before_the_end() {
    let upstream = Upstream::new(Act::Wait(
        b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ));
    let mut daemon = Daemon::relay(&upstream.url(), "").start();
    let mut sender = daemon.sender();
    sender.write(&event("k", BODY.as_bytes(), ""));
    upstream.next_message();
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping");
    upstream.release();
    let reply = sender.reply();
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn while_it_is_leaving_it_is_not_ready_and_still_accepts() {
    let upstream = Upstream::new(Act::status(200));
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let mut daemon = Daemon::with("shutdown_delay = \"2s\"", &endpoint).start();
    daemon.signal(Signal::TERM);
    eventually("it is not ready", || daemon.ask("/readyz").status == 503);
    assert_eq!(daemon.ask("/livez").status, 200);
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let upstream = Upstream::new(Act::Hang);
    let mut daemon = Daemon::relay(&upstream.url(), "").start();
    daemon.sender().write(&event("k", BODY.as_bytes(), ""));
    upstream.next_message();
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(daemon.log().contains("second signal"));
}

#[test]
fn a_second_instance_at_a_taken_address_is_refused() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let config = format!(
        "[server]\nlisten = [\"{}\"]\nthreads = 2\n[admin]\nlisten = [\"127.0.0.1:0\"]\n{endpoint}",
        daemon.public
    );
    let (code, said) = Daemon::config(&config).refuse();
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains(&format!("cannot listen at {}", daemon.public)),
        "{said}"
    );
}

#[test]
fn a_unix_socket_is_a_public_listener_too() {
    use std::io::{Read as _, Write as _};
    let upstream = Upstream::new(Act::status(200));
    let directory = std::env::temp_dir().join(format!("hookward-listen-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("hook.sock");
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let config = format!(
        "[server]\nlisten = [\"unix:{}\"]\n[admin]\nlisten = [\"127.0.0.1:0\"]\n{endpoint}",
        path.display()
    );
    let mut daemon = Daemon::config(&config).start();
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream
        .write_all(&event("k", BODY.as_bytes(), "Connection: close\r\n"))
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(upstream.next_message().values("x-forwarded-for").is_empty());
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!path.exists());
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn many_connections_that_only_open_do_not_stop_the_others() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let silent: Vec<_> = (0..200).map(|_| Sender::connect(daemon.public)).collect();
    for n in 0..20 {
        assert_eq!(
            daemon
                .sender()
                .send(&event(&n.to_string(), BODY.as_bytes(), ""))
                .status,
            200
        );
    }
    drop(silent);
}
