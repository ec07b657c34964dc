//! What a scheme of one's own signs cannot be read as anything else.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use support::{Act, Daemon, SECRET, Upstream, sign};

/// An endpoint at `/hook*` with a scheme spelled out.
fn spelled_out(upstream: &Upstream, scheme: &str) -> support::Setup {
    let scheme = format!("[endpoints.crm.scheme]\nheader = \"X-Sig\"\n{scheme}\n");
    Daemon::relay(&upstream.url(), &scheme)
}

fn post(daemon: &Daemon, target: &str, headers: &str, body: &str) -> support::Reply {
    let request = format!(
        "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    daemon.sender().send(request.as_bytes())
}

#[test]
fn a_timestamp_takes_no_byte_of_the_body() {
    let upstream = Upstream::new(Act::status(200));
    let (body, tag) = (r#"{"a":"x.y"}"#, sign(SECRET, br#"123.{"a":"x.y"}"#));
    let pairs = "format = \"t={timestamp},v1={signature}\"\ncontent = \"{timestamp}.{body}\"";
    let in_pairs = spelled_out(&upstream, pairs).start();
    let apart = "content = \"{timestamp}.{body}\"\ntimestamp_header = \"X-Time\"";
    let apart = spelled_out(&upstream, apart).start();
    let send = |time: &str, body: &str| {
        let together = format!("X-Sig: t={time},v1={tag}\r\n");
        let two = format!("X-Sig: {tag}\r\nX-Time: {time}\r\n");
        [
            post(&in_pairs, "/hook", &together, body),
            post(&apart, "/hook", &two, body),
        ]
    };
    for reply in send("123", body) {
        assert_eq!(reply.status, 200);
    }
    for reply in send(r#"123.{"a":"x"#, r#"y"}"#) {
        assert_eq!(reply.reason(), "signature_malformed");
    }
    for time in ["-1", "+1", " ", "12345678901234567"] {
        for reply in send(time, body) {
            assert_eq!(reply.reason(), "signature_malformed", "{time:?}");
        }
    }
    assert_eq!(upstream.count(), 2);
}

#[test]
fn what_is_signed_is_cut_in_one_place_only() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = spelled_out(&upstream, "content = \"{url}.{body}\"").start();
    let sig = format!("X-Sig: {}\r\n", sign(SECRET, b"/hook?i=1.a=1.5&b=2"));
    assert_eq!(post(&daemon, "/hook?i=1", &sig, "a=1.5&b=2").status, 200);
    let cut = post(&daemon, "/hook?i=1.a=1", &sig, "5&b=2");
    assert_eq!(cut.reason(), "signature_malformed");
    // The literal may begin with what it ends with, and stand behind the body.
    let scheme = "content = \"{body}::{id}\"\nkey_header = \"X-Id\"";
    let daemon = spelled_out(&upstream, scheme).start();
    let send = |id: &str, body: &str| {
        let tag = sign(SECRET, b"one:::two");
        let headers = format!("X-Sig: {tag}\r\nX-Id: {id}\r\n");
        post(&daemon, "/hook", &headers, body)
    };
    assert_eq!(send("two", "one:").status, 200);
    assert_eq!(send(":two", "one").reason(), "signature_malformed");
    assert_eq!(upstream.count(), 2);
}

#[test]
fn pieces_side_by_side_are_refused_at_the_start() {
    let upstream = Upstream::new(Act::status(200));
    for content in ["{id}{body}", "{body}{url}", "{id}{timestamp}.{body}"] {
        let scheme = format!(
            "content = \"{content}\"\nkey_header = \"X-Id\"\ntimestamp_header = \"X-Time\""
        );
        let (code, said) = spelled_out(&upstream, &scheme).refuse();
        assert_eq!(code, 2, "{said}");
        let wanted = "endpoints.crm.scheme.content: expected literal text between every two";
        assert!(said.contains(wanted), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn only_a_format_that_says_so_takes_several_signatures() {
    let upstream = Upstream::new(Act::status(200));
    let (tag, zeros) = (sign(SECRET, b"x"), "0".repeat(64));
    let tinytalk = Daemon::relay(&upstream.url(), "").start();
    for several in [
        format!("{zeros} {tag}"),
        format!("{tag} {zeros}"),
        format!("{tag} {tag}"),
    ] {
        let reply = post(
            &tinytalk,
            "/hook",
            &format!("TinyTalk-Signature: {several}\r\n"),
            "x",
        );
        assert_eq!(reply.reason(), "signature_malformed", "{several}");
    }
    let one = spelled_out(&upstream, "format = \"v1={signature}\"").start();
    let many = spelled_out(&upstream, "format = \"v1,{signature}\"").start();
    let send =
        |daemon: &Daemon, value: &str| post(daemon, "/hook", &format!("X-Sig: {value}\r\n"), "x");
    assert_eq!(send(&one, &format!("v1={tag}")).status, 200);
    assert_eq!(send(&many, &format!("v1,{tag}")).status, 200);
    let several = format!("v0,a v1,{zeros}  v1,{tag}");
    assert_eq!(send(&many, &several).status, 200);
    assert_eq!(
        send(&one, &several.replace(',', "=")).reason(),
        "signature_malformed"
    );
    assert_eq!(upstream.count(), 3);
}

#[test]
fn an_endpoints_own_status_is_not_for_what_came_too_late() {
    let upstream = Upstream::new(Act::status(200));
    let more = "scheme = \"stripe\"\nreject_status = 403\n";
    let daemon = Daemon::relay(&upstream.url(), more).start();
    let tag = sign(SECRET, b"1.x");
    let late = format!("Stripe-Signature: t=1,v1={tag}\r\n");
    let reply = post(&daemon, "/hook", &late, "x");
    assert_eq!(
        (reply.status, reply.reason().as_str()),
        (401, "signature_expired")
    );
    assert_eq!(post(&daemon, "/hook", "", "x").status, 403);
}
