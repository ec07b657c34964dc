//! A second look at requests whose signature did not match.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    dedup::Table,
    endpoint::Endpoint,
    gate,
    kept::Kept,
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
    /// It is an event now.
    Released,
    /// It stays: its signature still does not match, or it is no signature that it is kept for.
    Stays,
}

/// Lets through what matches the secrets of today; the rest stays.
pub(super) async fn reverify(
    queue: &Queue,
    table: &Arc<Table>,
    endpoint: &Endpoint,
) -> Result<Value, String> {
    let limits = gate::queue_limits(endpoint);
    let handle = queue.endpoint(&endpoint.name, Some(limits));
    let (mut released, mut duplicates, mut filtered, mut unmatched) = (0, 0, 0, 0);
    let mut after = 0;
    loop {
        let batch = queue.quarantined(&endpoint.name, after, BATCH).await;
        let batch = batch.map_err(|error| error.to_string())?;
        let Some(last) = batch.last() else { break };
        after = last.number;
        let mut done = Vec::new();
        for request in batch {
            let number = request.number;
            match look(&handle, table, endpoint, request).await? {
                Second::Duplicate => duplicates += 1,
                Second::Filtered => filtered += 1,
                Second::Released => {
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
        "unmatched": unmatched,
    }))
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
        Ok(Appended::Duplicate { .. }) => Ok(Second::Duplicate),
        Ok(Appended::Queued { .. }) => Ok(Second::Released),
        Err(AppendError::KeyReuse) => Ok(Second::Stays),
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
