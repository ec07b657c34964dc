//! The thread that keeps the store small: it folds the log in while the writer goes on, and finds
//! what is over for the writer to remove, a little at a time.

use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, wal::CheckpointMode};

use super::{
    Broken,
    clock::{Millis, millis},
    directory::Files,
    inbox::{Command, Purge},
    shared::{Account, Shared},
    sqlite::{
        purge::{self, KeyCursor, STEP},
        tally::positive,
    },
};

/// How often the log is looked at.
const TICK: Duration = Duration::from_millis(50);
/// The log's length in pages from which it is folded in: 4 MiB.
const LOG_PAGES: u32 = 1024;
/// What is left for the writer, in pages, and how often that is tried for: under load each pass is
/// shorter than the one before.
const REST_PAGES: u32 = 256;
const PASSES: u32 = 4;
/// How often what is over is looked for.
const PURGE_EVERY: Duration = Duration::from_secs(1);
/// How long a sweep through all keys rests when it is through.
const SWEEP_REST: Duration = Duration::from_secs(60);
/// Parts in 16 of `max_stored_bytes` from which the oldest go early, and down to which.
const EARLY: (u64, u64) = (15, 14);

/// The keeper's own.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    connection: Connection,
    files: Files,
    folded: u32,
    purged: Instant,
    sweep: KeyCursor,
    sweep_from: Instant,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, connection: Connection, files: Files) -> Self {
        let now = Instant::now();
        Self {
            shared,
            connection,
            files,
            folded: 0,
            purged: now,
            sweep: KeyCursor::default(),
            sweep_from: now,
        }
    }

    /// Works until the store is closed or broken. Unparking the thread ends a tick early.
    pub(super) fn run(mut self) {
        while !self.shared.is_over() {
            std::thread::park_timeout(TICK);
            if let Err(error) = self.tick() {
                self.shared.fault(&error);
            }
        }
    }

    fn tick(&mut self) -> rusqlite::Result<()> {
        if let Some(missing) = self.shared.dir.missing(&self.files) {
            self.shared.break_off(Broken {
                cause: format!("{} was removed or replaced", missing.display()),
            });
            return Ok(());
        }
        let pages = self.shared.log_pages.load(Ordering::Relaxed);
        // The same length again: nothing was written since, or as good as nothing.
        if pages > LOG_PAGES && pages != self.folded {
            self.fold()?;
        }
        if self.purged.elapsed() >= PURGE_EVERY && self.shared.storage_fault().is_none() {
            self.purged = Instant::now();
            for account in self.shared.accounts() {
                self.purge(&account);
            }
            self.sweep()?;
        }
        Ok(())
    }

    /// Folds the log in beside the writer, then has the writer fold in the rest between two
    /// transactions: only a log that is folded in whole begins anew, and the less is left for the
    /// writer, the less its commits wait.
    fn fold(&mut self) -> rusqlite::Result<()> {
        for _ in 0..PASSES {
            let folded = self
                .connection
                .wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE);
            let done = match folded {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => break,
                folded => u32::try_from(folded?.1).unwrap_or_default(),
            };
            // SQLite syncs the file only when a pass reached the log's end, which beside a busy
            // writer only the writer's own does: then little must be left to be synced.
            if let Err(error) = self.shared.file.sync_data() {
                self.shared.break_off(Broken {
                    cause: format!("the store's file could not be synced: {error}"),
                });
                break;
            }
            self.folded = self.shared.log_pages.load(Ordering::Relaxed);
            if self.folded.saturating_sub(done) < REST_PAGES {
                if self.folded > LOG_PAGES {
                    self.shared.fold_rest.store(true, Ordering::Relaxed);
                }
                break;
            }
        }
        Ok(())
    }

    /// Removes what an endpoint need not keep, then what it has no room for.
    fn purge(&self, account: &Arc<Account>) {
        let (now, book) = (self.shared.clock.now(), account.book());
        let Some(limits) = book.limits else { return };
        if positive(book.tally.quarantined.bytes) > limits.quarantine_bytes {
            self.ask(|reply| Command::Purge {
                account: account.clone(),
                purge: Purge::Quarantine,
                reply,
            });
        }
        let over = |keep: Duration| now.saturating_sub(millis(keep));
        self.remove(account, false, over(limits.keep_delivered), u64::MAX);
        self.remove(account, true, over(limits.keep_dead), u64::MAX);

        let excess = |(_, low): (u64, u64)| {
            let low = limits.stored_bytes / 16 * low;
            account.book().tally.stored_bytes().saturating_sub(low)
        };
        if account.book().tally.stored_bytes() <= limits.stored_bytes / 16 * EARLY.0 {
            return;
        }
        self.remove(account, false, Millis::MAX, excess(EARLY));
        let dead = match excess(EARLY) {
            0 => 0,
            excess => self.remove(account, true, Millis::MAX, excess),
        };
        if dead > 0 {
            let endpoint = account.name.as_str();
            tracing::warn!(
                endpoint,
                dead,
                "dead letters went early: max_stored_bytes is near"
            );
        }
    }

    /// Removes delivered or dead events, in steps, until `bytes` are free or none is left.
    fn remove(&self, account: &Arc<Account>, dead: bool, until: Millis, bytes: u64) -> u64 {
        let tally = account.book().tally;
        let held = if dead { tally.dead } else { tally.delivered };
        if held.events <= 0 || bytes == 0 {
            return 0;
        }
        let (mut removed, before) = (0, tally.stored_bytes());
        loop {
            let freed = before.saturating_sub(account.book().tally.stored_bytes());
            let purge = Purge::Events {
                dead,
                until,
                bytes: bytes.saturating_sub(freed),
            };
            let count = self.ask(|reply| Command::Purge {
                account: account.clone(),
                purge,
                reply,
            });
            removed += count;
            // Fewer than a step: the bytes are free, or nothing more is over.
            if count < u64::from(STEP) {
                return removed;
            }
        }
    }

    /// Takes the next step of the sweep through the keys.
    fn sweep(&mut self) -> rusqlite::Result<()> {
        if self.sweep_from > Instant::now() {
            return Ok(());
        }
        let now = self.shared.clock.now();
        let (keys, next) = purge::expired_keys(&self.connection, self.sweep, now)?;
        if !keys.is_empty() {
            self.ask(|reply| Command::Sweep { keys, reply });
        }
        if next.is_none() {
            self.sweep_from = Instant::now() + SWEEP_REST;
        }
        self.sweep = next.unwrap_or_default();
        Ok(())
    }

    /// Has the writer do something, and waits for it; 0 when it does not.
    fn ask(&self, command: impl FnOnce(SyncSender<u64>) -> Command) -> u64 {
        let (reply, answer) = sync_channel(1);
        self.shared.inbox.send(command(reply));
        answer.recv().unwrap_or_default()
    }
}
