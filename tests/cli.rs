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
    // Acknowledged while their application was down, delivered when it was back.
    assert_eq!(shown.matches("200 queued").count(), 3, "{shown}");
    let (_, back) = shown.split_once("It is back:").unwrap();
    assert_eq!(back.matches("application got ").count(), 3, "{shown}");
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
        err(&queue).contains("--mode: endpoints.default.mode: expected data_dir with it"),
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

/// What `verify` says about a signature made over other bytes or with another secret.
fn explained(written: &str, body: &[u8], key: &[u8], signed: &[u8]) -> String {
    use hmac::{KeyInit as _, Mac as _};
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
    mac.update(signed);
    let tag = hex::encode(mac.finalize().into_bytes());
    let header = format!("TinyTalk-Signature: {tag}");
    let arguments = ["verify", "--secret-env", "S", "--header", &header];
    let output = hookward(&arguments, &[("S", written)], body);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}{}",
        out(&output),
        err(&output)
    );
    assert_eq!(err(&output).lines().count(), 1, "{}", err(&output));
    let said = out(&output) + &err(&output);
    assert!(!said.contains(written), "the secret in {said}");
    said
}

#[test]
fn verify_knows_the_usual_slips() {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let key: Vec<u8> = (1..=32).map(|n| n * 5).collect();
    let secret = SECRET.as_bytes();
    let json = r#"{"type":"message.created","n":1.5,"text":"a/b"}"#;
    let lines = "{\n \"a\": 1\n}";
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(json.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let long = vec![b'x'; 10_000];
    let pretty: serde_json::Value = serde_json::from_str(json).unwrap();
    let pretty = serde_json::to_string_pretty(&pretty).unwrap();
    type Slip<'s> = (&'s str, String, &'s [u8], &'s [u8], Vec<u8>);
    let slips: [Slip<'_>; 12] = [
        (
            "newline",
            format!("{SECRET}\n"),
            json.as_bytes(),
            secret,
            json.into(),
        ),
        (
            "trimmed",
            format!("  {SECRET} "),
            json.as_bytes(),
            secret,
            json.into(),
        ),
        ("hex", hex::encode(&key), json.as_bytes(), &key, json.into()),
        (
            "base64",
            engine.encode(&key),
            json.as_bytes(),
            &key,
            json.into(),
        ),
        (
            "newline added",
            SECRET.into(),
            json.as_bytes(),
            secret,
            format!("{json}\n").into(),
        ),
        (
            "newline taken off",
            SECRET.into(),
            b"abc\n",
            secret,
            b"abc".into(),
        ),
        (
            "CRLF",
            SECRET.into(),
            lines.as_bytes(),
            secret,
            lines.replace('\n', "\r\n").into(),
        ),
        ("LF", SECRET.into(), b"a\r\nb", secret, b"a\nb".into()),
        (
            "re-serialised",
            SECRET.into(),
            pretty.as_bytes(),
            secret,
            json.into(),
        ),
        (
            "re-serialised",
            SECRET.into(),
            json.as_bytes(),
            secret,
            pretty.clone().into(),
        ),
        ("gzip", SECRET.into(), &packed, secret, json.into()),
        (
            "buffer size",
            SECRET.into(),
            &long,
            secret,
            long[..8192].into(),
        ),
    ];
    for (named, written, body, key, signed) in &slips {
        let said = explained(written, body, key, signed).to_lowercase();
        let wanted = named.to_lowercase();
        let wanted = if wanted == "newline" {
            "trimmed"
        } else {
            &wanted
        };
        assert!(said.contains(wanted), "{named:?} in {said}");
        assert!(!said.contains("no usual slip"), "{named:?}: {said}");
    }
}

#[test]
fn verify_reads_files_and_every_scheme() {
    let upstream = Upstream::new(Act::status(200));
    let setup = Daemon::relay(&upstream.url(), "");
    let secret = setup.dir().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let body = setup.dir().join("body");
    std::fs::write(&body, BODY).unwrap();
    let (secret, body) = (secret.to_str().unwrap(), body.to_str().unwrap());
    let verify = |scheme: &str, headers: &[&str]| {
        let mut arguments = vec!["verify", "--secret-file", secret, "--scheme", scheme];
        for header in headers {
            arguments.extend(["--header", header]);
        }
        arguments.push(body);
        hookward(&arguments, &[], b"")
    };
    let tag = sign(SECRET, BODY.as_bytes());
    let time = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let stripe = |time: u64| {
        let tag = sign(SECRET, format!("{time}.{BODY}").as_bytes());
        format!("Stripe-Signature: t={time},v1={tag}")
    };
    for (scheme, header, code, part) in [
        (
            "tinytalk",
            format!("tinytalk-signature: {tag}"),
            0,
            "matches",
        ),
        (
            "github",
            format!("X-Hub-Signature-256: sha256={tag}"),
            0,
            "matches",
        ),
        ("stripe", stripe(time), 0, "matches"),
        ("stripe", stripe(time - 3600), 1, "timestamp"),
        (
            "github",
            format!("TinyTalk-Signature: {tag}"),
            1,
            "tinytalk",
        ),
        ("tinytalk", "X-Other: 1".to_owned(), 1, "missing"),
        (
            "tinytalk",
            "TinyTalk-Signature: abc".to_owned(),
            1,
            "malformed",
        ),
        (
            "nonsense",
            format!("TinyTalk-Signature: {tag}"),
            2,
            "tinytalk",
        ),
        ("tinytalk", "no colon".to_owned(), 2, "--header"),
    ] {
        let output = verify(scheme, &[&header]);
        let said = out(&output) + &err(&output);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{scheme} {header}: {said}"
        );
        assert!(said.to_lowercase().contains(part), "{part:?} in {said}");
    }
    let twice = format!("TinyTalk-Signature: {tag}");
    assert_eq!(verify("tinytalk", &[&twice, &twice]).status.code(), Some(1));
    let nowhere = ["verify", "--secret-file", "/nowhere", "--header", &twice];
    assert_eq!(hookward(&nowhere, &[], b"").status.code(), Some(2));
    let empty = ["verify", "--secret-env", "S", "--header", &twice];
    assert_eq!(hookward(&empty, &[("S", "")], b"").status.code(), Some(2));
}

#[test]
fn check_names_every_fault_and_no_value() {
    let upstream = Upstream::new(Act::status(200));
    let endpoint = |more: &str| Daemon::endpoint("crm", "/hook", &upstream.url(), more);
    let check = |config: &str| {
        let setup = Daemon::config(config);
        let file = setup.dir().join("checked.toml");
        std::fs::write(&file, config).unwrap();
        let arguments = ["check", "--config", file.to_str().unwrap()];
        (hookward(&arguments, &ENV, b""), file)
    };
    let same_path = Daemon::endpoint("two", "/hook", &upstream.url(), "");
    for (config, part) in [
        (endpoint("canary = 1"), "endpoints.crm.canary"),
        (endpoint("deadline = \"canary\""), "endpoints.crm.deadline"),
        (endpoint("deadline = 7"), "endpoints.crm.deadline"),
        (endpoint("active = \"canary\""), "endpoints.crm.active"),
        (endpoint("max_body = \"canary\""), "endpoints.crm.max_body"),
        (
            endpoint("reject_status = 410"),
            "endpoints.crm.reject_status",
        ),
        (
            endpoint("reject_status = 500"),
            "endpoints.crm.reject_status",
        ),
        (endpoint("enforce = false"), "enforce_from"),
        (endpoint("scheme = \"canary\""), "endpoints.crm.scheme"),
        (endpoint("secrets = []"), "endpoints.crm.secrets"),
        (endpoint("") + &same_path, "/hook"),
        (endpoint("").replace("/hook", "hook"), "endpoints.crm.path"),
        (
            endpoint("").replace("http:", "ftp:"),
            "endpoints.crm.upstream",
        ),
        (endpoint("").replace(".crm]", ".CRM]"), "endpoints"),
        (endpoint("").replace(".crm]", ".c__m]"), "endpoints"),
        (
            "[limits]\nmax_bdoy = 1\n".to_owned() + &endpoint(""),
            "limits.max_bdoy",
        ),
        ("listen = [canary\n".to_owned() + &endpoint(""), "at line "),
    ] {
        let (output, file) = check(&config);
        let said = err(&output);
        assert_eq!(output.status.code(), Some(2), "{config}\n{said}");
        assert!(said.contains(part), "{part:?} in {said}");
        assert!(said.contains(file.to_str().unwrap()), "which file? {said}");
        let value = said.replace("endpoints.crm.canary", "");
        assert!(!value.contains("canary"), "a value in {said}");
    }
    // All faults at once, one line each.
    let (output, _) = check(&endpoint("deadline = 7\nactive = 3\ncanary = 1"));
    assert_eq!(err(&output).lines().count(), 3, "{}", err(&output));
}

#[test]
fn what_is_switched_off_needs_nothing() {
    let upstream = Upstream::new(Act::status(200));
    let endpoint = |more: &str| Daemon::endpoint("crm", "/hook", &upstream.url(), more);
    let code = |config: &str| {
        let setup = Daemon::config("");
        let file = setup.dir().join("checked.toml");
        std::fs::write(&file, config).unwrap();
        let output = hookward(&["check", "--config", file.to_str().unwrap()], &ENV, b"");
        (output.status.code(), err(&output))
    };
    let off = "mode = \"relay\"\nfallback = \"none\"\nfallback_after = \"10s\"\nquarantine = \"0\"\n\
               [endpoints.crm.queue]\nordering = \"none\"\n";
    let config = "data_dir = \"/tmp\"\n[admin]\ncapture = { events = 0, bytes = \"8MiB\" }\n";
    let (code, said) = code(&(config.to_owned() + &endpoint(off)));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn the_schema_knows_every_key_of_the_documented_file() {
    let schema = hookward(&["schema"], &[], b"");
    assert_eq!(schema.status.code(), Some(0));
    let text = out(&schema);
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(schema["properties"]["endpoints"].is_object(), "{schema}");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/hookward.toml");
    let documented: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
    let mut keys = Vec::new();
    gather(&documented, &mut keys);
    keys.retain(|key| key != "crm");
    assert!(keys.len() > 50, "{keys:?}");
    for key in keys {
        assert!(
            text.contains(&format!("\"{key}\"")),
            "{key} is not in the schema"
        );
    }
}

fn gather(table: &toml::Table, keys: &mut Vec<String>) {
    for (key, value) in table {
        keys.push(key.clone());
        if let Some(inner) = value.as_table() {
            gather(inner, keys);
        }
    }
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let dir = support::Dir::new();
    let written = hookward(&["man", dir.0.to_str().unwrap()], &[], b"");
    assert_eq!(written.status.code(), Some(0), "{}", err(&written));
    let page = |name: &str| std::fs::read_to_string(dir.0.join(name)).unwrap();
    assert!(
        page("hookward.1").starts_with(".ie"),
        "{}",
        page("hookward.1")
    );
    for (name, part) in [
        ("hookward.1", "verifies, deduplicates, relays"),
        ("hookward-serve.1", "Where verified events go"),
        ("hookward-queue-list.1", "hookward"),
    ] {
        assert!(page(name).contains(part), "{}", page(name));
    }
    let nowhere = hookward(&["man", "/nowhere/at/all"], &[], b"");
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(
        err(&nowhere).contains("name a directory"),
        "{}",
        err(&nowhere)
    );
}

#[test]
fn every_command_has_help_and_fails_on_what_it_does_not_know() {
    for command in [
        "serve",
        "check",
        "send",
        "verify",
        "demo",
        "schema",
        "completions",
        "man",
        "healthcheck",
        "queue",
    ] {
        let help = hookward(&[command, "--help"], &[], b"");
        assert_eq!(help.status.code(), Some(0), "{command}");
        assert!(out(&help).contains("Usage:"), "{command}");
        let wrong = hookward(&[command, "--no-such-flag"], &[], b"");
        assert_eq!(wrong.status.code(), Some(2), "{command}");
        assert!(
            wrong.stdout.is_empty() && !wrong.stderr.is_empty(),
            "{command}"
        );
    }
    let unhealthy = ["healthcheck", "--admin", "not an address"];
    assert_ne!(hookward(&unhealthy, &[], b"").status.code(), Some(0));
    let shell = hookward(&["completions", "tcsh"], &[], b"");
    assert_eq!(shell.status.code(), Some(2));
}
