//! What a configuration may say, and what is said about one that is wrong.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::process::{Command, Output};

use support::{Act, BODY, Daemon, Dir, SECRET, Upstream, event};

fn hookward(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hookward"))
        .args(arguments)
        .env_clear()
        .env("SECRET", SECRET)
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

/// The exit code of `check` and what it says on stderr.
fn check(config: &str) -> (Option<i32>, String) {
    let dir = Dir::new();
    let file = dir.write("checked.toml", config);
    let output = hookward(&["check", "--config", file.to_str().unwrap()], &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

fn endpoint(upstream: &str, more: &str) -> String {
    Daemon::endpoint("crm", "/hook", upstream, more)
}

#[test]
fn an_upstream_that_cannot_be_meant_is_refused() {
    for (url, right) in [
        (
            "http://127.0.0.1:99999/",
            "expected a port between 1 and 65535",
        ),
        ("http://127.0.0.1:0/", "expected a port between 1 and 65535"),
        ("http://127.0.0.1:/", "expected a port between 1 and 65535"),
        ("http://[::1]:70000/", "expected a port between 1 and 65535"),
        ("http://127.0.0.1/a#b", "expected a URL without a fragment"),
        (
            "unix:/run/app.sock:/a#b",
            "expected a URL without a fragment",
        ),
    ] {
        let (code, said) = check(&endpoint(url, ""));
        assert_eq!(code, Some(2), "{url}");
        assert!(said.contains(right), "{url}: {said}");
        assert!(said.contains("endpoints.crm.upstream: "), "{url}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    for url in ["http://[::1]/", "http://[::1]:80/", "https://a.test:65535"] {
        let (code, said) = check(&endpoint(url, ""));
        assert_eq!(code, Some(0), "{url}: {said}");
    }
}

#[test]
fn what_would_stop_the_start_fails_the_check_with_its_key() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let options = |lines: &str| format!("[endpoints.crm.upstream_options]\n{lines}\n");
    let mixed =
        format!("client_cert = \"{fixtures}/client.pem\"\nclient_key = \"{fixtures}/server.key\"");
    let good = mixed.replace("server.key", "client.key");
    for (url, lines, key) in [
        (
            "https://a.test/",
            mixed.as_str(),
            "upstream_options.client_key: ",
        ),
        ("https://a_b..test/", "", "upstream: "),
    ] {
        let (code, said) = check(&endpoint(url, &options(lines)));
        assert_eq!(code, Some(2), "{said}");
        let place = format!("checked.toml: endpoints.crm.{key}expected ");
        assert!(said.contains(&place), "{place} in {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let (code, start) = Daemon::relay(url, &options(lines)).refuse();
        assert_eq!(code, 2);
        assert_eq!(
            start.split("endpoints").last(),
            said.split("endpoints").last(),
            "serve says the same"
        );
    }
    assert_eq!(
        check(&endpoint("https://a.test/", &options(&good))).0,
        Some(0)
    );
}

#[test]
fn a_moment_may_have_an_offset() {
    let upstream = "http://127.0.0.1:1/";
    for moment in [
        "\"2027-01-01T00:00:00+01:00\"",
        "2027-01-01T00:00:00+01:00",
        "2026-12-31 15:00:00-08:00",
        "\"2026-12-31T23:00:00Z\"",
        "2026-12-31T23:00:00.000Z",
    ] {
        let secrets = format!("secrets = [{{ env = \"SECRET\", not_after = {moment} }}]");
        let more = format!("{secrets}\nenforce = false\nenforce_from = {moment}\n");
        let dir = Dir::new();
        let file = dir.write("checked.toml", &endpoint(upstream, &more));
        let output = hookward(&["check", "--config", file.to_str().unwrap()], &[]);
        let shown = String::from_utf8(output.stdout).unwrap();
        let same = shown.matches("\"2026-12-31T23:00:00Z\"").count();
        assert_eq!(same, 2, "{moment}: {shown}");
    }
    for moment in ["\"2027-01-01\"", "2027-01-01T00:00:00", "\"+01:00\"", "7"] {
        let more = format!("enforce = false\nenforce_from = {moment}\n");
        let (code, said) = check(&endpoint(upstream, &more));
        assert_eq!(code, Some(2), "{moment}");
        assert!(said.contains("endpoints.crm.enforce_from"), "{said}");
    }
}

#[test]
fn a_variable_is_a_text_where_a_text_is_wanted() {
    let upstream = Upstream::new(Act::status(200));
    let headers = "HOOKWARD_ENDPOINTS__CRM__UPSTREAM_OPTIONS__HEADERS__";
    let daemon = Daemon::relay(&upstream.url(), "")
        .env(&format!("{headers}KEY"), "007")
        .env(&format!("{headers}PLUS"), "+5")
        .env(&format!("{headers}LIST"), "[1, 2]")
        .env(&format!("{headers}FLAG"), "true")
        .env(&format!("{headers}FLOAT"), "1.50")
        .env("HOOKWARD_ENDPOINTS__CRM__SOURCE", "00")
        .env("HOOKWARD_LIMITS__MAX_CONNECTIONS", "77")
        .env("HOOKWARD_ENDPOINTS__CRM__EVENTS", "[\"message.created\"]")
        .start();
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(reply.status, 200);
    let message = upstream.next_message();
    for (name, value) in [
        ("key", "007"),
        ("plus", "+5"),
        ("list", "[1, 2]"),
        ("flag", "true"),
        ("float", "1.50"),
    ] {
        assert_eq!(message.value(name), value);
    }
}
