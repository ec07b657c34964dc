//! Requests as they come: server-sent events (WHATWG HTML, "Server-sent events").

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::Frame;
use serde_json::json;
use subtle::ConstantTimeEq as _;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{Desk, State, problem::Problem, requests::summary};
use crate::{
    admin::{News, Settings, guard::SESSION},
    feed::{Feed, Watcher},
    server::Orders,
};

/// Most requests told of at a time; of a flood the rest is counted.
const BATCH: usize = 100;
/// Pause between two batches: nobody reads faster.
const PAUSE: Duration = Duration::from_millis(200);
/// How long nothing is said before a sign of life.
const SILENCE: Duration = Duration::from_secs(15);

pub(super) async fn stream(desk: State, headers: HeaderMap) -> Result<Response, Problem> {
    let place = desk.watchers.clone().try_acquire_owned();
    let place = place.map_err(|_| {
        let detail = "Too many watch already: close a page of the dashboard, or a tail.";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
    })?;
    let until = match headers.contains_key(header::AUTHORIZATION) {
        true => None,
        false => Some(Instant::now() + SESSION),
    };
    let last = headers.get("last-event-id");
    let last = last.and_then(|id| id.to_str().ok()?.parse().ok());
    let mut response = Response::new(Body::new(Events::new(&desk, last, (until, place))));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

type Next = Pin<Box<dyn Future<Output = (Option<Bytes>, Where)> + Send>>;

/// How far one who watches has come.
struct Where {
    feed: Arc<Feed>,
    after: u64,
    /// What let it in.
    settings: Arc<Settings>,
    news: watch::Receiver<Orders<Arc<News>>>,
    /// When its session ends, if it has one.
    until: Option<Instant>,
    _watcher: (Watcher, OwnedSemaphorePermit),
}

impl Where {
    /// Whether what let it in opens nothing any more: its token was replaced, or its session is over.
    fn is_locked_out(&self) -> bool {
        let now = self.news.borrow().news.settings.clone();
        let is_same = match (&self.settings.token, &now.token) {
            (Some(then), Some(now)) => bool::from(then.bytes().ct_eq(now.bytes())),
            (None, _) | (_, None) => false,
        };
        !is_same || self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// The body of an answer that goes on for as long as somebody reads it.
struct Events {
    ready: VecDeque<Bytes>,
    next: Option<Next>,
}

impl Events {
    fn new(
        desk: &Desk,
        after: Option<u64>,
        (until, place): (Option<Instant>, OwnedSemaphorePermit),
    ) -> Self {
        let feed = desk.shared.feed.clone();
        let watcher = feed.watch();
        let capture = feed.capture();
        let hello = json!({"capture": {"events": capture.events, "bytes": capture.bytes}});
        // Who reconnects goes on where it was, unless this process is another one.
        let last = feed.last();
        let at = Where {
            after: after.filter(|after| *after <= last).unwrap_or(last),
            feed,
            settings: desk.known().settings.clone(),
            news: desk.news.clone(),
            until,
            _watcher: (watcher, place),
        };
        let hello = format!("retry: 2000\nevent: hello\ndata: {hello}\n\n");
        Self {
            ready: [hello.into()].into(),
            next: Some(Box::pin(next(at))),
        }
    }
}

/// Waits for what comes next; `None` at the end.
async fn next(mut at: Where) -> (Option<Bytes>, Where) {
    let feed = at.feed.clone();
    // Asked for before looking, so that nothing that comes between is missed.
    let changed = feed.changed();
    let mut changed = std::pin::pin!(changed);
    let part = {
        let part = at.feed.after(at.after, usize::MAX);
        if part.seen.is_empty() && !part.is_last {
            let waited = tokio::time::timeout(SILENCE, async {
                tokio::select! {
                    () = changed.as_mut() => {}
                    // Whether that was the sender's end is seen below.
                    _ = at.news.changed() => {}
                }
            });
            if waited.await.is_ok() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        at.feed.after(at.after, usize::MAX)
    };
    if at.is_locked_out() || (part.is_last && part.seen.is_empty()) {
        return (None, at);
    }
    if part.seen.is_empty() && part.missed == 0 {
        return (Some(Bytes::from_static(b": still here\n\n")), at);
    }
    let passed_over = part.seen.len().saturating_sub(BATCH);
    let missed = part.missed + u64::try_from(passed_over).unwrap_or(u64::MAX);
    // Told once, also where nothing is left behind them.
    at.after = at.after.saturating_add(part.missed);
    let mut text = String::new();
    if missed > 0 {
        text.push_str(&format!("event: missed\ndata: {{\"count\":{missed}}}\n\n"));
    }
    for (number, seen) in part.seen.iter().skip(passed_over) {
        let data = summary(*number, seen);
        text.push_str(&format!("id: {number}\nevent: request\ndata: {data}\n\n"));
        at.after = *number;
    }
    (Some(text.into()), at)
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if let Some(bytes) = this.ready.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let Some(going) = &mut this.next else {
            return Poll::Ready(None);
        };
        match going.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready((None, _)) => {
                this.next = None;
                Poll::Ready(None)
            }
            Poll::Ready((Some(bytes), at)) => {
                this.next = Some(Box::pin(next(at)));
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
        }
    }
}
