//! The right to deliver one event: leased, settled once, or handed back.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    clock::{Millis, duration},
    inbox::{Command, Ending},
    record::from_unix_millis,
    shared::{Account, Shared},
    sqlite::lease::AFTER_INTERRUPTION,
};
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
#[derive(Debug, Default)]
pub struct Leases {
    /// At most as many as were asked for, the longest due first.
    pub leases: Vec<Lease>,
    /// In how long the next event is due; zero: more is due already; `None`: nothing waits for a
    /// time (or the endpoint is paused), [`Endpoint::changed`](super::Endpoint::changed) tells.
    pub next_due: Option<Duration>,
}

/// A leased event's row.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) account: Arc<Account>,
    pub(super) row: i64,
    pub(super) id: Uuid,
    pub(super) event_type: Option<String>,
    pub(super) appended: Millis,
    pub(super) attempt: u32,
    pub(super) tries: u32,
    /// Times it was sent again in this attempt.
    pub(super) resends: u32,
    pub(super) bytes: i64,
    pub(super) lane: Option<[u8; 16]>,
}

/// The right to make one attempt at one event.
///
/// Dropped unsettled (a panic, a cancelled task) it counts as an attempt that was interrupted, and
/// the event is due again in a second.
#[must_use = "a dropped lease counts as an interrupted attempt"]
pub struct Lease {
    shared: Arc<Shared>,
    held: Held,
    record: Bytes,
    is_open: bool,
}

impl Lease {
    pub(super) fn new(shared: Arc<Shared>, held: Held, record: Bytes) -> Self {
        Self {
            shared,
            held,
            record,
            is_open: true,
        }
    }

    /// The event's id.
    pub fn id(&self) -> Uuid {
        self.held.id
    }

    /// Whose event it is.
    pub fn endpoint(&self) -> &EndpointName {
        &self.held.account.name
    }

    /// Its type when known.
    pub fn event_type(&self) -> Option<&str> {
        self.held.event_type.as_deref()
    }

    /// Which attempt this is: 1, 2, …; also the token that fences an earlier one's result.
    pub fn attempt(&self) -> u32 {
        self.held.attempt
    }

    /// Which attempt this is since the event was appended or last replayed: 1, 2, …; the place in
    /// a retry schedule.
    pub fn tries(&self) -> u32 {
        self.held.tries
    }

    /// When the event was appended, by the store's clock.
    pub fn appended_at(&self) -> SystemTime {
        from_unix_millis(self.held.appended)
    }

    /// What to send: [`Record::encode`](super::Record::encode)'s bytes, checked against their sum.
    pub fn record(&self) -> &Bytes {
        &self.record
    }

    /// Counts the times that the event was sent again within this attempt: each is an attempt of
    /// its own once this one is settled.
    pub fn sent_again(&mut self, times: u32) {
        self.held.resends = times;
    }

    /// Ends the attempt. Resolves when it is on disk; while the disk takes nothing, when it is
    /// noted in memory (a crash then repeats the attempt).
    ///
    /// # Errors
    /// See [`SettleError`].
    pub async fn settle(self, settled: Settled) -> Result<(), SettleError> {
        let (reply, answer) = oneshot::channel();
        self.end(Ending::Settled(settled), Some(reply));
        answer.await.unwrap_or(Err(SettleError::Broken))
    }

    /// Gives the event back as if it had not been leased: no attempt was made. It is due at once,
    /// or after `delay` when there is one.
    pub fn hand_back(self, delay: Option<Duration>) {
        self.end(Ending::HandedBack { delay }, None);
    }

    pub(super) fn row(&self) -> i64 {
        self.held.row
    }

    pub(super) fn set_record(&mut self, record: Bytes) {
        self.record = record;
    }

    /// Ends the attempt; nobody waits for it.
    pub(super) fn settle_unheard(self, settled: Settled) {
        self.end(Ending::Settled(settled), None);
    }

    fn end(mut self, ending: Ending, reply: Option<oneshot::Sender<Result<(), SettleError>>>) {
        self.is_open = false;
        let held = self.held.clone();
        // Refused, the reply is dropped with it, which says that the store is closed.
        self.shared.inbox.send(Command::Settle {
            held,
            ending,
            reply,
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_open {
            self.shared.inbox.send(Command::Settle {
                held: self.held.clone(),
                ending: Ending::Settled(Settled::Retry {
                    after: duration(AFTER_INTERRUPTION),
                    status: None,
                    error: "the attempt was interrupted".to_owned(),
                }),
                reply: None,
            });
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("id", &self.held.id)
            .field("attempt", &self.held.attempt)
            .finish_non_exhaustive()
    }
}

/// Why an attempt's end was not noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleError {
    /// The store is broken or closed: the attempt is repeated after the next start.
    Broken,
    /// The event is not this lease's any more: nothing was changed.
    Stale,
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken => "the store is broken or closed",
            Self::Stale => "the event is not this lease's any more",
        })
    }
}

impl std::error::Error for SettleError {}
