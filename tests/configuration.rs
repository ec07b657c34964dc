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

#[test]
fn one_mistake_is_one_line() {
    let upstream = "http://127.0.0.1:1/";
    let secret = |more: &str| {
        endpoint(
            upstream,
            &format!("secrets = [{{ env = \"SECRET\"{more} }}]"),
        )
    };
    let listen = "[server]\nlisten = [\"nowhere\"]\n".to_owned() + &endpoint(upstream, "");
    let nameless = "secrets = [{ env = \"SECRET\" }, { name = \"b\", env = \"SECRET\" }]";
    for (config, said) in [
        (
            secret(", not_after = \"soon\""),
            "secrets[0].not_after: expected a moment",
        ),
        (
            endpoint(upstream, nameless),
            "secrets[0].name: expected a name",
        ),
        (listen, "server.listen[0]: expected an address"),
        (
            endpoint(upstream, "events = [\"\"]"),
            "events[0]: expected an event type",
        ),
        (
            endpoint(upstream, "events = []"),
            "events: expected at least one",
        ),
        (
            endpoint(upstream, "").replace("/hook", "/a/../b"),
            "path: expected a path that starts with /",
        ),
        (
            endpoint(upstream, "secrets = [{ file = \"/no/such\" }]"),
            "cannot be read: entity not found; create it, or name another",
        ),
    ] {
        let (code, all) = check(&config);
        assert_eq!(code, Some(2), "{config}");
        assert!(all.contains(said), "{said:?} in {all}");
        assert_eq!(all.lines().count(), 1, "{all}");
    }
}

#[test]
fn a_variable_is_named_as_it_was_set() {
    let upstream = "http://127.0.0.1:1/";
    let dir = Dir::new();
    let file = dir.write("checked.toml", &endpoint(upstream, ""));
    let check = ["check", "--config", file.to_str().unwrap()];
    let said = |name: &str, value: &str| {
        let output = hookward(&check, &[(name, value)]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        String::from_utf8(output.stderr).unwrap()
    };
    let unknown = said("HOOKWARD_FOO__BAR", "1");
    assert!(unknown.contains("HOOKWARD_FOO__BAR: foo"), "{unknown}");
    let wrong = said("HOOKWARD_LIMITS__MAX_BODY", "much");
    assert!(
        wrong.contains("HOOKWARD_LIMITS__MAX_BODY: limits.max_body"),
        "{wrong}"
    );
    let newline = said("SECRET", "\n");
    assert!(
        newline.contains("secrets[0].env: the variable named here is empty"),
        "{newline}"
    );
}

#[test]
fn a_variable_that_is_no_text_is_ignored_with_a_warning() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = Dir::new();
    let file = dir.write("checked.toml", &endpoint("http://127.0.0.1:1/", ""));
    let output = Command::new(env!("CARGO_BIN_EXE_hookward"))
        .args(["check", "--config"])
        .arg(file)
        .env_clear()
        .env("SECRET", SECRET)
        .env("HOOKWARD_LOG__LEVEL", std::ffi::OsStr::from_bytes(b"\xff"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("not UTF-8 text: HOOKWARD_LOG__LEVEL"),
        "{said}"
    );
}

#[test]
fn an_empty_name_of_a_file_is_none() {
    let flags = [
        "check",
        "--upstream",
        "http://127.0.0.1:1/",
        "--secret-env",
        "SECRET",
    ];
    let output = hookward(&flags, &[("HOOKWARD_CONFIG", "")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = hookward(&flags, &[("HOOKWARD_CONFIG", "/no/such.toml")]);
    let said = String::from_utf8(output.stderr).unwrap();
    let right = "/no/such.toml: cannot be read: entity not found; create it, or name another";
    assert!(said.contains(right), "{said}");
}

#[test]
fn a_wrong_usage_is_said_in_one_line_with_what_helps() {
    for (arguments, part) in [
        (&["serve", "--bogus"][..], "'--bogus'"),
        (&["send"], "--to <URL>"),
        (
            &[
                "send",
                "message.created",
                "--to",
                "http://127.0.0.1:1/",
                "--secret-env",
                "SECRET",
                "--repeat",
                "0",
            ],
            "--repeat",
        ),
        (&["sevre"], "serve"),
        (
            &[
                "send",
                "message.created",
                "--to",
                "http://127.0.0.1:1/",
                "--secret-env",
                "SECRET",
                "--key",
                "a\nb",
            ],
            "--key: expected visible characters",
        ),
    ] {
        let output = hookward(arguments, &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.starts_with("hookward: ") && said.contains(part),
            "{said}"
        );
        assert!(output.stdout.is_empty());
    }
    let nobody = Upstream::nobody().to_string();
    let output = hookward(&["healthcheck", "--admin", &nobody], &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("is hookward running, with admin.listen there?"),
        "{said}"
    );
}

#[test]
fn verify_names_no_slip_that_was_none() {
    let dir = Dir::new();
    let explain = |secret: &str, key: &str, body: &[u8], signed: &[u8]| {
        let body_file = dir.0.join("body");
        std::fs::write(&body_file, body).unwrap();
        let header = format!("TinyTalk-Signature: {}", support::sign(key, signed));
        let arguments = [
            "verify",
            "--secret-env",
            "S",
            "--header",
            &header,
            body_file.to_str().unwrap(),
        ];
        let output = hookward(&arguments, &[("S", secret)]);
        String::from_utf8(output.stdout).unwrap()
    };
    let padded = format!(" {SECRET} ");
    let said = explain(&padded, SECRET, b"body", b"body");
    assert!(
        said.contains("trimmed") && !said.contains("encoding"),
        "{said}"
    );
    let whole = vec![b'x'; 100_000];
    let said = explain(SECRET, SECRET, &whole[..65_536], &whole);
    assert!(said.contains("exactly 65536 bytes"), "{said}");
    assert!(!said.contains("No usual slip"), "{said}");
    let said = explain(SECRET, SECRET, &whole[..65_535], &whole);
    assert!(said.contains("No usual slip"), "{said}");
}

#[test]
fn the_schema_is_as_strict_as_the_loader() {
    let output = hookward(&["schema"], &[]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let endpoints = &schema["properties"]["endpoints"];
    let endpoint = &endpoints["additionalProperties"];
    assert_eq!(
        endpoint["required"],
        serde_json::json!(["path", "upstream", "secrets"])
    );
    let status = &endpoint["properties"]["reject_status"];
    assert_eq!(
        (&status["minimum"], &status["maximum"]),
        (&400.into(), &499.into())
    );
    let most = &endpoint["properties"]["upstream_options"]["properties"]["max_concurrency"];
    assert_eq!(most["minimum"], 1);
    let names = endpoints["propertyNames"]["pattern"].as_str().unwrap();
    assert!(names.contains("(?!.*__)"), "{names}");
}

#[test]
fn a_secret_can_be_a_credential_that_systemd_lays_out() {
    let dir = Dir::new();
    dir.write("tinytalk", SECRET);
    let secrets = "secrets = [{ file = \"$CREDENTIALS_DIRECTORY/tinytalk\" }]\n";
    let config = endpoint("http://127.0.0.1:1/", secrets);
    let file = dir.write("checked.toml", &config);
    let arguments = ["check", "--config", file.to_str().unwrap()];
    let there = hookward(
        &arguments,
        &[("CREDENTIALS_DIRECTORY", dir.0.to_str().unwrap())],
    );
    assert!(there.status.success(), "{there:?}");
    for unset in [&[][..], &[("CREDENTIALS_DIRECTORY", "")]] {
        let refused = hookward(&arguments, unset);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2));
        assert!(
            said.contains("endpoints.crm.secrets[0].file: CREDENTIALS_DIRECTORY is not set"),
            "{said}"
        );
    }
    let elsewhere = hookward(&arguments, &[("CREDENTIALS_DIRECTORY", "/nowhere")]);
    assert_eq!(elsewhere.status.code(), Some(2));
}
