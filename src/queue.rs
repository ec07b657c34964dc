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

mod arrivals;
mod backup;
mod clock;
mod directory;
mod endpoint;
mod event;
mod fault;
mod inbox;
mod keeper;
mod lease;
mod operate;
mod outage;
mod outcome;
mod reader;
mod recall;
mod record;
mod shared;
mod sqlite;
#[cfg(test)]
mod tests;
mod threads;
mod wal;
mod writer;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::oneshot;
use uuid::Uuid;

use self::{
    inbox::{Change, Command},
    shared::Shared,
    sqlite::{
        operate::{self as ask, CorruptRow},
        tally::positive,
    },
    threads::Threads,
};

pub use self::{
    arrivals::Arrivals,
    directory::exposed,
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
    recall::Taken,
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
///
/// The default hears nothing.
pub struct Observer {
    /// After each commit.
    pub committed: Box<dyn Fn(Committed) + Send + Sync>,
    /// After a record was found that is not what was written; its event is a dead letter.
    pub corrupt_record: Box<dyn Fn(&EndpointName) + Send + Sync>,
    /// At the start, before anything is delivered: some of what was acknowledged is lost.
    pub damaged_log: Box<dyn Fn(&DamagedLog) + Send + Sync>,
}

/// A log that is not what was written, and ends the earlier for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedLog {
    /// How many of its bytes are sound.
    pub at: u64,
    /// Transactions behind them that were acknowledged, at the least; each holds one event or
    /// more, or how attempts ended.
    pub lost: u64,
    /// The log as it was found; `None`: so many are kept already that this one was not.
    pub copy: Option<PathBuf>,
}

impl std::fmt::Display for DamagedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { at, lost, copy } = self;
        write!(
            f,
            "the store's log is damaged behind byte {at}: at least {lost} transactions that were \
             acknowledged are lost, events in them perhaps; the store was checked and goes on \
             without them. Look after the disk, and have senders send again what they sent last \
             before this start; the log as it was found "
        )?;
        match copy {
            Some(copy) => write!(f, "is kept in {}", copy.display()),
            None => {
                f.write_str("was not kept: there are nine others beside the store, remove them")
            }
        }
    }
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

impl Default for Observer {
    fn default() -> Self {
        Self {
            committed: Box::new(|_| ()),
            corrupt_record: Box::new(|_| ()),
            damaged_log: Box::new(|_| ()),
        }
    }
}

/// Most events in one page of a listing.
const PAGE_LIMIT: usize = 1000;
/// Most quarantined requests given out at a time: they come with their bodies.
const QUARANTINED_LIMIT: usize = 100;
/// Most rows an operator's change touches in one transaction.
const CHANGE_STEP: usize = 500;

/// The queue; cheap to clone, for every thread. Its threads end after [`Queue::close`], or when the
/// last of it and of its [`Endpoint`]s is dropped, which waits for them.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
    /// Ended with the last handle.
    threads: Arc<Threads>,
}

impl Queue {
    /// Opens the store in a directory, or makes one there; takes back all leases. Blocks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path, options: Options) -> Result<Self, OpenError> {
        let (shared, threads) = Threads::start(dir, options)?;
        Ok(Self {
            shared,
            threads: Arc::new(threads),
        })
    }

    /// Whether there is a store in a directory, or what is left of one.
    pub fn is_in(dir: &Path) -> bool {
        directory::holds_store(dir)
    }

    /// Tells of every key that is taken with a body known, in no order, looking at no more than
    /// `limit` keys. `false`: there are more. Blocks; for the start.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn taken(
        &self,
        limit: u64,
        each: impl FnMut(&EndpointName, Taken),
    ) -> Result<bool, OpenError> {
        recall::taken(&self.shared, limit, each)
    }

    /// The handle on an endpoint. `limits` replace those given before, for all its handles; `None`
    /// leaves them. Of an endpoint that never was given any nothing is purged.
    pub fn endpoint(&self, name: &EndpointName, limits: Option<Limits>) -> Endpoint {
        let account = self.shared.account(name);
        if let Some(limits) = limits {
            account.set_limits(limits);
        }
        Endpoint::new(self.shared.clone(), account, self.threads.clone())
    }

    /// The secret that keyed digests and fingerprints are made with, kept in the store so that they
    /// mean the same after a restart.
    pub fn hash_secret(&self) -> [u64; 2] {
        self.shared.hash_secret
    }

    /// Resolves when the store is broken: answer 503, then exit with 1.
    pub async fn broken(&self) -> Broken {
        self.shared.broken().await
    }

    /// Why nothing can be appended at the moment, for readiness; `None`: it can.
    pub fn trouble(&self) -> Option<Refused> {
        self.shared.refusal()
    }

    /// Records of all events and quarantined requests, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        let accounts = self.shared.accounts();
        let bytes = accounts.iter().map(|account| {
            let tally = account.book().tally;
            tally.stored_bytes() + positive(tally.quarantined.bytes)
        });
        bytes.sum()
    }

    /// What each endpoint holds, as far as memory tells: events that wait, those leased included,
    /// and events given up.
    pub fn depths(&self) -> BTreeMap<String, (u64, u64)> {
        let accounts = self.shared.accounts().into_iter();
        let depths = accounts.map(|account| {
            let stats = account.stats(None);
            let waiting = stats.pending + stats.leased;
            (stats.endpoint.to_string(), (waiting, stats.dead))
        });
        depths.collect()
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
        let page = self
            .page(filter.clone(), from, limit.clamp(1, PAGE_LIMIT))
            .await;
        Ok(page?.1)
    }

    /// A page with its events' rows.
    async fn page(
        &self,
        filter: Filter,
        from: Cursor,
        limit: usize,
    ) -> Result<(Vec<i64>, Page), OperateError> {
        let ask = move |connection: &_, shared: &Arc<Shared>| {
            ask::list(connection, shared, &filter, from, limit)
        };
        self.shared.desk.ask(ask).await
    }

    /// One event; its record only when asked for. `None`: there is none of this id.
    ///
    /// # Errors
    /// See [`OperateError`].
    pub async fn show(&self, id: Uuid, with_record: bool) -> Result<Option<Detail>, OperateError> {
        let ask = move |connection: &_, shared: &Arc<Shared>| {
            ask::show(connection, shared, id, with_record)
        };
        let shown = self.shared.desk.ask(ask).await?;
        shown.map_err(|CorruptRow| OperateError::Unreadable(id))
    }

    /// Makes dead and delivered events pending again, due at once, with their attempts going on
    /// from where they were; of a lane the earlier ones go first again. Pending ones become due
    /// at once. Leased ones are left. Returns how many changed.
    ///
    /// # Errors
    /// See [`OperateError`]; some may have been changed before.
    pub async fn replay(&self, selection: &Selection) -> Result<u64, OperateError> {
        self.change_all(selection, Change::Replay).await
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
        let change = |rows| Change::Drop { rows, keep_key };
        self.change_all(selection, change).await
    }

    /// What each endpoint holds, by name; at most a second old.
    ///
    /// # Errors
    /// See [`OperateError`].
    pub async fn stats(&self) -> Result<Vec<Stats>, OperateError> {
        let ask = |connection: &_, shared: &Arc<Shared>| {
            let now = shared.clock.now();
            let accounts = shared.accounts().into_iter();
            let stats = accounts.map(|account| {
                let oldest = ask::oldest(connection, &account)?;
                Ok(account.stats(oldest.map(|at| clock::duration(now.saturating_sub(at)))))
            });
            stats.collect()
        };
        self.shared.desk.ask(ask).await
    }

    /// Makes an endpoint accept and hold, or go on; kept over restarts.
    ///
    /// # Errors
    /// See [`OperateError`].
    pub async fn pause(&self, endpoint: &EndpointName, paused: bool) -> Result<(), OperateError> {
        let account = self.shared.account(endpoint);
        let pause = |reply| Command::Pause {
            account,
            paused,
            reply,
        };
        self.command(pause).await
    }

    /// Writes a consistent copy to a file that must not exist, while running.
    ///
    /// # Errors
    /// See [`OperateError`]; an unfinished copy is removed.
    pub async fn backup(&self, to: PathBuf) -> Result<(), OperateError> {
        let ask = move |_: &_, shared: &Arc<Shared>| Ok(backup::backup(shared, &to));
        self.shared.desk.ask(ask).await?
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
        let account = self.shared.account(endpoint);
        let limit = limit.min(QUARANTINED_LIMIT);
        let ask = move |connection: &_, _: &_| ask::quarantined(connection, &account, after, limit);
        self.shared.desk.ask(ask).await
    }

    /// Removes quarantined requests. Returns how many went.
    ///
    /// # Errors
    /// See [`OperateError`].
    pub async fn discard_quarantined(&self, numbers: Vec<i64>) -> Result<u64, OperateError> {
        self.change(Change::DiscardQuarantined(numbers)).await
    }

    /// Takes nothing more, writes what it has taken, ends its threads. Leases that are not settled
    /// by then are void at the next start.
    pub async fn close(&self) {
        self.shared.close();
        self.shared.after_writer().await;
    }

    /// Applies a change to all that are selected, in steps.
    async fn change_all(
        &self,
        selection: &Selection,
        change: impl Fn(Vec<i64>) -> Change,
    ) -> Result<u64, OperateError> {
        let mut changed = 0;
        match selection {
            Selection::Ids(ids) => {
                for ids in ids.chunks(CHANGE_STEP) {
                    let ids = ids.to_vec();
                    let ask = move |connection: &_, _: &_| ask::rows_of(connection, &ids);
                    let rows = self.shared.desk.ask(ask).await?;
                    changed += self.change(change(rows)).await?;
                }
            }
            Selection::All(filter) => {
                let mut next = Some(Cursor::default());
                while let Some(from) = next {
                    let (rows, page) = self.page(filter.clone(), from, CHANGE_STEP).await?;
                    next = page.next;
                    if !rows.is_empty() {
                        changed += self.change(change(rows)).await?;
                    }
                }
            }
        }
        Ok(changed)
    }

    async fn change(&self, change: Change) -> Result<u64, OperateError> {
        self.command(|reply| Command::Change { change, reply })
            .await
    }

    async fn command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, OperateError>>) -> Command,
    ) -> Result<T, OperateError> {
        let (reply, answer) = oneshot::channel();
        // Refused, the reply is dropped with the command.
        self.shared.inbox.send(command(reply));
        answer.await.unwrap_or(Err(OperateError::Broken))
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}
