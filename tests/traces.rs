//! What a tracing backend is told, by a build with the feature `otlp`.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use support::{Act, BODY, Daemon, Setup, Upstream, event};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A message of protocol buffers, taken apart as far as is needed: fields by their numbers.
struct Message<'b>(&'b [u8]);

enum Value<'b> {
    Bytes(&'b [u8]),
    Number(u64),
}

impl<'b> Message<'b> {
    fn fields(&self) -> Vec<(u64, Value<'b>)> {
        let mut rest = self.0;
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let key = varint(&mut rest);
            let value = match key & 7 {
                0 => Value::Number(varint(&mut rest)),
                1 => Value::Number(u64::from_le_bytes(take(&mut rest, 8).try_into().unwrap())),
                2 => {
                    let length = usize::try_from(varint(&mut rest)).unwrap();
                    Value::Bytes(take(&mut rest, length))
                }
                5 => Value::Number(u64::from(u32::from_le_bytes(
                    take(&mut rest, 4).try_into().unwrap(),
                ))),
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, value));
        }
        fields
    }

    fn all(&self, number: u64) -> Vec<&'b [u8]> {
        let bytes = |(n, value)| match value {
            Value::Bytes(bytes) if n == number => Some(bytes),
            Value::Bytes(_) | Value::Number(_) => None,
        };
        self.fields().into_iter().filter_map(bytes).collect()
    }

    fn one(&self, number: u64) -> &'b [u8] {
        self.all(number).first().copied().unwrap_or_default()
    }

    fn number(&self, number: u64) -> u64 {
        let found = |(n, value)| match value {
            Value::Number(value) if n == number => Some(value),
            Value::Bytes(_) | Value::Number(_) => None,
        };
        self.fields()
            .into_iter()
            .find_map(found)
            .unwrap_or_default()
    }
}

fn take<'b>(rest: &mut &'b [u8], length: usize) -> &'b [u8] {
    let (taken, left) = rest.split_at(length);
    *rest = left;
    taken
}

fn varint(rest: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = take(rest, 1)[0];
        value |= u64::from(byte & 127) << shift;
        shift += 7;
        if byte < 128 {
            return value;
        }
    }
}

/// A span, as far as it is looked at.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    attributes: Vec<(String, String)>,
    is_error: bool,
}

impl Span {
    fn attribute(&self, name: &str) -> &str {
        let found = self.attributes.iter().find(|(n, _)| n == name);
        found.map_or("", |(_, value)| value)
    }
}

fn attributes(message: &Message<'_>, number: u64) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let pair = |bytes| {
        let pair = Message(bytes);
        let value = Message(pair.one(2));
        let value = match value.one(1) {
            b"" => value.number(3).to_string(),
            bytes => text(bytes),
        };
        (text(pair.one(1)), value)
    };
    message.all(number).into_iter().map(pair).collect()
}

/// The spans in an `ExportTraceServiceRequest`.
fn spans(body: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in Message(body).all(1).into_iter().map(Message) {
        let resource = attributes(&Message(of_resource.one(1)), 1);
        let service = resource
            .into_iter()
            .find(|(name, _)| name == "service.name");
        let service = service.unwrap().1;
        for span in of_resource
            .all(2)
            .into_iter()
            .flat_map(|scope| Message(scope).all(2))
        {
            let span = Message(span);
            spans.push(Span {
                service: service.clone(),
                trace: hex::encode(span.one(1)),
                id: hex::encode(span.one(2)),
                parent: hex::encode(span.one(4)),
                name: String::from_utf8(span.one(5).to_vec()).unwrap(),
                kind: span.number(6),
                attributes: attributes(&span, 9),
                is_error: Message(span.one(15)).number(3) == 2,
            });
        }
    }
    spans
}

/// The spans that a collector gets, until there are so many.
fn received(collector: &Upstream, count: usize) -> Vec<Span> {
    let mut all = Vec::new();
    while all.len() < count {
        let message = collector.next_message();
        assert!(
            message.head.starts_with("POST /v1/traces HTTP/1.1"),
            "{}",
            message.head
        );
        assert_eq!(message.value("content-type"), "application/x-protobuf");
        assert_eq!(message.value("x-team"), "hooks");
        all.extend(spans(&message.body));
    }
    assert_eq!(all.len(), count, "{all:?}");
    all
}

fn traced(setup: Setup, collector: &Upstream) -> Setup {
    setup
        .env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            &format!("http://{}", collector.address),
        )
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-team=hooks")
        .env("OTEL_BSP_SCHEDULE_DELAY", "200")
}

fn kind(spans: &[Span], kind: u64) -> Span {
    let mut of_kind = spans.iter().filter(|span| span.kind == kind);
    let found = of_kind
        .next()
        .unwrap_or_else(|| panic!("{spans:?}"))
        .clone();
    assert!(of_kind.next().is_none(), "{spans:?}");
    found
}

const SERVER: u64 = 2;
const CLIENT: u64 = 3;

#[test]
fn a_request_and_its_attempt_join_the_senders_trace() {
    let (upstream, collector) = (
        Upstream::new(Act::status(200)),
        Upstream::new(Act::status(200)),
    );
    let daemon = traced(Daemon::relay(&upstream.url(), ""), &collector).start();
    let said = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n");
    let reply = daemon.sender().send(&event("a", BODY.as_bytes(), &said));
    assert_eq!(reply.status, 200);
    // What the sender said goes on as it was.
    let message = upstream.next_message();
    assert_eq!(
        message.value("traceparent"),
        format!("00-{TRACE}-{PARENT}-01")
    );
    let spans = received(&collector, 2);
    let (request, attempt) = (kind(&spans, SERVER), kind(&spans, CLIENT));
    assert_eq!(
        (request.trace.as_str(), request.parent.as_str()),
        (TRACE, PARENT)
    );
    assert_eq!(
        (attempt.trace.as_str(), &attempt.parent),
        (TRACE, &request.id)
    );
    assert_eq!(
        (request.name.as_str(), attempt.name.as_str()),
        ("POST crm", "deliver crm")
    );
    let id = reply.header("hookward-event-id").unwrap();
    for span in [&request, &attempt] {
        assert_eq!(span.service, "hookward");
        assert_eq!(span.attribute("hookward.event_id"), id);
        assert_eq!(span.attribute("hookward.endpoint"), "crm");
        assert_eq!(span.attribute("http.response.status_code"), "200");
        assert!(!span.is_error);
    }
    assert_eq!(request.attribute("hookward.outcome"), "forwarded");
    assert_eq!(attempt.attribute("hookward.attempt"), "1");
}

#[test]
fn refusals_and_failures_say_why() {
    let collector = Upstream::new(Act::status(200));
    let nobody = format!("http://{}/in", Upstream::nobody());
    let daemon = traced(Daemon::relay(&nobody, ""), &collector)
        .env("OTEL_SERVICE_NAME", "gate")
        .start();
    let mut sender = daemon.sender();
    assert_eq!(sender.send(&event("a", BODY.as_bytes(), "")).status, 502);
    let spans = received(&collector, 2);
    let (request, attempt) = (kind(&spans, SERVER), kind(&spans, CLIENT));
    assert!(request.is_error && attempt.is_error);
    assert_eq!(request.service, "gate");
    assert_eq!(request.parent, "");
    assert_eq!(request.attribute("error.type"), "upstream_unreachable");
    let forged = event("b", BODY.as_bytes(), "").split_off(1);
    let forged = [&b"P"[..], &forged].concat();
    let forged = String::from_utf8(forged)
        .unwrap()
        .replace("message", "massage");
    assert_eq!(daemon.sender().send(forged.as_bytes()).status, 401);
    let refused = kind(&received(&collector, 1), SERVER);
    assert_eq!(refused.attribute("error.type"), "signature_mismatch");
    assert!(!refused.is_error);
}

#[test]
fn what_is_delivered_from_disk_joins_the_trace_it_came_with() {
    let (upstream, collector) = (
        Upstream::new(Act::status(500)),
        Upstream::new(Act::status(200)),
    );
    upstream.then([Act::status(500), Act::status(200)]);
    let queue = "[endpoints.crm.queue]\nretry = [\"100ms\"]";
    let daemon = traced(Daemon::queue(&upstream.url(), queue), &collector).start();
    let said = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n");
    daemon.sender().send(&event("a", BODY.as_bytes(), &said));
    let mut attempts: Vec<Span> = received(&collector, 3)
        .into_iter()
        .filter(|span| span.kind == CLIENT)
        .collect();
    attempts.sort_by_key(|span| span.attribute("hookward.attempt").to_owned());
    let told: Vec<_> = attempts
        .iter()
        .map(|span| {
            (
                span.attribute("hookward.attempt"),
                span.attribute("http.response.status_code"),
            )
        })
        .collect();
    assert_eq!(told, [("1", "500"), ("2", "200")]);
    for span in &attempts {
        assert_eq!((span.trace.as_str(), span.parent.as_str()), (TRACE, PARENT));
    }
}

#[test]
fn nothing_is_told_unless_somebody_is_named_and_the_last_spans_go_out() {
    let (upstream, collector) = (
        Upstream::new(Act::status(200)),
        Upstream::new(Act::status(200)),
    );
    for (name, value) in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ] {
        let setup = traced(Daemon::relay(&upstream.url(), ""), &collector).env(name, value);
        let daemon = setup.start();
        daemon.sender().send(&event("a", BODY.as_bytes(), ""));
        daemon.end(rustix::process::Signal::TERM);
        assert_eq!(collector.count(), 0, "{name}");
    }
    let patient = traced(Daemon::relay(&upstream.url(), ""), &collector);
    let daemon = patient.env("OTEL_BSP_SCHEDULE_DELAY", "600000").start();
    daemon.sender().send(&event("a", BODY.as_bytes(), ""));
    daemon.end(rustix::process::Signal::TERM);
    assert_eq!(received(&collector, 2).len(), 2);
    let wrong = traced(Daemon::relay(&upstream.url(), ""), &collector)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let (code, said) = wrong.refuse();
    assert_eq!(code, 2);
    assert!(
        said.contains("OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf"),
        "{said}"
    );
}
