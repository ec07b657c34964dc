//! What changes at run time leave behind, and what they must not do by accident.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{
    Act, BODY, Daemon, NOBODY, Operator, SECRET, Sender, TOKEN, Upstream, event, eventually,
};

/// The settings of an endpoint whose secret is the usual one.
fn settings(path: &str, upstream: &str) -> Value {
    let secrets = json!([{"name": "main", "value": SECRET}]);
    json!({"path": path, "upstream": upstream, "secrets": secrets})
}

fn put(operator: &Operator, name: &str, lines: &str, settings: &Value) -> (u16, Value) {
    let lines = format!("Authorization: Bearer {TOKEN}\r\n{lines}");
    let body = json!({"settings": settings});
    let reply = operator.send("PUT", &format!("/endpoints/{name}"), &lines, &body);
    let said = serde_json::from_slice(&reply.body).unwrap_or_default();
    (reply.status, said)
}

fn send(daemon: &Daemon, path: &str, key: &str) -> u16 {
    let message = String::from_utf8(event(key, BODY.as_bytes(), "")).unwrap();
    let message = message.replace("POST /hook ", &format!("POST {path} "));
    daemon.sender().send(message.as_bytes()).status
}

/// Everything that the API and the command line show of endpoints.
fn everything(operator: &Operator) -> String {
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let export = operator.send("GET", "/export", &token, &Value::Null);
    let listed = operator.get("/endpoints");
    format!("{listed}{}{}", operator.get("/config"), export.text())
}

#[test]
fn what_lets_us_in_at_an_upstream_is_never_shown_and_never_told_to_another() {
    let (upstream, other) = (
        Upstream::new(Act::status(200)),
        Upstream::new(Act::status(200)),
    );
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let mut table = settings("/shop", &format!("{}?key=opens-it", upstream.url()));
    table["upstream_options"] = json!({"headers": {"X-Key": "opens-too"}});
    let (status, said) = operator.create("shop", &table);
    assert_eq!(status, 201, "{said}");
    let shown = format!("{said}{}", everything(&operator));
    assert!(
        !shown.contains("opens-it") && !shown.contains("opens-too"),
        "{shown}"
    );

    // As a form does that shows what there is and sends it back.
    let mut given = operator.get("/endpoints/shop")["given"].clone();
    given["source"] = "Zapier".into();
    assert_eq!(put(&operator, "shop", "", &given).0, 200);
    assert_eq!(send(&daemon, "/shop", "a"), 200);
    let got = upstream.next_message();
    assert!(got.head.contains("?key=opens-it "), "{}", got.head);
    assert_eq!(got.value("x-key"), "opens-too");

    given["upstream"] = format!("{}?***", other.url()).into();
    let (status, said) = put(&operator, "shop", "", &given);
    assert_eq!(
        (status, &said["errors"][0]["key"]),
        (422, &"upstream".into())
    );
    given["upstream"] = other.url().into();
    let (status, said) = put(&operator, "shop", "", &given);
    assert_eq!(
        (status, &said["errors"][0]["key"]),
        (422, &"upstream_options.headers.X-Key".into())
    );
    assert_eq!(send(&daemon, "/shop", "b"), 200);
    assert_eq!(other.count(), 0);
}

#[test]
fn what_the_next_start_would_not_read_is_refused_and_what_was_there_stays() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let long = "d".repeat(1_000_000);
    let mut made = 0;
    let refused = loop {
        let mut table = settings(&format!("/{made}"), NOBODY);
        table["description"] = long.as_str().into();
        match operator.create(&format!("e{made}"), &table) {
            (201, _) => made += 1,
            refused => break refused,
        }
        assert!(made < 20, "they never end");
    };
    let (status, said) = refused;
    assert_eq!(
        (status, &said["type"]),
        (409, &"urn:hookward:conflict".into())
    );
    assert!(
        said["detail"].as_str().unwrap().contains("too large"),
        "{said}"
    );
    let daemon = daemon.end(Signal::KILL).start();
    let items = daemon.operator().get("/endpoints?limit=500");
    assert_eq!(items["items"].as_array().unwrap().len(), made + 1);
}

#[test]
fn an_edit_of_what_another_has_changed_meanwhile_is_refused() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let table = settings("/shop", NOBODY);
    let (_, said) = operator.create("shop", &table);
    let seen = said["endpoint"]["revision"].as_str().unwrap().to_owned();
    // Meanwhile somebody switches it off; the form that was open still says on.
    let off = json!({"active": false});
    assert_eq!(operator.ask("PUT", "/endpoints/shop/active", &off).0, 200);
    let lines = format!("If-Match: \"{seen}\"\r\n");
    let (status, said) = put(&operator, "shop", &lines, &table);
    assert_eq!(
        (status, &said["type"]),
        (412, &"urn:hookward:changed".into())
    );
    let now = operator.get("/endpoints/shop");
    assert_eq!(now["active"], false);
    let fresh = now["revision"].as_str().unwrap();
    let lines = format!("If-Match: \"0\", \"{fresh}\"\r\n");
    assert_eq!(put(&operator, "shop", &lines, &table).0, 200);
    assert_eq!(put(&operator, "shop", "If-Match: *\r\n", &table).0, 200);
    assert_eq!(put(&operator, "shop", "If-Match: odd\r\n", &table).0, 400);
    assert!(operator.get("/endpoints/crm")["revision"].is_null());
}

#[test]
fn events_of_an_endpoint_that_was_removed_are_given_to_no_other_by_accident() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let mut table = settings("/shop", NOBODY);
    table["mode"] = "queue".into();
    assert_eq!(operator.create("shop", &table).0, 201);
    assert_eq!(send(&daemon, "/shop", "a"), 200);
    let (status, _) = operator.ask("DELETE", "/endpoints/shop", &Value::Null);
    assert_eq!(status, 204);
    table["upstream"] = upstream.url().into();
    let (status, said) = operator.create("shop", &table);
    assert_eq!(
        (status, &said["type"]),
        (409, &"urn:hookward:events_waiting".into()),
        "{said}"
    );
    assert_eq!(upstream.count(), 0);
    let body = json!({"name": "shop", "settings": table, "takes_over": true});
    assert_eq!(operator.ask("POST", "/endpoints", &body).0, 201);
    upstream.next_message();
}

#[test]
fn what_is_counted_of_endpoints_goes_with_them() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").operated().start();
    let operator = daemon.operator();
    let before = daemon.ask("/metrics").text();
    for name in ["alpha", "beta", "gamma"] {
        let mut table = settings("/shop", &upstream.url());
        table["mode"] = "queue".into();
        assert_eq!(operator.create(name, &table).0, 201);
        assert_eq!(send(&daemon, "/shop", name), 200);
        upstream.next_message();
        table["secrets"] = json!([{"name": "other", "value": SECRET}]);
        assert_eq!(put(&operator, name, "", &table).0, 200);
        let text = daemon.ask("/metrics").text();
        assert!(
            text.contains("secret=\"other\"")
                && !text.contains(&format!(
                    "secret_matches_total{{endpoint=\"{name}\",secret=\"main\"}}"
                ))
        );
        let path = format!("/endpoints/{name}");
        assert_eq!(operator.ask("DELETE", &path, &Value::Null).0, 204);
    }
    // An attempt that was under way may count once more at its end.
    eventually("they are gone", || {
        let after = daemon.ask("/metrics").text();
        let series = |text: &str| text.lines().filter(|l| l.contains("endpoint=")).count();
        series(&after) == series(&before) && !after.contains("beta")
    });
}

#[test]
fn whoever_watches_leaves_room_for_metrics_and_health() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let head = format!(
        "GET /api/v1/requests/stream HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n",
        daemon.admin
    );
    let open = || {
        let mut watcher = Sender::connect(daemon.admin);
        watcher.write(head.as_bytes());
        watcher.read_until(b"\r\n\r\n");
        watcher
    };
    let watching: Vec<_> = (0..64).map(|_| open()).collect();
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let ask = || operator.send("GET", "/requests/stream", &token, &Value::Null);
    let refused = ask();
    assert_eq!((refused.status, refused.reason().as_str()), (503, "busy"));
    assert_eq!(daemon.ask("/livez").status, 200);
    drop(watching);
    eventually("there is room", || {
        let mut watcher = Sender::connect(daemon.admin);
        watcher.write(head.as_bytes());
        watcher.read_until(b"\r\n\r\n");
        watcher.hang_up();
        watcher.rest().starts_with(b"HTTP/1.1 200 ")
    });
}

/// The values of headers are parts of what was read from a connection, kilobytes at a time.
#[test]
fn what_is_captured_takes_the_memory_it_may_and_little_more() {
    let setup = Daemon::relay(NOBODY, "").operated();
    let capture = r#"{events=100000, bytes="8MiB"}"#;
    let daemon = setup.env("HOOKWARD_ADMIN__CAPTURE", capture).start();
    let operator = daemon.operator();
    let resident = || operator.get("/stats")["resident_bytes"].as_f64().unwrap();
    let unsigned = "POST /hook HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}";
    let flood = |count: usize| {
        let mut sender = daemon.sender();
        for _ in 0..count {
            assert_eq!(sender.send(unsigned.as_bytes()).status, 401);
        }
    };
    flood(100);
    let before = resident();
    flood(15_000);
    let grown = resident() - before;
    assert!(grown < 20e6, "{grown}");
}
