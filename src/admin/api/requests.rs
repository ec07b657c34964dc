//! The last requests: what came of them, and, where they were captured, themselves.

use std::sync::Arc;

use axum::{Json, extract::Path};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Desk, State,
    input::{Asked, Span},
    page,
    problem::Problem,
    shown,
};
use crate::{
    control::{quarantine::findings, view::moment},
    endpoint::Endpoint,
    feed::{Captured, Seen},
    rejection::Rejection,
    signature::explain::{Case, explain_each},
};

/// Which requests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    endpoint: Option<String>,
    outcome: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn list(
    desk: State,
    Asked(asked): Asked<Listing>,
) -> Result<Json<Value>, Problem> {
    let span = Span {
        cursor: asked.cursor,
        limit: asked.limit,
    };
    let before = span.number()?.and_then(|number| u64::try_from(number).ok());
    let limit = span.limit()?;
    let wanted = |seen: &Seen| {
        let same = |wanted: &Option<String>, is: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| is == Some(wanted))
        };
        same(&asked.endpoint, seen.endpoint.as_deref()) && same(&asked.outcome, seen.outcome)
    };
    let part = desk.shared.feed.before(before, limit, wanted);
    let is_full = part.len() >= limit;
    let next = part
        .last()
        .filter(|_| is_full)
        .map(|(number, _)| number.to_string());
    let items = part.iter().map(|(number, seen)| summary(*number, seen));
    Ok(page(items.collect(), next))
}

pub(super) async fn show(
    desk: State,
    Path(event_id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let seen = desk.shared.feed.find(&event_id);
    let seen = seen.ok_or_else(|| Problem::absent("request, or it is kept no longer"))?;
    let mut shown = summary(0, &seen);
    let more = details(&desk, seen).await;
    if let (Some(shown), Value::Object(more)) = (shown.as_object_mut(), more) {
        shown.remove("number");
        shown.extend(more);
    }
    Ok(Json(shown))
}

/// What is known of a request without itself.
pub(super) fn summary(number: u64, seen: &Seen) -> Value {
    let body = seen.captured.as_ref().and_then(|c| c.body.as_ref());
    json!({
        "number": number,
        "event_id": seen.event_id,
        "at": moment(seen.at),
        "endpoint": seen.endpoint,
        "method": seen.method,
        "target": seen.target,
        "peer": seen.peer,
        "event": seen.event,
        "status": seen.status,
        "outcome": seen.outcome,
        "reason": seen.reason,
        "duration_seconds": seen.took.as_secs_f64(),
        "captured": seen.captured.is_some(),
        "bytes": body.map(bytes::Bytes::len),
    })
}

/// The request itself, and why it was refused.
async fn details(desk: &Desk, seen: Arc<Seen>) -> Value {
    let running = desk.running();
    let named = |e: &&Arc<Endpoint>| seen.endpoint.as_deref() == Some(shown::name(e));
    let endpoint = running.endpoints.iter().find(named).cloned();
    let mut more = json!({"why": why(&seen)});
    let Some(captured) = &seen.captured else {
        return more;
    };
    if let Some(more) = more.as_object_mut() {
        let headers = shown::headers(&captured.headers(), endpoint.as_deref());
        more.insert("headers".to_owned(), headers);
        if let Some(body) = &captured.body {
            let (key, body) = shown::body(body);
            more.insert(key.to_owned(), body);
        }
    }
    let is_of_signature = seen
        .reason
        .is_some_and(|reason| reason.starts_with("signature_"));
    if let (Some(endpoint), true) = (endpoint, is_of_signature) {
        let seen = seen.clone();
        // Many variations are hashed: not on the thread that answers everybody.
        let explained = tokio::task::spawn_blocking(move || explain(&endpoint, &seen)).await;
        if let (Some(more), Ok(Some(explained))) = (more.as_object_mut(), explained) {
            more.insert("explanation".to_owned(), explained);
        }
    }
    more
}

/// What a refusal's reason means.
fn why(seen: &Seen) -> Option<&'static str> {
    let mut kinds = Rejection::KINDS.into_iter();
    let kind = kinds.find(|kind| Some(kind.label()) == seen.reason)?;
    Some(kind.detail())
}

/// What each of the endpoint's secrets says of a request whose signature was refused.
fn explain(endpoint: &Endpoint, seen: &Seen) -> Option<Value> {
    let captured = seen.captured.as_ref()?;
    let headers = captured.headers();
    let Captured { target, body, .. } = captured;
    let case = Case {
        scheme: &endpoint.scheme,
        headers: &headers,
        method: Method::POST.as_str(),
        url: target,
        body: body.as_deref().unwrap_or_default(),
        now: seen.at,
    };
    Some(findings(&explain_each(&case, &endpoint.secrets)))
}
