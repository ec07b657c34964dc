//! What is on disk: listed, shown, delivered again, dropped; and what is in quarantine.

use std::time::Duration;

use axum::{Json, extract::Path};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use super::{
    Desk, State,
    input::{Asked, Input, Span},
    page,
    problem::Problem,
    shown,
};
use crate::control::{Filter, Order, QUARANTINE_PAGE, Which};

type Said = Result<Json<Value>, Problem>;

/// Which events.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Events {
    endpoint: Option<String>,
    event: Option<String>,
    state: Option<String>,
    #[serde(deserialize_with = "duration")]
    older_than: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    newer_than: Option<Duration>,
    error: Option<String>,
}

/// A listing of them. Not flattened: that loses what is wrong where.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    endpoint: Option<String>,
    event: Option<String>,
    state: Option<String>,
    #[serde(default, deserialize_with = "duration")]
    older_than: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    newer_than: Option<Duration>,
    error: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// Which events are to change: these, or those that match.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chosen {
    ids: Option<Vec<String>>,
    #[serde(default, deserialize_with = "members")]
    filter: Option<Events>,
    #[serde(default)]
    keep_key: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Paused {
    paused: bool,
}

/// An object's members, and no array: its elements would be taken for them in their order.
fn members<'de, D: Deserializer<'de>>(json: D) -> Result<Option<Events>, D::Error> {
    let given: Option<serde_json::Map<String, Value>> = Option::deserialize(json)?;
    let events = given.map(|members| Events::deserialize(Value::Object(members)));
    events.transpose().map_err(D::Error::custom)
}

fn duration<'d, D: Deserializer<'d>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    let parse = |text: String| {
        let parsed = humantime::parse_duration(&text);
        parsed.map_err(|_| D::Error::custom("expected a duration such as 30s or 2h"))
    };
    text.map(parse).transpose()
}

impl Events {
    fn filter(self) -> Filter {
        Filter {
            endpoint: self.endpoint,
            event_type: self.event,
            state: self.state,
            older_than: self.older_than,
            newer_than: self.newer_than,
            error: self.error,
        }
    }
}

impl Chosen {
    /// Of those that match, the dead ones unless a state is named: a slip must not deliver a day's
    /// events again.
    fn which(self) -> Result<Which, Problem> {
        match (self.ids, self.filter) {
            (Some(ids), None) => Ok(Which::Ids(ids)),
            (None, Some(events)) => {
                let mut filter = events.filter();
                filter.state = filter.state.or_else(|| Some("dead".to_owned()));
                Ok(Which::Filter(filter))
            }
            (Some(_), Some(_)) | (None, None) => {
                Err(Problem::input("expected either ids or filter"))
            }
        }
    }
}

impl Desk {
    async fn order(&self, order: Order) -> Result<Value, Problem> {
        let control = self.control.as_ref().ok_or_else(Problem::needs_data_dir)?;
        let running = self.running();
        Ok(control.carry_out(order, &running.endpoints).await?)
    }
}

pub(super) async fn list(desk: State, Asked(asked): Asked<Listing>) -> Said {
    let span = Span {
        cursor: asked.cursor,
        limit: asked.limit,
    };
    let events = Events {
        endpoint: asked.endpoint,
        event: asked.event,
        state: asked.state,
        older_than: asked.older_than,
        newer_than: asked.newer_than,
        error: asked.error,
    };
    let order = Order::List {
        filter: events.filter(),
        from: span.number()?.unwrap_or_default(),
        limit: span.limit()?,
    };
    Ok(listing(desk.order(order).await?, "events"))
}

pub(super) async fn show(desk: State, Path(event_id): Path<String>) -> Said {
    let order = Order::Show {
        event_id,
        with_record: true,
    };
    let mut event = desk.order(order).await?;
    let endpoint = event.get("endpoint").and_then(Value::as_str);
    let running = desk.running();
    let named = |e: &&std::sync::Arc<_>| endpoint == Some(shown::name(e));
    let endpoint = running.endpoints.iter().find(named);
    shown::mask_request(&mut event, endpoint.map(|endpoint| &**endpoint));
    Ok(Json(event))
}

pub(super) async fn stats(desk: State) -> Said {
    let items = desk.order(Order::Stats).await?;
    Ok(page(items.as_array().cloned().unwrap_or_default(), None))
}

pub(super) async fn replay(desk: State, Input(chosen): Input<Chosen>) -> Said {
    let which = chosen.which()?;
    Ok(Json(desk.order(Order::Replay { which }).await?))
}

pub(super) async fn drop_events(desk: State, Input(chosen): Input<Chosen>) -> Said {
    let keep_key = chosen.keep_key;
    let which = chosen.which()?;
    Ok(Json(desk.order(Order::Drop { which, keep_key }).await?))
}

pub(super) async fn pause(
    desk: State,
    Path(endpoint): Path<String>,
    Input(Paused { paused }): Input<Paused>,
) -> Said {
    Ok(Json(desk.order(Order::Pause { endpoint, paused }).await?))
}

pub(super) async fn quarantined(
    desk: State,
    Path(endpoint): Path<String>,
    Asked(span): Asked<Span>,
) -> Said {
    let order = Order::Quarantined {
        endpoint,
        after: span.number()?.unwrap_or_default(),
        limit: span.limit()?.min(QUARANTINE_PAGE),
    };
    Ok(listing(desk.order(order).await?, "requests"))
}

pub(super) async fn explain(desk: State, Path((endpoint, number)): Path<(String, String)>) -> Said {
    let wrong = || Problem::input("number: expected one such as the listing shows");
    let number = number.parse().map_err(|_| wrong())?;
    let running = desk.running();
    let found = running
        .endpoints
        .iter()
        .find(|e| shown::name(e) == endpoint);
    let mut request = desk.order(Order::Explain { endpoint, number }).await?;
    shown::mask_request(&mut request, found.map(|endpoint| &**endpoint));
    Ok(Json(request))
}

pub(super) async fn reverify(desk: State, Path(endpoint): Path<String>) -> Said {
    Ok(Json(desk.order(Order::Reverify { endpoint }).await?))
}

/// A listing as `control` gives it, its cursor a text.
fn listing(mut said: Value, key: &str) -> Json<Value> {
    let items = said.get_mut(key).map(Value::take);
    let items = match items {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    let next = said.get("next").and_then(Value::as_i64);
    page(items, next.map(|next| next.to_string()))
}
