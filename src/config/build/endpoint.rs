//! One endpoint's table.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::StatusCode;

use super::{DAY, MS, as_moment, queueing::on_disk, read_dedup, scheme::scheme};
use crate::{
    config::table::{Kind, Table},
    dedup,
    endpoint::{
        Allow, Dedup, Endpoint, EndpointName, Enforcement, EventFilter, MissingKey, PathPattern,
    },
    limits::Limits,
};

/// After this long a sender that promises 30 seconds has given up.
const SENDER_PATIENCE: Duration = Duration::from_secs(30);

/// What reading endpoints needs to know, and what it gathers besides.
pub(super) struct Reader<'e> {
    pub(super) env: &'e [(String, String)],
    pub(super) now: SystemTime,
    pub(super) limits: Limits,
    pub(super) dedup: Dedup,
    pub(super) has_data_dir: bool,
    /// When the endpoint in hand was made, if that was at run time.
    pub(super) made: Option<SystemTime>,
    /// Whether key bytes outlive their key schedules: where an API signs and explains.
    pub(super) keeps_keys: bool,
    /// Where the upstreams of such endpoints may be.
    pub(super) allow: Arc<Allow>,
    pub(super) warnings: Vec<String>,
    pub(super) watched: BTreeSet<PathBuf>,
}

impl<'e> Reader<'e> {
    /// Reads with the built-in defaults, until it is told others.
    pub(super) fn new(env: &'e [(String, String)], now: SystemTime, has_data_dir: bool) -> Self {
        let policy = dedup::Policy {
            window: DAY,
            key_reuse: dedup::KeyReuse::Duplicate,
            replay: dedup::Replay::Flag,
        };
        Self {
            env,
            now,
            limits: Limits::default(),
            dedup: Dedup {
                missing_key: MissingKey::Forward,
                policy,
            },
            has_data_dir,
            made: None,
            keeps_keys: false,
            allow: Arc::default(),
            warnings: Vec::new(),
            watched: BTreeSet::new(),
        }
    }
}

impl Reader<'_> {
    /// Reads one endpoint; `None` when something in it is wrong (and noted).
    pub(super) fn endpoint(&mut self, name: &str, table: &mut Table) -> Option<Endpoint> {
        let parsed_name = EndpointName::new(name);
        if let Err(bad) = &parsed_name {
            table.fault("", format!("expected a name of this form: {bad}"));
        }
        let path = table.text("path");
        let path = match path.as_deref().map(PathPattern::parse) {
            None => {
                table.fault("path", "expected a path such as /webhooks/tinytalk");
                None
            }
            Some(Err(expected)) => {
                table.fault("path", format!("expected {expected}"));
                None
            }
            Some(Ok(path)) => Some(path),
        };
        let scheme = scheme(table);
        let secrets = self.secrets(table, scheme.as_ref());
        let upstream = self.upstream(table);
        let events = events(table);
        let active = table.flag("active", true);
        let description = table.text_or("description", "");
        let source = table.text_or("source", "");
        let hour = Duration::from_hours(1);
        let deadline = table.duration("deadline", Duration::from_secs(25), 10 * MS..=hour);
        if deadline > SENDER_PATIENCE {
            let place = table.path_of("deadline");
            self.warnings
                .push(format!("{place}: senders give up after 30s"));
        }
        let reject_status = reject_status(table);
        let enforcement = enforcement(table);
        let mut own = table.table("dedup");
        let dedup = read_dedup(&mut own, self.dedup);
        table.close("dedup", own);
        let max_body = table.size(
            "max_body",
            self.limits.max_body,
            1..=self.limits.max_buffered,
        );
        let on_disk = on_disk(table, self.has_data_dir, deadline, max_body, enforcement);
        let on_disk = on_disk?;
        Some(Endpoint {
            name: parsed_name.ok()?,
            path: path?,
            secrets: secrets?,
            scheme: scheme?,
            upstream: upstream?,
            events,
            active,
            made_at: self.made,
            description,
            source,
            deadline,
            reject_status: reject_status?,
            enforcement: enforcement?,
            max_body,
            dedup: dedup?,
            mode: on_disk.mode,
            queueing: on_disk.queueing,
            quarantine: on_disk.quarantine,
        })
    }
}

fn events(table: &mut Table) -> EventFilter {
    let is_empty = table.is_empty_list("events");
    let expected = "an event type, or *";
    let types = table.list("events", &["*"], expected, |text| {
        (!text.is_empty()).then(|| text.to_owned())
    });
    if is_empty {
        table.fault(
            "events",
            "expected at least one event type, or [\"*\"] for all",
        );
    }
    if types.iter().any(|t| t == "*") {
        EventFilter::All
    } else {
        EventFilter::Only(types)
    }
}

fn reject_status(table: &mut Table) -> Option<StatusCode> {
    let status = table.number("reject_status", 401, 400..=499);
    if matches!(status, 408 | 410 | 429) {
        table.fault(
            "reject_status",
            "expected 400 to 499 without 408, 410 and 429, which mean something else to senders",
        );
        return None;
    }
    u16::try_from(status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
}

fn enforcement(table: &mut Table) -> Option<Enforcement> {
    let enforce = table.flag("enforce", true);
    let given = table.has("enforce_from");
    let expected = "a moment such as 2026-12-01T00:00:00Z";
    let from = table.read("enforce_from", Kind::Text, expected, as_moment);
    match (enforce, from) {
        (true, None) if !given => Some(Enforcement::Always),
        (false, Some(from)) => {
            table.show(
                "enforce_from",
                humantime::format_rfc3339_seconds(from).to_string(),
            );
            Some(Enforcement::From(from))
        }
        (false, None) if !given => {
            table.fault(
                "enforce_from",
                "expected with enforce = false: the moment from which it is true again",
            );
            None
        }
        (true, Some(_)) => {
            table.fault("enforce_from", "expected only with enforce = false");
            None
        }
        (_, None) => None,
    }
}
