//! The keys that say whether an endpoint relays or queues, and how what is queued is delivered.

use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use super::{DAY, MS};
use crate::{
    config::table::{Kind, Table, as_duration, as_text, write_duration},
    endpoint::{Enforcement, Mode, Ordering, Queueing},
};

/// Most pauses in a retry schedule.
const RETRIES_LIMIT: usize = 100;
/// The pauses of a retry schedule when none is given, in seconds: about three days.
const RETRY: [u64; 12] = [
    1, 5, 30, 120, 600, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 86_400,
];
/// Answers after which no attempt is made again, when none are given.
const PERMANENT: [u16; 5] = [400, 410, 413, 415, 422];
/// What is said where something on disk is asked for and there is no place for it.
const NEEDS_DATA_DIR: &str =
    "expected data_dir with it: a directory of this instance's own, such as /var/lib/hookward";

/// What an endpoint does with a disk.
pub(super) struct OnDisk {
    pub(super) mode: Mode,
    pub(super) queueing: Queueing,
    pub(super) quarantine: u64,
}

/// Reads `mode`, `fallback`, `fallback_after`, `quarantine` and the table `queue`.
pub(super) fn on_disk(
    table: &mut Table,
    has_data_dir: bool,
    deadline: Duration,
    max_body: usize,
    enforcement: Option<Enforcement>,
) -> Option<OnDisk> {
    let modes = [("relay", false), ("queue", true)];
    let is_queue = table.choice("mode", "relay", &modes)?;
    let fallbacks = [("none", false), ("queue", true)];
    let falls_back = table.choice("fallback", "none", &fallbacks)?;
    let hour = Duration::from_hours(1);
    let after = table.duration("fallback_after", Duration::from_secs(10), 10 * MS..=hour);
    let quarantine = table.size("quarantine", 0, 0..=1 << 40);
    for (key, is_on) in [
        ("mode", is_queue),
        ("fallback", falls_back),
        ("quarantine", quarantine > 0),
    ] {
        if is_on && !has_data_dir {
            table.fault(key, NEEDS_DATA_DIR);
        }
    }
    if is_queue && falls_back {
        table.fault("fallback", "expected only with mode = \"relay\"");
    }
    if is_queue && matches!(enforcement, Some(Enforcement::From(_))) {
        table.fault(
            "enforce",
            "expected true with mode = \"queue\": only what is verified is kept",
        );
    }
    if falls_back && after >= deadline {
        table.fault(
            "fallback_after",
            "expected less than deadline, by which the sender has to hear something",
        );
    }
    let queueing = queueing(table, if is_queue || falls_back { max_body } else { 0 })?;
    let mode = match (is_queue, falls_back) {
        (true, _) => Mode::Queue,
        (false, true) => Mode::Relay {
            fallback: Some(after),
        },
        (false, false) => Mode::Relay { fallback: None },
    };
    Some(OnDisk {
        mode,
        queueing,
        quarantine: bytes(quarantine),
    })
}

fn bytes(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

fn queueing(table: &mut Table, max_body: usize) -> Option<Queueing> {
    let mut queue = table.table("queue");
    let ordering = ordering(&mut queue);
    let retry = retry(&mut queue);
    let permanent_statuses = permanent_statuses(&mut queue);
    let (short, hour) = (10 * MS, Duration::from_hours(1));
    let attempt_timeout = queue.duration("attempt_timeout", Duration::from_secs(30), short..=hour);
    let pending = queue.size("max_pending_bytes", 1 << 30, 1..=1 << 50);
    let stored = queue.size("max_stored_bytes", 4 << 30, 1..=1 << 50);
    if pending < max_body {
        queue.fault(
            "max_pending_bytes",
            "expected at least max_body: no larger event could ever be accepted",
        );
    }
    if stored < pending {
        queue.fault(
            "max_stored_bytes",
            "expected at least max_pending_bytes, which it includes",
        );
    }
    let keep_delivered = queue.duration("keep_delivered", DAY, Duration::ZERO..=365 * DAY);
    let keep_dead = queue.duration("keep_dead", 30 * DAY, Duration::ZERO..=3650 * DAY);
    table.close("queue", queue);
    Some(Queueing {
        ordering: ordering?,
        retry: retry?,
        permanent_statuses: permanent_statuses?,
        attempt_timeout,
        max_pending_bytes: bytes(pending),
        max_stored_bytes: bytes(stored),
        keep_delivered,
        keep_dead,
    })
}

fn ordering(queue: &mut Table) -> Option<Ordering> {
    let expected = "none, endpoint or a JSON pointer such as /payload/conversationId";
    let parse = |value: &Value| match as_text(value)?.as_str() {
        "none" => Some(Ordering::None),
        "endpoint" => Some(Ordering::Endpoint),
        pointer if pointer.starts_with('/') => Some(Ordering::Pointer(pointer.to_owned())),
        _ => None,
    };
    let is_given = queue.has("ordering");
    let ordering = queue.read("ordering", Kind::Text, expected, parse);
    let ordering = ordering.or((!is_given).then_some(Ordering::None));
    let shown = match &ordering {
        None | Some(Ordering::None) => "none",
        Some(Ordering::Endpoint) => "endpoint",
        Some(Ordering::Pointer(pointer)) => pointer,
    };
    queue.show("ordering", shown);
    ordering
}

fn retry(queue: &mut Table) -> Option<Vec<Duration>> {
    let expected = "a list of at most 100 durations up to 720h, such as [\"1s\", \"5m\"]";
    let is_given = queue.has("retry");
    let read = |value: &Value| {
        let pauses = value.as_array()?.iter().map(as_duration);
        let pauses = pauses.collect::<Option<Vec<_>>>()?;
        let is_bounded = pauses.len() <= RETRIES_LIMIT && pauses.iter().all(|p| *p <= 30 * DAY);
        is_bounded.then_some(pauses)
    };
    let retry = queue.read("retry", Kind::Durations, expected, read);
    let retry = retry.or_else(|| (!is_given).then(|| RETRY.map(Duration::from_secs).to_vec()));
    let shown = retry.iter().flatten().copied().map(write_duration);
    queue.show("retry", shown.collect::<Vec<_>>());
    retry
}

fn permanent_statuses(queue: &mut Table) -> Option<Vec<StatusCode>> {
    let expected = "a list of statuses from 300 to 599";
    let is_given = queue.has("permanent_statuses");
    let read = |value: &Value| {
        let status = |value: &Value| {
            let status = value
                .as_u64()
                .filter(|status| (300..=599).contains(status))?;
            StatusCode::from_u16(u16::try_from(status).ok()?).ok()
        };
        value.as_array()?.iter().map(status).collect()
    };
    let read: Option<Vec<StatusCode>> =
        queue.read("permanent_statuses", Kind::Numbers, expected, read);
    let default = || {
        let known = PERMANENT.map(|status| StatusCode::from_u16(status).ok());
        known.into_iter().flatten().collect()
    };
    let statuses = read.or_else(|| (!is_given).then(default));
    let shown = statuses.iter().flatten().map(StatusCode::as_u16);
    queue.show("permanent_statuses", shown.collect::<Vec<_>>());
    statuses
}
