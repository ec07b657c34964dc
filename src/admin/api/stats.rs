//! How things are: figures for people, out of the same metrics that Prometheus reads.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use serde_json::{Value, json};

use super::{Desk, State, problem::Problem};
use crate::{
    control::{Order, view::moment},
    metrics::{Readings, quantile},
};

/// The configuration in effect, secrets as `***`.
pub(super) async fn config(desk: State) -> Json<Value> {
    let known = desk.known();
    Json(json!({
        "file": known.file.as_ref().map(|file| file.display().to_string()),
        "warnings": known.warnings,
        "effective": known.effective,
    }))
}

pub(super) async fn stats(desk: State) -> Result<Json<Value>, Problem> {
    let endpoints = match &desk.control {
        None => json!([]),
        Some(control) => {
            let running = desk.running();
            control.carry_out(Order::Stats, &running.endpoints).await?
        }
    };
    let shared = &desk.shared;
    let stored = shared.queue.as_ref().map(|queue| {
        json!({
            "bytes": queue.stored_bytes(),
            "trouble": queue.trouble().map(|trouble| trouble.to_string()),
            "endpoints": endpoints,
        })
    });
    let readings = shared.metrics.readings();
    let capture = shared.feed.capture();
    let now = Instant::now();
    let history = desk.history();
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": moment(desk.started.1),
        "uptime_seconds": now.saturating_duration_since(desk.started.0).as_secs(),
        "requests": counts(&readings, "requests_total", "outcome"),
        "refusals": counts(&readings, "rejections_total", "reason"),
        "upstream_responses": counts(&readings, "upstream_responses_total", "class"),
        "deliveries": counts(&readings, "deliveries_total", "result"),
        "latency": latency(&readings),
        "connections": readings.value("connections"),
        "buffered_bytes": shared.budget.used(),
        "dedup_entries": shared.table.entries(),
        "resident_bytes": readings.value("process_resident_memory_bytes"),
        "queue": stored,
        "secrets": secrets(&desk, &readings),
        "certificates": certificates(&readings),
        "reload": {
            "succeeded": readings.value("config_last_reload_successful") > 0.0,
            "last_success_at": at(readings.value("config_last_reload_success_timestamp_seconds")),
            "reloads": readings.value("config_reloads_total"),
            "failures": readings.value("config_reload_failures_total"),
        },
        "capture": {"events": capture.events, "bytes": capture.bytes},
        "history_seconds": history.length(now).as_secs(),
        "hour": history.hour(),
    })))
}

fn at(seconds: f64) -> Option<Value> {
    let since = Duration::try_from_secs_f64(seconds).ok()?;
    (seconds > 0.0).then(|| moment(UNIX_EPOCH + since))
}

/// A counter's sums by one label, those that are 0 left out.
fn counts(readings: &Readings, name: &str, label: &str) -> Value {
    let sums = readings.sums(name, [label]).into_iter();
    let some = sums.filter(|(_, count)| *count > 0.0);
    let some = some.map(|([label], count)| (label, count.into()));
    Value::Object(some.collect())
}

fn latency(readings: &Readings) -> Value {
    let (none, all) = (Vec::new(), readings.buckets("request_duration_seconds"));
    json!({
        "p50_seconds": quantile(&none, &all, 0.5),
        "p95_seconds": quantile(&none, &all, 0.95),
        "p99_seconds": quantile(&none, &all, 0.99),
    })
}

/// Which secrets are configured, which of them match, and when they end.
fn secrets(desk: &Desk, readings: &Readings) -> Value {
    let matches = readings.sums("secret_matches_total", ["endpoint", "secret"]);
    let running = desk.running();
    let now = SystemTime::now();
    let all = running.endpoints.iter().flat_map(|endpoint| {
        let name = endpoint.name.as_str();
        let secrets = endpoint.secrets.names().zip(endpoint.secrets.expiries());
        secrets.map(move |(secret, not_after)| (name, secret, not_after))
    });
    let shown = all.map(|(endpoint, secret, not_after)| {
        let key = [endpoint.to_owned(), secret.to_owned()];
        json!({
            "endpoint": endpoint,
            "name": secret,
            "not_after": not_after.map(moment),
            "good": not_after.is_none_or(|end| now < end),
            "matches": matches.get(&key).copied().unwrap_or_default(),
        })
    });
    shown.collect()
}

/// When certificates end, where there are any.
fn certificates(readings: &Readings) -> Value {
    let all = readings.series("tls_certificate_expiry_timestamp_seconds", ["domain"]);
    let shown = all
        .into_iter()
        .map(|([domain], seconds)| json!({"domain": domain, "expires_at": at(seconds)}));
    shown.collect()
}
