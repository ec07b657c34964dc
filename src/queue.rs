//! The durable queue: opaque records, their idempotency keys, and the right to deliver them.
//!
//! An event is *pending* until it is leased, *leased* while an attempt runs, then *delivered*,
//! pending again for a later time, or *dead*; an operator sends dead and delivered ones back to
//! pending. Delivered and dead events are purged when their time is over. The store knows bytes
//! and keys: what a record says, when to try again and when to give up is left to others.
//!
//! What it promises: an append resolves after the commit that holds event and key was synced; an
//! event is leased to one holder at a time, of a lane one event at a time and in order; after an
//! I/O error nothing more is acknowledged.

mod endpoint;
mod event;
mod fault;
mod lease;
mod operate;
mod record;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use uuid::Uuid;

pub use self::{
    endpoint::{Endpoint, Limits, Place},
    event::{
        AppendError, Appended, AppendedLeased, Bound, Fingerprint, Key, Keyed, NewEvent, Refused,
        Seen,
    },
    fault::{Broken, OpenError, StorageFault},
    lease::{Lease, Leases, SettleError, Settled},
    operate::{
        Attempt, CorruptRecord, Cursor, Detail, Filter, OperateError, Page, Quarantined, Selection,
        State, Stats, Summary,
    },
    record::{BadRecord, Record, TooLong},
};
use crate::endpoint::EndpointName;

/// How a queue is run.
pub struct Options {
    /// Appends in progress at a time, reading of their bodies included.
    pub places: usize,
    /// The wall clock's time now. From here on time passes as the monotonic clock says, and it
    /// never begins before the time last written to the store.
    pub wall_clock: SystemTime,
    /// Told of what happens inside.
    pub observer: Observer,
}

/// Callbacks from the store's threads: they must be quick and must not block.
pub struct Observer {
    /// After each commit.
    pub committed: Box<dyn Fn(Committed) + Send + Sync>,
    /// After a record was found that is not what was written; its event is a dead letter.
    pub corrupt_record: Box<dyn Fn(&EndpointName) + Send + Sync>,
}

/// One commit.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// From the transaction's begin to the return of its sync.
    pub duration: Duration,
    /// Events appended.
    pub events: usize,
    /// Bytes of their records.
    pub bytes: u64,
}

/// The queue; cheap to clone, for every thread. When the last clone is dropped, or after
/// [`Queue::close`], its threads end.
#[derive(Clone)]
pub struct Queue {
    dir: Arc<PathBuf>,
}

impl Queue {
    /// Opens the store in a directory, or makes one there; takes back all leases. Blocks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path, options: Options) -> Result<Self, OpenError> {
        let _ = (dir, options);
        unimplemented!()
    }

    /// The handle on an endpoint. `limits` replace those given before, for all its handles;
    /// `None` leaves them.
    pub fn endpoint(&self, name: &EndpointName, limits: Option<Limits>) -> Endpoint {
        let _ = (&self.dir, name, limits);
        unimplemented!()
    }

    /// The secret that keyed digests and fingerprints are made with, kept in the store so that they
    /// mean the same after a restart.
    pub fn hash_secret(&self) -> [u64; 2] {
        unimplemented!()
    }

    /// Resolves when the store is broken: answer 503, then exit with 1.
    pub async fn broken(&self) -> Broken {
        unimplemented!()
    }

    /// Why nothing can be appended at the moment, for readiness; `None`: it can.
    pub fn trouble(&self) -> Option<Refused> {
        unimplemented!()
    }

    /// Records of all events and quarantined requests, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Events from a cursor on (the default: from the first), at most `limit` ≤ 1000.
    ///
    /// # Errors
    /// See [`OperateError`].
    pub async fn list(
        &self,
        filter: &Filter,
        from: Cursor,
        limit: usize,
    ) -> Result<Page, OperateError> {
        let _ = (filter, from, limit);
        unimplemented!()
    }

    /// One event; its record only when asked for. `None`: there is none of this id.
    ///
    /// # Errors
    /// See [`OperateError`].
    pub async fn show(&self, id: Uuid, with_record: bool) -> Result<Option<Detail>, OperateError> {
        let _ = (id, with_record);
        unimplemented!()
    }

    /// Makes dead and delivered events pending again, due at once, with their attempts going on
    /// from where they were; of a lane the earlier ones go first again. Pending ones become due
    /// at once. Leased ones are left. Returns how many changed.
    ///
    /// # Errors
    /// See [`OperateError`]; some may have been changed before.
    pub async fn replay(&self, selection: &Selection) -> Result<u64, OperateError> {
        let _ = selection;
        unimplemented!()
    }

    /// Removes events that are not leased, and frees their keys unless `keep_key`. Returns how
    /// many went.
    ///
    /// # Errors
    /// See [`OperateError`]; some may be gone before.
    pub async fn drop_events(
        &self,
        selection: &Selection,
        keep_key: bool,
    ) -> Result<u64, OperateError> {
        let _ = (selection, keep_key);
        unimplemented!()
    }

    /// What each endpoint holds, by name; at most a second old.
    ///
    /// # Errors
    /// See [`OperateError`].
    pub async fn stats(&self) -> Result<Vec<Stats>, OperateError> {
        unimplemented!()
    }

    /// Makes an endpoint accept and hold, or go on; kept over restarts.
    ///
    /// # Errors
    /// See [`OperateError`].
    pub async fn pause(&self, endpoint: &EndpointName, paused: bool) -> Result<(), OperateError> {
        let _ = (endpoint, paused);
        unimplemented!()
    }

    /// Writes a consistent copy to a file that must not exist, while running.
    ///
    /// # Errors
    /// See [`OperateError`]; an unfinished copy is removed.
    pub async fn backup(&self, to: PathBuf) -> Result<(), OperateError> {
        let _ = to;
        unimplemented!()
    }

    /// Quarantined requests of an endpoint numbered above `after` (first: 0), oldest first, at
    /// most `limit` ≤ 100.
    ///
    /// # Errors
    /// See [`OperateError`].
    pub async fn quarantined(
        &self,
        endpoint: &EndpointName,
        after: i64,
        limit: usize,
    ) -> Result<Vec<Quarantined>, OperateError> {
        let _ = (endpoint, after, limit);
        unimplemented!()
    }

    /// Removes quarantined requests. Returns how many went.
    ///
    /// # Errors
    /// See [`OperateError`].
    pub async fn discard_quarantined(&self, numbers: Vec<i64>) -> Result<u64, OperateError> {
        let _ = numbers;
        unimplemented!()
    }

    /// Takes nothing more, writes what it has taken, ends its threads. Leases that are not settled
    /// by then are void at the next start.
    pub async fn close(&self) {
        unimplemented!()
    }
}
