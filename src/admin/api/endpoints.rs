//! Endpoints: listed, made, edited, switched, removed, written down for the configuration.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::Path,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Desk, State,
    input::{Asked, Input, Span},
    page,
    problem::Problem,
};
use crate::{
    admin::{
        Given,
        change::{Changed, Wish},
    },
    control::view::moment,
    endpoint::{Endpoint, Transport},
    gate::Lane,
    metrics::Readings,
};

/// A new endpoint.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct New {
    name: String,
    settings: Map<String, Value>,
    #[serde(default)]
    takes_over: bool,
}

/// Another table for an endpoint.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    settings: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Active {
    active: bool,
}

/// What listings show of every endpoint beside its configuration.
struct View {
    readings: Readings,
    days: BTreeMap<String, Value>,
    stored: BTreeMap<String, (u64, u64)>,
    tables: Value,
    given: BTreeMap<String, Given>,
}

impl View {
    fn new(desk: &Desk) -> Self {
        let readings = desk.shared.metrics.readings();
        let days = desk.history().days(&readings);
        let stored = desk.shared.queue.as_ref().map(|queue| queue.depths());
        let known = desk.known();
        let tables = known.effective.get("endpoints").cloned();
        Self {
            readings,
            days,
            stored: stored.unwrap_or_default(),
            tables: tables.unwrap_or_default(),
            given: known.given.clone(),
        }
    }

    fn show(&self, lane: &Lane) -> Value {
        let endpoint = &*lane.endpoint;
        let name = endpoint.name.as_str();
        let table = self.tables.get(name).cloned().unwrap_or_default();
        let origin = match endpoint.made_at {
            Some(_) => "run_time",
            None => "configuration",
        };
        let (pending, dead) = self.stored.get(name).copied().unwrap_or_default();
        json!({
            "name": name,
            "origin": origin,
            "path": endpoint.path.to_string(),
            "upstream": where_to(endpoint),
            "mode": table.get("mode"),
            "events": table.get("events"),
            "active": endpoint.active,
            "description": endpoint.description,
            "source": endpoint.source,
            "created_at": endpoint.made_at.map(moment),
            "last_event_at": self.last_event(name),
            "secrets": self.secrets(endpoint),
            "pending": pending,
            "dead": dead,
            "day": self.days.get(name),
            "given": self.given.get(name).map(|given| &given.table),
            "revision": self.given.get(name).map(|given| &given.revision),
            "settings": table,
        })
    }

    fn last_event(&self, name: &str) -> Option<Value> {
        let all = self
            .readings
            .series("last_verified_timestamp_seconds", ["endpoint"]);
        let (_, at) = all.into_iter().find(|([endpoint], _)| endpoint == name)?;
        let since = std::time::Duration::try_from_secs_f64(at).ok()?;
        Some(moment(std::time::SystemTime::UNIX_EPOCH + since))
    }

    fn secrets(&self, endpoint: &Endpoint) -> Value {
        let labels = ["endpoint", "secret"];
        let matches = self.readings.sums("secret_matches_total", labels);
        let secrets = endpoint.secrets.names().zip(endpoint.secrets.expiries());
        let secrets = secrets.map(|(name, not_after)| {
            let key = [endpoint.name.to_string(), name.to_owned()];
            json!({
                "name": name,
                "not_after": not_after.map(moment),
                "matches": matches.get(&key).copied().unwrap_or_default(),
            })
        });
        secrets.collect()
    }
}

/// The upstream's URL; a query may hold a key, and is left out.
fn where_to(endpoint: &Endpoint) -> String {
    let upstream = &endpoint.upstream;
    match &upstream.transport {
        Transport::Tcp { .. } => format!("http://{}{}", upstream.authority, upstream.path),
        Transport::Tls { .. } => format!("https://{}{}", upstream.authority, upstream.path),
        Transport::Unix { path } => format!("unix:{}:{}", path.display(), upstream.path),
    }
}

pub(super) async fn list(desk: State, Asked(span): Asked<Span>) -> Result<Json<Value>, Problem> {
    let limit = span.limit()?;
    let running = desk.running();
    let mut lanes: Vec<_> = running.lanes().iter().collect();
    lanes.sort_by(|a, b| a.endpoint.name.cmp(&b.endpoint.name));
    let cursor = span.cursor.as_deref();
    let is_after =
        |lane: &&&Arc<Lane>| cursor.is_none_or(|cursor| lane.endpoint.name.as_str() > cursor);
    let mut rest = lanes.iter().filter(is_after).peekable();
    let view = View::new(&desk);
    let part: Vec<_> = rest.by_ref().take(limit).collect();
    let last = part.last().map(|lane| lane.endpoint.name.to_string());
    let next = last.filter(|_| rest.peek().is_some());
    Ok(page(
        part.iter().map(|lane| view.show(lane)).collect(),
        next,
    ))
}

pub(super) async fn show(desk: State, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    Ok(Json(one(&desk, &name)?))
}

fn one(desk: &Desk, name: &str) -> Result<Value, Problem> {
    let running = desk.running();
    let mut lanes = running.lanes().iter();
    let lane = lanes.find(|lane| lane.endpoint.name.as_str() == name);
    let lane = lane.ok_or_else(|| Problem::absent("endpoint"))?;
    Ok(View::new(desk).show(lane))
}

pub(super) async fn create(desk: State, Input(new): Input<New>) -> Result<Response, Problem> {
    let New {
        name,
        settings,
        takes_over,
    } = new;
    let wish = Wish::Create {
        name: name.clone(),
        settings,
        takes_over,
    };
    let made = desk.changes.ask(wish).await?;
    let body = Json(outcome(&desk, &name, &made)?);
    // A name is lower-case letters, digits and underscores.
    let place = HeaderValue::try_from(format!("/api/v1/endpoints/{name}"));
    let mut response = (StatusCode::CREATED, body).into_response();
    if let Ok(place) = place {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

pub(super) async fn edit(
    desk: State,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(Edit { settings }): Input<Edit>,
) -> Result<Json<Value>, Problem> {
    let wish = Wish::Edit {
        name: name.clone(),
        settings,
        expected: expected(&headers)?,
    };
    let made = desk.changes.ask(wish).await?;
    Ok(Json(outcome(&desk, &name, &made)?))
}

/// The revisions that a change is for (RFC 9110 §13.1.1); `None`: whatever there is.
fn expected(headers: &HeaderMap) -> Result<Option<Vec<String>>, Problem> {
    let mut revisions = Vec::new();
    for value in headers.get_all(header::IF_MATCH) {
        let wrong = || Problem::input("If-Match: expected a revision in double quotes");
        for tag in value.to_str().map_err(|_| wrong())?.split(',') {
            match tag.trim() {
                "*" => return Ok(None),
                tag => {
                    let inner = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
                    revisions.push(inner.ok_or_else(wrong)?.to_owned());
                }
            }
        }
    }
    Ok((!revisions.is_empty()).then_some(revisions))
}

/// The endpoint as it is, and the secrets that were made: this once.
fn outcome(desk: &Desk, name: &str, made: &Changed) -> Result<Value, Problem> {
    let generated = made.generated.iter();
    let generated: Vec<_> = generated
        .map(|(name, secret)| json!({"name": name, "value": **secret}))
        .collect();
    Ok(json!({"endpoint": one(desk, name)?, "generated_secrets": generated}))
}

pub(super) async fn remove(desk: State, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    desk.changes.ask(Wish::Remove { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn switch(
    desk: State,
    Path(name): Path<String>,
    Input(Active { active }): Input<Active>,
) -> Result<Json<Value>, Problem> {
    let wish = Wish::Switch {
        name: name.clone(),
        active,
    };
    desk.changes.ask(wish).await?;
    Ok(Json(one(&desk, &name)?))
}

/// The endpoints made at run time, as tables for the configuration.
pub(super) async fn export(desk: State) -> Response {
    let kind = HeaderValue::from_static("application/toml");
    ([(header::CONTENT_TYPE, kind)], desk.known().export.clone()).into_response()
}
