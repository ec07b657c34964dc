//! What an operator sees and does: metrics, health, logs, reload, the end.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    io::{Read as _, Write as _},
    os::unix::fs::symlink,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use rustix::process::Signal;
use support::{Act, BODY, Daemon, Dir, SECRET, Sender, Upstream, event, eventually, sign};

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
    daemon.wait_for_log("hookward: a second signal ended it before everything");
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
fn whoever_takes_a_unix_socket_over_keeps_it_when_the_first_one_ends() {
    use std::os::unix::net::UnixStream;
    let upstream = Upstream::new(Act::Wait(
        b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ));
    let dir = Dir::new();
    let path = dir.0.join("hook.sock");
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let config = format!(
        "[server]\nlisten = [\"unix:{}\"]\n[admin]\nlisten = [\"127.0.0.1:0\"]\n{endpoint}",
        path.display()
    );
    let ask = |key: &str| {
        let mut stream = UnixStream::connect(&path).unwrap();
        let event = event(key, BODY.as_bytes(), "Connection: close\r\n");
        stream.write_all(&event).unwrap();
        upstream.next_message();
        stream
    };
    let mut first = Daemon::config(&config).start();
    let mut under_way = ask("a");
    first.signal(Signal::TERM);
    eventually("it listens no more", || UnixStream::connect(&path).is_err());
    let mut second = Daemon::config(&config).start();
    upstream.release();
    let mut answer = String::new();
    under_way.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(first.wait().code(), Some(0));
    drop(ask("b"));
    upstream.release();
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code(), Some(0));
    assert!(!path.exists());
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

#[test]
fn metrics_are_what_a_scraper_takes() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    daemon.sender().send(&event("1", BODY.as_bytes(), ""));
    for path in ["/x", "/y", "/z%22%0a"] {
        let request = String::from_utf8(event("2", BODY.as_bytes(), "")).unwrap();
        daemon
            .sender()
            .send(request.replacen("/hook", path, 1).as_bytes());
    }
    let text = daemon.ask("/metrics").text();
    let mut series = std::collections::HashSet::new();
    let mut described = std::collections::HashMap::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(
                described.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{line}"
            );
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(name.to_owned()), "twice: {line}");
            let family = name.split('{').next().unwrap();
            let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
                family
                    .strip_suffix(end)
                    .filter(|f| described.contains_key(*f))
            });
            let family = plain.unwrap_or(family);
            let kind = described
                .get(family)
                .unwrap_or_else(|| panic!("no TYPE: {line}"));
            assert_eq!(
                family.ends_with("_total"),
                kind == "counter",
                "{line}: {kind}"
            );
        }
    }
    // Whatever strangers ask for, there is not one series more.
    let labels = |line: &&str| line.contains("/x") || line.contains("/y") || line.contains("%22");
    assert_eq!(text.lines().filter(labels).count(), 0);
    let unknown = [("endpoint", ""), ("reason", "unknown_path")];
    assert_eq!(daemon.metric("hookward_rejections_total", &unknown), 3.0);
}

#[test]
fn each_request_has_a_line_when_that_is_wanted() {
    let upstream = Upstream::new(Act::status(200));
    let access = "[log]\naccess = true\n".to_owned();
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let daemon = Daemon::with("", &(access + &endpoint)).start();
    let mut ids = Vec::new();
    for (key, outcome) in [("a", "forwarded"), ("a", "duplicate"), ("b", "forwarded")] {
        let reply = daemon.sender().send(&event(key, key.as_bytes(), ""));
        assert_eq!(reply.outcome(), outcome);
        ids.push((
            reply.header("hookward-event-id").unwrap().to_owned(),
            outcome,
        ));
    }
    for (id, outcome) in ids {
        daemon.wait_for_log(&id);
        let lines = daemon.lines();
        let own: Vec<_> = lines
            .iter()
            .filter(|l| l["event_id"] == id.as_str())
            .collect();
        assert_eq!(own.len(), 1, "{own:?}");
        assert_eq!(
            (&own[0]["outcome"], &own[0]["status"]),
            (&outcome.into(), &200.into())
        );
        assert_eq!(own[0]["endpoint"], "crm");
    }
    let quiet = Daemon::relay(&upstream.url(), "").start();
    let reply = quiet.sender().send(&event("c", BODY.as_bytes(), ""));
    let id = reply.header("hookward-event-id").unwrap();
    // A refusal later in the log shows that nothing was said about the one before.
    let refusal = quiet
        .sender()
        .send(b"POST /hook HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    quiet.wait_for_log(refusal.header("hookward-event-id").unwrap());
    assert!(!quiet.log().contains(id));
}

#[test]
fn no_stranger_writes_a_line_of_the_log() {
    let upstream = Upstream::new(Act::status(200));
    let log = "[log]\naccess = true\n".to_owned();
    let more = "dedup = { key_reuse = \"reject\" }";
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), more);
    let daemon = Daemon::with("", &(log + &endpoint))
        .env("HOOKWARD_LOG", "trace")
        .start();
    let body = r#"{"type":"x\n{\"level\":\"ERROR\",\"message\":\"forged\"}\u001b[31m"}"#;
    let key = "k\"\\\u{e9}";
    let send = |body: &str, more: &str| daemon.sender().send(&event(key, body.as_bytes(), more));
    assert_eq!(send(body, "X-A: \u{1}forged\r\n").status, 400);
    assert_eq!(send(body, "").status, 200);
    let last = send("forged", "");
    assert_eq!(last.reason(), "key_reuse");
    daemon.wait_for_log(last.header("hookward-event-id").unwrap());
    let forged = daemon
        .lines()
        .iter()
        .any(|line| line["message"] == "forged");
    assert!(
        !forged && !daemon.log().contains('\u{1b}'),
        "{}",
        daemon.log()
    );
}

#[test]
fn text_is_a_format_too() {
    let upstream = Upstream::new(Act::status(200));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let public = listener.local_addr().unwrap();
    let log = "[log]\nformat = \"text\"\n".to_owned();
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let setup = Daemon::with("", &(log + &endpoint)).pass(listener);
    let daemon = setup.start_when("ready");
    let reply = Sender::connect(public)
        .send(b"POST /hook HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    daemon.wait_for_log(reply.header("hookward-event-id").unwrap());
    let log = daemon.log();
    let line = log.lines().find(|l| l.contains("signature_missing"));
    assert!(line.is_some_and(|l| !l.starts_with('{')), "{log}");
}

#[test]
fn a_socket_that_systemd_passes_is_used() {
    let upstream = Upstream::new(Act::status(200));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let public = listener.local_addr().unwrap();
    let mut daemon = Daemon::relay(&upstream.url(), "").pass(listener).start();
    assert_eq!(daemon.public, public);
    // Both threads share the one socket.
    let mut senders: Vec<_> = (0..20).map(|_| daemon.sender()).collect();
    for (n, sender) in senders.iter_mut().enumerate() {
        let reply = sender.send(&event(&n.to_string(), BODY.as_bytes(), ""));
        assert_eq!(reply.status, 200);
    }
    daemon.signal(Signal::TERM);
    drop(senders);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_secret_that_is_written_anew_in_its_place_is_read_again() {
    let upstream = Upstream::new(Act::status(200));
    let setup = Daemon::relay(&upstream.url(), "");
    let file = setup.dir().join("secret");
    std::fs::write(&file, "the-first-secret-of-all\n").unwrap();
    let secrets = format!("secrets = [{{ file = \"{}\" }}]", file.display());
    let daemon = Daemon::relay(&upstream.url(), &secrets).start();
    let send = |secret: &str, key: &str| {
        let request = String::from_utf8(event(key, BODY.as_bytes(), "")).unwrap();
        let (ours, theirs) = (sign(SECRET, BODY.as_bytes()), sign(secret, BODY.as_bytes()));
        daemon
            .sender()
            .send(request.replace(&ours, &theirs).as_bytes())
            .status
    };
    assert_eq!(send("the-first-secret-of-all", "1"), 200);
    // An empty file is a mistake: the old secret stays, and the mistake is counted.
    std::fs::write(&file, "").unwrap();
    eventually("the mistake is counted", || {
        daemon.metric("hookward_config_reload_failures_total", &[]) >= 1.0
    });
    assert_eq!(send("the-first-secret-of-all", "2"), 200);
    assert_eq!(send("", "3"), 401, "nor is an empty secret taken");
    std::fs::write(&file, "the-second-secret-of-all").unwrap();
    eventually("it is read again", || {
        daemon.metric("hookward_config_reloads_total", &[]) >= 1.0
    });
    assert_eq!(
        (
            send("the-first-secret-of-all", "4"),
            send("the-second-secret-of-all", "5")
        ),
        (401, 200)
    );
    assert_eq!(
        daemon.metric("hookward_config_last_reload_successful", &[]),
        1.0
    );
    assert!(!daemon.log().contains("secret-of-all"));
    drop(setup);
}

#[test]
fn a_reload_changes_limits_and_endpoints_and_keeps_what_is_known() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let path = daemon.dir.0.join("hookward.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    let mut sender = daemon.sender();
    assert_eq!(
        sender.send(&event("k", BODY.as_bytes(), "")).outcome(),
        "forwarded"
    );
    let forwarded = [
        ("endpoint", "crm"),
        ("event", "message.created"),
        ("outcome", "forwarded"),
    ];
    let before = daemon.metric("hookward_requests_total", &forwarded);
    let next = config.replace("path = ", "max_body = 100\npath = ")
        + &Daemon::endpoint("two", "/two", &upstream.url(), "");
    std::fs::write(&path, next).unwrap();
    daemon.signal(Signal::HUP);
    eventually("it is reloaded", || {
        daemon.metric("hookward_config_reloads_total", &[]) >= 1.0
    });
    let large = "x".repeat(101);
    assert_eq!(
        daemon
            .sender()
            .send(&event("l", large.as_bytes(), ""))
            .status,
        413
    );
    let two = String::from_utf8(event("k", BODY.as_bytes(), "")).unwrap();
    let reply = sender.send(two.replacen("/hook", "/two", 1).as_bytes());
    assert_eq!(
        reply.outcome(),
        "forwarded",
        "on a connection from before, too"
    );
    // Keys and counters outlive it.
    assert_eq!(
        sender.send(&event("k", BODY.as_bytes(), "")).outcome(),
        "duplicate"
    );
    assert_eq!(daemon.metric("hookward_requests_total", &forwarded), before);
}

#[test]
fn each_thing_that_needs_a_restart_is_named_and_refused() {
    let upstream = Upstream::new(Act::status(200));
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let daemon = Daemon::with("", &("[dedup]\ncapacity = 1000\n".to_owned() + &endpoint)).start();
    let path = daemon.dir.0.join("hookward.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    let other_port = Upstream::nobody().port();
    let listen = config.replacen("127.0.0.1:0", &format!("127.0.0.1:{other_port}"), 1);
    let data = format!("data_dir = \"{}\"\n{config}", daemon.dir.0.display());
    for (number, (key, changed)) in [
        ("server.listen", listen),
        ("data_dir", data),
        (
            "dedup.capacity",
            config.replace("capacity = 1000", "capacity = 2000"),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(&path, changed).unwrap();
        daemon.signal(Signal::HUP);
        daemon.wait_for_log(&format!("{key}: needs a restart to change"));
        #[expect(clippy::cast_precision_loss, reason = "at most three")]
        let at_least = (number + 1) as f64;
        eventually("it is counted as failed", || {
            daemon.metric("hookward_config_reload_failures_total", &[]) >= at_least
        });
        let reply = daemon.sender().send(&event(key, BODY.as_bytes(), ""));
        assert_eq!(reply.status, 200);
    }
    assert_eq!(daemon.metric("hookward_config_reloads_total", &[]), 0.0);
}

#[test]
fn an_interrupt_ends_it_like_a_termination() {
    let upstream = Upstream::new(Act::status(200));
    let mut daemon = Daemon::relay(&upstream.url(), "").start();
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(reply.status, 200);
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn it_can_be_told_to_end_as_soon_as_it_says_it_is_ready() {
    let upstream = Upstream::new(Act::status(200));
    for _ in 0..20 {
        let mut daemon = Daemon::relay(&upstream.url(), "").start();
        daemon.signal(Signal::TERM);
        let status = daemon.wait();
        assert_eq!(status.code(), Some(0), "{status}: {}", daemon.log());
    }
}

#[test]
fn the_grace_has_an_end() {
    let upstream = Upstream::new(Act::Hang);
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let mut daemon = Daemon::with("shutdown_grace = \"300ms\"", &endpoint).start();
    let mut sender = daemon.sender();
    sender.write(&event("k", BODY.as_bytes(), ""));
    upstream.next_message();
    daemon.signal(Signal::TERM);
    let _ = daemon.wait();
    assert!(daemon.log().contains("stopping"));
}

#[test]
fn the_operator_sees_it_to_the_end_and_newcomers_do_not_get_in() {
    let answer = b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec();
    let upstream = Upstream::new(Act::Wait(answer));
    let mut daemon = Daemon::relay(&upstream.url(), "").start();
    let mut sender = daemon.sender();
    sender.write(&event("k", BODY.as_bytes(), ""));
    upstream.next_message();
    daemon.signal(Signal::TERM);
    eventually("nobody listens any more", || {
        std::net::TcpStream::connect(daemon.public).is_err()
    });
    assert_eq!(
        (daemon.ask("/livez").status, daemon.ask("/readyz").status),
        (200, 503)
    );
    assert_eq!(
        daemon.metric("hookward_in_flight", &[("endpoint", "crm")]),
        1.0
    );
    upstream.release();
    assert_eq!(sender.reply().status, 200);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn whoever_was_connected_before_the_end_is_answered() {
    let upstream = Upstream::new(Act::status(200));
    let mut daemon = Daemon::relay(&upstream.url(), "").start();
    // Some have sent nothing yet, some are between two requests, some in the middle of one.
    let mut senders: Vec<_> = (0..30).map(|_| daemon.sender()).collect();
    let request = |n: usize| event(&n.to_string(), BODY.as_bytes(), "");
    for (n, sender) in senders.iter_mut().enumerate() {
        match n % 3 {
            0 => {}
            1 => assert_eq!(sender.send(&request(1000 + n)).status, 200),
            _ => sender.write(&request(n)[..40]),
        }
    }
    daemon.signal(Signal::TERM);
    for (n, sender) in senders.iter_mut().enumerate() {
        let whole = request(n);
        sender.write(if n % 3 == 2 { &whole[40..] } else { &whole });
    }
    for (n, sender) in senders.iter_mut().enumerate() {
        let reply = sender.reply();
        assert_eq!(reply.status, 200, "{n}: {reply:?}");
        assert!(sender.is_closed(), "{n}");
    }
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn variables_configure_what_they_name_and_no_more() {
    let (one, two) = (
        Upstream::new(Act::status(200)),
        Upstream::new(Act::status(201)),
    );
    let daemon = Daemon::relay(&one.url(), "")
        .env("HOOKWARD_ENDPOINTS__CRM__UPSTREAM", &two.url())
        // As Kubernetes does for a Service of that name.
        .env("HOOKWARD_SERVICE_HOST", "10.0.0.1")
        .env("HOOKWARD_SERVICE_PORT", "8080")
        .env("HOOKWARD_PORT_8080_TCP", "tcp://10.0.0.1:8080")
        .start();
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!((reply.status, one.count()), (201, 0));
    let lines = daemon.lines();
    let warnings = lines.iter().filter(|line| line["level"] == "WARN");
    assert_eq!(warnings.count(), 1, "{}", daemon.log());
    let (code, said) = Daemon::relay(&one.url(), "")
        .env("HOOKWARD_ENDPOINTS__CRM__UPSTRAEM", "canary-value")
        .refuse();
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("upstraem") && !said.contains("canary-value"),
        "{said}"
    );
}

#[test]
fn flags_alone_serve() {
    let upstream = Upstream::new(Act::status(200));
    let flags = [
        "--upstream",
        &upstream.url(),
        "--secret-env",
        "SECRET",
        "--path",
        "/hook",
        "--listen",
        "127.0.0.1:0",
    ];
    let daemon = Daemon::flags(&flags).start();
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!((reply.status, reply.outcome()), (200, "forwarded"));
    assert_eq!(
        upstream.next_message().value("hookward-endpoint"),
        "default"
    );
    assert_eq!(daemon.ask("/readyz").status, 200);
}
