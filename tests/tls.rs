//! What senders who speak TLS get, and what becomes of certificates.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::Path,
};

use rustix::process::Signal;
use support::{
    Act, BODY, Daemon, Dir, HANG, Sender, Setup, Upstream, event, eventually,
    tls::{Authority, Pair, session, shown},
};

const NAME: &str = "hooks.example";
const FAILURES: &str = "hookward_config_reload_failures_total";
const EXPIRY: &str = "hookward_tls_certificate_expiry_timestamp_seconds";

fn with_tls(setup: Setup, tls: &str) -> Setup {
    setup.replace("threads = 2", &format!("threads = 2\ntls = {tls}"))
}

fn table(pair: &Pair) -> String {
    let (cert, key) = (pair.cert.display(), pair.key.display());
    format!("{{ cert = \"{cert}\", key = \"{key}\" }}")
}

/// A daemon with a certificate for [`NAME`], in a directory of its own.
fn secured(upstream: &Upstream, authority: &Authority) -> (Daemon, Pair, Dir) {
    let dir = Dir::new();
    let pair = authority.write(&dir.0, &[NAME]);
    let setup = with_tls(Daemon::relay(&upstream.url(), ""), &table(&pair));
    (setup.start(), pair, dir)
}

#[test]
fn an_event_that_comes_by_tls_is_relayed_as_https() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let (daemon, _pair, _dir) = secured(&upstream, &authority);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = authority.client_of(&[], &[version]);
        let mut sender = Sender::over(session(daemon.public, NAME, config));
        for key in ["a", "b"] {
            let key = format!("{key}-{version:?}");
            let reply = sender.send(&event(&key, BODY.as_bytes(), ""));
            assert_eq!((reply.status, reply.outcome()), (200, "forwarded"));
            let message = upstream.next_message();
            assert_eq!(message.value("x-forwarded-proto"), "https");
            assert_eq!(message.value("x-forwarded-for"), "127.0.0.1");
            assert_eq!(message.body, BODY.as_bytes());
        }
    }
    let plain = Daemon::relay(&upstream.url(), "").start();
    plain.sender().send(&event("c", BODY.as_bytes(), ""));
    assert_eq!(upstream.next_message().value("x-forwarded-proto"), "http");
}

#[test]
fn large_bodies_and_answers_pass_whole() {
    let large: Vec<u8> = (0..700_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let upstream = Upstream::new(Act::answer(200, "", &large));
    let authority = Authority::new();
    let (daemon, _pair, _dir) = secured(&upstream, &authority);
    let mut sender = Sender::secure(daemon.public, NAME, &authority);
    for key in ["a", "b"] {
        let reply = sender.send(&event(key, &large, ""));
        assert_eq!(reply.status, 200);
        assert!(reply.body == large);
        assert!(upstream.next_message().body == large);
    }
}

#[test]
fn the_certificate_is_chosen_by_the_name_that_is_asked_for() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let (one, two) = (Dir::new(), Dir::new());
    let first = authority.write(&one.0, &["one.example"]);
    let second = authority.write(&two.0, &["two.example", "*.two.example"]);
    let both = format!("[{}, {}]", table(&first), table(&second));
    let daemon = with_tls(Daemon::relay(&upstream.url(), ""), &both).start();
    for name in ["one.example", "two.example", "a.two.example"] {
        let mut sender = Sender::secure(daemon.public, name, &authority);
        let reply = sender.send(&event(name, BODY.as_bytes(), ""));
        assert_eq!(reply.status, 200, "{name}");
    }
    let other = shown(daemon.public, "three.example", &authority);
    assert!(other.unwrap_err().contains("not valid for name"));
    for domain in ["one.example", "two.example", "*.two.example"] {
        assert!(
            daemon.metric(EXPIRY, &[("domain", domain)]) > 1e9,
            "{domain}"
        );
    }
}

#[test]
fn a_certificate_can_be_named_by_the_environment() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let dir = Dir::new();
    let pair = authority.write(&dir.0, &[NAME]);
    let text = |path: &Path| path.display().to_string();
    let apart = Daemon::relay(&upstream.url(), "")
        .env("HOOKWARD_SERVER__TLS__CERT", &text(&pair.cert))
        .env("HOOKWARD_SERVER__TLS__KEY", &text(&pair.key));
    let whole =
        |value: String| Daemon::relay(&upstream.url(), "").env("HOOKWARD_SERVER__TLS", &value);
    let (cert, key) = (text(&pair.cert), text(&pair.key));
    let one = whole(format!("{{cert={cert:?}, key={key:?}}}"));
    let list = whole(format!("[{{cert={cert:?}, key={key:?}}}]"));
    for setup in [apart, one, list] {
        let daemon = setup.start();
        assert!(shown(daemon.public, NAME, &authority).is_ok());
    }
}

#[test]
fn a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let (daemon, pair, dir) = secured(&upstream, &authority);
    let before = shown(daemon.public, NAME, &authority).unwrap();
    let mut sender = Sender::secure(daemon.public, NAME, &authority);
    sender.send(&event("a", BODY.as_bytes(), ""));
    authority.write(&dir.0, &[NAME]);
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("configuration reloaded");
    eventually("the new one is shown", || {
        shown(daemon.public, NAME, &authority).unwrap() != before
    });
    assert_eq!(sender.send(&event("b", BODY.as_bytes(), "")).status, 200);
    // Without a signal, too, and the metric knows the names of now.
    std::fs::write(&pair.cert, "").unwrap();
    authority.write(&dir.0, &["other.example"]);
    eventually("the next one is shown", || {
        shown(daemon.public, "other.example", &authority).is_ok()
    });
    assert_eq!(daemon.metric(EXPIRY, &[("domain", NAME)]), 0.0);
    assert_eq!(sender.send(&event("c", BODY.as_bytes(), "")).status, 200);
}

#[test]
fn a_pair_that_does_not_belong_together_keeps_the_running_one() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let (daemon, pair, _dir) = secured(&upstream, &authority);
    let before = shown(daemon.public, NAME, &authority).unwrap();
    let (_, other_key) = authority.issue(&[NAME]);
    let good = std::fs::read_to_string(&pair.key).unwrap();
    std::fs::write(&pair.key, &other_key).unwrap();
    daemon.wait_for_log("configuration refused");
    let log = daemon.log();
    assert!(
        log.contains(&format!("{} is not the key", pair.key.display())),
        "{log}"
    );
    assert!(!log.contains("PRIVATE"), "{log}");
    assert_eq!(daemon.metric(FAILURES, &[]), 1.0);
    assert_eq!(shown(daemon.public, NAME, &authority).unwrap(), before);
    std::fs::write(&pair.key, good).unwrap();
    daemon.wait_for_log("configuration reloaded");
}

#[test]
fn the_swap_of_a_mounted_secret_is_a_change() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let dir = Dir::new();
    let at = |name: &str| dir.0.join(name);
    for version in ["..1", "..2"] {
        std::fs::create_dir(at(version)).unwrap();
        authority.write(&at(version), &[NAME]);
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/cert.pem", at("cert.pem")).unwrap();
    symlink("..data/key.pem", at("key.pem")).unwrap();
    let pair = Pair {
        cert: at("cert.pem"),
        key: at("key.pem"),
    };
    let daemon = with_tls(Daemon::relay(&upstream.url(), ""), &table(&pair)).start();
    let before = shown(daemon.public, NAME, &authority).unwrap();
    symlink("..2", at("..data_tmp")).unwrap();
    std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
    eventually("the swapped one is shown", || {
        shown(daemon.public, NAME, &authority).unwrap() != before
    });
}

#[test]
fn switching_tls_off_takes_a_restart() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let (daemon, pair, _dir) = secured(&upstream, &authority);
    let path = daemon.dir.0.join("hookward.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let without = text.replace(&format!("tls = {}", table(&pair)), "");
    std::fs::write(&path, without).unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("server.tls: needs a restart to change");
    assert!(shown(daemon.public, NAME, &authority).is_ok());
}

fn raw(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream
}

#[test]
fn handshake_and_head_share_the_time_for_headers() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let dir = Dir::new();
    let pair = authority.write(&dir.0, &[NAME]);
    let limits = "[limits]\nheader_timeout = \"600ms\"";
    let setup = Daemon::with(
        "",
        &format!(
            "{limits}\n{}",
            Daemon::endpoint("crm", "/hook", &upstream.url(), "")
        ),
    );
    let daemon = with_tls(setup, &table(&pair)).start();
    let failed = |cause| daemon.metric("hookward_handshake_failures_total", &[("cause", cause)]);
    // Silent, and stuck in the middle of a record.
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = raw(daemon.public);
        stream.write_all(bytes).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    eventually("both are counted", || failed("timeout") == 2.0);
    // With a handshake behind it, a slow head is told.
    let mut sender = Sender::secure(daemon.public, NAME, &authority);
    sender.write(b"POST /hook HTTP/1.1\r\n");
    let rest = sender.rest();
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
    assert_eq!(failed("timeout"), 2.0);
    // What speaks no TLS that fits is counted apart.
    let mut stream = raw(daemon.public);
    stream
        .write_all(b"\x16\x03\x01\x00\x02\x01\x00\x00\x00\x00")
        .unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    eventually("it is counted", || failed("tls") == 1.0);
}

#[test]
fn plain_http_is_told_to_use_https() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let (daemon, _pair, _dir) = secured(&upstream, &authority);
    let mut sender = daemon.sender();
    let reply = sender.send(&event("a", BODY.as_bytes(), ""));
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("speaks HTTPS"), "{}", reply.text());
    assert!(sender.is_closed());
    daemon.wait_for_log("plain HTTP where TLS is spoken");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_sender_without_tls_that_goes_on_sending_can_read_why_it_is_refused() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let (daemon, _pair, _dir) = secured(&upstream, &authority);
    let mut stream = TcpStream::connect(daemon.public).unwrap();
    let large = event("a", &vec![b'x'; 4 << 20], "");
    stream.write_all(&large).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("speaks HTTPS"), "{answer}");
}

/// A daemon that speaks TLS at its first address and none at its second, and both addresses.
fn half_secured(setup: Setup, pair: &Pair) -> (Daemon, SocketAddr, SocketAddr) {
    let setup = with_tls(setup, &table(pair));
    let daemon = setup
        .replace(
            "[\"127.0.0.1:0\"]\nthreads",
            "[\"127.0.0.1:0\", \"http://127.0.0.1:0\"]\nthreads",
        )
        .start();
    let line = |line: &serde_json::Value| {
        let is_public = line["listener"] == "public";
        is_public.then(|| line["address"].as_str().unwrap().parse().unwrap())
    };
    let addresses: Vec<SocketAddr> = daemon.lines().iter().filter_map(line).collect();
    assert_eq!(addresses.len(), 2);
    (daemon, addresses[0], addresses[1])
}

#[test]
fn one_connection_too_many_at_a_plain_address_beside_tls_hears_503() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let dir = Dir::new();
    let pair = authority.write(&dir.0, &[NAME]);
    let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), "");
    let setup = Daemon::with("", &format!("[limits]\nmax_connections = 1\n{endpoint}"));
    let (_daemon, _, plain) = half_secured(setup, &pair);
    let mut first = Sender::connect(plain);
    assert_eq!(first.send(&event("a", BODY.as_bytes(), "")).status, 200);
    let reply = Sender::connect(plain).reply();
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (503, Some("5"))
    );
    assert!(reply.text().contains("urn:hookward:overloaded"));
}

#[test]
fn an_address_can_stay_plain_beside_tls() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let dir = Dir::new();
    let pair = authority.write(&dir.0, &[NAME]);
    let (_daemon, secure, plain) = half_secured(Daemon::relay(&upstream.url(), ""), &pair);
    assert!(shown(secure, NAME, &authority).is_ok());
    let reply = Sender::connect(plain).send(&event("a", BODY.as_bytes(), ""));
    assert_eq!(reply.status, 200);
    assert_eq!(upstream.next_message().value("x-forwarded-proto"), "http");
}

#[test]
fn what_is_wrong_with_the_files_is_told_with_a_remedy() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let dir = Dir::new();
    let pair = authority.write(&dir.0, &[NAME]);
    let refuse = |tls: &str| {
        let (code, said) = with_tls(Daemon::relay(&upstream.url(), ""), tls).refuse();
        assert_eq!(code, 2, "{said}");
        said
    };
    let said = refuse("{ cert = \"/nowhere/cert.pem\", key = \"/nowhere/key.pem\" }");
    for part in [
        "server.tls.cert: /nowhere/cert.pem cannot be read: entity not found; create it",
        "server.tls.key: /nowhere/key.pem cannot be read",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let credential = "\"$CREDENTIALS_DIRECTORY/tls.pem\"";
    let said = refuse(&format!("{{ cert = {credential}, key = {credential} }}"));
    assert!(
        said.contains("server.tls.key: CREDENTIALS_DIRECTORY is not set"),
        "{said}"
    );
    let said = refuse("[{ cert = \"/nowhere/cert.pem\" }]");
    assert!(
        said.contains("server.tls[0].key: expected a file in PEM"),
        "{said}"
    );
    let swapped = Pair {
        cert: pair.key.clone(),
        key: pair.cert.clone(),
    };
    let said = refuse(&table(&swapped));
    assert!(said.contains("holds no certificate in PEM"), "{said}");
    assert!(!said.contains("PRIVATE"), "{said}");
    let said = refuse("{ cert = \"a\", key = \"b\", chain = \"c\" }");
    assert!(said.contains("server.tls.chain: unknown key"), "{said}");
    assert!(refuse("[]").contains("at least one"));
}

#[test]
fn shutting_down_does_not_wait_for_handshakes() {
    let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
    let (mut daemon, _pair, _dir) = secured(&upstream, &authority);
    let mut silent = raw(daemon.public);
    let mut sender = Sender::secure(daemon.public, NAME, &authority);
    sender.send(&event("a", BODY.as_bytes(), ""));
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    assert!(sender.is_closed());
}
