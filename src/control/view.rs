//! What is on disk, as JSON.

use std::time::SystemTime;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::{
    kept::Kept,
    queue::{CorruptRecord, Detail, Stats, Summary},
};

pub(crate) fn moment(time: SystemTime) -> Value {
    humantime::format_rfc3339_millis(time).to_string().into()
}

pub(super) fn summary(summary: &Summary) -> Value {
    json!({
        "event_id": summary.id.to_string(),
        "endpoint": summary.endpoint.as_str(),
        "event_type": summary.event_type,
        "state": summary.state.label(),
        "attempts": summary.attempts,
        "appended_at": moment(summary.appended_at),
        "since": summary.since.map(moment),
        "due_at": summary.due_at.map(moment),
        "waits_for_lane": summary.waits_for_lane,
        "bytes": summary.bytes,
        "last_status": summary.last_status,
        "last_error": summary.last_error,
    })
}

pub(super) fn detail(detail: &Detail) -> Value {
    let mut shown = summary(&detail.summary);
    let failures = detail.attempts.iter().map(|attempt| {
        json!({
            "attempt": attempt.number,
            "at": moment(attempt.at),
            "status": attempt.status,
            "error": attempt.error,
        })
    });
    let failures: Value = failures.collect();
    let mut request = Value::Null;
    if let Some(record) = &detail.record {
        request = match record {
            Err(CorruptRecord) => json!({"fault": "its bytes on disk are not what was written"}),
            Ok(record) => match Kept::read(record.clone()) {
                Ok(kept) => received(&kept),
                Err(fault) => json!({"fault": fault.to_string()}),
            },
        };
    }
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("failed_attempts".to_owned(), failures);
        shown.insert("request".to_owned(), request);
    }
    shown
}

/// The request as it was received; what is no text is in base64.
pub(super) fn received(kept: &Kept) -> Value {
    let headers = kept.headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes());
        json!([name.as_str(), value])
    });
    let mut shown = Map::new();
    shown.insert("received_at".to_owned(), moment(kept.received_at));
    shown.insert("peer".to_owned(), kept.peer.clone().into());
    shown.insert("target".to_owned(), kept.target.clone().into());
    shown.insert("headers".to_owned(), headers.collect());
    match str::from_utf8(&kept.body) {
        Ok(text) => shown.insert("body".to_owned(), text.into()),
        Err(_) => shown.insert("body_base64".to_owned(), STANDARD.encode(&kept.body).into()),
    };
    Value::Object(shown)
}

pub(super) fn stats(stats: &Stats) -> Value {
    json!({
        "endpoint": stats.endpoint.as_str(),
        "paused": stats.paused,
        "pending": stats.pending,
        "leased": stats.leased,
        "dead": stats.dead,
        "delivered": stats.delivered,
        "pending_bytes": stats.pending_bytes,
        "stored_bytes": stats.stored_bytes,
        "quarantined": stats.quarantined,
        "quarantined_bytes": stats.quarantined_bytes,
        "oldest_age_seconds": stats.oldest_age.map(|age| age.as_secs_f64()),
    })
}
