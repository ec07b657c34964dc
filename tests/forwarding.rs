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
    let other = Daemon::relay(&url.replace("localhost", "127.0.0.2"), &options).start();
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
