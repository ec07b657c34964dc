//! The one thread that changes rows: many commands in one transaction, one sync, then the answers.
//!
//! When the disk takes nothing, what is new is refused and what is old goes on: leases and their
//! ends are kept in memory until they can be written, see [`outage`](super::outage).

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rusqlite::{Connection, wal::CheckpointMode};

use super::{
    Broken, Committed, Refused, SettleError, StorageFault,
    clock::millis,
    fault::Fault,
    inbox::{BATCH_COMMANDS, Batch, Command, Taking},
    outage::{Outage, Relayed},
    outcome::{Outcome, answer, apply, fail, hand_out},
    shared::Shared,
    sqlite::tx::{Notes, Tx},
};

/// The log's length in pages from which the writer folds it in itself, whatever that costs the
/// commits that wait meanwhile: the bound the keeper cannot give beside a busy writer.
const LOG_PAGES: u32 = 32 * 1024;
/// How often a disk that takes nothing is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// Commands in a batch from which it is worth while to let more come together for the next one, for how
/// long, and how many are enough. A sync, and the pages that every transaction writes, cost as much for
/// four commands as for twenty; whoever comes alone does not wait.
const SEVERAL: usize = 4;
const REST: Duration = Duration::from_micros(150);
const ENOUGH: usize = BATCH_COMMANDS / 2;
/// Commands in a batch, on average of the last eight or so, from which the log is enough for the disk.
const BUSY: usize = 16;
const LOAD_SCALE: usize = 16;
/// How long the writer sleeps when nothing comes.
const IDLE: Duration = Duration::from_secs(3600);

/// The writer's own.
pub(super) struct Writer {
    shared: Arc<Shared>,
    connection: Connection,
    notes: Notes,
    outage: Outage,
    tried: Instant,
    /// Commands in a batch, on average of late, times [`LOAD_SCALE`].
    load: usize,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        mut connection: Connection,
        notes: Notes,
        outage: Outage,
    ) -> rusqlite::Result<Self> {
        let told = shared.clone();
        connection.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: i32| {
            let pages = pages.try_into().unwrap_or_default();
            told.log_pages.store(pages, Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(Self {
            shared,
            connection,
            notes,
            outage,
            tried: Instant::now(),
            load: 0,
        })
    }

    /// Works until the inbox is closed and empty, or the store breaks.
    pub(super) fn run(mut self) {
        let _last = Last(&self.shared.clone());
        loop {
            let is_troubled = self.shared.refusal().is_some();
            match self
                .shared
                .inbox
                .batch(if is_troubled { RETRY } else { IDLE })
            {
                Batch::Closed => break,
                Batch::Commands(commands) => {
                    let count = commands.len();
                    self.work(commands);
                    self.rest(count);
                }
                Batch::Nothing => {}
            }
            self.recover();
        }
        if self.shared.is_broken() {
            return;
        }
        // What is still in memory only is delivered again after the next start.
        let _ = self.flush();
        // A short log makes the next start quick; that it could not be cut harms nothing.
        if let Err(error) = self
            .connection
            .wal_checkpoint_v2(None::<&str>, CheckpointMode::TRUNCATE)
        {
            self.shared.fault(&error);
        }
    }

    /// Lets more come together after a batch of so many, so that the next sync serves more of them.
    fn rest(&mut self, count: usize) {
        self.load = (self.load * 7 + count * LOAD_SCALE) / 8;
        let is_busy = self.load >= BUSY * LOAD_SCALE;
        self.shared.is_writer_busy.store(is_busy, Ordering::Relaxed);
        if count >= SEVERAL && self.shared.inbox.waiting() < ENOUGH {
            std::thread::sleep(REST);
        }
    }

    /// Does a batch, and answers it.
    fn work(&mut self, commands: Vec<Command>) {
        if self.shared.is_broken() {
            commands.into_iter().for_each(|c| fail(c, None));
            return;
        }
        let fault = if self.outage.is_empty() {
            match self.transact(&commands) {
                Ok(outcomes) => return self.answer(commands, outcomes),
                Err(fault) => fault,
            }
        } else {
            Fault::Storage(
                self.shared
                    .storage_fault()
                    .unwrap_or(StorageFault::DiskFull),
            )
        };
        let Fault::Storage(fault) = fault else {
            commands.into_iter().for_each(|c| fail(c, None));
            return;
        };
        self.shared.set_storage(Some(fault));
        let (ingest, rest): (Vec<_>, Vec<_>) = commands.into_iter().partition(Command::is_ingest);
        for command in ingest {
            self.put_off(&command);
            fail(command, Some(fault));
        }
        if rest.is_empty() {
            return;
        }
        // Overwriting what the log has room for may work where growing it does not.
        if self.outage.is_empty() {
            match self.transact(&rest) {
                Ok(outcomes) => return self.answer(rest, outcomes),
                Err(Fault::Storage(_)) => {}
                Err(Fault::Broken(_)) => {
                    rest.into_iter().for_each(|c| fail(c, None));
                    return;
                }
            }
        }
        for command in rest {
            self.improvise(command, fault);
        }
    }

    /// One transaction, its sync included.
    fn transact(&mut self, commands: &[Command]) -> Result<Vec<Outcome>, Fault> {
        let began = Instant::now();
        let now = self.shared.clock.now();
        let shared = &self.shared;
        let run = || {
            let mut tx = Tx::begin(&self.connection, now, self.notes)?;
            let outcomes: Vec<_> = commands
                .iter()
                .map(|command| apply(&mut tx, shared, command))
                .collect::<rusqlite::Result<_>>()?;
            let (notes, is_dirty) = tx.commit()?;
            Ok((outcomes, notes, is_dirty))
        };
        let (outcomes, notes, is_dirty) = run().map_err(|e: rusqlite::Error| shared.fault(&e))?;
        self.notes = notes;
        if is_dirty {
            let appended = commands
                .iter()
                .zip(&outcomes)
                .filter_map(|pair| match pair {
                    (Command::Append { entry, .. }, Outcome::Appended(Ok(accepted)))
                        if !matches!(accepted.outcome, Taking::Duplicate) =>
                    {
                        Some(entry.record.len())
                    }
                    _ => None,
                });
            let (events, bytes) = appended.fold((0, 0), |(n, sum), len| (n + 1, sum + len));
            (self.shared.observer.committed)(Committed {
                duration: began.elapsed(),
                events,
                bytes: bytes.try_into().unwrap_or(u64::MAX),
            });
        }
        Ok(outcomes)
    }

    fn answer(&self, commands: Vec<Command>, outcomes: Vec<Outcome>) {
        for (command, outcome) in commands.into_iter().zip(outcomes) {
            answer(command, outcome, &self.shared);
        }
        self.fold();
    }

    /// Folds the log in where the keeper asks for it, and where it is as long as it may be: then no
    /// commit comes before the keeper is through, too.
    fn fold(&self) {
        let is_long = self.shared.log_pages.load(Ordering::Relaxed) > LOG_PAGES;
        if !self.shared.fold_rest.swap(false, Ordering::Relaxed) && !is_long {
            return;
        }
        let _folding = is_long.then(|| self.shared.folding());
        let folded = self
            .connection
            .wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE);
        if let Err(error) = folded {
            // Full or held by the keeper: the log stays longer. Anything else breaks the store.
            self.shared.fault(&error);
        }
    }

    /// Holds what is new and can be written later: a key whose event was relayed.
    fn put_off(&mut self, command: &Command) {
        if let Command::Remember {
            account,
            key,
            body,
            window,
            ..
        } = command
        {
            self.outage.remember(Relayed {
                account: account.clone(),
                key: *key,
                body: *body,
                until: self.shared.clock.now().saturating_add(millis(*window)),
            });
        }
    }

    /// Does without the disk what can be done without it.
    fn improvise(&mut self, command: Command, fault: StorageFault) {
        let now = self.shared.clock.now();
        match command {
            Command::Lease {
                account,
                limit,
                reply,
                ..
            } => match self.outage.lease(&self.connection, &account, limit, now) {
                Ok(held) => hand_out(held, Some(RETRY), reply, &self.shared),
                Err(error) => {
                    self.shared.fault(&error);
                    let _ = reply.send(Err(Refused::Broken));
                }
            },
            Command::Settle {
                held,
                ending,
                reply,
            } => {
                let is_held = self.outage.end(held, ending, now);
                if let Some(reply) = reply {
                    let _ = reply.send(is_held.then_some(()).ok_or(SettleError::Stale));
                }
            }
            command @ (Command::Append { .. }
            | Command::Change { .. }
            | Command::Forget { .. }
            | Command::Pause { .. }
            | Command::Purge { .. }
            | Command::Quarantine { .. }
            | Command::Remember { .. }
            | Command::Sweep { .. }) => fail(command, Some(fault)),
        }
    }

    /// Tries a disk that took nothing again, now and then.
    fn recover(&mut self) {
        if self.shared.storage_fault().is_none() || self.tried.elapsed() < RETRY {
            return;
        }
        self.tried = Instant::now();
        match self.shared.dir.why_unwritable() {
            Some(fault) => self.shared.set_storage(Some(fault)),
            None => {
                if self.flush().is_ok() {
                    self.shared.set_storage(None);
                }
            }
        }
    }

    /// Writes what is in memory only.
    fn flush(&mut self) -> Result<(), Fault> {
        let now = self.shared.clock.now();
        let run = || {
            let mut tx = Tx::begin(&self.connection, now, self.notes)?;
            self.outage.write(&mut tx)?;
            tx.touch();
            tx.commit()
        };
        let (notes, _) = run().map_err(|e: rusqlite::Error| self.shared.fault(&e))?;
        self.notes = notes;
        self.outage.clear();
        Ok(())
    }
}

/// Ends everything when the writer ends, be it by a panic.
struct Last<'a>(&'a Arc<Shared>);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.break_off(Broken {
                cause: "the writer ended by a defect of hookward".to_owned(),
            });
        }
        while let Batch::Commands(commands) = self.0.inbox.batch(Duration::ZERO) {
            commands.into_iter().for_each(|c| fail(c, None));
        }
        self.0.writer_ended();
    }
}
