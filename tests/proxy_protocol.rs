//! Behind something that passes connections on: who the sender is, and who may say so.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
};

use support::{
    Act, BODY, Daemon, Dir, HANG, Reply, Sender, Setup, Upstream, event, eventually,
    tls::{Authority, session_over},
};

const NAME: &str = "hooks.example";
const LINE: &[u8] = b"PROXY TCP4 203.0.113.9 127.0.0.1 4660 80\r\n";

fn expecting(upstream: &Upstream, more: &str) -> Setup {
    Daemon::relay(&upstream.url(), "").replace(
        "threads = 2",
        &format!("threads = 2\nproxy_protocol = true\n{more}"),
    )
}

fn send(daemon: &Daemon, preamble: &[u8], key: &str, more: &str) -> Reply {
    let mut sender = daemon.sender();
    sender.send(&[preamble, &event(key, BODY.as_bytes(), more)].concat())
}

fn failures(daemon: &Daemon, cause: &str) -> f64 {
    daemon.metric("hookward_handshake_failures_total", &[("cause", cause)])
}

#[test]
fn the_sender_is_who_the_proxy_says() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = expecting(&upstream, "").start();
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let four = [203, 0, 113, 10, 127, 0, 0, 1, 0x12, 0x34, 0, 80];
    let binary = |command: u8, fields: &[u8]| {
        let length = u8::try_from(four.len() + fields.len()).unwrap();
        [&signature[..], &[command, 0x11, 0, length], &four, fields].concat()
    };
    for (number, (preamble, ip, proto)) in [
        (LINE.to_vec(), "203.0.113.9", "http"),
        (binary(0x21, b""), "203.0.113.10", "http"),
        (
            binary(0x21, b"\x20\0\x05\x01\0\0\0\0"),
            "203.0.113.10",
            "https",
        ),
        // The proxy speaks for itself, to see whether we are here.
        (binary(0x20, b""), "127.0.0.1", "http"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1", "http"),
    ]
    .into_iter()
    .enumerate()
    {
        // What the sender says itself is not kept.
        let more = "X-Forwarded-For: 192.0.2.1\r\n";
        assert_eq!(
            send(&daemon, &preamble, &number.to_string(), more).status,
            200
        );
        let message = upstream.next_message();
        assert_eq!(message.value("x-forwarded-for"), ip);
        assert_eq!(message.value("x-forwarded-proto"), proto);
    }
}

#[test]
fn an_address_has_one_spelling_in_the_log() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = expecting(&upstream, "").start();
    let mapped = b"PROXY TCP6 ::ffff:203.0.113.9 ::1 4660 80\r\n";
    let mut sender = daemon.sender();
    sender.write(mapped);
    let reply = sender.send(&event("a", BODY.as_bytes(), "Idempotency-Key: b\r\n"));
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (400, "idempotency_key")
    );
    daemon.wait_for_log("\"peer\":\"203.0.113.9\"");
}

#[test]
fn a_preamble_stands_once_before_all_requests_and_before_tls() {
    let (upstream, authority, dir) = (
        Upstream::new(Act::status(200)),
        Authority::new(),
        Dir::new(),
    );
    let pair = authority.write(&dir.0, &[NAME]);
    let tls = format!("tls = {{ cert = {:?}, key = {:?} }}", pair.cert, pair.key);
    let daemon = expecting(&upstream, &tls).start();
    let mut tcp = TcpStream::connect(daemon.public).unwrap();
    tcp.write_all(LINE).unwrap();
    let mut sender = Sender::over(session_over(tcp, NAME, authority.client(&[])));
    for key in ["a", "b"] {
        assert_eq!(sender.send(&event(key, BODY.as_bytes(), "")).status, 200);
        let message = upstream.next_message();
        assert_eq!(message.value("x-forwarded-for"), "203.0.113.9");
        assert_eq!(message.value("x-forwarded-proto"), "https");
    }
}

#[test]
fn a_connection_without_a_preamble_or_with_a_torn_one_is_closed() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = expecting(&upstream, "").start();
    let request = event("a", BODY.as_bytes(), "");
    let torn = [&b"PROXY TCP4 nonsense\r\n"[..], &request].concat();
    for (number, bytes) in [&request, &torn].into_iter().enumerate() {
        let mut sender = daemon.sender();
        sender.write(bytes);
        assert_eq!(String::from_utf8_lossy(&sender.rest()), "");
        let wanted = f64::from(u32::try_from(number + 1).unwrap());
        eventually("it is counted", || {
            failures(&daemon, "proxy_protocol") == wanted
        });
    }
    daemon.wait_for_log("is server.proxy_protocol meant?");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_preamble_has_to_come_in_time() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = expecting(&upstream, "")
        .env("HOOKWARD_LIMITS__HEADER_TIMEOUT", "400ms")
        .start();
    for bytes in [&b""[..], &LINE[..9], &LINE[..30]] {
        let mut tcp = TcpStream::connect(daemon.public).unwrap();
        tcp.set_read_timeout(Some(HANG)).unwrap();
        tcp.write_all(bytes).unwrap();
        assert_eq!(tcp.read(&mut [0; 1]).unwrap_or(0), 0);
    }
    eventually("they are counted", || failures(&daemon, "timeout") == 3.0);
}

#[test]
fn only_named_proxies_are_believed() {
    let upstream = Upstream::new(Act::status(200));
    // Not ours: whoever comes from elsewhere speaks for itself.
    let daemon = expecting(&upstream, "trusted_proxies = [\"192.0.2.0/24\"]").start();
    assert_eq!(send(&daemon, b"", "a", "").status, 200);
    assert_eq!(
        upstream.next_message().value("x-forwarded-for"),
        "127.0.0.1"
    );
    assert_eq!(send(&daemon, LINE, "b", "").status, 400);
    // Ours: it says who the sender is, whose own word is kept only if it is one of ours, too.
    let daemon = expecting(&upstream, "trusted_proxies = [\"127.0.0.0/8\"]").start();
    let more = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n";
    assert_eq!(send(&daemon, LINE, "c", more).status, 200);
    let message = upstream.next_message();
    assert_eq!(message.values("x-forwarded-for"), ["203.0.113.9"]);
    assert_eq!(message.value("x-forwarded-proto"), "http");
    let inner = b"PROXY TCP4 127.0.0.7 127.0.0.1 1 2\r\n";
    assert_eq!(send(&daemon, inner, "d", more).status, 200);
    let message = upstream.next_message();
    assert_eq!(
        message.values("x-forwarded-for"),
        ["192.0.2.1", "127.0.0.7"]
    );
    assert_eq!(message.value("x-forwarded-proto"), "https");
    assert_eq!(upstream.count(), 3);
}

#[test]
fn a_socket_in_the_file_system_is_a_named_proxys() {
    let upstream = Upstream::new(Act::status(200));
    let dir = Dir::new();
    let path = dir.0.join("hook.sock");
    let listen = format!("[\"127.0.0.1:0\", \"unix:{}\"]\nthreads", path.display());
    let _daemon = expecting(&upstream, "trusted_proxies = [\"192.0.2.0/24\"]")
        .replace("[\"127.0.0.1:0\"]\nthreads", &listen)
        .start();
    let mut socket = UnixStream::connect(&path).unwrap();
    socket.set_read_timeout(Some(HANG)).unwrap();
    let request = event("a", BODY.as_bytes(), "Connection: close\r\n");
    socket.write_all(&[LINE, &request].concat()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(
        upstream.next_message().value("x-forwarded-for"),
        "203.0.113.9"
    );
}
