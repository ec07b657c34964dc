//! What the queue's commands print, for people or as JSON.

use std::io::{self, IsTerminal as _, Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::print_json;
use crate::cli::{Failure, Outcome, print};

/// Whether a terminal would obey a character instead of showing it: control characters, and those
/// that turn or hide the text around them (Unicode's Bidi_Control, line and paragraph separators).
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// A text in which what a terminal would obey is written out, such as `\u{1b}`.
fn escaped(text: &str, is_let_through: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) && !is_let_through(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A value as one word or line; what a sender wrote moves no cursor.
fn text(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    escaped(&text, |_| false)
}

pub(in crate::cli) fn field(of: &Value, key: &str) -> String {
    of.get(key).map_or_else(|| "-".to_owned(), text)
}

/// A part of a listing, one event a line.
pub(super) fn events(events: &[Value], is_first: bool, json: bool) -> Outcome {
    if json {
        return events.iter().try_for_each(print_json);
    }
    let mut lines = String::new();
    if is_first && !events.is_empty() {
        lines += &line([
            "EVENT ID",
            "ENDPOINT",
            "TYPE",
            "STATE",
            "TRIES",
            "SINCE",
            "LAST ERROR",
        ]);
    }
    for event in events {
        let keys = [
            "event_id",
            "endpoint",
            "event_type",
            "state",
            "attempts",
            "appended_at",
            "last_error",
        ];
        lines += &line(keys.map(|key| field(event, key)));
    }
    print(&lines)
}

fn line<T: AsRef<str>>([id, endpoint, kind, state, tries, at, error]: [T; 7]) -> String {
    format!(
        "{:<36}  {:<12}  {:<22}  {:<9}  {:>5}  {:<24}  {}\n",
        id.as_ref(),
        endpoint.as_ref(),
        kind.as_ref(),
        state.as_ref(),
        tries.as_ref(),
        at.as_ref(),
        error.as_ref()
    )
}

/// One event; its headers and its body where they are wanted.
pub(super) fn event(event: &Value, (headers, body): (bool, bool), json: bool) -> Outcome {
    let request = event.get("request").unwrap_or(&Value::Null);
    if json {
        let mut shown = event.clone();
        if let Some(request) = shown.get_mut("request").and_then(Value::as_object_mut) {
            request.retain(|key, _| match key.as_str() {
                "body" | "body_base64" => body,
                "headers" => headers,
                _ => true,
            });
        }
        return print_json(&shown);
    }
    let mut lines = String::new();
    for (key, value) in event.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "request" | "failed_attempts") {
            lines += &format!("{key:<16} {}\n", text(value));
        }
    }
    for failed in event
        .get("failed_attempts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let (number, at) = (field(failed, "attempt"), field(failed, "at"));
        lines += &format!(
            "{:<16} {at} {}\n",
            format!("attempt {number}"),
            field(failed, "error")
        );
    }
    if headers {
        lines += &format!("peer             {}\n", field(request, "peer"));
        lines += &format!("\nPOST {}\n", field(request, "target"));
        for pair in request
            .get("headers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let part = |number| pair.get(number).map_or_else(String::new, text);
            lines += &format!("{}: {}\n", part(0), part(1));
        }
    }
    if let Some(fault) = request.get("fault") {
        lines += &format!("fault            {}\n", text(fault));
    }
    if body && request.get("fault").is_none() {
        lines.push('\n');
        print(&lines)?;
        return write_body(request);
    }
    print(&lines)
}

/// The body: byte for byte, except at a terminal, which gets nothing to obey but new lines and tabs.
fn write_body(request: &Value) -> Outcome {
    let bytes = match request.get("body").and_then(Value::as_str) {
        Some(text) => text.as_bytes().to_vec(),
        None => {
            let encoded = request.get("body_base64").and_then(Value::as_str);
            let decoded = STANDARD.decode(encoded.unwrap_or_default());
            decoded.map_err(|error| Failure::Failed(error.to_string()))?
        }
    };
    let bytes = if io::stdout().is_terminal() {
        let text = String::from_utf8_lossy(&bytes);
        escaped(&text, |c| matches!(c, '\n' | '\t')).into_bytes()
    } else {
        bytes
    };
    match io::stdout()
        .write_all(&bytes)
        .and_then(|()| io::stdout().flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// What each endpoint holds, one a line.
pub(super) fn stats(stats: &Value, json: bool) -> Outcome {
    let stats = stats.as_array().map(Vec::as_slice).unwrap_or_default();
    if json {
        return stats.iter().try_for_each(print_json);
    }
    let mut lines = String::new();
    for endpoint in stats {
        lines += &format!(
            "{}{}: {} pending, {} leased, {} dead, {} delivered; {} bytes on disk; \
             quarantine {} in {} bytes; oldest {} s\n",
            field(endpoint, "endpoint"),
            if endpoint.get("paused") == Some(&Value::Bool(true)) {
                " (paused)"
            } else {
                ""
            },
            field(endpoint, "pending"),
            field(endpoint, "leased"),
            field(endpoint, "dead"),
            field(endpoint, "delivered"),
            field(endpoint, "stored_bytes"),
            field(endpoint, "quarantined"),
            field(endpoint, "quarantined_bytes"),
            field(endpoint, "oldest_age_seconds"),
        );
    }
    print(&lines)
}

/// An answer of a few fields, on one line.
pub(in crate::cli) fn fields(said: &Value, json: bool) -> Outcome {
    if json {
        return print_json(said);
    }
    let fields: Vec<String> = said
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key} {}", text(value)))
        .collect();
    print(&format!("{}\n", fields.join(", ")))
}
