//! A second look at requests whose signature did not match.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    dedup::Table,
    endpoint::{Endpoint, EndpointName},
    gate,
    kept::Kept,
    metrics::Metrics,
    queue::{self, AppendError, Appended, Fingerprint, Key, Keyed, NewEvent, Quarantined, Queue},
    rejection::Rejection,
};

/// Requests looked at before the next ones are fetched.
const BATCH: usize = 50;

/// What a request came to.
enum Second {
    /// It is an event that was taken before.
    Duplicate,
    /// It is an event of a type that the endpoint does not want.
    Filtered,
    /// It is an event whose key was taken with another body: it stays.
    KeyReused,
    /// It is an event now.
    Released {
        /// Its key was taken with another body before.
        key_reused: bool,
    },
    /// It stays: its signature still does not match, or it is no signature that it is kept for.
    Stays,
}

/// Lets through what matches the secrets of today; the rest stays.
pub(super) async fn reverify(
    queue: &Queue,
    table: &Arc<Table>,
    metrics: Option<&Metrics>,
    endpoint: &Endpoint,
) -> Result<Value, String> {
    let limits = gate::queue_limits(endpoint);
    let handle = queue.endpoint(&endpoint.name, Some(limits));
    let (mut released, mut duplicates, mut filtered) = (0, 0, 0);
    let (mut key_reused, mut unmatched) = (0, 0);
    let mut after = 0;
    loop {
        let batch = queue.quarantined(&endpoint.name, after, BATCH).await;
        let batch = batch.map_err(|error| error.to_string())?;
        let Some(last) = batch.last() else { break };
        after = last.number;
        let mut done = Vec::new();
        for request in batch {
            let (number, event_id) = (request.number, request.id);
            let second = look(&handle, table, endpoint, request).await?;
            if let Second::KeyReused | Second::Released { key_reused: true } = second {
                note_reuse(metrics, &endpoint.name, event_id);
            }
            match second {
                Second::Duplicate => duplicates += 1,
                Second::Filtered => filtered += 1,
                Second::KeyReused => {
                    key_reused += 1;
                    continue;
                }
                Second::Released { .. } => {
                    released += 1;
                    continue;
                }
                Second::Stays => {
                    unmatched += 1;
                    continue;
                }
            }
            done.push(number);
        }
        let discarded = queue.discard_quarantined(done).await;
        discarded.map_err(|error| error.to_string())?;
    }
    Ok(json!({
        "released": released,
        "duplicates": duplicates,
        "filtered": filtered,
        "key_reused": key_reused,
        "unmatched": unmatched,
    }))
}

/// Counts and logs an event that came with a key that another body had before.
fn note_reuse(metrics: Option<&Metrics>, endpoint: &EndpointName, event_id: Uuid) {
    if let Some(metrics) = metrics {
        metrics.key_reused(endpoint);
    }
    tracing::warn!(%endpoint, %event_id, "idempotency key reused with another body");
}

async fn look(
    handle: &queue::Endpoint,
    table: &Table,
    endpoint: &Endpoint,
    request: Quarantined,
) -> Result<Second, String> {
    let Some((record, kept)) = authentic(endpoint, &request) else {
        return Ok(Second::Stays);
    };
    let event_type = gate::event_type(endpoint, &kept.headers, &kept.body);
    if !endpoint.events.allows(event_type.as_deref()) {
        return Ok(Second::Filtered);
    }
    let Ok(key) = keyed(table, endpoint, &kept) else {
        return Ok(Second::Stays);
    };
    let bytes = u64::try_from(record.len()).unwrap_or(u64::MAX);
    let event = NewEvent {
        id: request.id,
        key,
        event_type,
        lane: gate::lane_of(&endpoint.queueing.ordering, &kept.body),
        record,
        quarantined: Some(request.number),
    };
    let place = handle.place(bytes).map_err(|error| error.to_string())?;
    match place.append(event).await {
        Ok(Appended::Duplicate { key_reused: false }) => Ok(Second::Duplicate),
        Ok(Appended::Duplicate { key_reused: true }) | Err(AppendError::KeyReuse) => {
            Ok(Second::KeyReused)
        }
        Ok(Appended::Queued { key_reused }) => Ok(Second::Released { key_reused }),
        Err(AppendError::Refused(refused)) => Err(refused.to_string()),
    }
}

/// The request, if it was kept for its signature and that matches now.
fn authentic(endpoint: &Endpoint, request: &Quarantined) -> Option<(Bytes, Kept)> {
    if request.reason != Rejection::SignatureMismatch.label() {
        return None;
    }
    let record = request.record.clone().ok()?;
    let kept = Kept::read(record.clone()).ok()?;
    // A signed timestamp is held to when the request came, not to today.
    let opened = endpoint
        .scheme
        .open(&endpoint.secrets, &kept.signed(), kept.received_at);
    let mut verification = opened.ok()?;
    verification.update(&kept.body);
    verification.finish().ok()?;
    Some((record, kept))
}

fn keyed(table: &Table, endpoint: &Endpoint, kept: &Kept) -> Result<Option<Keyed>, Rejection> {
    let header_key = gate::header_key(endpoint, &kept.headers)?;
    let (digest, _) = gate::digest_of(table, endpoint, header_key, &kept.body)?;
    let hash = gate::hash_of(table, &kept.body);
    let body = table.fingerprint_of_body(endpoint.name.as_str(), &hash);
    let policy = endpoint.dedup.policy;
    Ok(digest.map(|digest| Keyed {
        key: Key(digest.to_bytes()),
        body: Some(Fingerprint(body.to_number())),
        window: policy.window,
        key_reuse: policy.key_reuse,
    }))
}
