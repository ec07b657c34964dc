//! An operator's orders about what is on disk, and what comes of them.
//!
//! Owns the orders, how each is carried out, and the JSON that answers it; the same whether a
//! running instance does it, asked through a socket in its directory, or the command line itself on
//! a stopped one. It leaves what is kept to the queue, and how it is shown to the command line.

pub(crate) mod quarantine;
mod reverify;
pub mod socket;
pub(crate) mod view;

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    dedup::Table,
    endpoint::{Endpoint, EndpointName, Endpoints},
    metrics::Metrics,
    queue::{self, Cursor, Queue, State},
};

/// Most events in one part of a listing.
pub const PAGE_LIMIT: usize = 500;

/// Most quarantined requests in one part of a listing: each is read whole.
pub const QUARANTINE_PAGE: usize = 50;

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// A consistent copy, written to this file, which must not exist.
    Backup {
        /// An absolute path.
        to: PathBuf,
    },
    /// Events go, and their keys with them.
    Drop {
        /// Which.
        which: Which,
        /// Their keys stay taken.
        keep_key: bool,
    },
    /// What is known of one quarantined request, itself and why its signature does not match
    /// included.
    Explain {
        /// Whose.
        endpoint: String,
        /// Its number.
        number: i64,
    },
    /// A part of a listing.
    List {
        /// Which.
        filter: Filter,
        /// Where it goes on; 0: from the first.
        from: i64,
        /// At most so many, and at most [`PAGE_LIMIT`].
        limit: usize,
    },
    /// An endpoint accepts and holds, or goes on.
    Pause {
        /// Which endpoint.
        endpoint: String,
        /// Holds.
        paused: bool,
    },
    /// A part of an endpoint's quarantine.
    Quarantined {
        /// Whose.
        endpoint: String,
        /// The number behind which it goes on; 0: from the first.
        after: i64,
        /// At most so many, and at most [`QUARANTINE_PAGE`].
        limit: usize,
    },
    /// Events become due again.
    Replay {
        /// Which.
        which: Which,
    },
    /// Quarantined requests that match the secrets of today become events.
    Reverify {
        /// Whose.
        endpoint: String,
    },
    /// One event.
    Show {
        /// Which.
        event_id: String,
        /// With its headers and body.
        with_record: bool,
    },
    /// What each endpoint holds.
    Stats,
}

/// Which events; what is absent excludes none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Of this endpoint.
    pub endpoint: Option<String>,
    /// Of this type.
    pub event_type: Option<String>,
    /// In this state.
    pub state: Option<String>,
    /// Taken in at least so long ago.
    pub older_than: Option<Duration>,
    /// Taken in at most so long ago.
    pub newer_than: Option<Duration>,
    /// Whose last error holds this text.
    pub error: Option<String>,
}

/// Which events an order is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Those a filter lets through.
    Filter(Filter),
    /// These.
    Ids(Vec<String>),
}

/// Why an order was not carried out, in one line: what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It was tried and failed.
    Failed(String),
    /// There is no such event.
    Unknown(String),
    /// It makes no sense.
    Usage(String),
}

/// Who carries orders out.
pub struct Control {
    queue: Queue,
    table: Arc<Table>,
    metrics: Option<Arc<Metrics>>,
}

impl Control {
    /// Works on a queue; `table` is the one that knows its keys too, `metrics` those of the instance
    /// that runs.
    pub fn new(queue: Queue, table: Arc<Table>, metrics: Option<Arc<Metrics>>) -> Self {
        Self {
            queue,
            table,
            metrics,
        }
    }

    /// Carries one order out, under these endpoints' configuration.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn carry_out(&self, order: Order, endpoints: &Endpoints) -> Result<Value, Refusal> {
        let said = |error: queue::OperateError| Refusal::Failed(error.to_string());
        match order {
            Order::Backup { to } => {
                let shown = to.display().to_string();
                self.queue.backup(to).await.map_err(said)?;
                Ok(json!({"backup": shown}))
            }
            Order::Drop { which, keep_key } => {
                let selection = which.selection()?;
                let dropped = self.queue.drop_events(&selection, keep_key).await;
                if !keep_key {
                    // The store has freed keys that the table still knows; it can be asked again.
                    self.table.clear();
                }
                Ok(json!({"dropped": dropped.map_err(said)?}))
            }
            Order::Explain { endpoint, number } => {
                let endpoint = configured(&endpoint, endpoints)?;
                quarantine::explain(&self.queue, endpoint, number).await
            }
            Order::Quarantined {
                endpoint,
                after,
                limit,
            } => {
                let name = name(&endpoint)?;
                let limit = limit.min(QUARANTINE_PAGE);
                quarantine::list(&self.queue, &name, after, limit).await
            }
            Order::List {
                filter,
                from,
                limit,
            } => {
                let limit = limit.min(PAGE_LIMIT);
                let filter = filter.checked()?;
                let page = self.queue.list(&filter, Cursor(from), limit);
                let page = page.await.map_err(said)?;
                let events: Vec<Value> = page.events.iter().map(view::summary).collect();
                Ok(json!({"events": events, "next": page.next.map(|cursor| cursor.0)}))
            }
            Order::Pause { endpoint, paused } => {
                let name = name(&endpoint)?;
                if !self.is_known(&name, endpoints).await? {
                    return Err(Refusal::Usage(format!(
                        "{endpoint}: no such endpoint is configured or holds anything; see hookward queue stats"
                    )));
                }
                self.queue.pause(&name, paused).await.map_err(said)?;
                Ok(json!({"endpoint": endpoint, "paused": paused}))
            }
            Order::Replay { which } => {
                let selection = which.selection()?;
                let replayed = self.queue.replay(&selection).await.map_err(said)?;
                Ok(json!({"replayed": replayed}))
            }
            Order::Reverify { endpoint } => {
                let found = configured(&endpoint, endpoints)?;
                reverify::reverify(&self.queue, &self.table, self.metrics.as_deref(), found)
                    .await
                    .map_err(Refusal::Failed)
            }
            Order::Show {
                event_id,
                with_record,
            } => {
                let shown = self.queue.show(id(&event_id)?, with_record).await;
                let detail = shown.map_err(said)?;
                let detail =
                    detail.ok_or_else(|| Refusal::Unknown(format!("{event_id}: no such event")))?;
                Ok(view::detail(&detail))
            }
            Order::Stats => {
                let stats = self.queue.stats().await.map_err(said)?;
                Ok(stats.iter().map(view::stats).collect())
            }
        }
    }

    /// Whether an endpoint is configured or holds, or has held, anything.
    async fn is_known(&self, name: &EndpointName, endpoints: &Endpoints) -> Result<bool, Refusal> {
        if endpoints.iter().any(|endpoint| endpoint.name == *name) {
            return Ok(true);
        }
        let stats = self.queue.stats().await;
        let stats = stats.map_err(|error| Refusal::Failed(error.to_string()))?;
        Ok(stats.iter().any(|stats| stats.endpoint == *name))
    }
}

/// The endpoint of this name.
fn configured<'e>(text: &str, endpoints: &'e Endpoints) -> Result<&'e Arc<Endpoint>, Refusal> {
    let name = name(text)?;
    let found = endpoints.iter().find(|endpoint| endpoint.name == name);
    found.ok_or_else(|| Refusal::Usage(format!("{text}: no such endpoint is configured")))
}

fn name(text: &str) -> Result<EndpointName, Refusal> {
    EndpointName::new(text)
        .map_err(|expected| Refusal::Usage(format!("endpoint: expected {expected}")))
}

fn id(text: &str) -> Result<Uuid, Refusal> {
    let wrong = "event id: expected one such as queue list shows";
    Uuid::try_parse(text).map_err(|_| Refusal::Usage(wrong.to_owned()))
}

impl Filter {
    fn checked(self) -> Result<queue::Filter, Refusal> {
        let state = |text: &String| {
            let states = [State::Dead, State::Delivered, State::Leased, State::Pending];
            let found = states.into_iter().find(|state| state.label() == *text);
            let wrong = "state: expected pending, leased, delivered or dead";
            found.ok_or_else(|| Refusal::Usage(wrong.to_owned()))
        };
        Ok(queue::Filter {
            endpoint: self.endpoint.as_deref().map(name).transpose()?,
            event_type: self.event_type,
            state: self.state.as_ref().map(state).transpose()?,
            older_than: self.older_than,
            newer_than: self.newer_than,
            error: self.error,
        })
    }
}

impl Which {
    fn selection(self) -> Result<queue::Selection, Refusal> {
        match self {
            Self::Filter(filter) => Ok(queue::Selection::All(filter.checked()?)),
            Self::Ids(ids) => {
                let ids = ids.iter().map(|text| id(text));
                Ok(queue::Selection::Ids(ids.collect::<Result<_, _>>()?))
            }
        }
    }
}
