//! Endpoints and live requests, from a terminal.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use support::{Act, BODY, Daemon, NOBODY, SECRET, TOKEN, Upstream, event};

fn hookward(daemon: &Daemon, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookward"));
    let api = format!("http://{}", daemon.admin);
    command
        .env_clear()
        .env("OPERATOR", TOKEN)
        .env("SECRET", SECRET)
        .args(args)
        .args(["--api", &api, "--token-env", "OPERATOR"]);
    command
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn run(daemon: &Daemon, args: &[&str]) -> (Option<i32>, String, String) {
    said(&hookward(daemon, args).output().unwrap())
}

fn fine(daemon: &Daemon, args: &[&str]) -> String {
    let (code, out, err) = run(daemon, args);
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    out
}

#[test]
fn an_endpoint_is_made_changed_tried_and_removed() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let url = upstream.url();
    let create = [
        "endpoints",
        "create",
        "shop",
        "--path",
        "/shop",
        "--upstream",
        &url,
    ];
    let text = fine(&daemon, &create);
    assert!(
        text.contains("shop at /shop") && text.contains("secret main"),
        "{text}"
    );
    let text = fine(&daemon, &["endpoints", "test", "shop"]);
    assert_eq!(
        text.lines()
            .filter(|line| line.contains("200 forwarded"))
            .count(),
        5,
        "{text}"
    );

    let set = [
        "--source",
        "Zapier",
        "--event",
        "contact.created",
        "--secret-env",
        "SECRET",
    ];
    fine(&daemon, &[&["endpoints", "set", "shop"][..], &set].concat());
    let text = fine(&daemon, &["endpoints", "test", "shop", "message.created"]);
    assert!(text.contains("200 filtered"), "{text}");
    fine(&daemon, &["endpoints", "set", "shop", "--off"]);
    let (code, _, err) = run(&daemon, &["endpoints", "test", "shop", "contact.created"]);
    assert_eq!(code, Some(1), "{err}");
    let listed = fine(&daemon, &["endpoints", "list", "--json"]);
    let shop: Value = serde_json::from_str(listed.lines().nth(1).unwrap()).unwrap();
    assert_eq!(
        (&shop["active"], &shop["source"]),
        (&false.into(), &"Zapier".into())
    );

    let exported = fine(&daemon, &["endpoints", "export"]);
    assert!(exported.contains("[endpoints.shop]"), "{exported}");
    let (code, _, err) = run(&daemon, &["endpoints", "remove", "shop"]);
    assert_eq!(
        (code, err.contains("made by Zapier")),
        (Some(1), true),
        "{err}"
    );
    fine(&daemon, &["endpoints", "remove", "shop", "--yes"]);
    assert_eq!(fine(&daemon, &["endpoints", "list"]).lines().count(), 1);
}

#[test]
fn what_is_wrong_is_said_by_its_key_and_is_a_usage_error() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let create = [
        "endpoints",
        "create",
        "shop",
        "--path",
        "shop",
        "--upstream",
        "ftp://x",
    ];
    let (code, _, err) = run(&daemon, &create);
    assert_eq!(code, Some(2), "{err}");
    assert!(
        err.contains("path: expected") && err.contains("upstream: expected"),
        "{err}"
    );
    let (code, _, err) = run(&daemon, &["endpoints", "remove", "crm"]);
    assert_eq!(
        (code, err.contains("stands in the configuration")),
        (Some(1), true),
        "{err}"
    );
    assert_eq!(run(&daemon, &["endpoints", "set", "crm"]).0, Some(2));
}

#[test]
fn the_configuration_says_where_the_api_is_and_what_opens_it() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let file = daemon.dir.write(
        "terminal.toml",
        &format!(
            "[admin]\nlisten = [\"{}\"]\ntoken = {{ env = \"OPERATOR\" }}\n\
             [endpoints.crm]\nsecrets = [{{ env = \"NOT_SET_HERE\" }}]\n",
            daemon.admin
        ),
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookward"));
    command
        .env_clear()
        .args(["endpoints", "list", "--config"])
        .arg(&file);
    let (code, out, err) = said(&command.env("OPERATOR", TOKEN).output().unwrap());
    assert_eq!((code, out.contains("crm")), (Some(0), true), "{err}");
    let (code, _, err) = said(
        &command
            .env("OPERATOR", "another-token-entirely")
            .output()
            .unwrap(),
    );
    assert_eq!(
        (code, err.contains("bearer token")),
        (Some(1), true),
        "{err}"
    );
    let (code, _, err) = said(&command.env_remove("OPERATOR").output().unwrap());
    assert_eq!(
        (code, err.contains("admin.token")),
        (Some(2), true),
        "{err}"
    );
}

#[test]
fn requests_are_told_as_they_come_and_refusals_explained() {
    let upstream = Upstream::new(Act::status(200));
    let setup = Daemon::relay(&upstream.url(), "").operated();
    let daemon = setup.env("HOOKWARD_ADMIN__CAPTURE", "{events=100}").start();
    let mut child = hookward(&daemon, &["tail", "--why", "--count", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever is not there yet sees nothing: it is sent until something is seen.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen = std::sync::atomic::AtomicBool::new(false);
    let first = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let line = lines.next().unwrap().unwrap();
            seen.store(true, std::sync::atomic::Ordering::SeqCst);
            line
        });
        let mut unsigned = event("", BODY.as_bytes(), "");
        unsigned = String::from_utf8(unsigned)
            .unwrap()
            .replace("TinyTalk-Signature", "X-Else")
            .into_bytes();
        while !seen.load(std::sync::atomic::Ordering::SeqCst) {
            daemon.sender().send(&unsigned);
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
        reader.join().unwrap()
    });
    assert!(
        first.contains("signature_missing") && first.contains("rejected"),
        "{first}"
    );
    let why: Vec<_> = lines.by_ref().take(2).map(Result::unwrap).collect();
    assert!(
        why[1].contains("There is no tinytalk-signature header"),
        "{why:?}"
    );
    daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    drop(lines);
    child.wait().unwrap();
}
