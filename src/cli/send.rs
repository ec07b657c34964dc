//! `send`: the sender's Test button.

use std::{path::PathBuf, time::SystemTime};

use clap::Args;
use http::Uri;
use serde_json::json;
use zeroize::Zeroizing;

use super::{Failure, Outcome, hidden, print, sample};
use crate::{
    secret::Secret,
    signature::{KeySource, Scheme, ToSign},
};

/// What is sent, and where.
#[derive(Debug, Args)]
pub(super) struct SendArgs {
    /// The event type: contact.created, message.created, contact.lead.updated,
    /// conversation.created, takeover.request, or any other with --data
    event: String,
    /// Where to
    #[arg(long, value_name = "URL")]
    to: Uri,
    /// The environment variable that holds the secret
    #[arg(long, value_name = "VARIABLE")]
    secret_env: String,
    /// How to sign
    #[arg(long, default_value = "tinytalk")]
    scheme: String,
    /// The body, byte for byte, instead of the sample
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The idempotency key [default: a fresh one]
    #[arg(long)]
    key: Option<String>,
    /// How often; the key stays the same
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    /// A fresh key for every repetition
    #[arg(long, conflicts_with = "key")]
    fresh_keys: bool,
    /// Change the body after signing: a gate must refuse it
    #[arg(long)]
    tamper: bool,
    /// One JSON object per answer
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: SendArgs) -> Outcome {
    let usage = |line: String| Failure::Usage(vec![line]);
    let scheme = Scheme::preset(&args.scheme).ok_or_else(|| {
        usage(format!(
            "--scheme: expected one of {}",
            Scheme::PRESETS.join(", ")
        ))
    })?;
    if !matches!(args.to.scheme_str(), Some("http" | "https")) || args.to.authority().is_none() {
        return Err(usage(
            "--to: expected a URL such as http://127.0.0.1:8080/".to_owned(),
        ));
    }
    let secret = secret(&scheme, &args.secret_env)?;
    let body = match &args.data {
        Some(path) => std::fs::read(path)
            .map_err(|error| usage(format!("--data: {}: {}", path.display(), error.kind())))?,
        None => sample::body_of(&args.event)
            .ok_or_else(|| {
                let known = sample::EVENTS.map(|(name, _)| name).join(", ");
                usage(format!(
                    "EVENT: expected one of {known}, or a body with --data FILE"
                ))
            })?
            .as_bytes()
            .to_vec(),
    };
    let is_value = |key: &String| http::HeaderValue::from_str(key).is_ok() && !key.is_empty();
    if !args.key.as_ref().is_none_or(is_value) {
        return Err(usage(
            "--key: expected visible characters, as in a header's value".to_owned(),
        ));
    }
    let fresh = || uuid::Uuid::new_v4().to_string();
    let mut key = args.key.clone().unwrap_or_else(fresh);
    let mut last = 0;
    for number in 0..args.repeat {
        if args.fresh_keys && number > 0 {
            key = fresh();
        }
        let reply = send_one(&args, &scheme, &secret, &key, &body)?;
        last = reply.status;
        print(&describe(&args, &key, &reply))?;
    }
    match last {
        200..=299 => Ok(()),
        status => Err(Failure::Failed(format!("the last answer was {status}"))),
    }
}

/// What a variable holds that an option names.
pub(super) fn variable(option: &str, name: &str) -> Result<Zeroizing<String>, Failure> {
    let unset = || {
        Failure::Usage(vec![format!(
            "{option}: the variable named there is not set"
        )])
    };
    hidden(name).ok_or_else(unset)
}

/// The secret in a variable, as the scheme writes secrets.
pub(super) fn secret(scheme: &Scheme, variable: &str) -> Result<Secret, Failure> {
    let usage = |what: &str| Failure::Usage(vec![format!("--secret-env: {what}")]);
    let text = self::variable("--secret-env", variable)?;
    let bytes = scheme
        .decode_secret(text.as_bytes())
        .map_err(|expected| usage(&format!("the secret is not {expected}")))?;
    Secret::new("default".to_owned(), bytes, None)
        .map_err(|_| usage("the variable named there is empty"))
}

fn send_one(
    args: &SendArgs,
    scheme: &Scheme,
    secret: &Secret,
    key: &str,
    body: &[u8],
) -> Result<sample::Reply, Failure> {
    let mut headers = scheme.sign(
        secret,
        &ToSign {
            id: key,
            timestamp: SystemTime::now(),
            method: "POST",
            url: args
                .to
                .path_and_query()
                .map_or("/", |target| target.as_str()),
            body,
            event_type: Some(&args.event),
        },
    );
    if !matches!(scheme.key_source(), KeySource::Header(_)) {
        let value = http::HeaderValue::from_str(key);
        let value =
            value.map_err(|_| Failure::Usage(vec!["--key: not a header's value".into()]))?;
        headers.push((http::HeaderName::from_static("idempotency-key"), value));
    }
    let mut sent = body.to_vec();
    if args.tamper {
        match sent.last_mut() {
            Some(last) => *last ^= 1,
            None => sent.push(b' '),
        }
    }
    sample::post(&args.to, &headers, &sent).map_err(|error| {
        let host = args
            .to
            .authority()
            .map_or("", |authority| authority.as_str());
        Failure::Failed(format!("{host}: {error}; is it running there?"))
    })
}

fn describe(args: &SendArgs, key: &str, reply: &sample::Reply) -> String {
    let outcome = reply.header("hookward-outcome");
    let event_id = reply.header("hookward-event-id");
    let body = String::from_utf8_lossy(&reply.body);
    if args.json {
        let line = json!({
            "event": args.event, "key": key, "status": reply.status,
            "outcome": outcome, "event_id": event_id, "body": body
        });
        return format!("{line}\n");
    }
    let excerpt: String = body.chars().filter(|c| !c.is_control()).take(200).collect();
    format!(
        "{} {} {} key={key} event_id={} {excerpt}\n",
        args.event,
        reply.status,
        outcome.unwrap_or("-"),
        event_id.unwrap_or("-")
    )
}
