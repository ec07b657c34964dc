//! What senders who speak HTTP/2 get: the same answers, and the same bounds.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request};
use rustix::process::Signal;
use support::{
    Act, BODY, Daemon, Dir, HANG, Upstream, eventually,
    http2::{
        CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, Frame, Framed, GOAWAY, HEADERS, PING,
        PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, event, fields, head, status,
    },
    tls::Authority,
};

const NAME: &str = "hooks.example";
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A daemon that speaks TLS, and what it needs.
struct Place {
    daemon: Daemon,
    upstream: Upstream,
    authority: Authority,
    _dir: Dir,
}

impl Place {
    fn new() -> Self {
        Self::with("", "")
    }

    /// `limits` go into their table, `more` into the endpoint's.
    fn with(limits: &str, more: &str) -> Self {
        let (upstream, authority) = (Upstream::new(Act::status(200)), Authority::new());
        let dir = Dir::new();
        let pair = authority.write(&dir.0, &[NAME]);
        let endpoint = Daemon::endpoint("crm", "/hook", &upstream.url(), more);
        let setup = Daemon::with("", &format!("[limits]\n{limits}\n{endpoint}"));
        let tls = format!("{{ cert = {:?}, key = {:?} }}", pair.cert, pair.key);
        let setup = setup.replace("threads = 2", &format!("threads = 1\ntls = {tls}"));
        Self {
            daemon: setup.start(),
            upstream,
            authority,
            _dir: dir,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.daemon.public, NAME, &self.authority)
    }

    fn framed(&self) -> Framed {
        Framed::connect(self.daemon.public, NAME, &self.authority)
    }

    fn rejections(&self, reason: &str) -> f64 {
        let labels = [("endpoint", ""), ("reason", reason)];
        self.daemon.metric("hookward_rejections_total", &labels)
    }

    fn is_serving(&self) {
        let answer = self
            .client()
            .send(event("still", BODY.as_bytes()), BODY.as_bytes());
        assert_eq!(answer.status(), 200);
    }
}

#[test]
fn events_are_relayed_as_any_other() {
    let place = Place::new();
    let mut client = place.client();
    let body = BODY.as_bytes();
    let mut request = event("a", body);
    request
        .headers_mut()
        .append("cookie", "a=1".parse().unwrap());
    request
        .headers_mut()
        .append("cookie", "b=2".parse().unwrap());
    request
        .headers_mut()
        .append("te", "trailers".parse().unwrap());
    let answer = client.send(request, body);
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["hookward-outcome"], "forwarded");
    assert_eq!(answer.headers()["content-length"], "4");
    assert!(answer.headers().contains_key("date"));
    assert_eq!(answer.body(), b"done");
    let message = place.upstream.next_message();
    assert_eq!(message.body, body);
    for (name, value) in [
        ("host", NAME),
        ("x-forwarded-host", NAME),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-for", "127.0.0.1"),
        ("idempotency-key", "a"),
        ("hookward-verified", "true"),
        ("cookie", "a=1; b=2"),
        ("content-length", &body.len().to_string()),
    ] {
        assert_eq!(message.value(name), value);
    }
    assert!(message.values("te").is_empty());
    let again = client.send(event("a", body), body);
    assert_eq!(again.headers()["hookward-outcome"], "duplicate");
    let forged = client.send(event("b", b"other"), body);
    assert_eq!(forged.status(), 401);
    assert_eq!(forged.headers()["content-type"], "application/problem+json");
    assert_eq!(place.upstream.count(), 1);
}

#[test]
fn refusals_are_the_same_and_leave_other_requests_alone() {
    let place = Place::with(
        "max_body = \"1KiB\"\nmax_target_bytes = 64\nmax_header_fields = 20",
        "",
    );
    place.upstream.by_default(Act::Wait(
        b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ));
    let mut client = place.client();
    let body = BODY.as_bytes();
    let (first, mut stream) = client.begin(event("a", body));
    stream
        .send_data(Bytes::copy_from_slice(body), true)
        .unwrap();
    let get = Request::get("https://hooks.example/hook").body(()).unwrap();
    let announced = {
        let mut request = event("big", body);
        request
            .headers_mut()
            .insert("content-length", "9999".parse().unwrap());
        request
    };
    let long = format!("https://hooks.example/hook?{}", "x".repeat(80));
    let many = {
        let mut request = event("many", body);
        for number in 0..20 {
            let name: http::HeaderName = format!("x-{number}").parse().unwrap();
            request.headers_mut().insert(name, "1".parse().unwrap());
        }
        request
    };
    for (request, body, wanted) in [
        (get, &b""[..], 405),
        (event("c", &[b'x'; 2000]), &[b'x'; 2000], 413),
        (
            Request::post("https://hooks.example/hook")
                .body(())
                .unwrap(),
            body,
            401,
        ),
    ] {
        assert_eq!(client.send(request, body).status(), wanted);
    }
    let (answer, _stream) = client.begin(announced);
    assert_eq!(client.answer(answer).unwrap().status(), 413);
    place.upstream.release();
    assert_eq!(client.answer(first).unwrap().status(), 200);
    // These end a connection, and still not what is under way on it.
    for (request, wanted) in [
        (Request::post(long).body(()).unwrap(), 414),
        (many, 431),
        (
            Request::post("https://hooks.example/nowhere")
                .body(())
                .unwrap(),
            404,
        ),
    ] {
        let mut other = place.client();
        let (waiting, mut stream) = other.begin(event(&wanted.to_string(), body));
        stream
            .send_data(Bytes::copy_from_slice(body), true)
            .unwrap();
        assert_eq!(other.send(request, b"").status(), wanted);
        place.upstream.release();
        assert_eq!(other.answer(waiting).unwrap().status(), 200);
    }
}

#[test]
fn who_goes_on_sending_can_read_the_refusal() {
    let place = Place::new();
    let mut client = place.framed();
    let unsigned = fields(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", NAME),
        (":path", "/hook"),
    ]);
    client.send(&Frame::new(HEADERS, END_HEADERS, 1, &unsigned));
    let refusal = client.find(|frame| frame.kind == DATA).unwrap();
    assert_eq!((refusal.stream, refusal.flags), (1, END_STREAM));
    for flags in [0, 0, END_STREAM] {
        client.send(&Frame::new(DATA, flags, 1, &[b'x'; 10_000]));
    }
    client.event(3, "a", BODY.as_bytes(), &[]);
    // No reset of the first comes before the second's answer.
    let next = client
        .find(|frame| matches!(frame.kind, HEADERS | RST_STREAM))
        .unwrap();
    assert_eq!((next.stream, status(&next)), (3, Some(200)));
}

#[test]
fn large_bodies_and_answers_pass_whole() {
    let large: Vec<u8> = (0..900_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let place = Place::new();
    place.upstream.by_default(Act::answer(200, "", &large));
    let mut client = place.client();
    for key in ["a", "b"] {
        let answer = client.send(event(key, &large), &large);
        assert_eq!(answer.status(), 200);
        assert!(*answer.body() == large);
        assert!(place.upstream.next_message().body == large);
    }
}

#[test]
fn many_requests_at_a_time_share_a_connection() {
    let place = Place::new();
    let mut client = place.client();
    let bodies: Vec<String> = (0..50).map(|n| format!("{{\"n\":{n}}}")).collect();
    let begun: Vec<_> = bodies
        .iter()
        .map(|body| {
            let (answer, mut stream) = client.begin(event(body, body.as_bytes()));
            stream
                .send_data(Bytes::copy_from_slice(body.as_bytes()), true)
                .unwrap();
            answer
        })
        .collect();
    for answer in begun {
        assert_eq!(client.answer(answer).unwrap().status(), 200);
    }
    assert_eq!(place.upstream.count(), 50);
    assert_eq!(place.daemon.metric("hookward_connections", &[]), 1.0);
}

#[test]
fn who_waits_to_be_asked_for_the_body_is_asked() {
    let place = Place::new();
    let mut client = place.framed();
    let body = BODY.as_bytes();
    let head = head("a", body, &[("expect", "100-continue")]);
    client.send(&Frame::new(HEADERS, END_HEADERS, 1, &head));
    let go_on = client.find(|frame| frame.kind == HEADERS).unwrap();
    assert_eq!((go_on.stream, go_on.flags & END_STREAM), (1, 0));
    client.send(&Frame::new(DATA, END_STREAM, 1, body));
    let answer = client.find(|frame| frame.kind == HEADERS).unwrap();
    assert_eq!(status(&answer), Some(200));
    // A refusal that the head decides comes without asking.
    let nowhere = fields(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", NAME),
        (":path", "/nowhere"),
        ("expect", "100-continue"),
    ]);
    client.send(&Frame::new(HEADERS, END_HEADERS, 3, &nowhere));
    let answer = client
        .find(|frame| frame.kind == HEADERS && frame.stream == 3)
        .unwrap();
    assert_eq!(status(&answer), Some(404));
}

#[test]
fn what_two_parsers_could_read_differently_is_malformed() {
    let place = Place::new();
    let body = BODY.as_bytes();
    let length = body.len().to_string();
    let other = (body.len() + 1).to_string();
    let signature = support::sign(support::SECRET, body);
    let base = |more: &[(&str, &str)]| {
        let mut all = vec![
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", NAME),
            (":path", "/hook"),
            ("tinytalk-signature", signature.as_str()),
        ];
        all.extend(more);
        fields(&all)
    };
    let without = |gone: &str, more: &[(&str, &str)]| {
        let mut all = vec![
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", NAME),
            (":path", "/hook"),
        ];
        all.retain(|(name, _)| *name != gone);
        all.push(("tinytalk-signature", signature.as_str()));
        all.extend(more);
        fields(&all)
    };
    let cases = [
        base(&[("host", "elsewhere.example")]),
        base(&[("host", NAME), ("host", NAME)]),
        base(&[("content-length", &length), ("content-length", &length)]),
        base(&[("content-length", &other)]),
        base(&[("content-length", "+9")]),
        base(&[("content-length", "1, 1")]),
        base(&[("transfer-encoding", "chunked")]),
        base(&[("connection", "close")]),
        base(&[("keep-alive", "timeout=5")]),
        base(&[("upgrade", "h2c")]),
        base(&[("te", "gzip")]),
        base(&[("X-Upper", "1")]),
        base(&[("x-padded", " 1")]),
        base(&[("x-padded", "1 ")]),
        base(&[("x-line", "1\r\nx-smuggled: 1")]),
        base(&[("x-nul", "a\0b")]),
        base(&[("bad name", "1")]),
        base(&[("", "1")]),
        base(&[("tinytalk_signature", "1")]),
        base(&[(":path", "/hook")]),
        base(&[(":made-up", "1")]),
        base(&[(":status", "200")]),
        without(":method", &[]),
        without(":scheme", &[]),
        without(":path", &[]),
        without(":authority", &[]),
        without(":path", &[(":path", "/hook")]),
        without(":path", &[]),
        [fields(&[("x-early", "1")]), base(&[])].concat(),
        fields(&[
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", NAME),
            (":path", "/hook?\u{e9}"),
            ("tinytalk-signature", &signature),
        ]),
        fields(&[
            (":method", "POST HTTP/1.1"),
            (":scheme", "https"),
            (":authority", NAME),
            (":path", "/hook"),
            ("tinytalk-signature", &signature),
        ]),
        fields(&[
            (":method", "CONNECT"),
            (":authority", NAME),
            ("tinytalk-signature", &signature),
        ]),
        fields(&[
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "user@hooks.example"),
            (":path", "/hook"),
            ("tinytalk-signature", &signature),
        ]),
    ];
    for (number, head) in cases.iter().enumerate() {
        let mut client = place.framed();
        client.send(&Frame::new(HEADERS, END_HEADERS, 1, head));
        client.send(&Frame::new(DATA, END_STREAM, 1, body));
        let ended = client.find(|frame| match frame.kind {
            // Taking leave goes before the answer that asks for it.
            GOAWAY => frame.code() != NO_ERROR,
            kind => matches!(kind, HEADERS | RST_STREAM),
        });
        let ended = ended.unwrap_or_else(|| panic!("case {number}: closed without a word"));
        match ended.kind {
            HEADERS => assert_eq!(status(&ended), Some(400), "case {number}"),
            _ => assert_eq!(ended.code(), PROTOCOL_ERROR, "case {number}"),
        }
    }
    place.is_serving();
    assert_eq!(place.upstream.count(), 1);
    let message = place.upstream.next_message();
    assert_eq!(message.value("idempotency-key"), "still");
}

#[test]
fn trailers_are_no_part_of_what_is_relayed() {
    let place = Place::new();
    let mut client = place.framed();
    let body = BODY.as_bytes();
    client.send(&Frame::new(HEADERS, END_HEADERS, 1, &head("a", body, &[])));
    client.send(&Frame::new(DATA, 0, 1, body));
    let trailers = fields(&[("x-late", "1"), ("hookward-verified", "false")]);
    client.send(&Frame::new(HEADERS, END_HEADERS | END_STREAM, 1, &trailers));
    let answer = client.find(|frame| frame.kind == HEADERS).unwrap();
    assert_eq!(status(&answer), Some(200));
    let message = place.upstream.next_message();
    assert!(message.values("x-late").is_empty());
    assert_eq!(message.value("hookward-verified"), "true");
}

#[test]
fn a_relay_runs_on_when_its_sender_gives_the_stream_up() {
    let place = Place::new();
    place.upstream.by_default(Act::Wait(
        b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ));
    let body = BODY.as_bytes();
    let mut client = place.framed();
    client.event(1, "a", body, &[]);
    place.upstream.next_message();
    client.send(&Frame::new(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
    let mut other = place.framed();
    other.event(1, "b", body, &[]);
    place.upstream.next_message();
    drop(other);
    place.upstream.release();
    place.upstream.release();
    let labels = [("endpoint", "crm"), ("outcome", "forwarded")];
    eventually("both have ended well", || {
        place
            .daemon
            .metric("hookward_request_duration_seconds_count", &labels)
            == 2.0
    });
    for key in ["a", "b"] {
        let answer = place.client().send(event(key, body), body);
        assert_eq!(answer.headers()["hookward-outcome"], "duplicate", "{key}");
    }
    assert_eq!(place.upstream.count(), 2);
}

/// What a connection ends with: the code of its GOAWAY, and that it is closed.
fn end(client: &mut Framed) -> Option<u32> {
    let goodbye = client.find(|frame| frame.kind == GOAWAY && frame.code() != NO_ERROR);
    while client.next().is_some() {}
    goodbye.map(|frame| frame.code())
}

/// What is sent again and again, with the number of a new stream at hand.
type Frames = dyn Fn(u32) -> Vec<Frame>;

fn flood(place: &Place, frames: &Frames) -> Option<u32> {
    let mut client = place.framed();
    let mut number = 1;
    // More than any bound, and still few enough to end without one.
    for _ in 0..60 {
        let batch: Vec<u8> = (0..50)
            .flat_map(|_| {
                number += 2;
                frames(number - 2)
            })
            .flat_map(|frame| frame.bytes())
            .collect();
        if !client.write(&batch) {
            break;
        }
    }
    end(&mut client)
}

#[test]
fn floods_end_their_connection_and_nothing_else() {
    let place = Place::new();
    let body = BODY.as_bytes();
    let cases: [(&str, Box<Frames>); 6] = [
        (
            "rapid reset",
            Box::new(move |stream| {
                vec![
                    Frame::new(HEADERS, END_HEADERS, stream, &head("", body, &[])),
                    Frame::new(RST_STREAM, 0, stream, &8_u32.to_be_bytes()),
                ]
            }),
        ),
        ("pings", Box::new(|_| vec![Frame::new(PING, 0, 0, &[0; 8])])),
        (
            "settings",
            Box::new(|_| vec![Frame::new(SETTINGS, 0, 0, &[])]),
        ),
        (
            "empty data",
            Box::new(move |stream| match stream {
                1 => vec![Frame::new(HEADERS, END_HEADERS, 1, &head("", body, &[]))],
                _ => vec![Frame::new(DATA, 0, 1, &[])],
            }),
        ),
        (
            "window updates",
            Box::new(|_| vec![Frame::new(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())]),
        ),
        (
            "unknown frames",
            Box::new(|_| vec![Frame::new(0xee, 0, 0, &[])]),
        ),
    ];
    for (number, (name, frames)) in cases.iter().enumerate() {
        let code = flood(&place, frames);
        // A reset behind it may overtake the last words.
        assert!(
            code.is_none_or(|code| code == ENHANCE_YOUR_CALM),
            "{name}: {code:?}"
        );
        let wanted = f64::from(u32::try_from(number + 1).unwrap());
        eventually(name, || place.rejections("malformed") >= wanted);
    }
    place.is_serving();
    eventually("nothing is left of them", || {
        place
            .daemon
            .metric("hookward_in_flight", &[("endpoint", "crm")])
            == 0.0
    });
}

#[test]
fn a_header_section_without_end_is_cut_off() {
    let place = Place::new();
    let body = BODY.as_bytes();
    let mut client = place.framed();
    client.send(&Frame::new(HEADERS, 0, 1, &head("", body, &[])));
    let more = fields(&[("x", &"y".repeat(900))]);
    for _ in 0..2000 {
        if !client.send(&Frame::new(CONTINUATION, 0, 1, &more)) {
            break;
        }
    }
    while client.next().is_some() {}
    place.is_serving();
    // Large, and with an end: an answer where the section can be taken in, and no more than that.
    let mut client = place.framed();
    let large = head("", body, &[("x-large", &"y".repeat(14_000))]);
    let most = fields(&[("x-larger", &"y".repeat(16_000))]);
    client.send(&Frame::new(HEADERS, END_STREAM, 1, &large));
    client.send(&Frame::new(CONTINUATION, 0, 1, &most));
    client.send(&Frame::new(CONTINUATION, END_HEADERS, 1, &most));
    let ended = client.find(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY));
    // 431 has no number of its own.
    assert_eq!(
        ended.map(|frame| (frame.kind, status(&frame))),
        Some((HEADERS, None))
    );
    assert_eq!(place.upstream.count(), 1);
}

#[test]
fn no_more_than_a_hundred_requests_are_under_way_on_a_connection() {
    let place = Place::new();
    let body = BODY.as_bytes();
    let mut client = place.framed();
    for number in 0..101 {
        let head = head("", body, &[]);
        client.send(&Frame::new(HEADERS, END_HEADERS, number * 2 + 1, &head));
    }
    let refused = client.find(|frame| frame.kind == RST_STREAM).unwrap();
    // REFUSED_STREAM: it may be sent again.
    assert_eq!((refused.stream, refused.code()), (201, 7));
    // Who gives requests up has them under way all the same, as long as they are.
    let place = Place::with(
        "",
        "[endpoints.crm.upstream_options]\nmax_concurrency = 1000",
    );
    place.upstream.by_default(Act::Wait(
        b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ));
    let mut client = place.framed();
    for number in 0..100 {
        let stream = number * 2 + 1;
        client.event(stream, "", body, &[]);
        place.upstream.next_message();
        client.send(&Frame::new(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    client.event(201, "", body, &[]);
    let refused = client.find(|frame| frame.kind == HEADERS).unwrap();
    assert_eq!(refused.stream, 201);
    eventually("it is counted", || place.rejections("overloaded") == 1.0);
    assert_eq!(place.upstream.count(), 100);
}

#[test]
fn slow_heads_and_bodies_meet_their_deadlines() {
    let place = Place::with("header_timeout = \"500ms\"\nbody_timeout = \"700ms\"", "");
    let body = BODY.as_bytes();
    let slow = |client: &mut Framed, before: f64| {
        assert!(end(client).is_none_or(|code| code == ENHANCE_YOUR_CALM));
        eventually("it is counted", || {
            place.rejections("timeout") == before + 1.0
        });
    };
    // Silent after the handshake, in the middle of the preface, behind it.
    for (number, bytes) in [&b""[..], &PREFACE[..7], PREFACE].iter().enumerate() {
        let mut client = Framed::silent(place.daemon.public, NAME, &place.authority);
        client.write(bytes);
        slow(&mut client, f64::from(u32::try_from(number).unwrap()));
    }
    let mut client = place.framed();
    slow(&mut client, 3.0);
    // In the middle of a header section, with one behind it.
    let mut client = place.framed();
    client.event(1, "a", body, &[]);
    client.find(|frame| frame.kind == DATA).unwrap();
    let head = Frame::new(HEADERS, END_HEADERS, 3, &head("", body, &[])).bytes();
    client.write(&head[..40]);
    slow(&mut client, 4.0);
    // In the middle of a body, while others go on.
    let mut client = place.client();
    let begun = Instant::now();
    let (answer, mut stream) = client.begin(event("slow", body));
    stream.send_data(Bytes::from_static(b"{"), false).unwrap();
    assert_eq!(client.send(event("b", body), body).status(), 200);
    let answer = client.answer(answer).unwrap();
    assert_eq!(answer.status(), 408);
    assert!(begun.elapsed() >= Duration::from_millis(700));
}

#[test]
fn an_answer_that_is_not_read_is_given_up() {
    let place = Place::with("body_timeout = \"600ms\"", "");
    let large = vec![b'x'; 300_000];
    place.upstream.by_default(Act::answer(200, "", &large));
    let body = BODY.as_bytes();
    let mut client = place.framed();
    client.event(1, "a", body, &[]);
    // No window for more than the first 65,535 bytes is ever given.
    let reset = client.find(|frame| frame.kind == RST_STREAM).unwrap();
    assert_eq!(reset.stream, 1);
    client.event(3, "b", b"{}", &[]);
    assert!(
        client
            .find(|frame| frame.kind == HEADERS && frame.stream == 3)
            .is_some()
    );
}

#[test]
fn an_idle_connection_is_taken_leave_of() {
    let place = Place::with("idle_timeout = \"500ms\"", "");
    let body = BODY.as_bytes();
    let mut client = place.framed();
    client.event(1, "a", body, &[]);
    client.find(|frame| frame.kind == DATA).unwrap();
    let goodbye = client.find(|frame| frame.kind == GOAWAY).unwrap();
    assert_eq!(goodbye.code(), NO_ERROR);
    assert_eq!(client.next(), None);
    assert_eq!(place.rejections("timeout"), 0.0);
}

#[test]
fn shutting_down_takes_leave_and_ends_what_is_under_way() {
    let mut place = Place::new();
    let answer = b"HTTP/1.1 200 X\r\nContent-Length: 4\r\n\r\nlast".to_vec();
    place.upstream.by_default(Act::Wait(answer));
    let body = BODY.as_bytes();
    let mut client = place.framed();
    client.event(1, "a", body, &[]);
    place.upstream.next_message();
    // Silent ones hold nothing up.
    let _idle = place.framed();
    place.daemon.signal(Signal::TERM);
    let goodbye = client.find(|frame| frame.kind == GOAWAY).unwrap();
    assert_eq!(goodbye.code(), NO_ERROR);
    place.upstream.release();
    let last = client.find(|frame| frame.kind == DATA).unwrap();
    assert_eq!(
        (last.content.as_slice(), last.flags),
        (&b"last"[..], END_STREAM)
    );
    // The peer's word that it saw the first goodbye.
    let begun = Instant::now();
    assert!(place.daemon.wait().success());
    assert!(begun.elapsed() < HANG);
}

#[test]
fn a_head_request_gets_no_body() {
    let place = Place::new();
    let mut request = Request::get("https://hooks.example/hook").body(()).unwrap();
    *request.method_mut() = Method::HEAD;
    let answer = place.client().send(request, b"");
    assert_eq!(answer.status(), 405);
    assert!(answer.body().is_empty());
}

#[test]
fn all_requests_together_are_bounded_as_connections_are() {
    let place = Place::with("max_connections = 4", "");
    let body = BODY.as_bytes();
    let mut open = [place.framed(), place.framed()];
    for (client, stream) in [(0, 1), (0, 3), (1, 1), (1, 3)] {
        let head = head(&format!("{client}-{stream}"), body, &[]);
        open[client].send(&Frame::new(HEADERS, END_HEADERS, stream, &head));
    }
    let labels = [("endpoint", "crm")];
    eventually("they are under way", || {
        place.daemon.metric("hookward_in_flight", &labels) == 4.0
    });
    let mut client = place.client();
    for number in 1..3 {
        let refused = client.send(event("over", body), body);
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.headers()["retry-after"], "5");
        assert_eq!(
            refused.headers()["content-type"],
            "application/problem+json"
        );
        let problem: serde_json::Value = serde_json::from_slice(refused.body()).unwrap();
        assert_eq!(problem["type"], "urn:hookward:overloaded");
        assert_eq!(place.rejections("overloaded"), f64::from(number));
    }
    // Who came first is served, and makes room.
    open[0].send(&Frame::new(DATA, END_STREAM, 1, body));
    let served = open[0].find(|frame| frame.kind == HEADERS).unwrap();
    assert_eq!((served.stream, status(&served)), (1, Some(200)));
    eventually("there is room", || {
        client.send(event("next", body), body).status() == 200
    });
}

#[test]
fn an_unknown_path_costs_nobody_the_connection() {
    let place = Place::new();
    let body = BODY.as_bytes();
    let mut client = place.framed();
    client.request(
        1,
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", NAME),
            (":path", "/nowhere"),
        ],
    );
    let answer = client.find(|frame| frame.kind == HEADERS).unwrap();
    assert_eq!(status(&answer), Some(404));
    client.event(3, "a", body, &[]);
    let next = client.find(|frame| frame.kind == GOAWAY || frame.stream == 3);
    assert_eq!(status(&next.unwrap()), Some(200));
}
