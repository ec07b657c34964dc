//! The operator's view: `/metrics`, `/livez`, `/readyz`, the API and the dashboard, on listeners of
//! their own.
//!
//! Owns what the first three say, and the door to the rest: without a token there is no rest, and
//! nothing of it is built. It reads what others count and is in nobody's way: it runs on its own
//! thread, so that it answers while every core is busy with requests.

mod api;
mod assets;
pub mod change;
mod guard;
mod history;
mod settings;

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header, request::Parts};
use serde_json::Value;
use tokio::sync::watch;
use tower_service::Service as _;

pub use self::settings::{Settings, TOKEN_LENGTH};
use self::{
    api::{
        BODY_LIMIT, Desk,
        problem::{PROBLEM, Problem},
        session::{SignIn, with_cookie},
    },
    change::Changes,
    guard::{Denied, Guard},
};
use crate::{
    body::{self, BodyError, Budget},
    connection::{Inflow, Watch},
    endpoint::is_trusted,
    gate::{Live, Shared},
    limits::Limits,
    metrics::Reading,
    queue::Queue,
    rejection::Rejection,
    secret::Secret,
    server::{Handler, Orders},
    upstream::AnswerBody,
};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const EXPOSITION: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const ALLOW: HeaderValue = HeaderValue::from_static("GET, HEAD");

/// Where a browser signs in and out: those two are answered before the router.
const SESSION_PATH: &str = "/api/v1/session";
const SESSION_METHODS: HeaderValue = HeaderValue::from_static("DELETE,GET,HEAD,POST");

/// Most connections to the admin listeners at a time.
pub(crate) const MAX_CONNECTIONS: usize = 256;
/// Most of them from one address: whoever holds on to connections leaves some to probes.
const MAX_OF_ONE: usize = MAX_CONNECTIONS / 2;
/// Largest body of a request to sign in, in bytes: it comes from anybody.
const SIGN_IN_LIMIT: usize = 4096;
/// Memory for bodies of requests to the API, in bytes.
const BUDGET: usize = 8 << 20;
/// A body this long and still unread when its request is refused: its connection is not kept.
const UNREAD_LIMIT: u64 = 64 * 1024;
/// What every answer of API and dashboard says to browsers. Scripts and styles are files of ours;
/// nothing is framed, sniffed, kept or told to others.
const FOR_BROWSERS: [(HeaderName, HeaderValue); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
             connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
        ),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(), geolocation=(), microphone=()"),
    ),
];

/// The configuration, as the operator's side needs it.
#[derive(Debug)]
pub struct News {
    /// Who may ask, and what is kept.
    pub settings: Arc<Settings>,
    /// What is in effect, secrets as `***`.
    pub effective: Value,
    /// Those made at run time, as they were given.
    pub given: BTreeMap<String, Given>,
    /// The endpoints made at run time, as tables for the file.
    pub export: String,
    /// The file.
    pub file: Option<PathBuf>,
    /// What is legal and probably not meant.
    pub warnings: Vec<String>,
}

/// An endpoint made at run time, as it was given.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its table, secrets as `***`.
    pub table: Value,
    /// What tells it from any other.
    pub revision: String,
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// API and dashboard.
    Api,
    /// Everything.
    Everything,
    /// Metrics and health.
    Open,
}

/// What the operator's side reads, and whom it asks.
#[derive(Clone)]
pub struct Sources {
    /// What is counted, kept and on disk.
    pub shared: Arc<Shared>,
    /// Whether the process is ready.
    pub is_ready: Arc<AtomicBool>,
    /// The configuration that runs.
    pub live: watch::Receiver<Orders<Arc<Live>>>,
    /// The same as it is shown.
    pub news: watch::Receiver<Orders<Arc<News>>>,
    /// Where endpoints are changed.
    pub changes: Changes,
}

/// The admin side of one listener thread.
pub struct Admin {
    sources: Sources,
    serves: Serves,
    news: RefCell<Arc<News>>,
    guard: Guard,
    budget: Arc<Budget>,
    desk: OnceCell<Arc<Desk>>,
    router: OnceCell<Router>,
}

impl Admin {
    /// Shows what `sources` tell.
    pub fn new(sources: Sources, serves: Serves) -> Self {
        let news = sources.news.borrow().news.clone();
        Self {
            sources,
            serves,
            news: RefCell::new(news),
            guard: Guard::default(),
            budget: Budget::new(BUDGET),
            desk: OnceCell::new(),
            router: OnceCell::new(),
        }
    }

    /// Metrics and health; `None`: it is something else that is asked for.
    async fn open(&self, method: &Method, path: &str) -> Option<http::Response<AnswerBody>> {
        if self.serves == Serves::Api {
            return None;
        }
        let (status, kind, text) = match path {
            "/livez" => (StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/readyz" => match self.trouble() {
                None => (StatusCode::OK, TEXT, "ready\n".to_owned()),
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, why),
            },
            "/metrics" => (StatusCode::OK, EXPOSITION, self.metrics().await),
            _ => return None,
        };
        Some(plain(method, status, kind, text).map(AnswerBody::held))
    }

    /// Why it is not ready, if it is not.
    fn trouble(&self) -> Option<String> {
        if !self.sources.is_ready.load(Ordering::Acquire) {
            return Some("not ready\n".to_owned());
        }
        let queue = self.sources.shared.queue.as_ref();
        let trouble = queue.and_then(Queue::trouble)?;
        Some(format!("not ready: {trouble}\n"))
    }

    async fn metrics(&self) -> String {
        let shared = &self.sources.shared;
        if let Some(queue) = &shared.queue {
            // What cannot be read now keeps its last values.
            let stats = queue.stats().await.unwrap_or_default();
            let stored = queue.stored_bytes();
            shared.metrics.queue.observe(stored, &stats);
        }
        let evictions = shared.table.evictions();
        shared.metrics.observe(&Reading {
            buffered_bytes: shared.budget.used(),
            dedup_entries: shared.table.entries(),
            evicted_by_capacity: evictions.capacity,
            evicted_by_expiry: evictions.expired,
        });
        shared.metrics.text()
    }

    /// API and dashboard, for whoever has the token.
    async fn closed(&self, watch: &Watch, head: Parts, inflow: Inflow<'_>) -> Response {
        let settings = self.news.borrow().settings.clone();
        let Some(token) = settings
            .token
            .as_ref()
            .filter(|_| self.serves != Serves::Open)
        else {
            let known = "not here; there are /metrics, /livez and /readyz\n".to_owned();
            return plain(&head.method, StatusCode::NOT_FOUND, TEXT, known).map(Body::from);
        };
        let is_session = head.uri.path() == SESSION_PATH;
        let outcome = match self.guard.check_site(&settings, &head) {
            Err(denied) => Err(denied.into()),
            Ok(()) => match file(&head) {
                Some(found) => Ok(found),
                None => self.let_in(watch, token, head, inflow).await,
            },
        };
        let mut response = outcome.unwrap_or_else(Problem::into_response);
        let status = response.status();
        let is_said = response.headers().get(header::CONTENT_TYPE) == Some(&PROBLEM);
        if (status.is_client_error() || status.is_server_error()) && !is_said {
            let allow = response.headers().get(header::ALLOW).cloned();
            let allow = if is_session {
                allow.map(|_| SESSION_METHODS)
            } else {
                allow
            };
            response = Problem::of(status).into_response();
            if let Some(allow) = allow {
                response.headers_mut().insert(header::ALLOW, allow);
            }
        }
        for (name, value) in &FOR_BROWSERS {
            response.headers_mut().insert(name, value.clone());
        }
        response
    }

    /// Answers who comes with a token or a session, and who wants one.
    async fn let_in(
        &self,
        watch: &Watch,
        token: &Secret,
        head: Parts,
        inflow: Inflow<'_>,
    ) -> Result<Response, Problem> {
        let announced = inflow.announced();
        let closes = !inflow.can_be_passed_over(UNREAD_LIMIT);
        let now = (Instant::now(), SystemTime::now());
        let live = self.sources.live.borrow().news.clone();
        let asker = guard::asker(watch.peer, &head.headers, &live.trusted_proxies);
        let is_session = head.uri.path() == SESSION_PATH;
        let signs_in = is_session && head.method == Method::POST;
        if !signs_in && let Err(denied) = self.guard.check(token, &head, asker, now) {
            if head.headers.contains_key(header::AUTHORIZATION) {
                note(denied, asker);
            }
            return Ok(unheard(denied.into(), closes));
        }
        let most = if signs_in { SIGN_IN_LIMIT } else { BODY_LIMIT };
        let body = body::read(inflow, announced, most, &self.budget, |_| ()).await;
        let body = match body {
            Ok(body) => body,
            Err(error) => return Ok(unheard(unread(error), true)),
        };
        let is_secure = self.is_secure(watch, &head);
        if signs_in {
            let given = SignIn::read(body.as_bytes())?;
            self.guard
                .check_token(token, &given.token, asker, now.0)
                .inspect_err(|denied| note(*denied, asker))?;
            return Ok(with_cookie(self.guard.begin(token, now.1, is_secure)));
        }
        if is_session && head.method == Method::DELETE {
            return Ok(with_cookie(self.guard.end(
                token,
                &head.headers,
                now.1,
                is_secure,
            )));
        }
        let body = Body::from(body.as_bytes().to_vec());
        let router = self.router.get_or_init(|| api::router(self.desk().clone()));
        let Ok(response) = router.clone().call(Request::from_parts(head, body)).await;
        Ok(response)
    }

    /// Whether a browser's way here is encrypted, so that a cookie may say so.
    fn is_secure(&self, watch: &Watch, head: &Parts) -> bool {
        let starts = |name: HeaderName, with: &[u8]| {
            let value = head.headers.get(name);
            value.is_some_and(|value| value.as_bytes().starts_with(with))
        };
        let live = self.sources.live.borrow().news.clone();
        let forwarded = HeaderName::from_static("x-forwarded-proto");
        watch.proto == "https"
            || starts(header::ORIGIN, b"https://")
            || (is_trusted(watch.peer, &live.trusted_proxies) && starts(forwarded, b"https"))
    }

    fn desk(&self) -> &Arc<Desk> {
        self.desk.get_or_init(|| {
            let from = self.sources.clone();
            Desk::new(from.shared, from.live, from.news, from.changes)
        })
    }
}

/// A file of the dashboard, or the API's description: they hold nothing of anybody's.
fn file(head: &Parts) -> Option<Response> {
    let is_read = matches!(head.method, Method::GET | Method::HEAD);
    let path = head.uri.path();
    let (kind, bytes) = match assets::find(path) {
        Some(asset) => (asset.kind, asset.bytes.to_vec()),
        None if path == "/api/v1/openapi.json" => (JSON, api::description().into_bytes()),
        None => return None,
    };
    if !is_read {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Some(([(header::ALLOW, ALLOW)], status).into_response());
    }
    Some(([(header::CONTENT_TYPE, kind)], bytes).into_response())
}

/// An answer to a question that is only ever read.
fn plain(
    method: &Method,
    status: StatusCode,
    kind: HeaderValue,
    text: String,
) -> http::Response<String> {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let (status, text) = if is_read {
        (status, text)
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, String::new())
    };
    let mut response = http::Response::new(text);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !is_read {
        headers.insert(header::ALLOW, ALLOW);
    }
    response
}

/// A refusal before the request was read to its end.
fn unheard(problem: Problem, closes: bool) -> Response {
    let mut response = problem.into_response();
    if closes {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// Logs a wrong token: as many as are compared, which are few.
fn note(denied: Denied, asker: Option<IpAddr>) {
    if denied == Denied::Token {
        let peer = asker.map(tracing::field::display);
        tracing::warn!(peer, "wrong admin token");
    }
}

fn unread(error: BodyError) -> Problem {
    match error {
        BodyError::Broken => Problem::of(StatusCode::BAD_REQUEST),
        BodyError::Overloaded => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "Too many requests come with large bodies; try again.",
        ),
        BodyError::TooLarge => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            "The body is larger than the API takes.",
        ),
    }
}

/// A body that the router made, as the listener sends it.
struct Answered(Body);

impl http_body::Body for Answered {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<http_body::Frame<Bytes>>>> {
        let frame = Pin::new(&mut self.0).poll_frame(cx);
        frame.map_err(io::Error::other)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

impl Handler for Admin {
    type News = Arc<News>;

    async fn handle(
        &self,
        watch: &Watch,
        request: Request<Inflow<'_>>,
    ) -> http::Response<AnswerBody> {
        watch.begin();
        let (head, inflow) = request.into_parts();
        let response = match self.open(&head.method, head.uri.path()).await {
            Some(response) => response,
            // Boxed: it is rare, and larger than all that scrapers ask for.
            None => Box::pin(self.closed(watch, head, inflow))
                .await
                .map(|body| AnswerBody::made(Answered(body))),
        };
        watch.answered(Instant::now(), false);
        response
    }

    fn limits(&self) -> Limits {
        Limits {
            max_connections: MAX_CONNECTIONS,
            ..Limits::default()
        }
    }

    fn most_of_one(&self) -> Option<usize> {
        Some(MAX_OF_ONE)
    }

    fn learn(&self, news: &Arc<News>) {
        *self.news.borrow_mut() = news.clone();
    }

    fn tick(&self, now: Instant) {
        let has_api = self.serves != Serves::Open && self.news.borrow().settings.token.is_some();
        if has_api {
            self.desk().tick(now);
        }
    }

    fn refused(&self, _: Rejection, _: Option<IpAddr>) {}

    async fn finish(&self) {}
}
