//! A test event: made as a sample, signed as its sender signs, and put through the gate itself.
//!
//! It comes over a socket of the process with itself, so that what listeners add (TLS, limits on
//! connections) is left out and everything else is as for any sender: it is counted, deduplicated,
//! queued, and the application gets it.

use std::{sync::Arc, time::Instant};

use axum::{Json, extract::Path};
use bytes::BytesMut;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use uuid::Uuid;

use super::{State, input::Input, problem::Problem, shown};
use crate::{
    body::Budget,
    endpoint::{Endpoint, PathPattern},
    event::samples,
    framing::{Chunks, Piece},
    gate::{Gate, Live, Shared},
    server::{self, Protocol},
    signature::ToSign,
};

/// Most bytes of the answer that are looked at, and that are shown.
const ANSWER_LIMIT: (u64, usize) = (1 << 20, 4096);
/// Memory for the bodies of one trial, in bytes.
const BUDGET: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trial {
    event: String,
}

pub(super) async fn test(
    desk: State,
    Path(name): Path<String>,
    Input(Trial { event }): Input<Trial>,
) -> Result<Json<Value>, Problem> {
    let running = desk.running();
    let named = |endpoint: &&Arc<Endpoint>| shown::name(endpoint) == name;
    let endpoint = running.endpoints.iter().find(named).cloned();
    let endpoint = endpoint.ok_or_else(|| Problem::absent("endpoint"))?;
    let sample = samples::body_of(&event).ok_or_else(|| {
        let known = samples::EVENTS.map(|(name, _)| name).join(", ");
        Problem::input(format!("event: expected one of {known}"))
    })?;
    let message = message(&endpoint, &event, sample)?;
    let busy = || {
        let detail = "Other test events are under way; try again.";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
    };
    let permit = desk
        .trials
        .clone()
        .try_acquire_owned()
        .map_err(|_| busy())?;
    let shared = desk.shared.clone();
    // The gate is one thread's: it gets one for as long as this takes.
    let sent = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        send(&shared, running, &message)
    });
    let failed = |_| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "failed",
            "The test failed.",
        )
    };
    let outcome = sent.await.map_err(failed)?;
    outcome.map(Json).ok_or_else(|| {
        let detail = "The gate gave no answer; its log says why.";
        Problem::new(StatusCode::BAD_GATEWAY, "failed", detail)
    })
}

/// The whole request, signed with the endpoint's first secret that is good.
fn message(endpoint: &Endpoint, event: &str, sample: &str) -> Result<Vec<u8>, Problem> {
    let now = std::time::SystemTime::now();
    let id = format!("test-{}", Uuid::new_v4());
    // Apart from every other sample, or the second one would be a replay of the first.
    let body = sample.replacen('{', &format!("{{\"id\":\"{id}\","), 1);
    let path = match &endpoint.path {
        PathPattern::Exact(path) => path.clone(),
        PathPattern::Prefix(prefix) => format!("{prefix}test"),
    };
    let secret = endpoint.secrets.keys(now).next().ok_or_else(|| {
        let detail = "Every secret of this endpoint has expired: nothing can be signed.";
        Problem::new(StatusCode::CONFLICT, "secrets", detail)
    })?;
    let mut headers = endpoint.scheme.sign(
        secret,
        &ToSign {
            id: &id,
            timestamp: now,
            method: "POST",
            url: &path,
            body: body.as_bytes(),
            event_type: Some(event),
        },
    );
    let key = http::HeaderName::from_static("idempotency-key");
    if !headers.iter().any(|(name, _)| *name == key)
        && let Ok(id) = http::HeaderValue::from_str(&id)
    {
        headers.push((key, id));
    }
    let mut message = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         User-Agent: hookward/{} (test)\r\nContent-Length: {}\r\nConnection: close\r\n",
        env!("CARGO_PKG_VERSION"),
        body.len()
    )
    .into_bytes();
    for (name, value) in &headers {
        message.extend_from_slice(name.as_str().as_bytes());
        message.extend_from_slice(b": ");
        message.extend_from_slice(value.as_bytes());
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b"\r\n");
    message.extend_from_slice(body.as_bytes());
    Ok(message)
}

/// Puts a request through a gate of this thread's own; what came of it.
fn send(shared: &Arc<Shared>, live: Arc<Live>, message: &[u8]) -> Option<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .ok()?;
    let began = Instant::now();
    let answer = runtime.block_on(async {
        let (mut here, there) = UnixStream::pair().ok()?;
        let gate = Gate::new(shared.clone(), live);
        let serve = server::serve_one(gate, there, Budget::new(BUDGET), Protocol::Http1);
        let exchange = async {
            here.write_all(message).await.ok()?;
            let mut answer = BytesMut::new();
            let mut limited = here.take(ANSWER_LIMIT.0);
            // A torn answer tells something too.
            while matches!(limited.read_buf(&mut answer).await, Ok(1..)) {}
            Some((answer, began.elapsed()))
        };
        tokio::join!(serve, exchange).1
    });
    let (answer, took) = answer?;
    show(answer, took)
}

fn show(mut answer: BytesMut, took: std::time::Duration) -> Option<Value> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut head = httparse::Response::new(&mut fields);
    let whole = answer.clone();
    let httparse::Status::Complete(length) = head.parse(&whole).ok()? else {
        return None;
    };
    let header = |wanted: &str| {
        let mut all = head.headers.iter();
        let found = all.find(|field| field.name.eq_ignore_ascii_case(wanted))?;
        str::from_utf8(found.value).ok()
    };
    let is_chunked = header("transfer-encoding").is_some();
    let _ = answer.split_to(length);
    let body = if is_chunked { joined(answer) } else { answer };
    let text = String::from_utf8_lossy(&body);
    let problem: Option<Value> = serde_json::from_slice(&body).ok();
    let reason = problem
        .as_ref()
        .and_then(|problem| problem.get("type")?.as_str()?.strip_prefix("urn:hookward:"));
    Some(json!({
        "status": head.code,
        "outcome": header("hookward-outcome"),
        "event_id": header("hookward-event-id"),
        "reason": reason,
        "duration_seconds": took.as_secs_f64(),
        "answer": text.chars().take(ANSWER_LIMIT.1).collect::<String>(),
    }))
}

/// A chunked body's data, as far as it came.
fn joined(mut rest: BytesMut) -> BytesMut {
    let mut body = BytesMut::new();
    let mut chunks = Chunks::default();
    while let Ok(Piece::Data(data)) = chunks.next(&mut rest) {
        body.extend_from_slice(&data);
    }
    body
}
