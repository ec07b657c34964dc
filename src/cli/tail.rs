//! `tail`: requests as they come.

use clap::Args;
use serde_json::Value;

use super::{
    Outcome,
    api::{Api, ApiArgs},
    print,
    queue::show::field,
};

/// What is shown.
#[derive(Debug, Args)]
pub(super) struct TailArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// Of this endpoint
    #[arg(long)]
    endpoint: Option<String>,
    /// With this outcome, such as rejected
    #[arg(long)]
    outcome: Option<String>,
    /// Say of each refused one why, where requests are captured
    #[arg(long)]
    why: bool,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// One JSON object per request
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: TailArgs) -> Outcome {
    let TailArgs {
        api,
        endpoint,
        outcome,
        why,
        count,
        json,
    } = args;
    let api = api.find()?;
    let mut left = count.unwrap_or(u64::MAX);
    api.watch("/requests/stream", |event, data| {
        let is = |key: &str, wanted: &Option<String>| {
            let has = data.get(key).and_then(Value::as_str);
            wanted.as_deref().is_none_or(|wanted| has == Some(wanted))
        };
        match event {
            "missed" => print(&format!("… {} came too fast\n", field(data, "count")))?,
            "request" if is("endpoint", &endpoint) && is("outcome", &outcome) => {
                if json {
                    print(&format!("{data}\n"))?;
                } else {
                    print(&line(data))?;
                }
                if why && !data.get("reason").is_none_or(Value::is_null) {
                    explain(&api, data)?;
                }
                left -= 1;
            }
            _ => {}
        }
        Ok(left > 0)
    })
}

fn line(seen: &Value) -> String {
    let seconds = seen.get("duration_seconds").and_then(Value::as_f64);
    let outcome = match seen.get("outcome") {
        Some(Value::String(outcome)) => outcome.as_str(),
        _ => "refused",
    };
    format!(
        "{}  {:<16} {:<10} {:<21} {} {:>7.1}ms {}{}\n",
        field(seen, "at"),
        field(seen, "endpoint"),
        outcome,
        field(seen, "event"),
        field(seen, "status"),
        seconds.unwrap_or_default() * 1000.0,
        field(seen, "event_id"),
        match seen.get("reason") {
            Some(Value::String(reason)) => format!("  {reason}"),
            _ => String::new(),
        }
    )
}

/// Says why one was refused.
fn explain(api: &Api, seen: &Value) -> Outcome {
    let id = seen
        .get("event_id")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if id.is_empty() {
        return Ok(());
    }
    let full = api.ask("GET", &format!("/requests/{id}"), None)?;
    let mut text = String::new();
    if full.get("why").is_some_and(Value::is_string) {
        text.push_str(&format!("    {}\n", field(&full, "why")));
    }
    let explained = full.get("explanation").and_then(Value::as_array);
    for one in explained.into_iter().flatten() {
        let findings = one.get("findings").and_then(Value::as_array);
        for finding in findings.into_iter().flatten().filter_map(Value::as_str) {
            text.push_str(&format!("    {}: {finding}\n", field(one, "secret")));
        }
    }
    print(&text)
}
