//! What an operator reads in the log, and what nobody can keep out of it.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{io::Write as _, net::TcpListener, sync::Arc, thread};

use support::{Act, BODY, Daemon, Upstream, event, eventually};

#[test]
fn a_strangers_flood_hides_no_failure_of_the_upstream() {
    let upstream = Upstream::new(Act::Close);
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let mut stranger = daemon.sender();
    let forged = String::from_utf8(event("k", BODY.as_bytes(), "")).unwrap();
    let forged = forged.replace("message", "massage");
    for round in 0..3 {
        for _ in 0..40 {
            assert_eq!(stranger.send(forged.as_bytes()).status, 401);
        }
        let genuine = event(&format!("k{round}"), BODY.as_bytes(), "");
        let reply = daemon.sender().send(&genuine);
        assert_eq!(reply.status, 502);
        let id = reply.header("hookward-event-id").unwrap();
        daemon.wait_for_log(id);
        let line = daemon.lines().into_iter().find(|l| l["event_id"] == id);
        assert_eq!(line.unwrap()["message"], "delivery failed");
    }
}

#[test]
fn what_is_refused_before_it_is_a_request_has_a_line_with_its_peer() {
    let upstream = Upstream::new(Act::status(200));
    let limits = "[limits]\nheader_timeout = \"300ms\"\nmax_connections = 1\n";
    let daemon = Daemon::with(
        limits,
        &Daemon::endpoint("crm", "/hook", &upstream.url(), ""),
    )
    .start();
    let too_large = format!(
        "POST /hook HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(40_000)
    );
    for (status, reason, request) in [
        (431, "headers_too_large", too_large.as_str()),
        (
            400,
            "malformed",
            "POST /hook HTTP/1.1\r\nHost: a\nb\r\n\r\n",
        ),
        (408, "timeout", "POST /ho"),
    ] {
        let mut sender = daemon.sender();
        sender.write(request.as_bytes());
        assert_eq!(sender.reply().status, status);
        daemon.wait_for_log(&format!("\"reason\":\"{reason}\""));
        drop(sender);
        eventually("the connection has ended", || {
            daemon.metric("hookward_connections", &[]) == 0.0
        });
    }
    let mut first = daemon.sender();
    assert_eq!(first.send(&event("k", BODY.as_bytes(), "")).status, 200);
    assert_eq!(daemon.sender().reply().status, 503);
    daemon.wait_for_log("\"reason\":\"overloaded\"");
    let lines = daemon.lines();
    let of = |reason: &str| {
        let mut lines = lines.iter().filter(|l| l["reason"] == reason);
        (lines.next().unwrap().clone(), lines.next().cloned())
    };
    for (reason, status, message, level) in [
        ("headers_too_large", 431, "refused", "INFO"),
        ("malformed", 400, "refused", "INFO"),
        ("timeout", 408, "refused", "INFO"),
        ("overloaded", 503, "shed", "WARN"),
    ] {
        let (line, second) = of(reason);
        assert_eq!(second, None);
        assert_eq!(line["status"], status);
        assert_eq!(line["message"], message);
        assert_eq!(line["level"], level);
        assert_eq!(line["peer"], "127.0.0.1");
    }
}

/// An https upstream that ends its sessions as soon as they are there.
fn secure() -> u16 {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let pem = |name: &str| format!("{FIXTURES}/{name}");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(pem("server.pem")).unwrap()],
            PrivateKeyDer::from_pem_file(pem("server.key")).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let config = config.clone();
            thread::spawn(move || {
                let mut session = rustls::ServerConnection::new(config).unwrap();
                let _ = session.complete_io(&mut &tcp);
            });
        }
    });
    port
}

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

#[test]
fn why_no_tls_session_could_be_had_is_logged() {
    let port = secure();
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain_port = plain.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut tcp in plain.incoming().flatten() {
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let ca = |name: &str| format!("[endpoints.crm.upstream_options]\nca = \"{FIXTURES}/{name}\"\n");
    for (host, port, options, cause) in [
        (
            "localhost",
            port,
            ca("other-ca.pem"),
            "its certificate's issuer is not known",
        ),
        (
            "127.0.0.1",
            port,
            ca("ca.pem"),
            "its certificate is for another name",
        ),
        ("localhost", plain_port, ca("ca.pem"), "is it https?"),
    ] {
        let url = format!("https://{host}:{port}/");
        let daemon = Daemon::relay(&url, &options).start();
        let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
        assert_eq!(reply.reason(), "upstream_unreachable");
        daemon.wait_for_log("delivery failed");
        let lines = daemon.lines();
        let line = lines.iter().find(|l| l["message"] == "delivery failed");
        let said = line.unwrap()["cause"].as_str().unwrap();
        assert!(said.contains(cause), "{cause:?} in {said:?}");
    }
}
