//! The commands, as a person or a script runs them.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use support::{Act, BODY, Daemon, SECRET, Upstream, sign};

fn hookward(arguments: &[&str], env: &[(&str, &str)], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hookward"))
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads no input may have ended already.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const ENV: [(&str, &str); 1] = [("SECRET", SECRET)];

#[test]
fn check_shows_what_is_in_effect_and_no_secret() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/");
    let secret = [("TINYTALK_WEBHOOK_SECRET", SECRET)];
    for file in ["hookward.toml", "minimal.toml", "sidecar.yaml"] {
        let output = hookward(
            &["check", "--config", &(config.to_owned() + file)],
            &secret,
            b"",
        );
        assert_eq!(output.status.code(), Some(0), "{file}: {}", err(&output));
        let shown: toml::Table = out(&output).parse().unwrap();
        assert_eq!(
            shown["dedup"]["window"].as_str(),
            Some("24h"),
            "defaults are filled in"
        );
        assert!(out(&output).contains("***") && !out(&output).contains(SECRET));
    }
    let minimal = config.to_owned() + "minimal.toml";
    let json = hookward(&["check", "--json", "--config", &minimal], &secret, b"");
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["endpoints"]["crm"]["secrets"][0]["value"], "***");
    let bad = hookward(&["check", "--config", &minimal], &[], b"");
    assert_eq!(bad.status.code(), Some(2));
    assert!(
        err(&bad).contains("endpoints.crm.secrets[0].env"),
        "{}",
        err(&bad)
    );
    assert_eq!(
        hookward(&["check", "--config", "/nowhere.toml"], &[], b"")
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn send_signs_every_event_type_as_the_sender_does() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let to = format!("http://{}/hook", daemon.public);
    let send = |arguments: &[&str]| {
        let all = [
            &["send"],
            arguments,
            &["--to", &to, "--secret-env", "SECRET"],
        ]
        .concat();
        hookward(&all, &ENV, b"")
    };
    for event in [
        "contact.created",
        "message.created",
        "contact.lead.updated",
        "conversation.created",
        "takeover.request",
    ] {
        let output = send(&[event]);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        assert!(
            out(&output).starts_with(&format!("{event} 200 forwarded ")),
            "{}",
            out(&output)
        );
        assert_eq!(upstream.next_message().value("hookward-event-type"), event);
    }
    let repeated = send(&["message.created", "--repeat", "3", "--key", "same"]);
    let outcomes: Vec<_> = out(&repeated)
        .lines()
        .map(|l| l.split(' ').nth(2).unwrap().to_owned())
        .collect();
    assert_eq!(outcomes, ["forwarded", "duplicate", "duplicate"]);
    let fresh = send(&["message.created", "--repeat", "3", "--fresh-keys", "--json"]);
    for line in out(&fresh).lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&line["outcome"], &line["status"]),
            (&"forwarded".into(), &200.into())
        );
    }
    let count = upstream.count();
    let tampered = send(&["message.created", "--tamper"]);
    assert_eq!(tampered.status.code(), Some(1));
    assert!(out(&tampered).contains("401 rejected") && upstream.count() == count);
    let file = daemon.dir.write("body.json", "{\"made\":\"up\"}\n");
    assert_eq!(
        send(&["made.up", "--data", file.to_str().unwrap()])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(send(&["made.up"]).status.code(), Some(2));
    let nobody = Upstream::nobody();
    let refused = hookward(
        &[
            "send",
            "message.created",
            "--to",
            &format!("http://{nobody}/"),
            "--secret-env",
            "SECRET",
        ],
        &ENV,
        b"",
    );
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(err(&refused).lines().count(), 1);
    let unset = hookward(
        &[
            "send",
            "message.created",
            "--to",
            &to,
            "--secret-env",
            "UNSET",
        ],
        &[],
        b"",
    );
    assert_eq!((unset.status.code(), unset.stdout.len()), (Some(2), 0));
}

#[test]
fn verify_says_whether_it_matches_and_what_would_have() {
    let header = format!("TinyTalk-Signature: {}", sign(SECRET, BODY.as_bytes()));
    let verify = |body: &[u8], secret: &str| {
        hookward(
            &["verify", "--secret-env", "S", "--header", &header],
            &[("S", secret)],
            body,
        )
    };
    let good = verify(BODY.as_bytes(), SECRET);
    assert_eq!(
        (good.status.code(), out(&good).as_str()),
        (Some(0), "The signature matches.\n")
    );
    let newline = [BODY.as_bytes(), b"\n"].concat();
    for (body, secret, part) in [
        (
            newline.as_slice(),
            SECRET,
            "the final newline taken off the body",
        ),
        (BODY.as_bytes(), &format!(" {SECRET}"), "the secret trimmed"),
        (
            BODY.replace(":", ": ").as_bytes(),
            SECRET,
            "re-serialised as compact JSON",
        ),
        (b"other", SECRET, "No usual slip"),
    ] {
        let bad = verify(body, secret);
        assert_eq!(bad.status.code(), Some(1));
        assert!(out(&bad).contains(part), "{part:?} in {}", out(&bad));
        let said = out(&bad) + &err(&bad);
        assert!(
            !said.contains(SECRET) && !said.contains(&sign(SECRET, body)),
            "{said}"
        );
    }
    let json = hookward(
        &["verify", "--json", "--secret-env", "S", "--header", &header],
        &[("S", "other")],
        BODY.as_bytes(),
    );
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (&json["matches"], &json["reason"]),
        (&false.into(), &"mismatch".into())
    );
    assert_eq!(
        hookward(&["verify", "--header", &header], &[], b"")
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn demo_shows_genuine_events_passing_and_forged_ones_stopped() {
    let output = hookward(&["demo"], &[], b"");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        out(&output),
        err(&output)
    );
    let shown = out(&output);
    assert_eq!(shown.matches("204 forwarded").count(), 5, "{shown}");
    assert_eq!(
        (
            shown.matches("200 duplicate").count(),
            shown.matches("401 rejected").count()
        ),
        (1, 3)
    );
}

#[test]
fn flags_alone_are_enough_to_serve() {
    let upstream = Upstream::new(Act::status(200));
    let output = hookward(
        &[
            "check",
            "--upstream",
            &upstream.url(),
            "--secret-env",
            "SECRET",
            "--path",
            "/x",
        ],
        &ENV,
        b"",
    );
    assert_eq!(output.status.code(), Some(0));
    let shown: toml::Table = out(&output).parse().unwrap();
    assert_eq!(shown["endpoints"]["default"]["path"].as_str(), Some("/x"));
    let queue = hookward(
        &[
            "serve",
            "--upstream",
            &upstream.url(),
            "--secret-env",
            "SECRET",
            "--mode",
            "queue",
        ],
        &ENV,
        b"",
    );
    assert_eq!(queue.status.code(), Some(2));
    assert!(
        err(&queue).contains("--mode: endpoints.default.mode: not available in this version"),
        "{}",
        err(&queue)
    );
}

#[test]
fn the_rest_of_the_command_line_is_as_usual() {
    let schema = hookward(&["schema"], &[], b"");
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    for shell in ["bash", "zsh", "fish"] {
        let script = hookward(&["completions", shell], &[], b"");
        assert!(out(&script).contains("hookward"), "{shell}");
    }
    assert_eq!(hookward(&["--version"], &[], b"").status.code(), Some(0));
    for wrong in [&["nonsense"][..], &["serve", "--nonsense"], &[]] {
        assert_eq!(
            hookward(wrong, &[], b"").status.code(),
            Some(2),
            "{wrong:?}"
        );
    }
    let nothing = hookward(&["serve", "--config", "/dev/null"], &[], b"");
    assert_eq!(nothing.status.code(), Some(2));
    assert!(
        err(&nothing).contains("endpoints: expected at least one"),
        "{}",
        err(&nothing)
    );
}
