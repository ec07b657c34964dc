//! The right to deliver one event: leased, settled once, or handed back.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use uuid::Uuid;

use crate::endpoint::EndpointName;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Given up: a dead letter. Its lane goes on without it.
    Dead {
        /// The upstream's status, if it answered.
        status: Option<u16>,
        /// What went wrong, for an operator; cut at 512 bytes. Never a body.
        error: String,
    },
    /// The upstream accepted it.
    Delivered {
        /// With which status.
        status: u16,
    },
    /// To be tried again. Its lane waits for it.
    Retry {
        /// In how long.
        after: Duration,
        /// The upstream's status, if it answered.
        status: Option<u16>,
        /// What went wrong, for an operator; cut at 512 bytes. Never a body.
        error: String,
    },
}

/// What was leased, and when there may be more.
#[derive(Debug)]
pub struct Leases {
    /// At most as many as were asked for, the longest due first.
    pub leases: Vec<Lease>,
    /// In how long the next event is due; zero: more is due already; `None`: nothing waits for a
    /// time (or the endpoint is paused), [`Endpoint::changed`](super::Endpoint::changed) tells.
    pub next_due: Option<Duration>,
}

/// The right to make one attempt at one event.
///
/// Dropped unsettled (a panic, a cancelled task) it counts as an attempt that was interrupted, and
/// the event is due again soon.
#[must_use = "a dropped lease counts as an interrupted attempt"]
pub struct Lease {
    event: Event,
}

struct Event {
    id: Uuid,
    attempt: u32,
}

impl Lease {
    /// The event's id.
    pub fn id(&self) -> Uuid {
        self.event.id
    }

    /// Whose event it is.
    pub fn endpoint(&self) -> &EndpointName {
        unimplemented!()
    }

    /// Its type when known.
    pub fn event_type(&self) -> Option<&str> {
        unimplemented!()
    }

    /// Which attempt this is: 1, 2, …; also the token that fences an earlier one's result.
    pub fn attempt(&self) -> u32 {
        self.event.attempt
    }

    /// When the event was appended, by the store's clock.
    pub fn appended_at(&self) -> SystemTime {
        unimplemented!()
    }

    /// What to send: [`Record::decode`](super::Record::decode)'s bytes, checked against their sum.
    /// Empty where the caller appended the event itself.
    pub fn record(&self) -> &Bytes {
        unimplemented!()
    }

    /// Ends the attempt. Resolves when it is on disk; while the disk takes nothing, when it is
    /// noted in memory (a crash then repeats the attempt).
    ///
    /// # Errors
    /// See [`SettleError`].
    pub async fn settle(self, settled: Settled) -> Result<(), SettleError> {
        let _ = settled;
        unimplemented!()
    }

    /// Gives the event back as if it had not been leased: no attempt was made. It is due at once,
    /// or after `delay` when there is one.
    pub fn hand_back(self, delay: Option<Duration>) {
        let _ = delay;
        unimplemented!()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("id", &self.event.id)
            .field("attempt", &self.event.attempt)
            .finish_non_exhaustive()
    }
}

/// Why an attempt's end was not noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleError {
    /// The store is broken or closed: the attempt is repeated after the next start.
    Broken,
    /// The event was dropped or replayed meanwhile: nothing was changed.
    Stale,
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken => "the store is broken",
            Self::Stale => "the event was dropped or replayed meanwhile",
        })
    }
}

impl std::error::Error for SettleError {}
