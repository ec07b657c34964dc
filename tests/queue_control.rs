//! What an operator can see and change of what is on disk, with the instance running or stopped.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use rustix::{
    process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::Value;
use support::{Act, BODY, Daemon, Upstream, event, eventually};

const QUICK: &str = "[endpoints.crm.queue]\nretry = [\"20ms\"]\n";
const LATER: &str = "[endpoints.crm.queue]\nretry = [\"1h\"]\n";

fn send(daemon: &Daemon, key: &str, body: &str) -> support::Reply {
    daemon.sender().send(&event(key, body.as_bytes(), ""))
}

fn queue(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hookward"))
        .env_clear()
        .arg("queue")
        .args(args)
        .arg("--data-dir")
        .arg(dir)
        .output()
        .unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// What a command that is fine prints, line by line.
fn lines(dir: &Path, args: &[&str]) -> Vec<Value> {
    let args = [args, &["--json"]].concat();
    let (code, out, err) = said(&queue(dir, &args));
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

fn state_of(dir: &Path, id: &str) -> Value {
    lines(dir, &["show", id])[0]["state"].clone()
}

/// A daemon with three dead letters and the directory it uses.
fn with_dead(upstream: &Upstream) -> (Daemon, Vec<String>) {
    let daemon = Daemon::queue(&upstream.url(), QUICK).start();
    let bodies = [BODY, r#"{"type":"contact.created"}"#, "{}"];
    let ids = bodies.iter().enumerate().map(|(number, body)| {
        let reply = send(&daemon, &format!("k-{number}"), body);
        assert_eq!(reply.outcome(), "queued");
        reply.header("hookward-event-id").unwrap().to_owned()
    });
    let ids = ids.collect();
    let dead = [("endpoint", "crm"), ("result", "dead")];
    eventually("all are dead", || {
        daemon.metric("hookward_deliveries_total", &dead) == 3.0
    });
    let dir = daemon.data_dir();
    eventually("all are shown dead", || {
        lines(&dir, &["list", "--state", "dead"]).len() == 3
    });
    (daemon, ids)
}

#[test]
fn events_are_listed_by_what_they_are_running_or_stopped() {
    let upstream = Upstream::new(Act::status(500));
    let (daemon, ids) = with_dead(&upstream);
    let dir = daemon.data_dir();
    let look = || {
        let listed = lines(&dir, &["list"]);
        let listed_ids: Vec<_> = listed
            .iter()
            .map(|e| e["event_id"].as_str().unwrap())
            .collect();
        assert_eq!(listed_ids, ids);
        let first = &listed[0];
        assert_eq!(
            (
                &first["endpoint"],
                &first["state"],
                &first["attempts"],
                &first["last_status"]
            ),
            (&"crm".into(), &"dead".into(), &2.into(), &500.into())
        );
        let count = |args: &[&str]| lines(&dir, &[&["list"], args].concat()).len();
        assert_eq!(count(&["--type", "contact.created"]), 1);
        assert_eq!(count(&["--endpoint", "other"]), 0);
        assert_eq!(count(&["--state", "pending"]), 0);
        assert_eq!(count(&["--older-than", "1h"]), 0);
        assert_eq!(count(&["--newer-than", "1h"]), 3);
        assert_eq!(count(&["--error", "ANSWERED 500"]), 3);
        assert_eq!(count(&["--error", "timed out"]), 0);
        assert_eq!(count(&["--limit", "2"]), 2);
        let stats = lines(&dir, &["stats"]);
        assert_eq!(
            (&stats[0]["dead"], &stats[0]["pending"]),
            (&3.into(), &0.into())
        );
        let (code, text, _) = said(&queue(&dir, &["list"]));
        assert_eq!((code, text.lines().count()), (Some(0), 4), "{text}");
    };
    look();
    let stopped = daemon.end(Signal::TERM);
    look();
    drop(stopped);
}

#[test]
fn headers_and_body_are_shown_only_when_they_are_asked_for() {
    let upstream = Upstream::new(Act::status(500));
    let (daemon, ids) = with_dead(&upstream);
    let dir = daemon.data_dir();
    let (code, text, _) = said(&queue(&dir, &["show", &ids[0]]));
    assert_eq!(code, Some(0));
    assert!(
        text.contains("the upstream answered 500") && text.contains("attempt 2"),
        "{text}"
    );
    assert!(
        !text.contains("tinytalk-signature") && !text.contains("content\":\"hi"),
        "{text}"
    );
    let plain = &lines(&dir, &["show", &ids[0]])[0];
    assert!(plain["request"].is_null(), "{plain}");

    let (_, text, _) = said(&queue(&dir, &["show", &ids[0], "--headers"]));
    let signature = support::sign(support::SECRET, BODY.as_bytes());
    assert!(
        text.contains(&format!("tinytalk-signature: {signature}")),
        "{text}"
    );
    assert!(text.contains("POST /hook"), "{text}");
    assert!(!text.contains("content\":\"hi"), "{text}");
    let body = queue(&dir, &["show", &ids[0], "--body"]).stdout;
    assert!(body.ends_with(format!("\n\n{BODY}").as_bytes()));
    let shown = &lines(&dir, &["show", &ids[0], "--body"])[0];
    assert_eq!(shown["request"]["body"], BODY);
    assert!(shown["request"]["headers"].is_null(), "{shown}");
}

#[test]
fn dead_letters_are_delivered_again_one_or_all() {
    let upstream = Upstream::new(Act::status(500));
    let (daemon, ids) = with_dead(&upstream);
    let dir = daemon.data_dir();
    let before = upstream.count();
    upstream.by_default(Act::status(200));
    for _ in 0..before {
        upstream.next_message();
    }
    assert_eq!(lines(&dir, &["replay", &ids[1]])[0]["replayed"], 1);
    let message = upstream.next_message();
    assert_eq!(message.value("hookward-event-id"), ids[1]);
    assert_eq!(message.value("hookward-attempt"), "3");
    eventually("it is delivered", || state_of(&dir, &ids[1]) == "delivered");
    // Those delivered stay delivered: a replay of all is of all dead letters.
    assert_eq!(lines(&dir, &["replay", "--all"])[0]["replayed"], 2);
    let mut again = [upstream.next_message(), upstream.next_message()]
        .map(|message| message.value("hookward-event-id").to_owned());
    again.sort();
    let mut expected = [ids[0].clone(), ids[2].clone()];
    expected.sort();
    assert_eq!(again, expected);
    eventually("all are delivered", || {
        lines(&dir, &["list", "--state", "delivered"]).len() == 3
    });
}

#[test]
fn a_stopped_instances_dead_letters_are_delivered_after_its_start() {
    let upstream = Upstream::new(Act::status(500));
    let (daemon, ids) = with_dead(&upstream);
    let dir = daemon.data_dir();
    let stopped = daemon.end(Signal::TERM);
    assert_eq!(
        lines(&dir, &["replay", "--type", "message.created"])[0]["replayed"],
        1
    );
    assert_eq!(state_of(&dir, &ids[0]), "pending");
    upstream.by_default(Act::status(200));
    let _daemon = stopped.start();
    eventually("it is delivered", || state_of(&dir, &ids[0]) == "delivered");
    assert_eq!(state_of(&dir, &ids[1]), "dead");
}

#[test]
fn a_dropped_event_is_gone_and_its_key_free_unless_it_is_kept() {
    let upstream = Upstream::new(Act::status(500));
    let (daemon, ids) = with_dead(&upstream);
    let dir = daemon.data_dir();
    assert_eq!(send(&daemon, "k-0", BODY).outcome(), "duplicate");
    assert_eq!(lines(&dir, &["drop", &ids[0]])[0]["dropped"], 1);
    let (code, _, err) = said(&queue(&dir, &["show", &ids[0]]));
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains("no such event") && err.lines().count() == 1,
        "{err}"
    );
    assert_eq!(send(&daemon, "k-0", BODY).outcome(), "queued");

    assert_eq!(
        lines(&dir, &["drop", &ids[1], "--keep-key"])[0]["dropped"],
        1
    );
    let again = send(&daemon, "k-1", r#"{"type":"contact.created"}"#);
    assert_eq!(again.outcome(), "duplicate");
}

#[test]
fn a_paused_endpoint_accepts_and_holds_also_over_a_restart() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let dir = daemon.data_dir();
    assert_eq!(lines(&dir, &["pause", "crm"])[0]["paused"], true);
    for number in 0..5 {
        assert_eq!(send(&daemon, &number.to_string(), BODY).outcome(), "queued");
    }
    let daemon = daemon.end(Signal::TERM).start();
    assert_eq!(send(&daemon, "5", BODY).outcome(), "queued");
    assert_eq!(lines(&dir, &["stats"])[0]["pending"], 6);
    assert_eq!(lines(&dir, &["stats"])[0]["paused"], true);
    assert_eq!(upstream.count(), 0);
    assert_eq!(lines(&dir, &["resume", "crm"])[0]["paused"], false);
    for _ in 0..6 {
        assert_eq!(upstream.next_message().value("hookward-attempt"), "1");
    }
}

#[test]
fn a_backup_is_a_whole_store_taken_while_running() {
    let upstream = Upstream::new(Act::status(503));
    let daemon = Daemon::queue(&upstream.url(), LATER).start();
    let dir = daemon.data_dir();
    let ids: Vec<String> = (0..20)
        .map(|number| {
            let reply = send(&daemon, &number.to_string(), BODY);
            reply.header("hookward-event-id").unwrap().to_owned()
        })
        .collect();
    let restored = daemon.dir.0.join("restored");
    std::fs::create_dir(&restored).unwrap();
    let store = store_file(&dir);
    let copy = restored.join(store.file_name().unwrap());
    let to = copy.to_str().unwrap();
    assert_eq!(lines(&dir, &["backup", to])[0]["backup"], to);
    let (code, _, err) = said(&queue(&dir, &["backup", to]));
    assert_eq!((code, err.lines().count()), (Some(1), 1), "{err}");
    let listed = lines(&restored, &["list"]);
    let listed: Vec<_> = listed
        .iter()
        .map(|e| e["event_id"].as_str().unwrap())
        .collect();
    assert_eq!(listed, ids);
    let shown = &lines(&restored, &["show", &ids[0], "--body"])[0];
    assert_eq!(shown["request"]["body"], BODY);
}

/// The store's one large file.
fn store_file(dir: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut databases = files.filter(|path| {
        std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3\0"))
    });
    databases.next().unwrap()
}

#[test]
fn the_socket_is_its_owners_and_goes_with_the_instance() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let socket = daemon.data_dir().join("control.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let setup = daemon.end(Signal::TERM);
    assert!(!socket.exists());
    // What a crash leaves is replaced.
    let daemon = setup.start().end(Signal::KILL).start();
    assert!(socket.exists());
    assert_eq!(lines(&daemon.data_dir(), &["list"]), Vec::<Value>::new());
}

#[test]
fn what_cannot_be_done_is_told_in_one_line() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let dir = daemon.data_dir();
    let nowhere = dir.join("nowhere");
    for (dir, args, code, part) in [
        (&dir, &["replay"][..], 2, "which events?"),
        (&dir, &["drop"], 2, "which events?"),
        (&dir, &["show", "nonsense"], 2, "event id: expected"),
        (&dir, &["replay", "nonsense"], 2, "event id: expected"),
        (&dir, &["pause", "crn"], 2, "no such endpoint"),
        (&dir, &["pause", "No"], 2, "endpoint: expected"),
        (&dir, &["list", "--limit", "0"], 2, "--limit"),
        (
            &dir,
            &["show", "01980000-0000-7000-8000-000000000000"],
            1,
            "no such event",
        ),
        (
            &dir,
            &["replay", "01980000-0000-7000-8000-000000000000"],
            1,
            "nothing replayed",
        ),
        (
            &dir,
            &["reverify", "--endpoint", "other"],
            2,
            "no such endpoint",
        ),
        (&nowhere, &["list"], 2, "no such directory"),
    ] {
        let (found, _, err) = said(&queue(dir, args));
        assert_eq!(found, Some(code), "{args:?}: {err}");
        assert!(
            err.contains(part) && err.lines().count() == 1,
            "{args:?}: {err}"
        );
    }
    let without = Command::new(env!("CARGO_BIN_EXE_hookward"))
        .env_clear()
        .args(["queue", "list"])
        .output()
        .unwrap();
    let (code, _, err) = said(&without);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("--data-dir"), "{err}");
}

#[test]
fn a_second_instance_on_the_same_directory_is_refused() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let place = daemon.data_dir().display().to_string();
    let second =
        Daemon::relay(&upstream.url(), "mode = \"queue\"").env("HOOKWARD_DATA_DIR", &place);
    let (code, said) = second.refuse();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("in use by another hookward"), "{said}");
    assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
    upstream.next_message();
}

#[test]
fn what_is_quarantined_is_let_through_when_the_secret_is_right() {
    let upstream = Upstream::new(Act::status(200));
    let more = "quarantine = \"1MiB\"";
    let setup = Daemon::queue(&upstream.url(), more).replace("\"SECRET\"", "\"OTHER\"");
    let daemon = setup.env("OTHER", "not-what-the-sender-has-at-all").start();
    let dir = daemon.data_dir();
    let config = daemon.dir.0.join("hookward.toml");
    for number in 0..3 {
        let reply = send(&daemon, &number.to_string(), BODY);
        assert_eq!(reply.reason(), "signature_mismatch");
    }
    // A retry that was refused as well is the same event.
    assert_eq!(send(&daemon, "0", BODY).reason(), "signature_mismatch");
    let held = || lines(&dir, &["stats"])[0]["quarantined"].clone();
    eventually("they are kept", || held() == 4);
    let none = lines(&dir, &["reverify", "--endpoint", "crm"]);
    assert_eq!(
        (&none[0]["released"], &none[0]["unmatched"]),
        (&0.into(), &4.into())
    );

    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"OTHER\"", "\"SECRET\"")).unwrap();
    daemon.wait_for_log("configuration reloaded");
    let some = lines(&dir, &["reverify", "--endpoint", "crm"]);
    assert_eq!(
        (
            &some[0]["released"],
            &some[0]["duplicates"],
            &some[0]["unmatched"]
        ),
        (&3.into(), &1.into(), &0.into())
    );
    for _ in 0..3 {
        let message = upstream.next_message();
        assert_eq!(message.body, BODY.as_bytes());
        assert_eq!(message.value("hookward-verified"), "true");
    }
    eventually("none is left", || held() == 0);
    assert_eq!(send(&daemon, "1", BODY).outcome(), "duplicate");
}

#[test]
fn the_quarantine_keeps_within_its_bound() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "quarantine = \"8KiB\"").start();
    let dir = daemon.data_dir();
    let forged = |number: usize| {
        let request = event(&number.to_string(), &[b'x'; 1000], "");
        [&request[..request.len() - 1], b"y"].concat()
    };
    for number in 0..40 {
        let reply = daemon.sender().send(&forged(number));
        assert_eq!(reply.reason(), "signature_mismatch");
    }
    let figures = || {
        let stats = &lines(&dir, &["stats"])[0];
        let number = |key: &str| stats[key].as_u64().unwrap();
        (number("quarantined"), number("quarantined_bytes"))
    };
    eventually("some are kept", || figures().0 >= 4);
    let (count, bytes) = figures();
    assert!(count <= 8 && bytes <= 8 << 10, "{count} in {bytes} bytes");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_reused_key_is_kept_in_the_quarantine_and_stays_there() {
    let upstream = Upstream::new(Act::status(200));
    let more = "quarantine = \"1MiB\"\ndedup = { key_reuse = \"reject\" }";
    let daemon = Daemon::queue(&upstream.url(), more).start();
    let dir = daemon.data_dir();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
    assert_eq!(send(&daemon, "k", "{}").reason(), "key_reuse");
    let held = || lines(&dir, &["stats"])[0]["quarantined"].clone();
    eventually("it is kept", || held() == 1);
    let said = lines(&dir, &["reverify", "--endpoint", "crm"]);
    assert_eq!(
        (&said[0]["released"], &said[0]["unmatched"]),
        (&0.into(), &1.into())
    );
    upstream.next_message();
    assert_eq!(upstream.count(), 1);
}

/// What a command prints where its output is a terminal.
fn at_a_terminal(dir: &Path, args: &[&str]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let end = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_hookward"))
        .env_clear()
        .arg("queue")
        .args(args)
        .arg("--data-dir")
        .arg(dir)
        .stdout(end)
        .spawn()
        .unwrap();
    let mut printed = Vec::new();
    // Without another end open, reading fails where a pipe would end.
    let _ = std::fs::File::from(terminal).read_to_end(&mut printed);
    assert!(child.wait().unwrap().success(), "{args:?}");
    String::from_utf8(printed).unwrap()
}

#[test]
fn what_a_sender_wrote_gives_a_terminal_no_orders() {
    let upstream = Upstream::new(Act::status(503));
    let daemon = Daemon::queue(&upstream.url(), LATER).start();
    let dir = daemon.data_dir();
    let body = "{\"type\":\"a\u{202e}b\",\n\t\"x\":\"\u{1b}[2J\u{9b}m\u{2066}caf\u{e9}\"}";
    let more = "X-Name: a\u{9b}b\u{202e}c\r\n";
    let reply = daemon.sender().send(&event("k", body.as_bytes(), more));
    assert_eq!(reply.outcome(), "queued");
    let id = reply.header("hookward-event-id").unwrap();
    let kind = "{\"type\":\"a\u{202e}b\"}";
    assert_eq!(send(&daemon, "other", kind).outcome(), "queued");
    let obeyed = |c: char| {
        (c.is_control() && !matches!(c, '\r' | '\n' | '\t'))
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    for args in [
        &["list"][..],
        &["show", id],
        &["show", id, "--headers"],
        &["show", id, "--headers", "--body"],
    ] {
        let printed = at_a_terminal(&dir, args);
        assert!(!printed.contains(obeyed), "{args:?}: {printed:?}");
    }
    assert!(at_a_terminal(&dir, &["list"]).contains("a\\u{202e}b"));
    let printed = at_a_terminal(&dir, &["show", id, "--headers", "--body"]);
    let shown = "\"x\":\"\\u{1b}[2J\\u{9b}m\\u{2066}caf\u{e9}\"}";
    assert!(printed.ends_with(shown), "{printed:?}");
    assert!(
        printed.contains("x-name: a\\u{9b}b\\u{202e}c"),
        "{printed:?}"
    );
    // Whoever reads it from a file or a pipe gets what was sent.
    let piped = queue(&dir, &["show", id, "--body"]).stdout;
    assert!(piped.ends_with(body.as_bytes()), "{piped:?}");
}

#[test]
fn the_length_is_shown_as_it_was_announced() {
    let upstream = Upstream::new(Act::status(503));
    let daemon = Daemon::queue(&upstream.url(), LATER).start();
    let reply = send(&daemon, "k", BODY);
    let id = reply.header("hookward-event-id").unwrap();
    let (_, text, _) = said(&queue(&daemon.data_dir(), &["show", id, "--headers"]));
    let line = format!("\ncontent-length: {}\n", BODY.len());
    assert!(text.contains(&line), "{text}");
}

#[test]
fn want_of_descriptors_ends_nothing() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let dir = daemon.data_dir();
    assert_eq!(send(&daemon, "before", BODY).outcome(), "queued");
    upstream.next_message();
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let limited = |current| Rlimit {
        current: Some(current),
        ..getrlimit(Resource::Nofile)
    };
    // Below what it holds already: whatever is opened next is refused.
    let before = prlimit(pid, Resource::Nofile, limited(8)).unwrap();
    let waiting = std::os::unix::net::UnixStream::connect(dir.join("control.sock")).unwrap();
    daemon.wait_for_log("cannot accept an order");
    prlimit(pid, Resource::Nofile, before).unwrap();
    drop(waiting);
    assert_eq!(lines(&dir, &["stats"])[0]["dead"], 0);
    assert_eq!(send(&daemon, "after", BODY).outcome(), "queued");
}

#[test]
fn a_replayed_dead_letter_begins_its_schedule_anew() {
    let upstream = Upstream::new(Act::status(500));
    let (daemon, ids) = with_dead(&upstream);
    let dir = daemon.data_dir();
    for _ in 0..upstream.count() {
        upstream.next_message();
    }
    assert_eq!(lines(&dir, &["replay", &ids[0]])[0]["replayed"], 1);
    for attempt in ["3", "4"] {
        assert_eq!(upstream.next_message().value("hookward-attempt"), attempt);
    }
    let dead = [("endpoint", "crm"), ("result", "dead")];
    eventually("it is dead again", || {
        daemon.metric("hookward_deliveries_total", &dead) == 4.0
    });
    assert_eq!(upstream.count(), 8);
}

#[test]
fn a_genuine_request_with_another_bodys_key_stays_in_the_quarantine() {
    for (policy, released, left) in [("duplicate", 0, 1), ("reject", 0, 1), ("forward", 1, 0)] {
        let upstream = Upstream::new(Act::status(200));
        let more = format!(
            "quarantine = \"1MiB\"\ndedup = {{ key_reuse = \"{policy}\" }}\n\
             secrets = [{{ name = \"a\", env = \"SECRET\" }}, {{ name = \"b\", file = \"FILE\" }}]"
        );
        let setup = Daemon::queue(&upstream.url(), &more);
        let file = setup.dir().join("second");
        std::fs::write(&file, "not-what-the-sender-has-at-all").unwrap();
        let daemon = setup.replace("FILE", file.to_str().unwrap()).start();
        let dir = daemon.data_dir();
        assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
        let next = "the-next-secret-of-the-sender-32";
        let other = String::from_utf8(event("k", b"{}", "")).unwrap().replace(
            &support::sign(support::SECRET, b"{}"),
            &support::sign(next, b"{}"),
        );
        let reply = daemon.sender().send(other.as_bytes());
        assert_eq!(reply.reason(), "signature_mismatch");
        let held = || lines(&dir, &["stats"])[0]["quarantined"].clone();
        eventually("it is kept", || held() == 1);
        std::fs::write(&file, next).unwrap();
        daemon.signal(Signal::HUP);
        daemon.wait_for_log("configuration reloaded");
        let said = lines(&dir, &["reverify", "--endpoint", "crm"]);
        assert_eq!(
            (&said[0]["released"], &said[0]["key_reused"]),
            (&released.into(), &(1 - released).into()),
            "{policy}: {said:?}"
        );
        eventually("the rest is left", || held() == left);
        let reused = daemon.metric("hookward_key_reuse_total", &[("endpoint", "crm")]);
        assert_eq!(reused, 1.0, "{policy}");
        daemon.wait_for_log("idempotency key reused with another body");
    }
}

#[test]
fn an_event_whose_bytes_are_damaged_is_counted_among_the_dead() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let dir = daemon.data_dir();
    lines(&dir, &["pause", "crm"]);
    assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
    let stopped = daemon.end(Signal::TERM);
    let file = store_file(&dir);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes
        .windows(BODY.len())
        .position(|part| part == BODY.as_bytes())
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let daemon = stopped.start();
    lines(&dir, &["resume", "crm"]);
    for series in [
        "hookward_deliveries_total",
        "hookward_queue_corrupt_records_total",
    ] {
        eventually("it is counted", || {
            let labels: &[_] = match series {
                "hookward_deliveries_total" => &[("endpoint", "crm"), ("result", "dead")],
                _ => &[("endpoint", "crm")],
            };
            daemon.metric(series, labels) == 1.0
        });
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn only_an_endpoint_that_is_known_is_paused_also_of_a_stopped_instance() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::queue(&upstream.url(), "").start();
    let dir = daemon.data_dir();
    assert_eq!(send(&daemon, "k", BODY).outcome(), "queued");
    let stopped = daemon.end(Signal::TERM);
    let (code, _, err) = said(&queue(&dir, &["pause", "crn"]));
    assert_eq!(code, Some(2), "{err}");
    assert_eq!(lines(&dir, &["stats"]).len(), 1);
    assert_eq!(lines(&dir, &["pause", "crm"])[0]["paused"], true);
    drop(stopped);
}

#[test]
fn a_data_dir_that_cannot_be_one_is_a_fault_of_the_configuration() {
    let upstream = Upstream::new(Act::status(200));
    let dir = support::Dir::new();
    let file = dir.write("file", "");
    let long = format!("/tmp/{}", "x".repeat(120));
    for (place, part) in [
        (file.to_str().unwrap(), "expected a directory;"),
        ("", "such as /var/lib/hookward"),
        (&long, "at most 94 bytes"),
    ] {
        let setup = Daemon::with(
            "data_dir = \"PLACE\"",
            &Daemon::endpoint("crm", "/hook", &upstream.url(), ""),
        );
        let (code, said) = setup.replace("PLACE", place).refuse();
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("data_dir: ") && said.contains(part), "{said}");
    }
}

#[test]
fn a_directory_without_a_store_stays_without_one() {
    let upstream = Upstream::new(Act::status(200));
    let setup = Daemon::queue(&upstream.url(), "");
    let dir = setup.data_dir();
    std::fs::create_dir(&dir).unwrap();
    let id = "0197c2f0-0000-7000-8000-000000000000";
    let commands: [&[&str]; 7] = [
        &["stats"],
        &["list"],
        &["show", id],
        &["replay", "--all"],
        &["drop", id],
        &["pause", "crm"],
        &["backup", "/nowhere/copy"],
    ];
    for command in commands {
        let (code, out, err) = said(&queue(&dir, command));
        assert_eq!((code, out.as_str()), (Some(1), ""), "{command:?}: {err}");
        assert!(err.contains("no events are kept here"), "{err}");
        assert!(err.contains(dir.to_str().unwrap()), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "{command:?}");
    }
    let _daemon = setup.start();
    assert_eq!(said(&queue(&dir, &["stats"])).0, Some(0));
}

#[test]
fn a_data_dir_that_others_can_write_is_warned_about() {
    let upstream = Upstream::new(Act::status(200));
    let setup = Daemon::queue(&upstream.url(), "");
    let dir = setup.data_dir();
    let shut = |mode: u32, path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    std::fs::create_dir(&dir).unwrap();
    shut(0o777, &dir);
    let daemon = setup.start();
    let remedy = format!("chmod go-w {}", dir.display());
    daemon.wait_for_log(&remedy);
    shut(0o644, &dir.join("queue.sqlite3"));
    let check = || {
        let output = Command::new(env!("CARGO_BIN_EXE_hookward"))
            .env_clear()
            .env("SECRET", support::SECRET)
            .env("HOOKWARD_DATA_DIR", &dir)
            .args(["check", "--config"])
            .arg(dir.with_file_name("hookward.toml"))
            .output()
            .unwrap();
        let (code, _, err) = said(&output);
        assert_eq!(code, Some(0), "{err}");
        err
    };
    let warnings = check();
    assert_eq!(warnings.lines().count(), 2, "{warnings}");
    assert!(
        warnings.contains(&remedy) && warnings.contains("mode 0777"),
        "{warnings}"
    );
    assert!(
        warnings.contains("chmod 600 ") && warnings.contains("mode 0644"),
        "{warnings}"
    );
    // As a service manager makes it.
    shut(0o755, &dir);
    shut(0o600, &dir.join("queue.sqlite3"));
    assert_eq!(check(), "");
}

#[test]
fn an_event_whose_row_is_damaged_is_named_and_the_instance_goes_on() {
    let upstream = Upstream::new(Act::status(500));
    let daemon = Daemon::queue(&upstream.url(), LATER).start();
    let dir = daemon.data_dir();
    let ids = ["a", "b"].map(|key| {
        let reply = send(&daemon, key, BODY);
        reply.header("hookward-event-id").unwrap().to_owned()
    });
    let later = [("endpoint", "crm"), ("result", "retry")];
    eventually("both were tried", || {
        daemon.metric("hookward_deliveries_total", &later) == 2.0
    });
    let store = rusqlite::Connection::open(store_file(&dir)).unwrap();
    store
        .execute_batch(
            "PRAGMA ignore_check_constraints = 1; UPDATE event SET attempts = -1 WHERE id = 1",
        )
        .unwrap();
    drop(store);
    let (code, _, err) = said(&queue(&dir, &["show", &ids[0]]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("damaged") && err.contains(&ids[0]), "{err}");
    assert_eq!(state_of(&dir, &ids[1]), "pending");
    assert_eq!(said(&queue(&dir, &["drop", &ids[0]])).0, Some(0));
    assert_eq!(send(&daemon, "c", BODY).outcome(), "queued");
}
