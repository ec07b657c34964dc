//! Requests that were kept for a second look: which there are, and why they were refused.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Refusal, view};
use crate::{
    endpoint::{Endpoint, EndpointName},
    kept::Kept,
    queue::{Quarantined, Queue},
    signature::explain::{Case, Explanation, explain_each},
};

/// A part of what an endpoint has kept.
pub(super) async fn list(
    queue: &Queue,
    endpoint: &EndpointName,
    after: i64,
    limit: usize,
) -> Result<Value, Refusal> {
    let kept = read(queue, endpoint, after, limit).await?;
    let is_full = kept.len() >= limit;
    let next = kept.last().filter(|_| is_full).map(|last| last.number);
    let requests: Vec<_> = kept.iter().map(summary).collect();
    Ok(json!({"requests": requests, "next": next}))
}

/// One of them, and why its signature does not match.
pub(super) async fn explain(
    queue: &Queue,
    endpoint: &Arc<Endpoint>,
    number: i64,
) -> Result<Value, Refusal> {
    let found = read(queue, &endpoint.name, number.saturating_sub(1), 1).await?;
    let found = found.into_iter().find(|request| request.number == number);
    let unknown = || Refusal::Unknown(format!("{number}: no such request is in quarantine"));
    let request = found.ok_or_else(unknown)?;
    let mut shown = summary(&request);
    let endpoint = endpoint.clone();
    // Many variations are hashed: not on the thread that answers everybody.
    let explained = tokio::task::spawn_blocking(move || explained(&endpoint, request)).await;
    let failed = |_| Refusal::Failed("it could not be explained; try again".to_owned());
    let (received, explanation) = explained.map_err(failed)?;
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("request".to_owned(), received);
        shown.insert("explanation".to_owned(), explanation);
    }
    Ok(shown)
}

/// A request as it was received, and what was found.
fn explained(endpoint: &Endpoint, request: Quarantined) -> (Value, Value) {
    let kept = request
        .record
        .ok()
        .and_then(|record| Kept::read(record).ok());
    let Some(kept) = kept else {
        let fault = "its bytes on disk are not what was written";
        return (json!({"fault": fault}), json!([]));
    };
    let signed = kept.signed();
    let case = Case {
        scheme: &endpoint.scheme,
        headers: &kept.headers,
        method: signed.method,
        url: signed.url,
        body: &kept.body,
        now: kept.received_at,
    };
    let found = explain_each(&case, &endpoint.secrets);
    (view::received(&kept), findings(&found))
}

/// What was found with each secret.
pub(crate) fn findings(found: &[(&str, Explanation)]) -> Value {
    let one = |(secret, explanation): &(&str, Explanation)| {
        json!({
            "secret": secret,
            "matches": explanation.refused.is_none(),
            "findings": explanation.findings,
        })
    };
    found.iter().map(one).collect()
}

async fn read(
    queue: &Queue,
    endpoint: &EndpointName,
    after: i64,
    limit: usize,
) -> Result<Vec<Quarantined>, Refusal> {
    let kept = queue.quarantined(endpoint, after, limit).await;
    kept.map_err(|error| Refusal::Failed(error.to_string()))
}

fn summary(request: &Quarantined) -> Value {
    json!({
        "number": request.number,
        "event_id": request.id.to_string(),
        "at": view::moment(request.at),
        "reason": request.reason,
        "bytes": request.record.as_ref().map_or(0, bytes::Bytes::len),
    })
}
