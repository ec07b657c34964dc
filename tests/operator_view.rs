//! What an operator sees of what happens, and sends: live requests, test events, the queue.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Act, BODY, Daemon, Reply, SECRET, Setup, Upstream, event, eventually, sign};

const CAPTURE: &str = r#"{events=100, bytes="1MiB"}"#;
const EVENTS: [&str; 5] = [
    "contact.created",
    "message.created",
    "contact.lead.updated",
    "conversation.created",
    "takeover.request",
];

fn capturing(setup: Setup) -> Setup {
    setup.operated().env("HOOKWARD_ADMIN__CAPTURE", CAPTURE)
}

fn forged(key: &str, more: &str) -> Vec<u8> {
    let message = event(key, BODY.as_bytes(), more);
    let wrong = sign("another-secret", BODY.as_bytes());
    let text = String::from_utf8(message).unwrap();
    text.replace(&sign(SECRET, BODY.as_bytes()), &wrong)
        .into_bytes()
}

fn id_of(reply: &Reply) -> String {
    reply.header("hookward-event-id").unwrap().to_owned()
}

#[test]
fn without_capturing_whoever_watches_sees_outcomes_and_nothing_is_kept() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").operated().start();
    let operator = daemon.operator();
    let unseen = id_of(&daemon.sender().send(&event("a", BODY.as_bytes(), "")));
    assert_eq!(operator.get("/requests")["items"], json!([]));
    let mut stream = operator.watch();
    let seen = id_of(&daemon.sender().send(&event("b", BODY.as_bytes(), "")));
    let refused = id_of(&daemon.sender().send(&forged("c", "")));
    stream.until(&seen);
    let text = stream.until(&refused);
    assert!(
        !text.contains(&unseen) && text.contains("\"captured\":false"),
        "{text}"
    );
    assert!(text.contains("signature_mismatch"), "{text}");
    let shown = operator.get(&format!("/requests/{refused}"));
    assert!(
        shown["headers"].is_null() && shown["body"].is_null(),
        "{shown}"
    );
    assert!(
        shown["why"].as_str().unwrap().contains("shared secret"),
        "{shown}"
    );
    drop(stream);
    eventually("nobody watches", || {
        daemon.sender().send(&event("d", BODY.as_bytes(), ""));
        operator.get("/requests")["items"] == json!([])
    });
}

#[test]
fn captured_requests_are_shown_with_credentials_masked_and_refusals_explained() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = capturing(Daemon::relay(&upstream.url(), "")).start();
    let operator = daemon.operator();
    let more = "Authorization: Basic b3Blbg==\r\nCookie: a=opens\r\nX-Plain: yes\r\n";
    let good = id_of(&daemon.sender().send(&event("a", BODY.as_bytes(), more)));
    let shown = operator.get(&format!("/requests/{good}"));
    assert_eq!(
        (&shown["outcome"], &shown["event"], &shown["body"]),
        (&"forwarded".into(), &"message.created".into(), &BODY.into())
    );
    let text = shown.to_string();
    assert!(
        !text.contains("b3Blbg") && !text.contains("opens"),
        "{text}"
    );
    assert!(!text.contains(&sign(SECRET, BODY.as_bytes())), "{text}");
    assert!(
        shown["headers"]
            .as_array()
            .unwrap()
            .contains(&json!(["x-plain", "yes"]))
    );
    // As it came, with a newline that nobody signed.
    let mut odd = event("b", BODY.as_bytes(), "");
    let length = format!("Content-Length: {}", BODY.len());
    let longer = format!("Content-Length: {}", BODY.len() + 1);
    odd.push(b'\n');
    let odd = String::from_utf8(odd).unwrap().replace(&length, &longer);
    let refused = id_of(&daemon.sender().send(odd.as_bytes()));
    let shown = operator.get(&format!("/requests/{refused}"));
    assert_eq!(shown["reason"], "signature_mismatch");
    let said = shown["explanation"][0]["findings"][0].as_str().unwrap();
    assert!(said.contains("final newline taken off the body"), "{shown}");
    let unsigned = event("c", BODY.as_bytes(), "");
    let unsigned = String::from_utf8(unsigned)
        .unwrap()
        .replace("TinyTalk-Signature", "X-Else");
    let unsigned = id_of(&daemon.sender().send(unsigned.as_bytes()));
    let shown = operator.get(&format!("/requests/{unsigned}"));
    assert!(
        shown["explanation"][0]["findings"][0]
            .as_str()
            .unwrap()
            .contains("There is no")
    );
    assert_eq!(operator.ask("GET", "/requests/0193", &Value::Null).0, 404);
}

#[test]
fn recent_requests_are_listed_in_parts_and_by_what_they_are() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = capturing(Daemon::relay(&upstream.url(), "")).start();
    let operator = daemon.operator();
    let ids: Vec<_> = (0..5)
        .map(|n| {
            id_of(
                &daemon
                    .sender()
                    .send(&event(&n.to_string(), BODY.as_bytes(), "")),
            )
        })
        .collect();
    daemon.sender().send(&forged("f", ""));
    daemon
        .sender()
        .send(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    let mut listed = Vec::new();
    let mut cursor = String::new();
    loop {
        let part = operator.get(&format!("/requests?outcome=forwarded&limit=2{cursor}"));
        let items = part["items"].as_array().unwrap();
        listed.extend(
            items
                .iter()
                .map(|item| item["event_id"].as_str().unwrap().to_owned()),
        );
        match part["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    listed.reverse();
    assert_eq!(listed, ids);
    assert_eq!(
        operator.get("/requests?outcome=rejected")["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let all = operator.get("/requests");
    assert_eq!(all["items"][0]["reason"], "unknown_path");
    for bad in ["limit=0", "limit=501", "cursor=x", "odd=1"] {
        let (status, said) = operator.ask("GET", &format!("/requests?{bad}"), &Value::Null);
        assert_eq!(
            (status, &said["type"]),
            (400, &"urn:hookward:input".into()),
            "{bad}"
        );
    }
}

#[test]
fn what_is_too_large_to_be_kept_is_told_of_once() {
    let upstream = Upstream::new(Act::status(200));
    let setup = Daemon::relay(&upstream.url(), "").operated();
    let capture = r#"{events=10, bytes=1}"#;
    let daemon = setup.env("HOOKWARD_ADMIN__CAPTURE", capture).start();
    let mut stream = daemon.operator().watch();
    let told = |text: &str| {
        let counts = text.split("\"count\":").skip(1);
        let count = |rest: &str| rest.split('}').next().and_then(|n| n.parse::<u64>().ok());
        counts.filter_map(count).sum::<u64>()
    };
    for number in 1..=3 {
        let key = number.to_string();
        daemon.sender().send(&event(&key, BODY.as_bytes(), ""));
        let text = stream.until_holds(|text| told(text) >= number);
        assert_eq!(told(text), number, "{text}");
    }
}

#[test]
fn a_stream_ends_when_the_process_does() {
    let upstream = Upstream::new(Act::status(200));
    let mut daemon = Daemon::relay(&upstream.url(), "").operated().start();
    let mut stream = daemon.operator().watch();
    let id = id_of(&daemon.sender().send(&event("a", BODY.as_bytes(), "")));
    stream.until(&id);
    daemon.signal(Signal::TERM);
    stream.end();
    assert!(daemon.wait().success());
    assert!(!daemon.log().contains("shutdown_grace is over"));
}

#[test]
fn test_events_of_every_type_go_through_the_gate_to_the_application() {
    let upstream = Upstream::new(Act::status(200));
    let own = "scheme = \"standard-webhooks\"\nsecrets = [{ name = \"m\", env = \"OWN\" }]";
    let endpoints = [
        Daemon::endpoint("crm", "/hook", &upstream.url(), "mode = \"queue\""),
        Daemon::endpoint("std", "/std/*", &upstream.url(), own),
    ];
    let setup = Daemon::with("", &endpoints.concat()).operated();
    let daemon = setup
        .env("OWN", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        .start();
    let operator = daemon.operator();
    let test = |name: &str, event: &str| {
        let path = format!("/endpoints/{name}/test");
        operator.ask("POST", &path, &json!({"event": event}))
    };
    for event in EVENTS {
        let (status, said) = test("crm", event);
        assert_eq!(
            (status, &said["outcome"]),
            (200, &"queued".into()),
            "{said}"
        );
        let message = upstream.next_message();
        assert_eq!(message.value("hookward-event-type"), event);
        assert_eq!(
            message.value("hookward-event-id"),
            said["event_id"].as_str().unwrap()
        );
        assert_eq!(message.value("hookward-verified"), "true");
        let (status, said) = test("std", event);
        assert_eq!(
            (status, &said["outcome"]),
            (200, &"forwarded".into()),
            "{said}"
        );
        upstream.next_message();
    }
    assert_eq!(test("crm", "odd").0, 400);
    assert_eq!(test("absent", "contact.created").0, 404);
    operator.ask("PUT", "/endpoints/std/active", &json!({"active": false}));
    let (_, said) = test("std", "contact.created");
    assert_eq!(
        (&said["status"], &said["reason"]),
        (&503.into(), &"inactive".into())
    );
}

#[test]
fn dead_letters_are_listed_shown_replayed_and_dropped() {
    let upstream = Upstream::new(Act::status(500));
    let setup = Daemon::queue(
        &upstream.url(),
        "[endpoints.crm.queue]\nretry = [\"20ms\"]\n",
    );
    let daemon = setup.operated().start();
    let operator = daemon.operator();
    let ids: Vec<_> = (0..3)
        .map(|n| {
            id_of(
                &daemon
                    .sender()
                    .send(&event(&n.to_string(), BODY.as_bytes(), "")),
            )
        })
        .collect();
    let dead = |query: &str| operator.get(&format!("/queue/events?state=dead{query}"));
    eventually("all are dead", || {
        dead("")["items"].as_array().unwrap().len() == 3
    });
    let first = dead("&limit=2");
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    let next = first["next"].as_str().unwrap();
    assert_eq!(
        dead(&format!("&cursor={next}"))["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(dead("&error=timed")["items"], json!([]));
    assert_eq!(dead("&older_than=1h")["items"], json!([]));
    let shown = operator.get(&format!("/queue/events/{}", ids[0]));
    assert_eq!(
        shown["failed_attempts"].as_array().unwrap().len(),
        2,
        "{shown}"
    );
    assert_eq!(shown["request"]["body"], BODY);
    assert!(
        !shown.to_string().contains(&sign(SECRET, BODY.as_bytes())),
        "{shown}"
    );
    assert_eq!(operator.get("/queue/endpoints")["items"][0]["dead"], 3);

    upstream.by_default(Act::status(200));
    let one = json!({"ids": [ids[0]]});
    let (status, said) = operator.ask("POST", "/queue/replay", &one);
    assert_eq!((status, &said["replayed"]), (200, &1.into()));
    let state = |id: &str| operator.get(&format!("/queue/events/{id}"))["state"].clone();
    eventually("it is delivered", || state(&ids[0]) == "delivered");
    let all = json!({"filter": {"endpoint": "crm"}});
    let (_, said) = operator.ask("POST", "/queue/drop", &all);
    assert_eq!(said["dropped"], 2);
    assert_eq!(
        operator
            .ask("GET", &format!("/queue/events/{}", ids[1]), &Value::Null)
            .0,
        404
    );
    for bad in [
        json!({}),
        json!({"ids": [], "filter": {}}),
        json!({"ids": ["x"]}),
        json!([]),
    ] {
        let (status, said) = operator.ask("POST", "/queue/replay", &bad);
        assert!(status == 400 || status == 422, "{bad}: {said}");
    }
    let hold = json!({"paused": true});
    let (status, said) = operator.ask("PUT", "/queue/endpoints/crm/paused", &hold);
    assert_eq!((status, &said["paused"]), (200, &true.into()));
}

/// With a mistyped secret, whose file is returned.
fn quarantining(upstream: &Upstream) -> (Daemon, PathBuf) {
    let file = "secrets = [{ name = \"main\", file = \"FILE\" }]\n";
    let setup = Daemon::queue(&upstream.url(), &format!("{file}quarantine = \"1MiB\""));
    let secret = setup.dir().join("secret");
    std::fs::write(&secret, "a-secret-mistyped").unwrap();
    let setup = setup.replace("FILE", &secret.display().to_string());
    (setup.operated().start(), secret)
}

#[test]
fn quarantined_requests_are_explained_and_let_through_when_the_secret_is_mended() {
    let upstream = Upstream::new(Act::status(200));
    let (daemon, secret) = quarantining(&upstream);
    let operator = daemon.operator();
    let id = id_of(
        &daemon
            .sender()
            .send(&event("a", BODY.as_bytes(), "Cookie: opens\r\n")),
    );
    let listed = || operator.get("/quarantine/crm")["items"].clone();
    eventually("it is kept", || listed().as_array().unwrap().len() == 1);
    assert_eq!(listed()[0]["event_id"], id);
    let number = listed()[0]["number"].to_string();
    let shown = operator.get(&format!("/quarantine/crm/{number}"));
    let finding = shown["explanation"][0]["findings"][0].as_str().unwrap();
    assert!(finding.contains("the secret is another one"), "{shown}");
    assert!(!shown.to_string().contains("opens"), "{shown}");
    assert_eq!(
        operator.ask("GET", "/quarantine/crm/99", &Value::Null).0,
        404
    );
    std::fs::write(&secret, SECRET).unwrap();
    daemon.wait_for_log("configuration reloaded");
    let (_, said) = operator.ask("POST", "/quarantine/crm/reverify", &Value::Null);
    assert_eq!(said["released"], 1, "{said}");
    assert_eq!(upstream.next_message().value("hookward-event-id"), id);
}

#[test]
fn quarantined_requests_are_let_through_once_however_many_ask_for_it() {
    let upstream = Upstream::new(Act::status(200));
    let (daemon, secret) = quarantining(&upstream);
    let operator = daemon.operator();
    // Without keys: nothing but their ids tells one from another.
    for number in 0..40 {
        let body = format!("{{\"type\":\"message.created\",\"n\":{number}}}");
        let reply = daemon.sender().send(&event("", body.as_bytes(), ""));
        assert_eq!(reply.status, 401);
    }
    let held = || operator.get("/queue/endpoints")["items"][0]["quarantined"].clone();
    eventually("they are kept", || held() == 40);
    std::fs::write(&secret, SECRET).unwrap();
    daemon.wait_for_log("configuration reloaded");
    let ask = || operator.ask("POST", "/quarantine/crm/reverify", &Value::Null);
    let released: u64 = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        let said = asked.into_iter().map(|asked| asked.join().unwrap().1);
        said.map(|said| said["released"].as_u64().unwrap()).sum()
    });
    assert_eq!(released, 40);
    let stats = operator.get("/queue/endpoints")["items"][0].clone();
    let count = |key: &str| stats[key].as_u64().unwrap();
    let all: u64 = ["pending", "leased", "delivered", "dead"]
        .map(count)
        .iter()
        .sum();
    assert_eq!((all, held()), (40, 0.into()), "{stats}");
}

#[test]
fn figures_tell_how_it_is() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").operated().start();
    let operator = daemon.operator();
    daemon.sender().send(&event("a", BODY.as_bytes(), ""));
    daemon.sender().send(&event("a", BODY.as_bytes(), ""));
    daemon.sender().send(&forged("b", ""));
    let stats = operator.get("/stats");
    assert_eq!(
        stats["requests"],
        json!({"duplicate": 1.0, "forwarded": 1.0, "rejected": 1.0})
    );
    assert_eq!(stats["refusals"], json!({"signature_mismatch": 1.0}));
    assert_eq!(stats["secrets"][0]["matches"], 2.0);
    assert!(stats["latency"]["p95_seconds"].is_number(), "{stats}");
    assert_eq!(stats["reload"]["succeeded"], true);
    let crm = operator.get("/endpoints/crm");
    assert_eq!(
        (&crm["day"]["good"], &crm["day"]["refused"]),
        (&json!([2.0]), &json!([1.0]))
    );
}
