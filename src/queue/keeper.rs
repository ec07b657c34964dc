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
use rustix::{process::setpriority_process, thread::gettid};

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

/// How often the log is looked at while it grows, and while it does not.
const BUSY_TICK: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_millis(50);
/// Pages worth folding in while the disk has time for it. Few: commits wait for what the disk is busy
/// with, and these keep it busy for one or two of them.
const STEP_PAGES: u32 = 192;
/// Pages from which the log is folded in beside a busy writer. Many: a page that was written a hundred
/// times since is folded in once. A quarter of the writer's own bound, so that a keeper that gets
/// little of the processor is through before the writer has to help itself.
const LONG_PAGES: u32 = 8 * 1024;
/// The log's length in pages from which it is to begin anew: 64 MiB. Seldom, since a commit waits for
/// it; not longer, since the next start after a crash reads the whole log.
const LOG_PAGES: u32 = 16 * 1024;
/// The most that is left for the writer then, in pages.
const REST_PAGES: u32 = 256;
/// How far the keeper stands back where the processors are busy (`nice(2)`).
const NICE: i32 = 5;
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
    /// Pages of the log that are folded in.
    folded: u32,
    /// The last fold came to nothing: somebody reads what lies behind, or the disk takes nothing.
    is_held_up: bool,
    /// When something was folded in.
    folded_at: Instant,
    /// When the files were looked for.
    looked: Instant,
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
            is_held_up: false,
            folded_at: now,
            looked: now,
            purged: now,
            sweep: KeyCursor::default(),
            sweep_from: now,
        }
    }

    /// Works until the store is closed or broken. Unparking the thread ends a tick early.
    pub(super) fn run(mut self) {
        // Where that is forbidden, it takes its share like everyone.
        let _ = setpriority_process(Some(gettid()), NICE);
        while !self.shared.is_over() {
            std::thread::park_timeout(self.until_next());
            if let Err(error) = self.tick() {
                self.shared.fault(&error);
            }
        }
    }

    /// Soon after a fold too: the log is likely to grow on, and what comes together within a longer
    /// tick keeps the disk, and every commit, for as long as it takes to write hundreds of pages. And
    /// most of those who read what lies behind are through in no time.
    fn until_next(&mut self) -> Duration {
        let can_fold = self.unfolded() > STEP_PAGES && !self.is_held_up;
        if can_fold || self.folded_at.elapsed() < TICK {
            BUSY_TICK
        } else {
            TICK
        }
    }

    fn tick(&mut self) -> rusqlite::Result<()> {
        if self.looked.elapsed() >= TICK {
            self.looked = Instant::now();
            if let Some(missing) = self.shared.dir.missing(&self.files) {
                self.shared.break_off(Broken {
                    cause: format!("{} was removed or replaced", missing.display()),
                });
                return Ok(());
            }
        }
        if self.must_fold() {
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

    fn log_pages(&self) -> u32 {
        self.shared.log_pages.load(Ordering::Relaxed)
    }

    /// Pages of the log that are not folded in.
    fn unfolded(&mut self) -> u32 {
        let pages = self.log_pages();
        if pages < self.folded {
            // The writer has begun it anew.
            self.folded = 0;
        }
        pages - self.folded
    }

    /// A little at a time; beside a writer that is busy, much and seldom, and then on until it can be
    /// begun anew.
    fn must_fold(&mut self) -> bool {
        let unfolded = self.unfolded();
        let is_begun = self.folded > LOG_PAGES;
        unfolded > LONG_PAGES
            || is_begun && unfolded > 0
            || unfolded > STEP_PAGES && self.shared.has_time_to_fold()
    }

    /// Folds the log in beside the writer. A long one, of which little is left, the writer folds in
    /// whole between two transactions: only then does it begin anew, and the less is left, the less
    /// its commits wait.
    fn fold(&mut self) -> rusqlite::Result<()> {
        let _folding = self.shared.folding();
        let folded = self
            .connection
            .wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE);
        let done = match folded {
            // The writer is at it, for a moment.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                return Ok(());
            }
            Err(error) => {
                self.is_held_up = true;
                return Err(error);
            }
            Ok((_, done)) => u32::try_from(done).unwrap_or_default(),
        };
        self.is_held_up = done == self.folded;
        if self.is_held_up {
            return Ok(());
        }
        (self.folded, self.folded_at) = (done, Instant::now());
        // SQLite syncs the file only when a pass reached the log's end, which beside a busy writer
        // only the writer's own does: then little must be left to be synced.
        if let Err(error) = self.shared.file.sync_data() {
            self.shared.break_off(Broken {
                cause: format!("the store's file could not be synced: {error}"),
            });
            return Ok(());
        }
        let pages = self.log_pages();
        if pages > LOG_PAGES && pages.saturating_sub(self.folded) < REST_PAGES {
            self.shared.fold_rest.store(true, Ordering::Relaxed);
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
