//! What a changed configuration does to a running daemon.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    fs::OpenOptions,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Act, BODY, Daemon, SECRET, Upstream, event, eventually};

const FAILURES: &str = "hookward_config_reload_failures_total";

fn rewrite(daemon: &Daemon, from: &str, to: &str) {
    let path = daemon.dir.0.join("hookward.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
}

#[test]
fn a_file_that_comes_after_the_configuration_that_names_it_is_noticed() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "")
        .env("SECRET", "another-secret-of-ours")
        .start();
    let late = daemon.dir.0.join("late");
    rewrite(
        &daemon,
        "env = \"SECRET\"",
        &format!("file = \"{}\"", late.display()),
    );
    daemon.wait_for_log("configuration refused");
    std::fs::write(&late, SECRET).unwrap();
    daemon.wait_for_log("configuration reloaded");
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(reply.status, 200);
    // It is watched on, as any other.
    std::fs::write(&late, "yet-another-secret-of-ours").unwrap();
    eventually("the next one is in force", || {
        let reply = daemon.sender().send(&event("l", BODY.as_bytes(), ""));
        reply.status == 401
    });
}

#[test]
fn a_bad_file_is_one_failure_however_it_is_noticed() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    rewrite(&daemon, "[endpoints.crm]", "[endpoints.crm]\nodd = 1");
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("configuration refused");
    // Long enough for the file to be looked at three times.
    let end = Instant::now() + Duration::from_millis(1600);
    while Instant::now() < end {
        assert_eq!(daemon.metric(FAILURES, &[]), 1.0);
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn a_change_of_who_may_read_a_file_is_noticed() {
    use std::os::unix::fs::PermissionsExt;
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let path = daemon.dir.0.join("hookward.toml");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode ^ 0o040)).unwrap();
    daemon.wait_for_log("configuration reloaded");
}

/// The secret's file is a pipe: whoever reads it waits for the test.
#[test]
fn a_signal_that_comes_before_it_is_ready_is_heard_when_it_is() {
    let upstream = Upstream::new(Act::status(200));
    let dir = support::Dir::new();
    let pipe = dir.0.join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let secrets = format!("secrets = [{{ file = \"{}\" }}]", pipe.display());
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), &secrets);
    let listen = "listen = [\"127.0.0.1:0\"]";
    let config = format!("[server]\n{listen}\n[admin]\n{listen}\n{endpoint}");
    let file = dir.write("hookward.toml", &config);
    let mut child = Command::new(env!("CARGO_BIN_EXE_hookward"))
        .args(["serve", "--config"])
        .arg(file)
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // Opens when the daemon has: in the middle of its start.
    let give = |act: &dyn Fn()| {
        let mut writer = OpenOptions::new().write(true).open(&pipe).unwrap();
        act();
        writer.write_all(SECRET.as_bytes()).unwrap();
    };
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    give(&|| kill_process(pid, Signal::HUP).unwrap());
    assert!(lines.any(|line| line.unwrap().contains("\"ready\"")));
    give(&|| ());
    assert!(lines.any(|line| line.unwrap().contains("\"why\":\"signal\"")));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_is_logged_changes_while_it_runs_and_how_it_looks_does_not() {
    let upstream = Upstream::new(Act::status(200));
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let log = "[log]\nlevel = \"info\"\naccess = false\n".to_owned();
    let daemon = Daemon::with("", &(log + &endpoint)).start();
    let send = |key: &str| {
        let reply = daemon.sender().send(&event(key, BODY.as_bytes(), ""));
        assert_eq!(reply.status, 200);
        reply.header("hookward-event-id").unwrap().to_owned()
    };
    let unseen = send("a");
    rewrite(&daemon, "access = false", "access = true");
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("configuration reloaded");
    let seen = send("b");
    daemon.wait_for_log(&seen);
    assert!(!daemon.log().contains(&unseen));
    rewrite(&daemon, "level = \"info\"", "level = \"error\"");
    daemon.signal(Signal::HUP);
    eventually("it is reloaded", || {
        daemon.metric("hookward_config_reloads_total", &[]) == 2.0
    });
    let unseen = send("c");
    rewrite(
        &daemon,
        "level = \"error\"",
        "level = \"error\"\nformat = \"text\"",
    );
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("log.format: needs a restart to change");
    assert!(!daemon.log().contains(&unseen));
}
