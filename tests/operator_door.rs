//! Who may use API and dashboard, and what a browser is told.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use serde_json::{Value, json};
use support::{Act, Daemon, NOBODY, Operator, Sender, TOKEN, Upstream};

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[test]
fn without_a_token_there_are_metrics_and_health_and_nothing_else() {
    let daemon = Daemon::relay(NOBODY, "").start();
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(daemon.ask(path).status, 200, "{path}");
    }
    for path in [
        "/",
        "/assets/main.js",
        "/api/v1/openapi.json",
        "/api/v1/stats",
    ] {
        assert_eq!(daemon.ask(path).status, 404, "{path}");
    }
    let token = json!({"token": TOKEN});
    let operator = daemon.operator();
    assert_eq!(operator.send("POST", "/session", "", &token).status, 405);
}

#[test]
fn every_operation_of_the_description_exists_and_wants_the_token() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let open = operator.send("GET", "/openapi.json", "", &Value::Null);
    let description: Value = serde_json::from_slice(&open.body).unwrap();
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut count = 0;
    for (path, operations) in description["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let method = method.to_ascii_uppercase();
            let path = path.replace("{event_id}", "0193").replace("{number}", "1");
            let path = path
                .replace("{name}", "absent")
                .replace("{endpoint}", "absent");
            count += 1;
            if (method.as_str(), path.as_str()) == ("POST", "/session") {
                continue;
            }
            let refused = operator.send(&method, &path, "", &Value::Null);
            let shown = format!("{method} {path}: {refused:?}");
            assert_eq!(refused.status, 401, "{shown}");
            assert_eq!(refused.reason(), "token", "{shown}");
            if path != "/requests/stream" {
                let known = operator.send(&method, &path, &bearer(TOKEN), &Value::Null);
                let is_absent =
                    known.status == 405 || known.status == 404 && known.reason() == "request";
                assert!(!is_absent, "{method} {path}: {known:?}");
            }
        }
    }
    assert!(count > 20, "{count}");
    let nowhere = operator.send("GET", "/nowhere", &bearer(TOKEN), &Value::Null);
    assert_eq!(
        (nowhere.status, nowhere.reason().as_str()),
        (404, "request")
    );
    let method = operator.send("PATCH", "/stats", &bearer(TOKEN), &Value::Null);
    assert_eq!(method.status, 405);
    assert_eq!(method.header("allow"), Some("GET,HEAD"));
}

#[test]
fn wrong_tokens_are_refused_and_soon_not_even_compared() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let ask = |token: &str| operator.send("GET", "/stats", &bearer(token), &Value::Null);
    assert_eq!(ask(TOKEN).status, 200);
    let statuses: Vec<_> = (0..12).map(|_| ask("a-wrong-token").status).collect();
    assert_eq!(
        statuses.iter().filter(|status| **status == 401).count(),
        10,
        "{statuses:?}"
    );
    let late = ask(TOKEN);
    assert_eq!((late.status, late.reason().as_str()), (429, "token"));
    assert!(late.header("retry-after").is_some());
    daemon.wait_for_log("wrong admin token");
    assert!(!daemon.log().contains("a-wrong-token"));
}

/// Behind a proxy everybody comes from its address.
#[test]
fn who_guesses_behind_a_trusted_proxy_locks_nobody_else_out() {
    let setup = Daemon::relay(NOBODY, "").operated();
    let trusted = r#"["127.0.0.0/8", "10.0.0.0/8"]"#;
    let daemon = setup
        .env("HOOKWARD_SERVER__TRUSTED_PROXIES", trusted)
        .start();
    let operator = daemon.operator();
    let ask = |client: &str, token: &str| {
        let headers = format!("X-Forwarded-For: {client}\r\n{}", bearer(token));
        let reply = operator.send("GET", "/stats", &headers, &Value::Null);
        reply.status
    };
    // What it makes up itself stands before what the proxies say.
    for number in 0..10 {
        let client = format!("192.0.2.{number}, 203.0.113.9, 10.0.0.7");
        assert_eq!(ask(&client, "a-wrong-token"), 401, "{client}");
    }
    assert_eq!(ask("198.51.100.4, 203.0.113.9", TOKEN), 429);
    assert_eq!(ask("203.0.113.9, 198.51.100.4", TOKEN), 200);
    assert_eq!(ask("203.0.113.9", TOKEN), 429);
    daemon.wait_for_log("203.0.113.9");
    let sign_in = json!({"token": "a-wrong-token-in-a-form"});
    let reply = operator.send("POST", "/session", "", &sign_in);
    assert_eq!(reply.status, 401);
    let is_told = || daemon.log().matches("wrong admin token").count() == 11;
    support::eventually("every wrong token is logged", is_told);
}

#[test]
fn a_browser_signs_in_for_a_cookie_and_out_again() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let operator = daemon.operator();
    let sign_in =
        |token: &str, more: &str| operator.send("POST", "/session", more, &json!({"token": token}));
    assert_eq!(sign_in("a-wrong-token", "").status, 401);
    let reply = sign_in(TOKEN, "");
    assert_eq!(reply.status, 204);
    let cookie = reply.header("set-cookie").unwrap().to_owned();
    assert!(cookie.ends_with("; HttpOnly; SameSite=Strict"), "{cookie}");
    let behind_tls = format!("Origin: https://{}\r\n", operator.0);
    let secure = sign_in(TOKEN, &behind_tls);
    assert!(secure.header("set-cookie").unwrap().ends_with("; Secure"));
    let pair = cookie.split(';').next().unwrap();
    // Another program on this host, at another port, may have set one of that name as well.
    let with = format!("Cookie: hookward_session=a.b.c; {pair}\r\n");
    let own = format!("{with}Origin: http://{}\r\n", operator.0);
    let show = || operator.send("GET", "/session", &with, &Value::Null).status;
    assert_eq!(show(), 200);
    let switch = json!({"active": false});
    let foreign = format!("{with}Origin: http://evil.example\r\n");
    for (headers, status) in [(&foreign, 403), (&with, 403), (&own, 200)] {
        let reply = operator.send("PUT", "/endpoints/crm/active", headers, &switch);
        assert_eq!(reply.status, status, "{headers}: {reply:?}");
    }
    assert_eq!(
        operator
            .send("DELETE", "/session", &own, &Value::Null)
            .status,
        204
    );
    assert_eq!(show(), 401);
}

#[test]
fn a_name_that_a_stranger_leads_here_is_refused() {
    let setup = Daemon::relay(NOBODY, "").operated();
    let daemon = setup
        .env("HOOKWARD_ADMIN__HOSTS", r#"["hooks.example"]"#)
        .start();
    let operator = daemon.operator();
    for (host, status) in [
        ("evil.example", 421),
        ("hooks.example", 200),
        ("localhost:1", 200),
    ] {
        let headers = format!("Host: {host}\r\n{}", bearer(TOKEN));
        let reply = operator.send("GET", "/stats", &headers, &Value::Null);
        assert_eq!(reply.status, status, "{host}");
    }
    // Metrics and health are for whoever finds them, under any name.
    let mut scraper = Sender::connect(daemon.admin);
    scraper.write(b"GET /livez HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert_eq!(scraper.reply().status, 200);
}

#[test]
fn browsers_are_told_to_run_nothing_of_others_and_to_keep_nothing() {
    let daemon = Daemon::relay(NOBODY, "").operated().start();
    let host = format!("Host: {}", daemon.admin);
    for path in [
        "/",
        "/assets/style.css",
        "/api/v1/stats",
        "/api/v1/openapi.json",
        "/nowhere",
    ] {
        let mut browser = Sender::connect(daemon.admin);
        let head = format!("GET {path} HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n");
        browser.write(head.as_bytes());
        let reply = browser.reply();
        let policy = reply.header("content-security-policy").unwrap();
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
}

#[test]
fn api_and_dashboard_can_have_a_listener_of_their_own() {
    let setup = Daemon::relay(NOBODY, "").operated();
    let daemon = setup
        .env("HOOKWARD_ADMIN__API_LISTEN", r#"["127.0.0.1:0"]"#)
        .start();
    let api = daemon.address("api").unwrap();
    assert_eq!(daemon.ask("/metrics").status, 200);
    let asked = daemon.operator().ask("GET", "/stats", &Value::Null);
    assert_eq!(asked.0, 404);
    assert_eq!(Operator(api).ask("GET", "/stats", &Value::Null).0, 200);
    let mut scraper = Sender::connect(api);
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\r\n");
    scraper.write(head.as_bytes());
    assert_eq!(scraper.reply().status, 401);
}

#[test]
fn another_token_is_in_force_after_a_reload_and_ends_what_the_old_one_began() {
    let upstream = Upstream::new(Act::status(200));
    let setup = Daemon::relay(&upstream.url(), "").on_disk();
    let file = setup.dir().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let token = format!(r#"{{file="{}"}}"#, file.display());
    let daemon = setup.env("HOOKWARD_ADMIN__TOKEN", &token).start();
    let operator = daemon.operator();
    let reply = operator.send("POST", "/session", "", &json!({"token": TOKEN}));
    let cookie = reply.header("set-cookie").unwrap();
    let with = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    assert_eq!(
        operator.send("GET", "/stats", &with, &Value::Null).status,
        200
    );
    let mut stream = operator.watch();
    std::fs::write(&file, "another-token-of-our-own").unwrap();
    daemon.wait_for_log("configuration reloaded");
    // Its last chunk.
    stream.until("\n0\r\n\r\n");
    assert_eq!(
        operator.send("GET", "/stats", &with, &Value::Null).status,
        401
    );
    assert_eq!(operator.ask("GET", "/stats", &Value::Null).0, 401);
    let new = bearer("another-token-of-our-own");
    assert_eq!(
        operator.send("GET", "/stats", &new, &Value::Null).status,
        200
    );
}

#[test]
fn who_takes_every_connection_there_is_for_one_address_leaves_some_to_probes() {
    let daemon = Daemon::relay(NOBODY, "").start();
    let held: Vec<_> = (0..128)
        .map(|_| {
            let mut idle = Sender::connect(daemon.admin);
            idle.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(idle.reply().status, 200);
            idle
        })
        .collect();
    assert_eq!(Sender::connect(daemon.admin).reply().status, 503);
    let probe = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let other = "127.0.0.2:0".parse::<std::net::SocketAddr>().unwrap();
    probe.bind(&other.into()).unwrap();
    probe.connect(&daemon.admin.into()).unwrap();
    let mut probe = Sender::of(probe.into());
    probe.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(probe.reply().status, 200);
    drop(held);
    support::eventually("there is room again", || {
        let mut again = Sender::connect(daemon.admin);
        let ask = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        again.try_write(ask) && again.rest().starts_with(b"HTTP/1.1 200 ")
    });
}

#[test]
fn a_token_that_can_be_guessed_is_refused_at_the_start() {
    for (token, said) in [
        ("short", "at least 16 bytes"),
        ("sixteen bytes or so", "visible ASCII"),
    ] {
        let setup = Daemon::relay(NOBODY, "").operated().env("OPERATOR", token);
        let (code, told) = setup.refuse();
        assert_eq!(code, 2, "{told}");
        assert!(
            told.contains("admin.token") && told.contains(said),
            "{told}"
        );
        assert!(!told.contains(token), "{told}");
    }
}
