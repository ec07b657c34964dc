//! Which counters there are before anything has been counted.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that is surprised has failed"
)]

mod support;

use support::{Act, BODY, Daemon, Upstream, event};

/// The labels of every series of `hookward_requests_total` and its value.
fn requests(daemon: &Daemon) -> Vec<(String, f64)> {
    let text = daemon.ask("/metrics").text();
    let all = text.lines().filter_map(|line| {
        let (labels, value) = line
            .strip_prefix("hookward_requests_total{")?
            .split_once("} ")?;
        Some((labels.to_owned(), value.parse().unwrap()))
    });
    all.collect()
}

fn labels(code: &str, endpoint: &str, event: &str, outcome: &str) -> String {
    format!("code=\"{code}\",endpoint=\"{endpoint}\",event=\"{event}\",outcome=\"{outcome}\"")
}

#[test]
fn what_can_happen_is_counted_from_zero_and_nothing_else_is() {
    let upstream = Upstream::new(Act::status(200));
    let only = "events = [\"message.created\", \"order.made\"]\n";
    let open = "enforce = false\nenforce_from = \"2100-01-01T00:00:00Z\"\n\
                dedup = { replay = \"reject\" }\n";
    let endpoints = Daemon::endpoint("crm", "/hook", &upstream.url(), "")
        + &Daemon::endpoint("only", "/only", &upstream.url(), only)
        + &Daemon::endpoint("open", "/open", &upstream.url(), open);
    let daemon = Daemon::with("", &endpoints).start();
    let all = requests(&daemon);
    assert!(all.iter().all(|(_, count)| *count == 0.0), "{all:?}");
    let has = |code, endpoint, event, outcome| {
        let wanted = labels(code, endpoint, event, outcome);
        all.iter().any(|(labels, _)| *labels == wanted)
    };
    for (code, endpoint, event, outcome) in [
        ("4xx", "", "none", "rejected"),
        ("5xx", "", "none", "rejected"),
        ("2xx", "crm", "message.created", "forwarded"),
        ("5xx", "crm", "message.created", "forwarded"),
        ("5xx", "crm", "contact.created", "failed"),
        ("5xx", "crm", "none", "failed"),
        ("4xx", "crm", "none", "rejected"),
        ("5xx", "crm", "none", "rejected"),
        ("5xx", "crm", "other", "rejected"),
        ("2xx", "only", "contact.created", "filtered"),
        ("2xx", "only", "other", "filtered"),
        ("2xx", "only", "other", "forwarded"),
        ("2xx", "open", "none", "unverified"),
        ("5xx", "open", "none", "unverified"),
        ("4xx", "open", "message.created", "rejected"),
    ] {
        assert!(
            has(code, endpoint, event, outcome),
            "{code} {endpoint:?} {event} {outcome}"
        );
    }
    for (code, endpoint, event, outcome) in [
        ("2xx", "", "none", "rejected"),
        ("2xx", "crm", "none", "rejected"),
        ("2xx", "crm", "message.created", "failed"),
        ("2xx", "crm", "message.created", "filtered"),
        ("4xx", "crm", "message.created", "rejected"),
        ("2xx", "crm", "none", "unverified"),
        ("2xx", "only", "message.created", "filtered"),
        ("2xx", "only", "contact.created", "forwarded"),
        ("2xx", "only", "none", "filtered"),
        ("2xx", "open", "message.created", "unverified"),
    ] {
        assert!(
            !has(code, endpoint, event, outcome),
            "{code} {endpoint:?} {event} {outcome}"
        );
    }
    let impossible = |(labels, _): &&(String, f64)| labels.contains("code=\"1xx\"");
    assert_eq!(all.iter().find(impossible), None);
    // The first failure is an increase, not a series out of nothing.
    upstream.by_default(Act::Close);
    let reply = daemon.sender().send(&event("k", BODY.as_bytes(), ""));
    assert_eq!(reply.status, 502);
    let after = requests(&daemon);
    assert_eq!(after.len(), all.len());
    let failed = labels("5xx", "crm", "message.created", "failed");
    assert!(after.contains(&(failed, 1.0)), "{after:?}");
}

#[test]
fn a_reason_is_counted_of_an_endpoint_only_where_one_can_be_known() {
    let upstream = Upstream::new(Act::status(200));
    let daemon = Daemon::relay(&upstream.url(), "").start();
    let text = daemon.ask("/metrics").text();
    let has = |endpoint: &str, reason: &str| {
        let labels = format!("{{endpoint=\"{endpoint}\",reason=\"{reason}\"}} 0");
        text.contains(&format!("hookward_rejections_total{labels}"))
    };
    for reason in ["headers_too_large", "target_too_long", "unknown_path"] {
        assert!(has("", reason) && !has("crm", reason), "{reason}");
    }
    for reason in ["malformed", "overloaded", "timeout"] {
        assert!(has("", reason) && has("crm", reason), "{reason}");
    }
    for reason in [
        "body_too_large",
        "signature_mismatch",
        "queue_full",
        "upstream_timeout",
    ] {
        assert!(!has("", reason) && has("crm", reason), "{reason}");
    }
}
