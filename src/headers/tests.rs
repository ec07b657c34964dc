use std::time::Duration;

use super::*;

fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    map
}

fn plain() -> Forward<'static> {
    Forward {
        target: "/hooks?a=1",
        authority: "app:3000",
        extra: &[],
        endpoint: "crm",
        event_id: "0190",
        event_type: Some("message.created"),
        verified: true,
        received_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
        peer: Some("203.0.113.9"),
        peer_is_trusted: false,
        proto: "http",
        body_len: 12,
    }
}

fn head(fields: &[(&'static str, &'static str)], forward: &Forward<'_>) -> String {
    let protected = |name: &HeaderName| name == "tinytalk-signature" || name == "idempotency-key";
    let mut head = request_head(Vec::new(), &headers(fields), forward, protected);
    String::from_utf8(head.for_attempt(1).to_vec()).unwrap()
}

fn values<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    head.lines()
        .filter_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
        .collect()
}

#[test]
fn a_connection_header_cannot_name_away_what_we_verify_by() {
    let named = "TinyTalk-Signature, Idempotency-Key, Host, Content-Type, X-Other";
    let fields = [
        ("connection", named),
        ("host", "a.example"),
        ("tinytalk-signature", "aa"),
        ("idempotency-key", "k"),
        ("content-type", "application/json"),
        ("x-other", "gone"),
    ];
    let head = head(&fields, &plain());
    for kept in [
        "tinytalk-signature",
        "idempotency-key",
        "host",
        "content-type",
    ] {
        assert_eq!(values(&head, kept).len(), 1, "{kept} in {head}");
    }
    assert!(!head.contains("x-other") && values(&head, "connection").is_empty());
}

#[test]
fn a_senders_own_hookward_and_forwarding_headers_are_replaced() {
    let fields = [
        ("hookward-verified", "true"),
        ("hookward-anything", "x"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-port", "1"),
        ("forwarded", "for=10.0.0.1"),
    ];
    let head = head(
        &fields,
        &Forward {
            verified: false,
            ..plain()
        },
    );
    assert_eq!(values(&head, "hookward-verified"), ["false"]);
    assert_eq!(values(&head, "x-forwarded-for"), ["203.0.113.9"]);
    assert!(!head.contains("anything") && !head.contains("10.0.0.1") && !head.contains("-port"));
}

#[test]
fn a_trusted_peers_forwarding_headers_stay_and_its_address_is_added() {
    let fields = [
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "hooks.example"),
        ("forwarded", "for=198.51.100.7"),
    ];
    let head = head(
        &fields,
        &Forward {
            peer_is_trusted: true,
            ..plain()
        },
    );
    assert_eq!(
        values(&head, "x-forwarded-for"),
        ["198.51.100.7", "203.0.113.9"]
    );
    assert_eq!(values(&head, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(&head, "x-forwarded-host"), ["hooks.example"]);
    assert_eq!(values(&head, "forwarded"), ["for=198.51.100.7"]);
}

#[test]
fn the_upstream_gets_one_length_and_no_other_framing() {
    let fields = [
        ("content-length", "99"),
        ("transfer-encoding", "chunked"),
        ("trailer", "x"),
    ];
    let head = head(&fields, &plain());
    assert_eq!(values(&head, "content-length"), ["12"]);
    assert!(!head.contains("chunked") && !head.contains("trailer"));
    assert!(
        head.starts_with("POST /hooks?a=1 HTTP/1.1\r\nhost: app:3000\r\n"),
        "{head}"
    );
    assert_eq!(
        values(&head, "hookward-received-at"),
        ["1970-01-01T00:00:01.500Z"]
    );
}

#[test]
fn a_second_attempt_says_so() {
    let mut head = request_head(Vec::new(), &HeaderMap::new(), &plain(), |_| false);
    let second = String::from_utf8(head.for_attempt(2).to_vec()).unwrap();
    assert_eq!(values(&second, "hookward-attempt"), ["2"]);
}

#[test]
fn attempts_go_on_counting_where_earlier_requests_ended() {
    let mut head = request_head(Vec::new(), &HeaderMap::new(), &plain(), |_| false);
    head.count_from(9);
    head.join(b"body");
    for (sent, number) in [(1, "9"), (2, "10"), (1, "9")] {
        let text = String::from_utf8(head.for_attempt(sent).to_vec()).unwrap();
        assert_eq!(values(&text, "hookward-attempt"), [number]);
        assert!(text.ends_with("\r\n\r\nbody"), "{text}");
    }
}

#[test]
fn configured_headers_replace_the_senders() {
    let extra = [(
        header::AUTHORIZATION,
        HeaderValue::from_static("Bearer ours"),
    )];
    let head = head(
        &[("authorization", "Bearer theirs")],
        &Forward {
            extra: &extra,
            ..plain()
        },
    );
    assert_eq!(values(&head, "authorization"), ["Bearer ours"]);
}

#[test]
fn underscore_twins_of_names_we_read_or_set_are_seen() {
    let reads = |name: &HeaderName| name == "tinytalk-signature";
    for twin in [
        "hookward_verified",
        "x_forwarded-for",
        "tinytalk_signature",
        "content_length",
    ] {
        assert!(shadows(&HeaderName::from_static(twin), reads), "{twin}");
    }
    assert!(!shadows(&HeaderName::from_static("x_other"), reads));
    assert!(!shadows(
        &HeaderName::from_static("tinytalk-signature"),
        reads
    ));
}

#[test]
fn hosts_are_told_from_what_is_none() {
    for host in [
        "a.example",
        "a.example:80",
        "[::1]",
        "[::1]:8080",
        "127.0.0.1:1",
    ] {
        assert!(is_host(&HeaderValue::from_static(host)), "{host}");
    }
    for other in [
        "", ":80", "a b", "a/b", "a@b", "a:b", "a:123456", "[::1", "a,b", "[zz]",
    ] {
        assert!(!is_host(&HeaderValue::from_static(other)), "{other}");
    }
}

#[test]
fn an_answer_loses_what_ends_here_and_what_is_ours_to_say() {
    let mut answer = headers(&[
        ("connection", "close, x-internal"),
        ("x-internal", "1"),
        ("keep-alive", "timeout=5"),
        ("hookward-outcome", "forged"),
        ("content-type", "text/plain"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
    ]);
    strip_answer(&mut answer);
    let left: std::collections::BTreeSet<_> = answer.keys().map(HeaderName::as_str).collect();
    assert_eq!(left, ["content-type", "set-cookie"].into());
    assert_eq!(answer.get_all("set-cookie").iter().count(), 2);
}
