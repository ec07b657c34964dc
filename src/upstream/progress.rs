//! How far an attempt has come, for whoever gave it up.

use std::{cell::Cell, future::poll_fn, task::Poll, time::Duration};

use http::StatusCode;

/// How long the rest of an answer is waited for that nobody reads: its end lets the connection be
/// used again, but no upstream that is slow to say it keeps its place for that.
const UNHEARD_PATIENCE: Duration = Duration::from_secs(1);

/// How far an attempt has come; kept up to date, so that it tells of one that was given up as well.
#[derive(Debug, Default)]
pub struct Progress {
    pub(super) resends: Cell<u32>,
    pub(super) accepted: Cell<Option<StatusCode>>,
    is_unheard: Cell<bool>,
}

impl Progress {
    /// Of an attempt whose answer nobody waits for but for its head.
    pub fn unheard() -> Self {
        let progress = Self::default();
        progress.is_unheard.set(true);
        progress
    }

    /// Nobody waits for the answer's body any more.
    pub fn goes_unheard(&self) {
        self.is_unheard.set(true);
    }

    /// Waits for a body; `None`: nobody waits for it, and it did not come soon after its head.
    pub(super) async fn unless_unheard<T>(&self, body: impl Future<Output = T>) -> Option<T> {
        let mut body = std::pin::pin!(body);
        let mut patience = None;
        poll_fn(|cx| {
            if let Poll::Ready(body) = body.as_mut().poll(cx) {
                return Poll::Ready(Some(body));
            }
            if !self.is_unheard.get() {
                return Poll::Pending;
            }
            let sleep = || Box::pin(tokio::time::sleep(UNHEARD_PATIENCE));
            patience
                .get_or_insert_with(sleep)
                .as_mut()
                .poll(cx)
                .map(|()| None)
        })
        .await
    }

    /// How often the request has been sent again since the first time.
    pub fn resends(&self) -> u32 {
        self.resends.get()
    }

    /// The 2xx that the head of an answer held; the rest of the answer may not have come.
    pub fn accepted(&self) -> Option<StatusCode> {
        self.accepted.get()
    }
}
