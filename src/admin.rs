//! The operator's view: `/metrics`, `/livez`, `/readyz`, on listeners of their own.
//!
//! Owns what these three say. It reads what others count and is in nobody's way: it runs on its own
//! thread, so that it answers while every core is busy with requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};

use crate::{
    connection::{Inflow, Watch},
    gate::Shared,
    limits::Limits,
    metrics::Reading,
    queue::Queue,
    rejection::Rejection,
    server::Handler,
    upstream::AnswerBody,
};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const EXPOSITION: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const ALLOW: HeaderValue = HeaderValue::from_static("GET, HEAD");

/// Most connections to the admin listeners at a time.
pub(crate) const MAX_CONNECTIONS: usize = 256;

/// The admin side.
#[derive(Debug)]
pub struct Admin {
    shared: Arc<Shared>,
    is_ready: Arc<AtomicBool>,
}

impl Admin {
    /// Shows what is counted in `shared`; ready is what `is_ready` says.
    pub fn new(shared: Arc<Shared>, is_ready: Arc<AtomicBool>) -> Self {
        Self { shared, is_ready }
    }

    async fn answer(&self, method: &Method, path: &str) -> Response<AnswerBody> {
        let (status, kind, text) = match path {
            "/livez" => (StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/readyz" => match self.trouble() {
                None => (StatusCode::OK, TEXT, "ready\n".to_owned()),
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, why),
            },
            "/metrics" => (StatusCode::OK, EXPOSITION, self.metrics().await),
            _ => {
                let known = "not here; there are /metrics, /livez and /readyz\n";
                (StatusCode::NOT_FOUND, TEXT, known.to_owned())
            }
        };
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        let (status, text) = if is_read {
            (status, text)
        } else {
            (StatusCode::METHOD_NOT_ALLOWED, String::new())
        };
        let mut response = Response::new(AnswerBody::held(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, kind);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if !is_read {
            headers.insert(header::ALLOW, ALLOW);
        }
        response
    }

    /// Why it is not ready, if it is not.
    fn trouble(&self) -> Option<String> {
        if !self.is_ready.load(Ordering::Acquire) {
            return Some("not ready\n".to_owned());
        }
        let trouble = self.shared.queue.as_ref().and_then(Queue::trouble)?;
        Some(format!("not ready: {trouble}\n"))
    }

    async fn metrics(&self) -> String {
        if let Some(queue) = &self.shared.queue {
            // What cannot be read now keeps its last values.
            let stats = queue.stats().await.unwrap_or_default();
            let stored = queue.stored_bytes();
            self.shared.metrics.queue.observe(stored, &stats);
        }
        let evictions = self.shared.table.evictions();
        self.shared.metrics.observe(&Reading {
            buffered_bytes: self.shared.budget.used(),
            dedup_entries: self.shared.table.entries(),
            evicted_by_capacity: evictions.capacity,
            evicted_by_expiry: evictions.expired,
        });
        self.shared.metrics.text()
    }
}

impl Handler for Admin {
    type News = ();

    async fn handle(&self, watch: &Watch, request: Request<Inflow<'_>>) -> Response<AnswerBody> {
        watch.begin();
        let response = self.answer(request.method(), request.uri().path()).await;
        watch.answered(Instant::now(), false);
        response
    }

    fn limits(&self) -> Limits {
        Limits {
            max_connections: MAX_CONNECTIONS,
            ..Limits::default()
        }
    }

    fn learn(&self, _: &()) {}

    fn tick(&self, _: Instant) {}

    fn refused(&self, _: Rejection, _: Option<std::net::IpAddr>) {}

    async fn finish(&self) {}
}
