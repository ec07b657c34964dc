//! `queue`: what is on disk, shown and changed, on a running instance or a stopped one.

pub(super) mod show;

use std::{
    io::Write as _,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;
use tokio::runtime::{Builder, LocalOptions};

use super::{Failure, Outcome, environment, print};
use crate::{
    config::{self, Sources},
    control::{Control, Filter, Order, PAGE_LIMIT, Refusal, Which, socket::Running},
    dedup::{HashKeys, Table},
    endpoint::Endpoints,
    queue::{Observer, Options, Queue},
};

/// What is done.
#[derive(Debug, Args)]
pub(super) struct QueueArgs {
    #[command(subcommand)]
    command: QueueCommand,
    /// The configuration that names the data directory
    #[arg(long, value_name = "FILE", env = "HOOKWARD_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// The data directory [default: the configuration's]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Print JSON, one object per line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// List events, in the order they came
    List {
        #[command(flatten)]
        filter: FilterArgs,
        /// At most so many
        #[arg(long, default_value = "100")]
        limit: NonZeroUsize,
    },
    /// Show one event; its headers and body only when asked for
    Show {
        /// As in Hookward-Event-Id
        event_id: String,
        /// Its target and headers
        #[arg(long)]
        headers: bool,
        /// Its body, byte for byte
        #[arg(long)]
        body: bool,
    },
    /// Deliver events again: those named, or those that match (dead ones, unless --state says else)
    Replay {
        #[command(flatten)]
        which: WhichArgs,
    },
    /// Remove events and free their keys: those named, or those that match (dead ones, unless
    /// --state says else)
    Drop {
        #[command(flatten)]
        which: WhichArgs,
        /// Leave the keys taken: the same event stays a duplicate
        #[arg(long)]
        keep_key: bool,
    },
    /// What each endpoint holds
    Stats,
    /// Let quarantined requests through that match the secrets of today
    Reverify {
        /// Whose
        #[arg(long)]
        endpoint: String,
    },
    /// Accept and hold an endpoint's events, also over restarts
    Pause {
        /// Whose
        endpoint: String,
    },
    /// Go on delivering an endpoint's events
    Resume {
        /// Whose
        endpoint: String,
    },
    /// Write a consistent copy of everything to a file, also while running
    Backup {
        /// The file; it must not exist
        to: PathBuf,
    },
}

/// Which events.
#[derive(Debug, Args)]
struct FilterArgs {
    /// Of this endpoint
    #[arg(long)]
    endpoint: Option<String>,
    /// Of this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// In this state
    #[arg(long)]
    state: Option<StateArg>,
    /// Taken in at least so long ago, such as 2h
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Taken in at most so long ago
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Whose last error holds this text
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateArg {
    Pending,
    Leased,
    Delivered,
    Dead,
}

impl StateArg {
    fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Leased => "leased",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

/// Which events an order is for.
#[derive(Debug, Args)]
struct WhichArgs {
    /// These, as in Hookward-Event-Id
    #[arg(value_name = "EVENT_ID", conflicts_with_all = ["all", "endpoint", "event_type", "state", "older_than", "newer_than", "error"])]
    event_ids: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

impl FilterArgs {
    fn filter(self) -> Filter {
        Filter {
            endpoint: self.endpoint,
            event_type: self.event_type,
            state: self.state.map(|state| state.label().to_owned()),
            older_than: self.older_than,
            newer_than: self.newer_than,
            error: self.error,
        }
    }

    fn says_nothing(&self) -> bool {
        self.endpoint.is_none()
            && self.event_type.is_none()
            && self.state.is_none()
            && self.older_than.is_none()
            && self.newer_than.is_none()
            && self.error.is_none()
    }
}

impl WhichArgs {
    /// Named events in any state; of those that match, the dead ones unless a state is named: a
    /// slip must not deliver a day's events again.
    fn which(self) -> Result<Which, Failure> {
        if !self.event_ids.is_empty() {
            return Ok(Which::Ids(self.event_ids));
        }
        if !self.all && self.filter.says_nothing() {
            return Err(usage(
                "which events? Name their ids, or filter them (--endpoint, --type, --state, \
                 --older-than, --newer-than, --error), or say --all",
            ));
        }
        let mut filter = self.filter.filter();
        filter.state = filter.state.or_else(|| Some("dead".to_owned()));
        Ok(Which::Filter(filter))
    }
}

fn usage(line: &str) -> Failure {
    Failure::Usage(vec![line.to_owned()])
}

pub(super) fn run(args: QueueArgs) -> Outcome {
    let sources = Sources {
        file: args.config,
        env: environment(),
        ..Sources::default()
    };
    let dir = match args.data_dir {
        Some(dir) => dir,
        None => config::data_dir(&sources)?.ok_or_else(|| {
            usage("no data_dir: name the configuration with --config FILE, or --data-dir DIR")
        })?,
    };
    let place = Place { dir, sources };
    let json = args.json;
    match args.command {
        QueueCommand::List { filter, limit } => list(&place, &filter.filter(), limit.get(), json),
        QueueCommand::Show {
            event_id,
            headers,
            body,
        } => {
            let with_record = headers || body;
            let event = place.ask(&Order::Show {
                event_id,
                with_record,
            })?;
            show::event(&event, (headers, body), json)
        }
        QueueCommand::Replay { which } => {
            let which = which.which()?;
            changed(
                &place,
                which,
                |which| Order::Replay { which },
                "replayed",
                json,
            )
        }
        QueueCommand::Drop { which, keep_key } => {
            let which = which.which()?;
            let order = |which| Order::Drop { which, keep_key };
            changed(&place, which, order, "dropped", json)
        }
        QueueCommand::Stats => show::stats(&place.ask(&Order::Stats)?, json),
        QueueCommand::Reverify { endpoint } => {
            let said = place.ask(&Order::Reverify { endpoint })?;
            show::fields(&said, json)
        }
        QueueCommand::Pause { endpoint } => pause(&place, endpoint, true, json),
        QueueCommand::Resume { endpoint } => pause(&place, endpoint, false, json),
        QueueCommand::Backup { to } => {
            let to = std::path::absolute(to)?;
            show::fields(&place.ask(&Order::Backup { to })?, json)
        }
    }
}

fn pause(place: &Place, endpoint: String, paused: bool, json: bool) -> Outcome {
    let said = place.ask(&Order::Pause { endpoint, paused })?;
    show::fields(&said, json)
}

fn list(place: &Place, filter: &Filter, limit: usize, json: bool) -> Outcome {
    let mut from = 0;
    let mut left = limit;
    let mut is_first = true;
    while left > 0 {
        let page = place.ask(&Order::List {
            filter: filter.clone(),
            from,
            limit: left.min(PAGE_LIMIT),
        })?;
        let events = page.get("events").and_then(Value::as_array);
        let events = events.map(Vec::as_slice).unwrap_or_default();
        show::events(events, is_first, json)?;
        is_first = false;
        left = left.saturating_sub(events.len());
        match page.get("next").and_then(Value::as_i64) {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
    // Advice: with stderr closed nobody wants it.
    let _ = writeln!(
        std::io::stderr(),
        "hookward: there may be more; see them with --limit"
    );
    Ok(())
}

/// Changes events and says how many; none of those that were named is a failure.
fn changed(
    place: &Place,
    which: Which,
    order: impl FnOnce(Which) -> Order,
    word: &str,
    json: bool,
) -> Outcome {
    let are_named = matches!(which, Which::Ids(_));
    let said = place.ask(&order(which))?;
    show::fields(&said, json)?;
    match said.get(word).and_then(Value::as_u64) {
        Some(0) if are_named => Err(Failure::Failed(format!(
            "nothing {word}: no such event, or an attempt at it is under way; see hookward queue show"
        ))),
        _ => Ok(()),
    }
}

/// Where the events are.
struct Place {
    dir: PathBuf,
    sources: Sources,
}

impl Place {
    /// Has an order carried out: by the instance that runs there, or else here.
    fn ask(&self, order: &Order) -> Result<Value, Failure> {
        let running = Running::find(&self.dir).map_err(|error| {
            let dir = self.dir.display();
            Failure::Failed(format!(
                "{dir}: the running instance cannot be asked: {error}; be its user"
            ))
        })?;
        match running {
            Some(running) => running.ask(order).map_err(Failure::from),
            None => self.carry_out(order.clone()),
        }
    }

    fn carry_out(&self, order: Order) -> Result<Value, Failure> {
        let endpoints = match order {
            Order::Explain { .. } | Order::Reverify { .. } => {
                config::load(&self.sources, SystemTime::now())?.endpoints
            }
            // The store may know the endpoint where the configuration cannot be read.
            Order::Pause { .. } => config::load(&self.sources, SystemTime::now())
                .map(|config| config.endpoints)
                .unwrap_or_default(),
            Order::Backup { .. }
            | Order::Drop { .. }
            | Order::List { .. }
            | Order::Quarantined { .. }
            | Order::Replay { .. }
            | Order::Show { .. }
            | Order::Stats => Endpoints::default(),
        };
        let queue = open(&self.dir)?;
        let keys = HashKeys::new(queue.hash_secret());
        let table = Table::new(NonZeroUsize::MIN, 1, keys, Instant::now());
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())?;
        runtime.block_on(async {
            let control = Control::new(queue.clone(), table, None);
            let said = control.carry_out(order, &endpoints).await;
            queue.close().await;
            said.map_err(Failure::from)
        })
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Failed(line) | Refusal::Unknown(line) => Self::Failed(line),
            Refusal::Usage(line) => Self::Usage(vec![line]),
        }
    }
}

/// Opens what a stopped instance left; nothing is made where there was nothing.
fn open(dir: &Path) -> Result<Queue, Failure> {
    if !dir.is_dir() {
        return Err(usage(&format!(
            "{}: no such directory; is it the instance's data_dir?",
            dir.display()
        )));
    }
    if !Queue::is_in(dir) {
        return Err(Failure::Failed(format!(
            "{}: no events are kept here; hookward serve makes a store where data_dir says: is it \
             this directory?",
            dir.display()
        )));
    }
    let observer = Observer {
        damaged_log: Box::new(|damage| {
            // The exit code is the order's own; with stderr closed only the copy is left of it.
            let _ = writeln!(std::io::stderr(), "hookward: {damage}");
        }),
        ..Observer::default()
    };
    let options = Options {
        places: 64,
        wall_clock: SystemTime::now(),
        observer,
    };
    Queue::open(dir, options).map_err(|error| Failure::Failed(error.to_string()))
}

/// One JSON value per line.
fn print_json(value: &Value) -> Outcome {
    print(&format!("{value}\n"))
}
