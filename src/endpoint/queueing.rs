//! Whether an endpoint's sender hears the upstream or the disk, and how what is on disk gets to the
//! upstream.

use std::time::Duration;

use http::StatusCode;

/// What the sender hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 200 as soon as the event is on disk; it is delivered later.
    Queue,
    /// The upstream's answer.
    Relay {
        /// After how long without a good answer the event goes to disk instead; `None`: never.
        fallback: Option<Duration>,
    },
}

/// Which events on disk wait for which others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// None for any.
    None,
    /// Each for all that came to the endpoint before it.
    Endpoint,
    /// Each for those before it that have the same text at this JSON pointer (RFC 6901); an event
    /// without one waits for none.
    Pointer(String),
}

/// How events on disk are delivered and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queueing {
    /// Which wait for which.
    pub ordering: Ordering,
    /// The pause after each failed attempt; after one more failure than there are pauses the event
    /// is a dead letter.
    pub retry: Vec<Duration>,
    /// Answers after which no further attempt makes sense.
    pub permanent_statuses: Vec<StatusCode>,
    /// Bound on one attempt, connecting included.
    pub attempt_timeout: Duration,
    /// Bytes of events not yet delivered, beyond which no further ones are accepted.
    pub max_pending_bytes: u64,
    /// Bytes of all events, beyond which finished ones go before their time.
    pub max_stored_bytes: u64,
    /// How long a delivered event is kept.
    pub keep_delivered: Duration,
    /// How long a dead letter is kept.
    pub keep_dead: Duration,
}
