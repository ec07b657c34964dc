//! What the writer is asked to do, in the order it was asked.
//!
//! Bounded by what may ask: appends hold a place, settlements a lease, the rest waits for its
//! answer before it asks again.

use std::{
    collections::VecDeque,
    convert::Infallible,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use uuid::Uuid;

use super::{
    AppendError, Fingerprint, Key, Keyed, Lease, Leases, OperateError, Refused, SettleError,
    Settled, arrivals::Threshold, clock::Millis, lease::Held, shared::Account,
};

/// Most commands in one transaction.
pub(super) const BATCH_COMMANDS: usize = 256;
/// Most bytes of records in one transaction; one record may exceed it.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// An event as the writer takes it.
pub(super) struct Entry {
    pub(super) id: Uuid,
    pub(super) key: Option<Keyed>,
    pub(super) event_type: Option<String>,
    pub(super) lane: Option<[u8; 16]>,
    pub(super) crc: u32,
    pub(super) record: Bytes,
    pub(super) quarantined: Option<i64>,
    /// Its first attempt is running.
    pub(super) leased: bool,
}

/// A request for the quarantine as the writer takes it.
pub(super) struct Suspect {
    pub(super) id: Uuid,
    pub(super) reason: &'static str,
    pub(super) crc: u32,
    pub(super) record: Bytes,
}

/// What became of an append. Who appended hears nothing of `E`.
pub(super) struct Accepted<L, E = Infallible> {
    /// The key came with another body before.
    pub(super) key_reused: bool,
    pub(super) outcome: Taking<L, E>,
}

/// Whether an event was taken, and how.
pub(super) enum Taking<L, E = Infallible> {
    Duplicate,
    /// Leased to who expected it.
    Expected(E),
    /// Leased to who appended it.
    Leased(L),
    Queued,
}

/// How a lease ends.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// No attempt was made.
    HandedBack {
        delay: Option<Duration>,
    },
    Settled(Settled),
}

/// A change an operator asks for, by rows.
#[derive(Clone, Debug)]
pub(super) enum Change {
    DiscardQuarantined(Vec<i64>),
    Drop { rows: Vec<i64>, keep_key: bool },
    Replay(Vec<i64>),
}

/// What of one endpoint may go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purge {
    /// Delivered or dead events.
    Events {
        dead: bool,
        /// Those that have been so since then or longer.
        until: Millis,
        /// No more than needed to free so many bytes.
        bytes: u64,
    },
    /// Quarantined requests beyond the bound.
    Quarantine,
}

/// An event that was expected, and where.
pub(super) type Expected = (Held, Arc<Threshold>);

type Reply<T> = oneshot::Sender<T>;

/// One thing to do.
pub(super) enum Command {
    Append {
        account: Arc<Account>,
        entry: Box<Entry>,
        /// The place, given back with the answer.
        place: OwnedSemaphorePermit,
        reply: Reply<Result<Accepted<Lease>, AppendError>>,
    },
    Change {
        change: Change,
        reply: Reply<Result<u64, OperateError>>,
    },
    Forget {
        account: Arc<Account>,
        key: Key,
        reply: Reply<Result<(), Refused>>,
    },
    Lease {
        account: Arc<Account>,
        limit: usize,
        /// Where what is missing is expected.
        rest: Option<Arc<Threshold>>,
        reply: Reply<Result<Leases, Refused>>,
    },
    Pause {
        account: Arc<Account>,
        paused: bool,
        reply: Reply<Result<(), OperateError>>,
    },
    Purge {
        account: Arc<Account>,
        purge: Purge,
        reply: std::sync::mpsc::SyncSender<u64>,
    },
    Quarantine {
        account: Arc<Account>,
        suspect: Box<Suspect>,
        /// Held until it is written.
        _place: OwnedSemaphorePermit,
    },
    Remember {
        account: Arc<Account>,
        key: Key,
        body: Option<Fingerprint>,
        window: Duration,
        reply: Reply<Result<(), Refused>>,
    },
    Settle {
        held: Held,
        ending: Ending,
        reply: Option<Reply<Result<(), SettleError>>>,
    },
    Sweep {
        /// Endpoint rows and keys that were found expired.
        keys: Vec<(i64, [u8; 16])>,
        reply: std::sync::mpsc::SyncSender<u64>,
    },
}

impl Command {
    /// Whether it brings something new: such a command fails while the disk takes nothing, the
    /// others go on without it.
    pub(super) fn is_ingest(&self) -> bool {
        match self {
            Self::Append { .. }
            | Self::Forget { .. }
            | Self::Quarantine { .. }
            | Self::Remember { .. } => true,
            Self::Change { .. }
            | Self::Lease { .. }
            | Self::Pause { .. }
            | Self::Purge { .. }
            | Self::Settle { .. }
            | Self::Sweep { .. } => false,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Append { entry, .. } => entry.record.len(),
            Self::Quarantine { suspect, .. } => suspect.record.len(),
            Self::Change { .. }
            | Self::Forget { .. }
            | Self::Lease { .. }
            | Self::Pause { .. }
            | Self::Purge { .. }
            | Self::Remember { .. }
            | Self::Settle { .. }
            | Self::Sweep { .. } => 0,
        }
    }
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    commands: VecDeque<Command>,
    is_closed: bool,
    is_writer_asleep: bool,
}

/// What the writer is given.
pub(super) enum Batch {
    /// Nothing waits and nothing will.
    Closed,
    /// For one transaction.
    Commands(Vec<Command>),
    /// Nothing came in time.
    Nothing,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a command over. `false`: nothing is taken any more, and the command was dropped.
    pub(super) fn send(&self, command: Command) -> bool {
        let mut waiting = self.lock();
        if waiting.is_closed {
            return false;
        }
        waiting.commands.push_back(command);
        let wake = mem::take(&mut waiting.is_writer_asleep);
        drop(waiting);
        if wake {
            self.arrived.notify_one();
        }
        true
    }

    /// Whether the writer waits for something to do.
    pub(super) fn is_writer_idle(&self) -> bool {
        self.lock().is_writer_asleep
    }

    /// How many commands wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().commands.len()
    }

    /// Takes nothing more; what waits is still given out.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_one();
    }

    /// The next commands for one transaction, as they came; waits at most `patience` for one.
    pub(super) fn batch(&self, patience: Duration) -> Batch {
        let mut waiting = self.lock();
        if waiting.commands.is_empty() && !waiting.is_closed {
            waiting.is_writer_asleep = true;
            let idle = |w: &mut Waiting| w.commands.is_empty() && !w.is_closed;
            let woken = self.arrived.wait_timeout_while(waiting, patience, idle);
            (waiting, _) = woken.unwrap_or_else(PoisonError::into_inner);
            waiting.is_writer_asleep = false;
        }
        if waiting.commands.is_empty() {
            return if waiting.is_closed {
                Batch::Closed
            } else {
                Batch::Nothing
            };
        }
        let (mut bytes, mut count) = (0, 0);
        for command in waiting.commands.iter().take(BATCH_COMMANDS) {
            bytes += command.bytes();
            if count > 0 && bytes > BATCH_BYTES {
                break;
            }
            count += 1;
        }
        Batch::Commands(waiting.commands.drain(..count).collect())
    }
}
