//! The operator's API: `/api/v1`, JSON.
//!
//! Owns the paths, what each says and takes, and how listings go on. Whoever gets here was let in
//! already. What is on disk is asked of `control`, endpoints are changed through `change`, what
//! happens is read from `feed`: nothing here decides about a request of a sender.

mod endpoints;
mod input;
pub(super) mod problem;
mod queue;
mod requests;
pub(super) mod session;
mod shown;
mod stats;
mod stream;
mod trial;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post, put},
};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};

use super::{News, change::Changes, history::History};
use crate::{
    control::Control,
    gate::{Live, Shared},
    queue::Queue,
    server::Orders,
};

/// Largest body of a request to the API, in bytes.
pub(super) const BODY_LIMIT: usize = 1 << 20;
/// Test events under way at a time.
const TRIALS: usize = 4;
/// Who may watch requests at a time: the listener's connections are for metrics and health too.
const WATCHERS: usize = 64;

/// What the API works with.
pub(super) struct Desk {
    pub(super) shared: Arc<Shared>,
    /// The configuration that runs.
    pub(super) live: watch::Receiver<Orders<Arc<Live>>>,
    /// The same as it is shown.
    pub(super) news: watch::Receiver<Orders<Arc<News>>>,
    pub(super) changes: Changes,
    /// What is on disk, where there is a place for it.
    control: Option<Control>,
    history: Mutex<History>,
    started: (Instant, SystemTime),
    trials: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
}

type State = axum::extract::State<Arc<Desk>>;

impl Desk {
    pub(super) fn new(
        shared: Arc<Shared>,
        live: watch::Receiver<Orders<Arc<Live>>>,
        news: watch::Receiver<Orders<Arc<News>>>,
        changes: Changes,
    ) -> Arc<Self> {
        let queue = shared.queue.clone();
        let control = queue.map(|queue| {
            let metrics = Some(shared.metrics.clone());
            Control::new(queue, shared.table.clone(), metrics)
        });
        let started = (Instant::now(), SystemTime::now());
        let history = History::new(started.0, &shared.metrics.readings());
        Arc::new(Self {
            shared,
            live,
            news,
            changes,
            control,
            history: Mutex::new(history),
            started,
            trials: Arc::new(Semaphore::new(TRIALS)),
            watchers: Arc::new(Semaphore::new(WATCHERS)),
        })
    }

    /// Takes a sample of the metrics when it is time for one.
    pub(super) fn tick(&self, now: Instant) {
        let mut history = self.history();
        if history.is_due(now) {
            let depths = self.shared.queue.as_ref().map(Queue::depths);
            let sum = |(pending, dead), (more, also): &(u64, u64)| (pending + more, dead + also);
            let depth = depths.unwrap_or_default().values().fold((0, 0), sum);
            history.sample(now, &self.shared.metrics.readings(), depth);
        }
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> Arc<Live> {
        self.live.borrow().news.clone()
    }

    fn known(&self) -> Arc<News> {
        self.news.borrow().news.clone()
    }
}

/// Every path.
pub(super) fn router(desk: Arc<Desk>) -> Router {
    let v1 = Router::new()
        .route("/config", get(stats::config))
        .route("/endpoints", get(endpoints::list).post(endpoints::create))
        .route(
            "/endpoints/{name}",
            get(endpoints::show)
                .put(endpoints::edit)
                .delete(endpoints::remove),
        )
        .route("/endpoints/{name}/active", put(endpoints::switch))
        .route("/endpoints/{name}/test", post(trial::test))
        .route("/export", get(endpoints::export))
        .route("/quarantine/{endpoint}", get(queue::quarantined))
        .route("/quarantine/{endpoint}/reverify", post(queue::reverify))
        .route("/quarantine/{endpoint}/{number}", get(queue::explain))
        .route("/queue/drop", post(queue::drop_events))
        .route("/queue/endpoints", get(queue::stats))
        .route("/queue/endpoints/{name}/paused", put(queue::pause))
        .route("/queue/events", get(queue::list))
        .route("/queue/events/{event_id}", get(queue::show))
        .route("/queue/replay", post(queue::replay))
        .route("/requests", get(requests::list))
        .route("/requests/stream", get(stream::stream))
        .route("/requests/{event_id}", get(requests::show))
        .route("/session", get(session::show))
        .route("/stats", get(stats::stats))
        .layer(DefaultBodyLimit::max(BODY_LIMIT));
    Router::new().nest("/api/v1", v1).with_state(desk)
}

/// The API's description (OpenAPI 3.1).
pub(super) fn description() -> String {
    include_str!("api/openapi.json").replace("{version}", env!("CARGO_PKG_VERSION"))
}

/// A part of a listing.
fn page(items: Vec<Value>, next: Option<String>) -> axum::Json<Value> {
    axum::Json(serde_json::json!({"items": items, "next": next}))
}
