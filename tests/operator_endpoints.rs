//! Endpoints made, changed and removed while it runs.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Act, BODY, Daemon, NOBODY, Operator, SECRET, Upstream, event, eventually, sign};

fn create(
    operator: &Operator,
    name: &str,
    path: &str,
    upstream: &str,
    more: &Value,
) -> (u16, Value) {
    let mut settings = json!({"path": path, "upstream": upstream});
    for (key, value) in more.as_object().unwrap() {
        settings[key] = value.clone();
    }
    operator.create(name, &settings)
}

fn given() -> Value {
    json!({"secrets": [{"name": "main", "value": SECRET}]})
}

fn put(operator: &Operator, name: &str, settings: Value) -> (u16, Value) {
    operator.ask(
        "PUT",
        &format!("/endpoints/{name}"),
        &json!({"settings": settings}),
    )
}

fn send(daemon: &Daemon, path: &str, key: &str, secret: &str) -> u16 {
    let message = event(key, BODY.as_bytes(), "");
    let text = String::from_utf8(message).unwrap();
    let text = text.replace("POST /hook ", &format!("POST {path} "));
    let text = text.replace(
        &sign(SECRET, BODY.as_bytes()),
        &sign(secret, BODY.as_bytes()),
    );
    daemon.sender().send(text.as_bytes()).status
}

/// What is wrong, by key.
fn wrong(said: &Value) -> Vec<&str> {
    let errors = said["errors"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    errors
        .iter()
        .map(|error| error["key"].as_str().unwrap())
        .collect()
}

#[test]
fn an_endpoint_is_there_at_once_and_after_a_restart_with_a_secret_shown_once() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let (status, said) = create(&operator, "shop", "/shop", &upstream.url(), &json!({}));
    assert_eq!(status, 201, "{said}");
    let secret = said["generated_secrets"][0]["value"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        (said["generated_secrets"][0]["name"].as_str(), secret.len()),
        (Some("main"), 64)
    );
    assert_eq!(said["endpoint"]["origin"], "run_time");
    assert!(said["endpoint"]["created_at"].is_string());
    assert_eq!(send(&daemon, "/shop", "a", &secret), 200);
    upstream.next_message();
    let listed = operator.get("/endpoints");
    let origins: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["origin"])
        .collect();
    assert_eq!(origins, ["configuration", "run_time"]);
    assert!(listed["items"][1]["last_event_at"].is_string());
    let everything = format!(
        "{listed}{}{}",
        operator.get("/config"),
        operator.get("/stats")
    );
    assert!(!everything.contains(&secret) && !everything.contains(SECRET));

    let file = daemon.data_dir().join("endpoints.json");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let daemon = daemon.end(Signal::KILL).start();
    assert_eq!(send(&daemon, "/shop", "b", &secret), 200);
    let (status, _) = daemon
        .operator()
        .ask("DELETE", "/endpoints/shop", &Value::Null);
    assert_eq!(status, 204);
    assert_eq!(send(&daemon, "/shop", "c", &secret), 404);
    let daemon = daemon.end(Signal::KILL).start();
    assert_eq!(send(&daemon, "/shop", "d", &secret), 404);
    assert!(!daemon.log().contains(&secret));
}

#[test]
fn an_edit_keeps_the_secrets_it_does_not_name_and_reloads_leave_it_alone() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let headers = json!({"headers": {"X-Key": "opens-something"}});
    let more = json!({"secrets": given()["secrets"], "upstream_options": headers});
    let (status, said) = create(&operator, "shop", "/shop", &upstream.url(), &more);
    assert_eq!(
        (status, &said["generated_secrets"]),
        (201, &json!([])),
        "{said}"
    );
    assert!(!said.to_string().contains("opens-something"), "{said}");

    let kept = json!({
        "path": "/elsewhere", "upstream": upstream.url(), "source": "Zapier",
        "upstream_options": {"headers": {"X-Key": "***"}},
    });
    assert_eq!(put(&operator, "shop", kept).0, 200);
    assert_eq!(send(&daemon, "/shop", "a", SECRET), 404);
    assert_eq!(send(&daemon, "/elsewhere", "b", SECRET), 200);
    assert_eq!(upstream.next_message().value("x-key"), "opens-something");

    let rotated = json!({
        "path": "/elsewhere", "upstream": upstream.url(),
        "secrets": [{"name": "main", "value": "***"}, {"name": "next", "generate": true}],
    });
    let (status, said) = put(&operator, "shop", rotated);
    assert_eq!(status, 200, "{said}");
    let next = said["generated_secrets"][0]["value"].as_str().unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("configuration reloaded");
    assert_eq!(send(&daemon, "/elsewhere", "c", SECRET), 200);
    assert_eq!(send(&daemon, "/elsewhere", "d", next), 200);
    let stars = json!({
        "path": "/elsewhere", "upstream": upstream.url(),
        "secrets": [{"name": "new", "value": "***"}],
    });
    let (status, said) = put(&operator, "shop", stars);
    assert_eq!(
        (status, wrong(&said)),
        (422, vec!["secrets[0].value"]),
        "{said}"
    );
    assert_eq!(put(&operator, "absent", json!({})).0, 404);
}

#[test]
fn wrong_tables_change_nothing_and_every_fault_is_told_by_its_key() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let bad = json!({"mode": "both", "deadline": "soon", "odd": 1, "secrets": [{"name": "a", "env": "SECRET"}]});
    let (status, said) = create(&operator, "shop", "shop", "ftp://x", &bad);
    assert_eq!(status, 422, "{said}");
    for key in ["path", "upstream", "mode", "deadline", "odd", "secrets[0]"] {
        assert!(wrong(&said).contains(&key), "{key}: {said}");
    }
    let (status, said) = create(&operator, "Shop", "/shop", NOBODY, &given());
    assert_eq!((status, wrong(&said)), (422, vec!["name"]));
    for (more, key) in [
        (
            json!({"upstream_options": {"ca": "/etc/passwd"}}),
            "upstream_options.ca",
        ),
        (
            json!({"upstream_options": {"headers": {"X-Y": {"env": "OPERATOR"}}}}),
            "upstream_options.headers.X-Y",
        ),
        (json!({"secrets": [{"file": "/etc/passwd"}]}), "secrets[0]"),
    ] {
        let (status, said) = create(&operator, "shop", "/shop", "https://127.0.0.1/", &more);
        assert_eq!(status, 422, "{said}");
        assert!(wrong(&said).contains(&key), "{key}: {said}");
    }
    assert_eq!(
        operator.get("/endpoints")["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn names_and_paths_that_are_taken_are_refused_at_run_time_and_at_a_reload() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let (status, said) = create(&operator, "crm", "/other", NOBODY, &given());
    assert_eq!(status, 409, "{said}");
    let (status, said) = create(&operator, "shop", "/hook", NOBODY, &given());
    assert_eq!((status, wrong(&said)), (422, vec!["path"]), "{said}");
    assert!(
        said["errors"][0]["detail"]
            .as_str()
            .unwrap()
            .contains("endpoints.crm"),
        "{said}"
    );
    assert_eq!(
        create(&operator, "shop", "/shop", &upstream.url(), &given()).0,
        201
    );

    // The file takes the name: it is refused until the other one is gone, and then in force.
    let path = daemon.dir.0.join("hookward.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let table = Daemon::endpoint("shop", "/shop-of-the-file", &upstream.url(), "");
    std::fs::write(&path, format!("{text}{table}")).unwrap();
    daemon.wait_for_log("configuration refused");
    let log = daemon.log();
    assert!(
        log.contains("endpoints.shop: made at run time too"),
        "{log}"
    );
    assert_eq!(send(&daemon, "/shop", "a", SECRET), 200);
    assert_eq!(
        operator.ask("DELETE", "/endpoints/shop", &Value::Null).0,
        204
    );
    assert_eq!(send(&daemon, "/shop", "b", SECRET), 404);
    assert_eq!(send(&daemon, "/shop-of-the-file", "c", SECRET), 200);
    let shown = operator.get("/endpoints/shop");
    assert_eq!(shown["origin"], "configuration");
}

#[test]
fn what_stands_in_the_file_is_only_switched_and_stays_so() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").operated().start();
    let operator = daemon.operator();
    let refused = put(&operator, "crm", json!({"path": "/x", "upstream": NOBODY}));
    assert_eq!(refused.0, 409);
    assert_eq!(
        operator.ask("DELETE", "/endpoints/crm", &Value::Null).0,
        409
    );
    let switch = |operator: &Operator, active: bool| {
        let (status, said) =
            operator.ask("PUT", "/endpoints/crm/active", &json!({"active": active}));
        assert_eq!((status, &said["active"]), (200, &active.into()), "{said}");
    };
    switch(&operator, false);
    assert_eq!(send(&daemon, "/hook", "a", SECRET), 503);
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("configuration reloaded");
    assert_eq!(send(&daemon, "/hook", "b", SECRET), 503);
    let daemon = daemon.end(Signal::TERM).start();
    assert_eq!(send(&daemon, "/hook", "c", SECRET), 503);
    let operator = daemon.operator();
    switch(&operator, true);
    assert_eq!(send(&daemon, "/hook", "d", SECRET), 200);
    assert_eq!(
        operator
            .ask("PUT", "/endpoints/absent/active", &json!({"active": true}))
            .0,
        404
    );
}

#[test]
fn upstreams_made_at_run_time_are_where_they_may_be() {
    let setup = Daemon::relay(NOBODY, "").operated();
    let setup = setup.env(
        "HOOKWARD_ADMIN__UPSTREAM_ALLOW",
        r#"["10.0.0.0/8", "0.0.0.0/0", "::/0", "metadata.test"]"#,
    );
    let operator = setup.start();
    let operator = operator.operator();
    for url in [
        "http://169.254.169.254/latest",
        "http://[::ffff:169.254.169.254]/",
        "http://[fe80::1]/",
        "http://0.0.0.0:1/",
        "http://100.100.100.200/",
        "unix:/run/docker.sock:/",
    ] {
        let (status, said) = create(&operator, "shop", "/shop", url, &given());
        assert_eq!(
            (status, wrong(&said)),
            (422, vec!["upstream"]),
            "{url}: {said}"
        );
    }
    assert_eq!(
        create(&operator, "shop", "/shop", "http://10.0.0.7/", &given()).0,
        201
    );
}

/// `localhost` is a name, of which nothing is known before it is looked up.
#[test]
fn a_name_that_leads_where_it_must_not_is_not_connected_to() {
    let upstream = Upstream::new(Act::status(200));
    let port = upstream.url().rsplit(':').next().unwrap().to_owned();
    let setup = Daemon::relay(NOBODY, "").operated();
    let setup = setup.env("HOOKWARD_ADMIN__UPSTREAM_ALLOW", r#"["192.0.2.0/24"]"#);
    let daemon = setup.start();
    let url = format!("http://localhost:{port}");
    let (status, said) = create(&daemon.operator(), "shop", "/shop", &url, &given());
    assert_eq!(status, 201, "{said}");
    assert_eq!(send(&daemon, "/shop", "a", SECRET), 502);
    assert_eq!(upstream.count(), 0);
    daemon.wait_for_log("permission denied");
}

#[test]
fn what_was_made_at_run_time_is_written_down_for_the_configuration() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    assert_eq!(
        create(&operator, "shop", "/shop", "http://127.0.0.1:1/", &given()).0,
        201
    );
    let token = format!("Authorization: Bearer {}\r\n", support::TOKEN);
    let export = operator.send("GET", "/export", &token, &Value::Null);
    assert_eq!(export.header("content-type"), Some("application/toml"));
    let text = export.text();
    assert!(!text.contains(SECRET), "{text}");
    let table: toml::Table = text.parse().unwrap();
    assert_eq!(table["endpoints"]["shop"]["path"].as_str(), Some("/shop"));
}

#[test]
fn without_a_place_on_disk_nothing_is_made_or_switched() {
    let setup = Daemon::relay(NOBODY, "");
    let setup = setup.env("OPERATOR", support::TOKEN);
    let setup = setup.env("HOOKWARD_ADMIN__TOKEN", r#"{env="OPERATOR"}"#);
    let daemon = setup.start();
    let operator = daemon.operator();
    assert_eq!(create(&operator, "shop", "/shop", NOBODY, &given()).0, 409);
    assert_eq!(
        operator
            .ask("PUT", "/endpoints/crm/active", &json!({"active": false}))
            .0,
        409
    );
    assert_eq!(operator.ask("GET", "/queue/events", &Value::Null).0, 409);
}

#[test]
fn it_starts_with_no_endpoint_where_some_can_be_made() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::with("", "").operated().start();
    let operator = daemon.operator();
    assert_eq!(operator.get("/endpoints")["items"], json!([]));
    assert_eq!(
        create(&operator, "shop", "/shop", &upstream.url(), &given()).0,
        201
    );
    assert_eq!(send(&daemon, "/shop", "a", SECRET), 200);
}

#[test]
fn a_file_of_endpoints_that_nobody_here_wrote_stops_the_start_without_being_quoted() {
    let setup = Daemon::relay(NOBODY, "").operated();
    std::fs::create_dir(setup.data_dir()).unwrap();
    let file = setup.data_dir().join("endpoints.json");
    std::fs::write(file, r#"{"very-secret""#).unwrap();
    let (code, told) = setup.refuse();
    assert_eq!(code, 1, "{told}");
    assert!(
        told.contains("endpoints.json") && !told.contains("very-secret"),
        "{told}"
    );
}

#[test]
fn what_cannot_be_put_on_disk_does_not_take_effect() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    // What stands where the new file is written cannot be taken away.
    let in_the_way = daemon.data_dir().join("endpoints.json.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let (status, said) = create(&operator, "shop", "/shop", "http://127.0.0.1:1/", &given());
    assert_eq!(
        (status, said["type"].as_str()),
        (503, Some("urn:hookward:storage"))
    );
    assert_eq!(send(&daemon, "/shop", "a", SECRET), 404);
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(
        create(&operator, "shop", "/shop", "http://127.0.0.1:1/", &given()).0,
        201
    );
    eventually("it is there", || send(&daemon, "/shop", "a", SECRET) == 502);
}
