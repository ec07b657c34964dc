//! What the handles and the store's threads have in common.

use std::{
    collections::BTreeMap,
    fs::File,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore, watch};

use super::{
    Bound, Broken, Limits, Observer, Refused, Stats, StorageFault,
    arrivals::Threshold,
    clock::Clock,
    directory::DataDir,
    fault::Fault,
    inbox::Inbox,
    reader::Desk,
    sqlite::tally::{Tally, positive},
};
use crate::endpoint::EndpointName;

/// One endpoint's account: what it may hold and what it holds.
pub(super) struct Account {
    pub(super) name: EndpointName,
    /// `endpoint.id`; 0: it has no row yet.
    pub(super) id: AtomicI64,
    pub(super) paused: AtomicBool,
    /// Told when an event may be due that was not.
    pub(super) changed: Notify,
    /// No live event has a lower number; see `Stats::oldest_age`.
    pub(super) oldest: AtomicI64,
    /// Where arriving events are expected, if anywhere.
    threshold: Mutex<Option<Arc<Threshold>>>,
    book: Mutex<Book>,
}

/// The part of an account that changes together.
#[derive(Clone, Copy)]
pub(super) struct Book {
    /// `None`: nobody has said; nothing is refused and nothing is removed.
    pub(super) limits: Option<Limits>,
    /// As of the last commit.
    pub(super) tally: Tally,
    /// Records handed to the writer and not yet answered, in bytes.
    incoming: u64,
}

impl Account {
    pub(super) fn new(name: EndpointName, id: i64, paused: bool, tally: Tally) -> Self {
        Self {
            name,
            id: AtomicI64::new(id),
            paused: AtomicBool::new(paused),
            changed: Notify::new(),
            oldest: AtomicI64::new(0),
            threshold: Mutex::default(),
            book: Mutex::new(Book {
                limits: None,
                tally,
                incoming: 0,
            }),
        }
    }

    fn threshold(&self) -> MutexGuard<'_, Option<Arc<Threshold>>> {
        let threshold = self.threshold.lock();
        threshold.unwrap_or_else(PoisonError::into_inner)
    }

    /// Where arriving events are expected from now on.
    pub(super) fn new_threshold(&self) -> Arc<Threshold> {
        self.threshold().insert(Arc::default()).clone()
    }

    /// Where one that arrives is expected, if it is.
    pub(super) fn expecting(&self) -> Option<Arc<Threshold>> {
        if self.paused.load(Ordering::Relaxed) {
            return None;
        }
        let threshold = self.threshold();
        threshold.as_ref().filter(|t| t.take_expected()).cloned()
    }

    /// What an operator sees of it.
    pub(super) fn stats(&self, oldest_age: Option<Duration>) -> Stats {
        let tally = self.book().tally;
        Stats {
            endpoint: self.name.clone(),
            paused: self.paused.load(Ordering::Relaxed),
            pending: positive(tally.pending.events),
            leased: positive(tally.leased.events),
            dead: positive(tally.dead.events),
            delivered: positive(tally.delivered.events),
            pending_bytes: tally.live_bytes(),
            stored_bytes: tally.stored_bytes(),
            quarantined: positive(tally.quarantined.events),
            quarantined_bytes: positive(tally.quarantined.bytes),
            oldest_age,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn book(&self) -> Book {
        *self.lock()
    }

    pub(super) fn set_limits(&self, limits: Limits) {
        self.lock().limits = Some(limits);
    }

    /// Takes over what a commit changed.
    pub(super) fn committed(&self, change: &Tally) {
        self.lock().tally.apply(change);
    }

    /// Whether a record of `bytes` fits.
    pub(super) fn has_room(&self, bytes: u64) -> Result<(), Refused> {
        self.lock().has_room(bytes)
    }

    /// Counts a record on its way to the writer, if it fits.
    pub(super) fn admit(&self, bytes: u64) -> Result<(), Refused> {
        let mut book = self.lock();
        book.has_room(bytes)?;
        book.incoming += bytes;
        Ok(())
    }

    /// Takes back what [`Account::admit`] counted: it is in the tally now, or it failed.
    pub(super) fn arrived(&self, bytes: u64) {
        let mut book = self.lock();
        book.incoming = book.incoming.saturating_sub(bytes);
    }
}

impl Book {
    /// Quarantined requests that may be kept, in bytes.
    pub(super) fn quarantine_bytes(&self) -> u64 {
        self.limits.map_or(0, |limits| limits.quarantine_bytes)
    }

    /// Records that make no room for new ones at once, in bytes: delivered ones do.
    fn kept_bytes(&self) -> u64 {
        let delivered = positive(self.tally.delivered.bytes);
        self.tally.stored_bytes().saturating_sub(delivered)
    }

    fn has_room(&self, bytes: u64) -> Result<(), Refused> {
        let Some(limits) = &self.limits else {
            return Ok(());
        };
        let more = self.incoming.saturating_add(bytes);
        if self.tally.live_bytes().saturating_add(more) > limits.pending_bytes {
            Err(Refused::Full(Bound::PendingBytes))
        } else if self.kept_bytes().saturating_add(more) > limits.stored_bytes {
            Err(Refused::Full(Bound::StoredBytes))
        } else {
            Ok(())
        }
    }
}

/// Everything but the threads.
pub(super) struct Shared {
    pub(super) dir: DataDir,
    /// The store's file. Open until all connections are closed: closing it would give back the
    /// locks SQLite holds on it in this process.
    pub(super) file: File,
    pub(super) clock: Clock,
    pub(super) hash_secret: [u64; 2],
    pub(super) observer: Observer,
    pub(super) inbox: Inbox,
    pub(super) desk: Desk,
    pub(super) places: Arc<Semaphore>,
    pub(super) quarantine_places: Arc<Semaphore>,
    /// The log's length after the last commit, in pages.
    pub(super) log_pages: AtomicU32,
    /// The writer's batches are large of late.
    pub(super) is_writer_busy: AtomicBool,
    /// Little of the log is left to be folded in: the writer does it after its next commit.
    pub(super) fold_rest: AtomicBool,
    /// Held while the keeper folds the log in.
    folding: Mutex<()>,
    accounts: Mutex<BTreeMap<EndpointName, Arc<Account>>>,
    trouble: watch::Sender<Option<Trouble>>,
    writer_ended: watch::Sender<bool>,
}

/// Why nothing is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Broken(Broken),
    Closed,
    Storage(StorageFault),
}

impl Trouble {
    fn refused(&self) -> Refused {
        match self {
            Self::Broken(_) | Self::Closed => Refused::Broken,
            Self::Storage(fault) => Refused::Storage(*fault),
        }
    }
}

/// What the parts of [`Shared`] are made from.
pub(super) struct Parts {
    pub(super) dir: DataDir,
    pub(super) file: File,
    pub(super) clock: Clock,
    pub(super) hash_secret: [u64; 2],
    pub(super) observer: Observer,
    pub(super) desk: Desk,
    pub(super) places: usize,
    pub(super) accounts: Vec<Account>,
}

/// Quarantined requests on their way to the writer: strangers send them, so few.
const QUARANTINE_PLACES: usize = 32;

impl Shared {
    pub(super) fn new(parts: Parts) -> Self {
        let accounts = parts.accounts.into_iter();
        Self {
            dir: parts.dir,
            file: parts.file,
            clock: parts.clock,
            hash_secret: parts.hash_secret,
            observer: parts.observer,
            inbox: Inbox::default(),
            desk: parts.desk,
            places: Arc::new(Semaphore::new(parts.places.min(Semaphore::MAX_PERMITS))),
            quarantine_places: Arc::new(Semaphore::new(QUARANTINE_PLACES)),
            log_pages: AtomicU32::new(0),
            is_writer_busy: AtomicBool::new(false),
            fold_rest: AtomicBool::new(false),
            folding: Mutex::default(),
            accounts: Mutex::new(accounts.map(|a| (a.name.clone(), Arc::new(a))).collect()),
            trouble: watch::Sender::new(None),
            writer_ended: watch::Sender::new(false),
        }
    }

    /// Whether the disk has time for more than the log.
    pub(super) fn has_time_to_fold(&self) -> bool {
        !self.is_writer_busy.load(Ordering::Relaxed) || self.inbox.is_writer_idle()
    }

    /// Waits until nobody folds the log in, and keeps others from it.
    pub(super) fn folding(&self) -> MutexGuard<'_, ()> {
        self.folding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_accounts(&self) -> MutexGuard<'_, BTreeMap<EndpointName, Arc<Account>>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account of an endpoint, opened if there is none.
    pub(super) fn account(&self, name: &EndpointName) -> Arc<Account> {
        self.lock_accounts()
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Account::new(name.clone(), 0, false, Tally::default())))
            .clone()
    }

    /// The account of a row's endpoint.
    pub(super) fn account_of(&self, id: i64) -> Option<Arc<Account>> {
        let accounts = self.lock_accounts();
        let mut all = accounts.values();
        all.find(|a| id != 0 && a.id.load(Ordering::Relaxed) == id)
            .cloned()
    }

    /// All accounts, by name.
    pub(super) fn accounts(&self) -> Vec<Arc<Account>> {
        self.lock_accounts().values().cloned().collect()
    }

    /// Why nothing is taken at the moment.
    pub(super) fn refusal(&self) -> Option<Refused> {
        self.trouble.borrow().as_ref().map(Trouble::refused)
    }

    /// Whether nothing may be acknowledged any more.
    pub(super) fn is_broken(&self) -> bool {
        matches!(&*self.trouble.borrow(), Some(Trouble::Broken(_)))
    }

    /// Whether nothing is taken any more.
    pub(super) fn is_over(&self) -> bool {
        matches!(
            &*self.trouble.borrow(),
            Some(Trouble::Broken(_) | Trouble::Closed)
        )
    }

    /// Why the disk takes nothing at the moment.
    pub(super) fn storage_fault(&self) -> Option<StorageFault> {
        match &*self.trouble.borrow() {
            Some(Trouble::Storage(fault)) => Some(*fault),
            Some(Trouble::Broken(_) | Trouble::Closed) | None => None,
        }
    }

    /// Told by the writer at its end.
    pub(super) fn writer_ended(&self) {
        self.writer_ended.send_replace(true);
    }

    /// Resolves when the writer has ended.
    pub(super) async fn after_writer(&self) {
        let mut ended = self.writer_ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Notes that the disk takes nothing, or takes something again.
    pub(super) fn set_storage(&self, fault: Option<StorageFault>) {
        self.trouble.send_if_modified(|trouble| {
            let next = fault.map(Trouble::Storage);
            let may = !matches!(trouble, Some(Trouble::Broken(_) | Trouble::Closed));
            let changes = may && *trouble != next;
            if changes {
                match fault {
                    Some(fault) => tracing::error!(
                        store = %self.dir.store().display(),
                        %fault,
                        remedy = fault.remedy(),
                        "the queue's store cannot be written, new events are refused"
                    ),
                    None => tracing::info!("the queue's store can be written again"),
                }
                *trouble = next;
            }
            changes
        });
    }

    /// Ends everything: the first cause counts. Nothing is acknowledged after this.
    pub(super) fn break_off(&self, broken: Broken) {
        self.trouble.send_if_modified(|trouble| {
            if matches!(trouble, Some(Trouble::Broken(_))) {
                return false;
            }
            let store = self.dir.store();
            let store = store.display();
            tracing::error!(%store, error = %broken, "nothing is acknowledged any more");
            *trouble = Some(Trouble::Broken(broken));
            true
        });
        if let Err(error) = self.dir.note(true) {
            tracing::error!(%error, "the next start will not know that the store needs a check");
        }
        self.inbox.close();
    }

    /// Takes what an error of SQLite's means.
    pub(super) fn fault(&self, error: &rusqlite::Error) -> Fault {
        let fault = Fault::of(error, &self.dir);
        if let Fault::Broken(broken) = &fault {
            self.break_off(broken.clone());
        }
        fault
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        self.trouble.send_if_modified(|trouble| {
            let may = !matches!(trouble, Some(Trouble::Broken(_)));
            if may {
                *trouble = Some(Trouble::Closed);
            }
            may
        });
        self.inbox.close();
    }

    /// Resolves when the store is broken.
    pub(super) async fn broken(&self) -> Broken {
        let mut trouble = self.trouble.subscribe();
        let found = trouble
            .wait_for(|trouble| matches!(trouble, Some(Trouble::Broken(_))))
            .await;
        match found.as_deref() {
            Ok(Some(Trouble::Broken(broken))) => broken.clone(),
            // The sender lives as long as `self`.
            _ => std::future::pending().await,
        }
    }
}
