//! `endpoints`: what there is, made, changed, switched, tried, removed; through the API.

use std::{io::Write as _, path::PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    Failure, Outcome,
    api::{Api, ApiArgs},
    print,
    queue::show::{field, fields},
    sample, send,
};

/// What is done.
#[derive(Debug, Args)]
pub(super) struct EndpointsArgs {
    #[command(subcommand)]
    command: EndpointsCommand,
    #[command(flatten)]
    api: ApiArgs,
    /// Print JSON, one object per line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum EndpointsCommand {
    /// List endpoints
    List,
    /// Make an endpoint; without a secret one is made, and shown this once
    Create {
        /// Its name
        name: String,
        #[command(flatten)]
        table: TableArgs,
        /// Deliver to it what waits on disk of an earlier endpoint of this name
        #[arg(long)]
        take_over: bool,
    },
    /// Change an endpoint made at run time, or switch any on or off
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        table: TableArgs,
        /// Switch it on
        #[arg(long, conflicts_with = "off")]
        on: bool,
        /// Switch it off: 503 for everything
        #[arg(long)]
        off: bool,
    },
    /// Remove an endpoint made at run time
    Remove {
        /// Its name
        name: String,
        /// Also where another tool made the sender's webhook
        #[arg(long)]
        yes: bool,
    },
    /// Send signed samples through the gate to the application
    Test {
        /// The endpoint's name
        name: String,
        /// The event types [default: all five]
        #[arg(value_name = "EVENT")]
        events: Vec<String>,
    },
    /// Write those made at run time as tables for the configuration, without secrets
    Export,
}

/// An endpoint's table, by its keys.
#[derive(Debug, Args)]
struct TableArgs {
    /// Where the sender posts to
    #[arg(long)]
    path: Option<String>,
    /// The application behind
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// relay or queue
    #[arg(long)]
    mode: Option<String>,
    /// How the sender signs, such as tinytalk or github
    #[arg(long)]
    scheme: Option<String>,
    /// An event type to be delivered, or *; may be repeated
    #[arg(long = "event", value_name = "TYPE")]
    events: Vec<String>,
    /// Free text
    #[arg(long)]
    description: Option<String>,
    /// Free text: what made the sender's webhook
    #[arg(long)]
    source: Option<String>,
    /// The file that holds the sender's secret
    #[arg(long, value_name = "FILE", conflicts_with = "secret_env")]
    secret_file: Option<PathBuf>,
    /// The environment variable that holds the sender's secret
    #[arg(long, value_name = "VARIABLE")]
    secret_env: Option<String>,
    /// What to call that secret
    #[arg(long, value_name = "NAME", default_value = "main")]
    secret_name: String,
    /// A file with more of the table, in TOML
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
}

fn usage(line: impl Into<String>) -> Failure {
    Failure::Usage(vec![line.into()])
}

impl TableArgs {
    fn says_nothing(&self) -> bool {
        let texts = [
            &self.path,
            &self.upstream,
            &self.mode,
            &self.scheme,
            &self.description,
            &self.source,
            &self.secret_env,
        ];
        texts.iter().all(|text| text.is_none())
            && self.events.is_empty()
            && self.secret_file.is_none()
            && self.settings.is_none()
    }

    /// Puts what was said over a table.
    fn over(self, mut table: Map<String, Value>) -> Result<Map<String, Value>, Failure> {
        if let Some(path) = &self.settings {
            let place = path.display();
            let text = std::fs::read_to_string(path)
                .map_err(|error| usage(format!("--settings: {place}: {}", error.kind())))?;
            let more: toml::Table = text
                .parse()
                .map_err(|_| usage(format!("--settings: {place}: not valid TOML")))?;
            let more = serde_json::to_value(more).unwrap_or_default();
            table.extend(more.as_object().cloned().unwrap_or_default());
        }
        let secret = self.secret()?;
        let texts = [
            ("path", self.path),
            ("upstream", self.upstream),
            ("mode", self.mode),
            ("scheme", self.scheme),
            ("description", self.description),
            ("source", self.source),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                table.insert(key.to_owned(), text.into());
            }
        }
        if !self.events.is_empty() {
            table.insert("events".to_owned(), self.events.into());
        }
        if let Some(secret) = secret {
            let new = json!({"name": self.secret_name, "value": secret});
            let before = table.get("secrets").and_then(Value::as_array).cloned();
            let mut secrets = before.unwrap_or_default();
            let same = |s: &Value| s.get("name").and_then(Value::as_str) == Some(&self.secret_name);
            secrets.retain(|secret| !same(secret));
            secrets.push(new);
            table.insert("secrets".to_owned(), secrets.into());
        }
        Ok(table)
    }

    fn secret(&self) -> Result<Option<String>, Failure> {
        if let Some(path) = &self.secret_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| usage(format!("--secret-file: {}", error.kind())))?;
            let cut = text.strip_suffix('\n').unwrap_or(&text);
            return Ok(Some(cut.strip_suffix('\r').unwrap_or(cut).to_owned()));
        }
        let name = self.secret_env.as_deref();
        let text = name.map(|name| send::variable("--secret-env", name));
        Ok(text.transpose()?.map(|text| text.to_string()))
    }
}

pub(super) fn run(args: EndpointsArgs) -> Outcome {
    let json = args.json;
    let api = args.api.find()?;
    match args.command {
        EndpointsCommand::List => list(&api, json),
        EndpointsCommand::Create {
            name,
            table,
            take_over,
        } => {
            let settings = table.over(Map::new())?;
            let body = json!({"name": name, "settings": settings, "takes_over": take_over});
            made(&api.ask("POST", "/endpoints", Some(&body))?, json)
        }
        EndpointsCommand::Set {
            name,
            table,
            on,
            off,
        } => set(&api, &name, table, (on || off).then_some(on), json),
        EndpointsCommand::Remove { name, yes } => remove(&api, &name, yes),
        EndpointsCommand::Test { name, events } => test(&api, &name, &events, json),
        EndpointsCommand::Export => {
            let text = api.ask("GET", "/export", None)?;
            print(text.as_str().unwrap_or_default())
        }
    }
}

fn list(api: &Api, json: bool) -> Outcome {
    let items = api.all("/endpoints")?;
    if json {
        return items
            .iter()
            .try_for_each(|item| print(&format!("{item}\n")));
    }
    let mut text = String::new();
    let keys = [
        "name",
        "active",
        "origin",
        "path",
        "mode",
        "last_event_at",
        "upstream",
    ];
    for item in &items {
        let [name, active, origin, path, mode, last, upstream] = keys.map(|key| field(item, key));
        let state = if active == "true" { "on" } else { "off" };
        text += &format!(
            "{name:<16} {state:<3} {origin:<13} {path:<28} {mode:<5} {last:<24} {upstream}\n"
        );
    }
    print(&text)
}

fn set(api: &Api, name: &str, table: TableArgs, active: Option<bool>, json: bool) -> Outcome {
    if active.is_none() && table.says_nothing() {
        return Err(usage("set what? See hookward endpoints set --help"));
    }
    let path = format!("/endpoints/{name}");
    if !table.says_nothing() {
        let before = api.ask("GET", &path, None)?;
        let given = before.get("given").and_then(Value::as_object).cloned();
        let settings = table.over(given.unwrap_or_default())?;
        let revision = before.get("revision").and_then(Value::as_str);
        let body = json!({"settings": settings});
        made(&api.put(&path, revision, &body)?, json)?;
    }
    if let Some(active) = active {
        let body = json!({"active": active});
        let said = api.ask("PUT", &format!("{path}/active"), Some(&body))?;
        fields(
            &json!({"endpoint": name, "active": said.get("active")}),
            json,
        )?;
    }
    Ok(())
}

/// Shows an endpoint that was made or changed, and the secrets that were made.
fn made(said: &Value, json: bool) -> Outcome {
    if json {
        return print(&format!("{said}\n"));
    }
    let endpoint = said.get("endpoint").cloned().unwrap_or_default();
    let mut text = format!(
        "{} at {}\n",
        field(&endpoint, "name"),
        field(&endpoint, "path")
    );
    let secrets = said.get("generated_secrets").and_then(Value::as_array);
    for secret in secrets.into_iter().flatten() {
        let (name, value) = (field(secret, "name"), field(secret, "value"));
        text += &format!("secret {name}, shown this once; give it to the sender: {value}\n");
    }
    print(&text)
}

fn remove(api: &Api, name: &str, yes: bool) -> Outcome {
    let path = format!("/endpoints/{name}");
    let before = api.ask("GET", &path, None)?;
    let source = field(&before, "source");
    let is_own = matches!(source.as_str(), "" | "-" | "dashboard" | "manual");
    if !is_own && !yes {
        return Err(Failure::Failed(format!(
            "{name}: its webhook was made by {source}, and removing the endpoint may break that; say --yes"
        )));
    }
    api.ask("DELETE", &path, None)?;
    let pending = before
        .get("pending")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    if pending > 0 {
        // Advice: with stderr closed nobody wants it.
        let _ = writeln!(
            std::io::stderr(),
            "hookward: {pending} events of it stay on disk, undelivered; see hookward queue list --endpoint {name}"
        );
    }
    Ok(())
}

fn test(api: &Api, name: &str, events: &[String], json: bool) -> Outcome {
    let all = sample::EVENTS.map(|(event, _)| event.to_owned());
    let events = if events.is_empty() { &all[..] } else { events };
    let mut is_fine = true;
    for event in events {
        let body = json!({"event": event});
        let said = api.ask("POST", &format!("/endpoints/{name}/test"), Some(&body))?;
        let status = said
            .get("status")
            .and_then(Value::as_u64)
            .unwrap_or_default();
        is_fine &= (200..300).contains(&status);
        if json {
            print(&format!("{said}\n"))?;
            continue;
        }
        let keys = ["outcome", "reason", "event_id"];
        let [outcome, reason, id] = keys.map(|key| field(&said, key));
        print(&format!(
            "{event:<21} {status} {outcome:<10} {reason:<20} {id}\n"
        ))?;
    }
    if is_fine {
        Ok(())
    } else {
        Err(Failure::Failed("not every sample was taken".to_owned()))
    }
}
