//! What the upstream gets, and what comes back from it.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use support::{Act, BODY, Daemon, HANG, SECRET, Upstream, event, sign};

fn relay(upstream: &Upstream, more: &str) -> Daemon {
    Daemon::relay(&upstream.url(), more).start()
}

#[test]
fn the_upstream_gets_the_very_bytes_with_one_length() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let binary: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..1_048_576_u32)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    for body in [b"".as_slice(), b"x", BODY.as_bytes(), &binary, &large] {
        let key = format!("plain-{}", body.len());
        assert_eq!(daemon.sender().send(&event(&key, body, "")).status, 200);
        let message = upstream.next_message();
        assert_eq!(message.body, body);
        assert_eq!(message.value("content-length"), body.len().to_string());
    }
    // The same in one-byte chunks with trailers: one length, no coding, no trailers.
    let mut request = format!(
        "POST /hook HTTP/1.1\r\nHost: a\r\nTinyTalk-Signature: {}\r\nIdempotency-Key: chunks\r\n\
         Transfer-Encoding: chunked\r\nTrailer: X-After\r\n\r\n",
        sign(SECRET, &binary)
    )
    .into_bytes();
    for byte in &binary {
        request.extend_from_slice(b"1\r\n");
        request.extend_from_slice(&[*byte, b'\r', b'\n']);
    }
    request.extend_from_slice(b"0\r\nX-After: 1\r\n\r\n");
    assert_eq!(daemon.sender().send(&request).status, 200);
    let message = upstream.next_message();
    assert_eq!(message.body, binary);
    for gone in ["transfer-encoding", "trailer", "x-after"] {
        assert!(message.values(gone).is_empty(), "{gone}");
    }
}

#[test]
fn headers_say_what_was_verified_and_nothing_a_sender_made_up() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let more = "Connection: keep-alive, TinyTalk-Signature, Idempotency-Key, Content-Type, X-Hop\r\nX-Hop: 1\r\n\
                Hookward-Verified: false\r\nHookward-Endpoint: forged\r\nHookward-Anything: 1\r\n\
                X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nForwarded: for=1.2.3.4\r\n\
                Keep-Alive: 1\r\nTE: trailers\r\nProxy-Authorization: x\r\nUpgrade: h2c\r\n\
                traceparent: 00-1-2-01\r\nX-Many: a\r\nX-Many: b\r\n";
    assert_eq!(
        daemon
            .sender()
            .send(&event("key-1", BODY.as_bytes(), more))
            .status,
        200
    );
    let message = upstream.next_message();
    assert!(
        message.head.starts_with("POST /in HTTP/1.1\r\n"),
        "{}",
        message.head
    );
    for (name, value) in [
        ("host", "hooks.example"),
        ("content-type", "application/json"),
        ("tinytalk-signature", sign(SECRET, BODY.as_bytes()).as_str()),
        ("idempotency-key", "key-1"),
        ("hookward-verified", "true"),
        ("hookward-endpoint", "crm"),
        ("hookward-event-type", "message.created"),
        ("hookward-attempt", "1"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "hooks.example"),
        ("via", "1.1 hookward"),
        ("traceparent", "00-1-2-01"),
    ] {
        assert_eq!(message.value(name), value, "{name}");
    }
    let received = message.value("hookward-received-at");
    assert!(humantime::parse_rfc3339(received).is_ok(), "{received}");
    assert_eq!(message.values("x-many"), ["a", "b"]);
    for gone in [
        "connection",
        "x-hop",
        "hookward-anything",
        "forwarded",
        "keep-alive",
        "te",
        "proxy-authorization",
        "upgrade",
    ] {
        assert!(message.values(gone).is_empty(), "{gone}");
    }
}

#[test]
fn a_trusted_proxys_word_on_the_sender_is_kept() {
    let upstream = Upstream::new(Act::status(200));
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let config = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\ntrusted_proxies = [\"127.0.0.0/8\"]\n[admin]\nlisten = [\"127.0.0.1:0\"]\n{endpoint}"
    );
    let daemon = Daemon::config(&config).start();
    let more = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: public.example\r\n";
    daemon.sender().send(&event("k", BODY.as_bytes(), more));
    let message = upstream.next_message();
    assert_eq!(
        message.values("x-forwarded-for"),
        ["203.0.113.7", "127.0.0.1"]
    );
    assert_eq!(message.value("x-forwarded-proto"), "https");
    assert_eq!(message.value("x-forwarded-host"), "public.example");
}

#[test]
fn a_remainder_and_a_query_are_kept() {
    let upstream = Upstream::new(Act::status(200));
    let url = format!("http://{}/base?fixed=1", upstream.address);
    let daemon = Daemon::with("", &Daemon::endpoint("crm", "/hook/*", &url, "")).start();
    let request = String::from_utf8(event("k", BODY.as_bytes(), "")).unwrap();
    let request = request.replacen("POST /hook", "POST /hook/a%20b/c?x=%2F&y", 1);
    assert_eq!(daemon.sender().send(request.as_bytes()).status, 200);
    let message = upstream.next_message();
    assert!(
        message
            .head
            .starts_with("POST /base/a%20b/c?fixed=1&x=%2F&y HTTP/1.1"),
        "{}",
        message.head
    );
}

#[test]
fn endpoints_have_their_own_paths_secrets_and_upstreams() {
    let (one, two) = (
        Upstream::new(Act::status(201)),
        Upstream::new(Act::status(202)),
    );
    let config = Daemon::endpoint("one", "/hook", &one.url(), "")
        + &Daemon::endpoint(
            "two",
            "/two",
            &two.url(),
            "secrets = [{ name = \"x\", env = \"OTHER\" }]",
        );
    let daemon = Daemon::with("", &config)
        .env("OTHER", "another-secret-of-some-length")
        .start();
    assert_eq!(
        daemon
            .sender()
            .send(&event("k", BODY.as_bytes(), ""))
            .status,
        201
    );
    let request = String::from_utf8(event("k", BODY.as_bytes(), ""))
        .unwrap()
        .replacen("/hook", "/two", 1);
    assert_eq!(daemon.sender().send(request.as_bytes()).status, 401);
    let own = sign("another-secret-of-some-length", BODY.as_bytes());
    let request = request.replace(&sign(SECRET, BODY.as_bytes()), &own);
    assert_eq!(
        daemon.sender().send(request.as_bytes()).status,
        202,
        "keys are not shared either"
    );
}

#[test]
fn configured_headers_go_along() {
    let upstream = Upstream::new(Act::status(200));
    let more = "[endpoints.crm.upstream_options]\nheaders = { Authorization = { env = \"TOKEN\" }, X-Fixed = \"1\" }";
    let daemon = Daemon::relay(&upstream.url(), more)
        .env("TOKEN", "Bearer t")
        .start();
    daemon
        .sender()
        .send(&event("k", BODY.as_bytes(), "Authorization: theirs\r\n"));
    let message = upstream.next_message();
    assert_eq!(
        (message.value("authorization"), message.value("x-fixed")),
        ("Bearer t", "1")
    );
}

#[test]
fn answers_lose_what_ends_at_this_hop_and_keep_the_rest() {
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: X-Gone\r\nX-Gone: 1\r\n\
        Hookward-Outcome: forged\r\nHookward-Verified: true\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n\
        3\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n";
    let upstream = Upstream::new(Act::Answer(chunked.to_vec()));
    let daemon = relay(&upstream, "");
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!((reply.status, reply.text().as_str()), (200, "abcde"));
    assert_eq!(reply.all("hookward-outcome"), ["forwarded"]);
    assert_eq!(reply.all("set-cookie"), ["a=1", "b=2"]);
    for gone in [
        "x-gone",
        "hookward-verified",
        "transfer-encoding",
        "x-trailer",
    ] {
        assert_eq!(reply.header(gone), None, "{gone}");
    }
}

#[test]
fn answers_of_every_shape_pass() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let mut sender = daemon.sender();
    let mut send = |key: &str| sender.send(&event(key, BODY.as_bytes(), ""));
    upstream.then([Act::Answer(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())]);
    assert_eq!(send("none").status, 204);
    let interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    upstream.then([Act::Answer(interim.to_vec())]);
    assert_eq!(send("interim").text(), "ok");
    upstream.then([Act::answer(
        302,
        "Location: http://elsewhere.example/\r\n",
        b"",
    )]);
    let redirect = send("redirect");
    assert_eq!(
        (redirect.status, redirect.header("location")),
        (302, Some("http://elsewhere.example/"))
    );
    upstream.then([Act::AnswerAndClose(
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end".to_vec(),
    )]);
    assert_eq!(send("close").text(), "until the end");
    let large: Vec<u8> = (0..5_000_000_u32)
        .map(|n| u8::try_from(n % 253).unwrap())
        .collect();
    upstream.then([Act::answer(200, "", &large)]);
    assert!(send("large").body == large, "five megabytes differ");
}

#[test]
fn connections_to_the_upstream_are_kept() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let mut sender = daemon.sender();
    for n in 0..20 {
        assert_eq!(
            sender
                .send(&event(&n.to_string(), BODY.as_bytes(), ""))
                .status,
            200
        );
    }
    assert_eq!((upstream.count(), upstream.connections()), (20, 1));
}

#[test]
fn an_idle_connection_that_closes_as_we_write_costs_one_more_attempt() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let mut sender = daemon.sender();
    assert_eq!(sender.send(&event("1", BODY.as_bytes(), "")).status, 200);
    let first = upstream.next_message();
    // The second message is read on the kept connection, which then closes without a word.
    upstream.then([Act::Close]);
    assert_eq!(sender.send(&event("2", BODY.as_bytes(), "")).status, 200);
    let (dead, again) = (upstream.next_message(), upstream.next_message());
    assert_eq!(
        (first.connection, dead.connection, again.connection),
        (1, 1, 2)
    );
    assert_eq!(
        (
            dead.value("hookward-attempt"),
            again.value("hookward-attempt")
        ),
        ("1", "2")
    );
    assert_eq!(
        dead.value("hookward-event-id"),
        again.value("hookward-event-id")
    );
    assert_eq!(again.body, BODY.as_bytes());
    // Without a key an application could not tell a second attempt from a second event.
    upstream.then([Act::Close]);
    let reply = sender.send(&event("", b"{\"n\":3}", ""));
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (502, "upstream_unreachable")
    );
    assert_eq!(upstream.count(), 4);
    // Nor is a fresh connection tried again.
    upstream.then([Act::Close]);
    assert_eq!(sender.send(&event("4", BODY.as_bytes(), "")).status, 502);
    assert_eq!(upstream.count(), 5);
}

#[test]
fn an_upstream_that_refuses_or_breaks_off_is_502_and_the_retry_gets_through() {
    let nobody = Upstream::nobody();
    let daemon = Daemon::relay(&format!("http://{nobody}/in"), "").start();
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!((reply.status, reply.outcome()), (502, "failed"));
    assert_eq!(reply.reason(), "upstream_unreachable");

    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let torn: [&[u8]; 8] = [
        b"",
        b"HTTP/1.1 200 OK\r\nConte",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"garbage\r\n\r\n",
    ];
    for answer in torn {
        upstream.then([Act::AnswerAndClose(answer.to_vec())]);
        let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
        assert_eq!(reply.status, 502, "{:?}", String::from_utf8_lossy(answer));
    }
    let retry = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!((retry.status, retry.outcome()), (200, "forwarded"));
    assert_eq!(
        daemon.metric("hookward_upstream_responses_total", &[("class", "error")]),
        8.0
    );
}

#[test]
fn an_upstream_that_hangs_is_504_at_the_deadline() {
    let upstream = Upstream::new(Act::Hang);
    let daemon = relay(&upstream, "deadline = \"200ms\"");
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (504, "upstream_timeout")
    );
    assert_eq!(reply.outcome(), "failed");
    upstream.by_default(Act::status(200));
    assert_eq!(
        daemon
            .sender()
            .send(&event("k", BODY.as_bytes(), ""))
            .outcome(),
        "forwarded"
    );
}

#[test]
fn an_answer_that_comes_before_the_body_was_read_is_relayed() {
    let early =
        b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\nRetry-After: 9\r\n\r\nbusy".to_vec();
    let upstream = Upstream::new(Act::AnswerEarly(early));
    let limits = "[limits]\nmax_body = \"16MiB\"\n".to_owned();
    let daemon = Daemon::with(
        "",
        &(limits + &Daemon::endpoint("crm", "/hook", &upstream.url(), "")),
    )
    .start();
    let body = vec![b'x'; 12 << 20];
    let mut sender = daemon.sender();
    let reply = sender.send(&event("k", &body, ""));
    assert_eq!((reply.status, reply.text().as_str()), (429, "busy"));
    assert_eq!(reply.header("retry-after"), Some("9"));
    // Nothing follows half a request on that connection.
    assert_eq!(sender.send(&event("k2", BODY.as_bytes(), "")).status, 429);
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn an_acceptance_that_comes_before_the_body_was_read_is_no_delivery() {
    let early = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n".to_vec();
    let upstream = Upstream::new(Act::status(200));
    upstream.then([Act::AnswerEarly(early)]);
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "deadline = \"1s\"");
    let limits = "[limits]\nmax_body = \"16MiB\"\n".to_owned();
    let daemon = Daemon::with("", &(limits + &endpoint)).start();
    let body = vec![b'x'; 12 << 20];
    let mut sender = daemon.sender();
    let reply = sender.send(&event("k", &body, ""));
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (504, "upstream_timeout")
    );
    // It was not delivered: the retry is no duplicate.
    let reply = sender.send(&event("k", &body, ""));
    assert_eq!((reply.status, reply.outcome()), (200, "forwarded"));
    upstream.next_message();
    assert_eq!(upstream.next_message().body, body);
}

#[test]
fn a_body_that_stands_in_for_a_key_makes_no_second_attempt_safe() {
    let upstream = Upstream::new(Act::status(200));
    let body_is_key = "[endpoints.crm.dedup]\nmissing_key = \"body\"";
    let daemon = relay(&upstream, body_is_key);
    let mut sender = daemon.sender();
    assert_eq!(sender.send(&event("1", b"{}", "")).status, 200);
    upstream.then([Act::Close]);
    // It was written whole on a kept connection, and carries no key to know a second one by.
    let reply = sender.send(&event("", BODY.as_bytes(), ""));
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (502, "upstream_unreachable")
    );
    assert_eq!(upstream.count(), 2);
    let reply = sender.send(&event("", BODY.as_bytes(), ""));
    assert_eq!(reply.outcome(), "forwarded");
}

#[test]
fn a_long_answer_keeps_its_place_at_the_upstream_to_its_end() {
    let body = vec![b'x'; 200_000];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let (first, second) = body.split_at(100_000);
    let upstream = Upstream::new(Act::status(200));
    upstream.then([Act::Parts(
        [head.as_bytes(), first].concat(),
        second.to_vec(),
    )]);
    let one = "[endpoints.crm.upstream_options]\nmax_concurrency = 1";
    let daemon = relay(&upstream, one);
    let mut sender = daemon.sender();
    sender.write(&event("1", BODY.as_bytes(), ""));
    sender.read_until(b"xxx");
    let shed = daemon.sender().send(&event("2", b"{}", ""));
    assert_eq!((shed.status, shed.reason().as_str()), (503, "overloaded"));
    upstream.release();
    assert_eq!(sender.reply().body, body);
    let next = daemon.sender().send(&event("2", b"{}", ""));
    assert_eq!(next.status, 200);
}

#[test]
fn a_unix_socket_is_an_upstream_too() {
    let directory = std::env::temp_dir().join(format!("hookward-unix-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("app.sock");
    let upstream = Upstream::unix(&path, Act::status(200));
    let daemon = Daemon::relay(&format!("unix:{}:/in?a=b", path.display()), "").start();
    assert_eq!(
        daemon
            .sender()
            .send(&event("k", BODY.as_bytes(), ""))
            .status,
        200
    );
    assert!(upstream.next_message().head.starts_with("POST /in?a=b "));
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn connecting_is_tried_again_for_as_long_as_was_said() {
    let address = Upstream::nobody();
    let daemon = Daemon::relay(&format!("http://{address}/in"), "connect_retry = \"20s\"").start();
    let mut sender = daemon.sender();
    sender.write(&event("k", BODY.as_bytes(), ""));
    // The application starts later than the gate has an event for it.
    support::eventually("the event is in flight", || {
        daemon.metric("hookward_in_flight", &[("endpoint", "crm")]) == 1.0
    });
    let upstream = Upstream::at(address, Act::status(200));
    assert_eq!(sender.reply().status, 200);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn an_https_upstream_is_verified_by_the_root_that_was_named() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let upstream = Upstream::new(Act::status(200));
    let secure = tls_in_front_of(&upstream, fixtures);
    let url = format!("https://localhost:{}/in", secure.port());
    let options = format!(
        "[endpoints.crm.upstream_options]\nca = \"{fixtures}/ca.pem\"\nclient_cert = \"{fixtures}/client.pem\"\nclient_key = \"{fixtures}/client.key\""
    );
    let daemon = Daemon::relay(&url, &options).start();
    let mut sender = daemon.sender();
    for key in ["1", "2"] {
        assert_eq!(sender.send(&event(key, BODY.as_bytes(), "")).status, 200);
        assert_eq!(upstream.next_message().body, BODY.as_bytes());
    }
    // By another name, or without that root, nobody is trusted.
    let other = Daemon::relay(&url.replace("localhost", "127.0.0.1"), &options).start();
    assert_eq!(
        other.sender().send(&event("3", BODY.as_bytes(), "")).status,
        502
    );
    let without = Daemon::relay(
        &url,
        &format!("[endpoints.crm.upstream_options]\nca = \"{fixtures}/other-ca.pem\""),
    )
    .start();
    assert_eq!(
        without
            .sender()
            .send(&event("4", BODY.as_bytes(), ""))
            .status,
        502
    );
    assert_eq!(upstream.count(), 2);
}

#[test]
fn an_upstream_that_wants_a_client_certificate_is_said_to() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let upstream = Upstream::new(Act::status(200));
    let secure = tls_in_front_of(&upstream, fixtures);
    let url = format!("https://localhost:{}/in", secure.port());
    let options = format!("[endpoints.crm.upstream_options]\nca = \"{fixtures}/ca.pem\"\n");
    let daemon = Daemon::relay(&url, &options).start();
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (502, "upstream_unreachable")
    );
    let id = reply.header("hookward-event-id").unwrap();
    daemon.wait_for_log(id);
    let line = daemon.lines().into_iter().find(|l| l["event_id"] == id);
    let line = line.unwrap();
    let cause = line["cause"].as_str().unwrap();
    assert!(
        cause.contains("handshake") && cause.contains("client_cert"),
        "{cause}"
    );
    assert_eq!(upstream.count(), 0);
}

/// Takes TLS off, asking for a client certificate, and passes bytes on to the upstream.
fn tls_in_front_of(upstream: &Upstream, fixtures: &str) -> std::net::SocketAddr {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let pem = |name: &str| format!("{fixtures}/{name}");
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(pem("ca.pem")).unwrap())
        .unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![CertificateDer::from_pem_file(pem("server.pem")).unwrap()],
            PrivateKeyDer::from_pem_file(pem("server.key")).unwrap(),
        )
        .unwrap();
    let config = std::sync::Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, behind) = (listener.local_addr().unwrap(), upstream.address);
    thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let config = config.clone();
            thread::spawn(move || {
                let session = rustls::ServerConnection::new(config).unwrap();
                let mut tls = rustls::StreamOwned::new(session, tcp);
                let mut app = TcpStream::connect(behind).unwrap();
                app.set_read_timeout(Some(HANG)).unwrap();
                // One message and one answer at a time, each in one piece of loopback.
                let mut buffer = [0; 64 * 1024];
                loop {
                    let mut message = Vec::new();
                    while !message.ends_with(BODY.as_bytes()) {
                        match tls.read(&mut buffer) {
                            Ok(0) | Err(_) => return,
                            Ok(n) => message.extend_from_slice(&buffer[..n]),
                        }
                    }
                    app.write_all(&message).unwrap();
                    let n = app.read(&mut buffer).unwrap();
                    tls.write_all(&buffer[..n]).unwrap();
                }
            });
        }
    });
    address
}

#[test]
fn values_go_on_byte_for_byte_and_in_their_order() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let plain = event("k", BODY.as_bytes(), "");
    let end = plain.len() - BODY.len() - 2;
    let odd: &[u8] = b"X-Odd: caf\xe9 \xff\tx\r\nX-Empty:\r\nX-Many: 2\r\nX-Other: o\r\nX-Many: 1\r\nX-Many: 2\r\n\
                       Content-Encoding: gzip\r\nX-With_Underscore: 1\r\nCookie: a=b; c=d\r\nUser-Agent: t\r\n";
    let request = [&plain[..end], odd, &plain[end..]].concat();
    assert_eq!(daemon.sender().send(&request).status, 200);
    let message = upstream.next_message();
    let has = |wanted: &[u8]| {
        message
            .head_bytes
            .windows(wanted.len())
            .any(|w| w == wanted)
    };
    assert!(has(b": caf\xe9 \xff\tx\r\n"), "{}", message.head);
    assert_eq!(message.values("x-many"), ["2", "1", "2"]);
    for (name, value) in [
        ("content-encoding", "gzip"),
        ("x-with_underscore", "1"),
        ("cookie", "a=b; c=d"),
        ("user-agent", "t"),
        ("x-other", "o"),
    ] {
        assert_eq!(message.value(name), value);
    }
    assert!(
        has(b"x-empty: \r\n") || has(b"X-Empty:\r\n"),
        "{}",
        message.head
    );
    assert_eq!(message.body, BODY.as_bytes());
}

#[test]
fn a_type_that_is_no_plain_text_is_not_put_into_a_header() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let longest = "t".repeat(128);
    let over = "t".repeat(129);
    for (body, wanted) in [
        (format!(r#"{{"type":"{longest}"}}"#), Some(longest.as_str())),
        (format!(r#"{{"type":"{over}"}}"#), None),
        (r#"{"type":"a b"}"#.to_owned(), None),
        (
            r#"{"type":"a\r\nHookward-Verified: false"}"#.to_owned(),
            None,
        ),
        (r#"{"type":"caf\u00e9"}"#.to_owned(), None),
        (r#"{"type":""}"#.to_owned(), None),
        (r#"{"type":null}"#.to_owned(), None),
        (r#"{"payload":{"type":"nested"}}"#.to_owned(), None),
        (r#"["type","listed"]"#.to_owned(), None),
        ("not json at all".to_owned(), None),
        (r#"{"type":"torn"#.to_owned(), None),
    ] {
        let key = sign("key", body.as_bytes());
        let reply = daemon.sender().send(&event(&key, body.as_bytes(), ""));
        assert_eq!(reply.outcome(), "forwarded", "{body}");
        let message = upstream.next_message();
        let found = message.values("hookward-event-type");
        assert_eq!(found, wanted.into_iter().collect::<Vec<_>>(), "{body}");
        assert_eq!(message.value("hookward-verified"), "true");
        assert_eq!(message.body, body.as_bytes());
    }
}

#[test]
fn only_a_trusted_peer_is_believed_about_where_a_request_came_from() {
    let upstream = Upstream::new(Act::status(200));
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let claims = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: public.example\r\n\
                  X-Forwarded-Port: 443\r\nForwarded: for=203.0.113.7\r\nVia: 1.0 fred\r\n";
    for (networks, is_trusted) in [
        ("10.0.0.0/8\", \"127.0.0.2/32", false),
        ("127.0.0.1/32", true),
    ] {
        let config = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\ntrusted_proxies = [\"{networks}\"]\n[admin]\nlisten = [\"127.0.0.1:0\"]\n{endpoint}"
        );
        let daemon = Daemon::config(&config).start();
        daemon.sender().send(&event("k", BODY.as_bytes(), claims));
        let message = upstream.next_message();
        let addresses = message.values("x-forwarded-for").join(", ");
        if is_trusted {
            assert_eq!(addresses, "203.0.113.7, 127.0.0.1");
            assert_eq!(message.value("forwarded"), "for=203.0.113.7");
            assert_eq!(message.value("x-forwarded-proto"), "https");
        } else {
            assert_eq!(addresses, "127.0.0.1");
            assert_eq!(message.value("x-forwarded-proto"), "http");
            assert_eq!(message.value("x-forwarded-host"), "hooks.example");
            assert!(message.values("forwarded").is_empty());
        }
        assert_eq!(message.values("via").join(", "), "1.0 fred, 1.1 hookward");
    }
}

#[test]
fn of_two_paths_that_fit_the_narrower_one_takes_it() {
    let (exact, near, far) = (
        Upstream::new(Act::status(200)),
        Upstream::new(Act::status(200)),
        Upstream::new(Act::status(200)),
    );
    let config = Daemon::endpoint("far", "/a/*", &far.url(), "")
        + &Daemon::endpoint("near", "/a/b/*", &near.url(), "")
        + &Daemon::endpoint("exact", "/a/b/c", &exact.url(), "");
    let daemon = Daemon::with("", &config).start();
    for (path, upstream, endpoint, target) in [
        ("/a/b/c?q=1", &exact, "exact", "/in?q=1"),
        ("/a/b/c/d", &near, "near", "/in/c/d"),
        ("/a/b/", &near, "near", "/in"),
        ("/a/b", &far, "far", "/in/b"),
        ("/a//b", &far, "far", "/in//b"),
    ] {
        let request = String::from_utf8(event(&sign("", path.as_bytes()), BODY.as_bytes(), ""))
            .unwrap()
            .replacen("/hook", path, 1);
        assert_eq!(
            daemon.sender().send(request.as_bytes()).status,
            200,
            "{path}"
        );
        let message = upstream.next_message();
        assert_eq!(message.value("hookward-endpoint"), endpoint, "{path}");
        let line = message.head.lines().next().unwrap();
        assert_eq!(line, format!("POST {target} HTTP/1.1"), "{path}");
    }
}

#[test]
fn a_reset_is_502_and_the_retry_gets_through() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    // One sender: each thread of the daemon keeps upstream connections of its own.
    let mut sender = daemon.sender();
    upstream.then([Act::Reset]);
    let reply = sender.send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(
        (reply.status, reply.outcome(), reply.reason().as_str()),
        (502, "failed", "upstream_unreachable")
    );
    assert_eq!(upstream.count(), 1, "a fresh connection is not tried again");
    let retry = sender.send(&event("k", BODY.as_bytes(), ""));
    assert_eq!((retry.status, retry.outcome()), (200, "forwarded"));
    // On a kept connection the event goes out once more, as for one that just closes.
    upstream.then([Act::Reset]);
    let again = sender.send(&event("k2", BODY.as_bytes(), ""));
    assert_eq!((again.status, upstream.count()), (200, 4));
}

#[test]
fn a_connection_that_breaks_after_the_first_byte_of_an_answer_is_not_tried_again() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let mut sender = daemon.sender();
    assert_eq!(sender.send(&event("1", BODY.as_bytes(), "")).status, 200);
    upstream.then([Act::AnswerAndClose(b"H".to_vec())]);
    assert_eq!(sender.send(&event("2", BODY.as_bytes(), "")).status, 502);
    assert_eq!(upstream.count(), 2);
}

#[test]
fn an_upstream_that_ends_its_connections_is_connected_to_anew() {
    let said = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok".to_vec();
    let unsaid = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec();
    for answer in [said, unsaid] {
        let upstream = Upstream::new(Act::AnswerAndClose(answer));
        let daemon = relay(&upstream, "");
        let mut sender = daemon.sender();
        for n in 0..10 {
            let reply = sender.send(&event(&n.to_string(), BODY.as_bytes(), ""));
            assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
        }
        assert_eq!((upstream.count(), upstream.connections()), (10, 10));
    }
}

#[test]
fn what_follows_an_answer_is_nobodys_answer() {
    let two = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown\
                HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Forged: 1\r\n\r\nforged";
    let empty_and_more =
        b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
    for answer in [two.to_vec(), empty_and_more.to_vec()] {
        let upstream = Upstream::new(Act::status(202));
        let daemon = relay(&upstream, "");
        let mut sender = daemon.sender();
        upstream.then([Act::Answer(answer)]);
        let first = sender.send(&event("1", BODY.as_bytes(), ""));
        assert!(!first.text().contains("forged"), "{first:?}");
        for key in ["2", "3"] {
            let next = sender.send(&event(key, BODY.as_bytes(), ""));
            assert_eq!(
                (next.status, next.text().as_str()),
                (202, "done"),
                "{next:?}"
            );
        }
        assert_eq!(upstream.count(), 3);
    }
}

#[test]
fn an_answer_is_passed_on_while_it_is_still_coming() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    // More than anybody would hold back.
    let large = vec![b'a'; 1 << 20];
    let first = [
        format!("{head}{:x}\r\n", large.len()).as_bytes(),
        &large,
        b"\r\n",
    ]
    .concat();
    let upstream = Upstream::new(Act::Parts(first, b"3\r\nend\r\n0\r\n\r\n".to_vec()));
    let daemon = relay(&upstream, "");
    let mut sender = daemon.sender();
    sender.write(&event("k", BODY.as_bytes(), ""));
    sender.read_until(&[b'a'; 1000]);
    upstream.release();
    let reply = sender.reply();
    assert_eq!(reply.body.len(), large.len() + 3);
    assert!(reply.body.ends_with(b"aend"));
}

#[test]
fn an_answer_that_breaks_off_half_way_does_not_look_whole() {
    let part = vec![b'a'; 2 << 20];
    let sized = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n".as_slice(),
        &part,
    ]
    .concat();
    let head = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
        4_000_000
    );
    let chunked = [head.as_bytes(), &part].concat();
    for (answer, is_sized) in [(sized, true), (chunked, false)] {
        let upstream = Upstream::new(Act::AnswerAndClose(answer));
        let daemon = relay(&upstream, "");
        let mut sender = daemon.sender();
        sender.write(&event("k", BODY.as_bytes(), ""));
        let came = sender.rest();
        let end = came.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&came[..end]).to_lowercase();
        if head.starts_with("http/1.1 502") {
            continue;
        }
        if is_sized {
            assert!(head.contains("content-length: 4000000"), "{head}");
            assert!(came.len() - end - 4 < 4_000_000);
        } else {
            assert!(head.contains("transfer-encoding: chunked"), "{head}");
            assert!(!came.ends_with(b"0\r\n\r\n"), "the last chunk was made up");
        }
    }
}

#[test]
fn an_http_1_0_sender_can_read_any_answer() {
    let chunked =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let upstream = Upstream::new(Act::Answer(chunked.to_vec()));
    let daemon = relay(&upstream, "");
    let request = String::from_utf8(event("k", BODY.as_bytes(), "")).unwrap();
    let mut sender = daemon.sender();
    sender.write(request.replace("HTTP/1.1", "HTTP/1.0").as_bytes());
    let answer = String::from_utf8(sender.rest()).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    assert_eq!(body, "abcde");
}

#[test]
fn answers_that_make_no_sense_are_502() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let long = format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n", "x".repeat(1 << 20));
    let many: String = (0..2000).map(|n| format!("X-{n}: 1\r\n")).collect();
    let torn: [Vec<u8>; 9] = [
        format!("{long}Content-Length: 0\r\n\r\n").into_bytes(),
        format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n").into_bytes(),
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nx".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n".to_vec(),
        b"HTTP/1.1 99 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
    ];
    for answer in torn {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
        upstream.then([Act::AnswerAndClose(answer)]);
        let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
        assert_eq!(reply.status, 502, "{shown:?}: {reply:?}");
        assert_eq!(reply.reason(), "upstream_unreachable", "{shown:?}");
    }
    let retry = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(retry.outcome(), "forwarded", "none of them was a 2xx");
}

#[test]
fn not_modified_and_many_interim_answers_pass() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let mut sender = daemon.sender();
    upstream.then([Act::Answer(
        b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 99\r\n\r\n".to_vec(),
    )]);
    let reply = sender.send(&event("1", BODY.as_bytes(), ""));
    assert_eq!((reply.status, reply.header("etag")), (304, Some("\"x\"")));
    let interim = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n".repeat(20);
    let answer = format!("{interim}HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok");
    upstream.then([Act::Answer(answer.into_bytes())]);
    let reply = sender.send(&event("2", BODY.as_bytes(), ""));
    assert_eq!((reply.status, reply.text().as_str()), (201, "ok"));
    assert_eq!(sender.send(&event("3", BODY.as_bytes(), "")).status, 200);
}

#[test]
fn trying_to_connect_has_an_end() {
    let nobody = Upstream::nobody();
    let more = "connect_retry = \"300ms\"";
    let daemon = Daemon::relay(&format!("http://{nobody}/in"), more).start();
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!((reply.status, reply.outcome()), (502, "failed"));
    let nowhere = Daemon::relay("unix:/nowhere/app.sock:/in", "").start();
    let reply = nowhere.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(reply.reason(), "upstream_unreachable");
    let unnamed = Daemon::relay("http://no-such-host.invalid/in", "").start();
    let reply = unnamed.sender().send(&event("k", BODY.as_bytes(), ""));
    assert!(matches!(reply.status, 502 | 504), "{reply:?}");
}

#[test]
fn many_senders_at_once_get_each_their_own_answer() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = relay(&upstream, "");
    let ids: std::collections::HashMap<String, String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let daemon = &daemon;
                scope.spawn(move || {
                    let mut sender = daemon.sender();
                    let send = |n: usize| {
                        let key = format!("{worker}-{n}");
                        let body = key.repeat(1 + n * 97);
                        let reply = sender.send(&event(&key, body.as_bytes(), ""));
                        assert_eq!(reply.outcome(), "forwarded");
                        (key, reply.header("hookward-event-id").unwrap().to_owned())
                    };
                    (0..25).map(send).collect::<Vec<_>>()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect()
    });
    assert_eq!((ids.len(), upstream.count()), (200, 200));
    for _ in 0..200 {
        let message = upstream.next_message();
        let key = message.value("idempotency-key");
        assert_eq!(message.value("hookward-event-id"), ids[key]);
        let n: usize = key.split('-').nth(1).unwrap().parse().unwrap();
        assert!(message.body == key.repeat(1 + n * 97).as_bytes(), "{key}");
    }
}
