//! One transaction: what it changed besides rows, told to the accounts once it is committed.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::tally::Tally;
use crate::queue::{clock::Millis, shared::Account};

/// How far ahead of the events' numbers the store's row is: it is written once for so many of them.
const NUMBERS_AHEAD: i64 = 64 * 1024;
/// How far ahead the time in the store's row is: nothing is written later than what it says.
const TIME_AHEAD: Millis = 250;

/// What the store knows of itself, and what of it is in its row.
#[derive(Clone, Copy, Debug)]
pub(in crate::queue) struct Notes {
    /// The number of the next event.
    next_id: i64,
    /// The number from which a later process goes on.
    noted_id: i64,
    /// The time at which a later process begins at the earliest.
    noted_time: Millis,
}

impl Notes {
    /// As they were read from the store.
    pub(in crate::queue) fn new(next_id: i64, clock: Millis) -> Self {
        Self {
            next_id,
            noted_id: next_id,
            noted_time: clock,
        }
    }
}

/// A transaction that runs. Dropped without [`Tx::commit`] it is rolled back.
pub(in crate::queue) struct Tx<'a> {
    pub(in crate::queue) connection: &'a Connection,
    pub(in crate::queue) now: Millis,
    notes: Notes,
    is_dirty: Cell<bool>,
    must_note: Cell<bool>,
    is_open: bool,
    room_made: u64,
    /// Per `endpoint.id`.
    touched: BTreeMap<i64, Touched>,
}

struct Touched {
    account: Arc<Account>,
    change: Tally,
    is_due: bool,
    paused: Option<bool>,
    is_live_again: bool,
}

impl<'a> Tx<'a> {
    /// Begins.
    pub(in crate::queue) fn begin(
        connection: &'a Connection,
        now: Millis,
        notes: Notes,
    ) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self {
            connection,
            now,
            notes,
            is_dirty: Cell::new(false),
            must_note: Cell::new(false),
            is_open: true,
            room_made: 0,
            touched: BTreeMap::new(),
        })
    }

    /// Makes the transaction write something even if nothing else does.
    pub(in crate::queue) fn touch(&self) {
        self.is_dirty.set(true);
        self.must_note.set(true);
    }

    /// A number for a new event; never given again.
    pub(super) fn new_id(&mut self) -> i64 {
        self.is_dirty.set(true);
        let id = self.notes.next_id;
        self.notes.next_id += 1;
        id
    }

    /// Runs a cached statement that changes rows; returns how many.
    pub(super) fn execute(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
    ) -> rusqlite::Result<usize> {
        self.is_dirty.set(true);
        self.connection.prepare_cached(sql)?.execute(params)
    }

    /// The first row of a cached query, if there is one.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        self.connection
            .prepare_cached(sql)?
            .query_row(params, read)
            .optional()
    }

    /// An endpoint's row, made if there is none.
    pub(super) fn endpoint(&mut self, account: &Arc<Account>) -> rusqlite::Result<i64> {
        let known = account.id.load(Ordering::Relaxed);
        let id = match known {
            0 => {
                let sql = "SELECT id FROM endpoint WHERE name = ?1";
                let name = account.name.as_str();
                match self.first(sql, [name], |row| row.get(0))? {
                    Some(id) => id,
                    None => {
                        self.execute("INSERT INTO endpoint (name) VALUES (?1)", [name])?;
                        self.connection.last_insert_rowid()
                    }
                }
            }
            known => known,
        };
        self.touched.entry(id).or_insert_with(|| Touched {
            account: account.clone(),
            change: Tally::default(),
            is_due: false,
            paused: None,
            is_live_again: false,
        });
        Ok(id)
    }

    /// Counts for an endpoint; before it, [`Tx::endpoint`] was called.
    pub(super) fn count(&mut self, endpoint: i64, count: impl FnOnce(&mut Tally)) {
        if let Some(touched) = self.touched.get_mut(&endpoint) {
            count(&mut touched.change);
        }
    }

    /// What was counted for an endpoint so far.
    pub(super) fn counted(&self, endpoint: i64) -> Tally {
        self.touched
            .get(&endpoint)
            .map(|t| t.change)
            .unwrap_or_default()
    }

    /// Events removed so far to make room for new ones.
    pub(super) fn room_made(&self) -> u64 {
        self.room_made
    }

    /// Counts events removed to make room.
    pub(super) fn makes_room(&mut self, removed: u64) {
        self.room_made += removed;
    }

    /// An event of an endpoint has got a time it is due at.
    pub(super) fn is_due(&mut self, endpoint: i64) {
        if let Some(touched) = self.touched.get_mut(&endpoint) {
            touched.is_due = true;
        }
    }

    /// An event that was delivered or dead is live again.
    pub(super) fn is_live_again(&mut self, endpoint: i64) {
        if let Some(touched) = self.touched.get_mut(&endpoint) {
            touched.is_live_again = true;
        }
    }

    /// Makes an endpoint accept and hold, or go on.
    pub(in crate::queue) fn pause(
        &mut self,
        account: &Arc<Account>,
        paused: bool,
    ) -> rusqlite::Result<()> {
        let endpoint = self.endpoint(account)?;
        self.execute(
            "UPDATE endpoint SET paused = ?2 WHERE id = ?1",
            params![endpoint, paused],
        )?;
        if let Some(touched) = self.touched.get_mut(&endpoint) {
            (touched.paused, touched.is_due) = (Some(paused), true);
        }
        Ok(())
    }

    /// Writes the store's row, if it must be written. Ahead only for those who go on: a process that
    /// does no more than begin and end must not make time jump, however often it does.
    fn note(&mut self) -> rusqlite::Result<()> {
        let notes = &mut self.notes;
        let is_old = notes.next_id > notes.noted_id || self.now > notes.noted_time;
        let (numbers, time) = match (self.must_note.get(), is_old) {
            // Not what is in the row: SQLite writes nothing where nothing changes.
            (true, _) => (0, 1),
            (false, true) => (NUMBERS_AHEAD, TIME_AHEAD),
            (false, false) => return Ok(()),
        };
        notes.noted_id = notes.next_id.saturating_add(numbers);
        notes.noted_time = self.now.saturating_add(time);
        self.connection
            .prepare_cached("UPDATE store SET next_id = ?1, clock = ?2")?
            .execute([notes.noted_id, notes.noted_time])?;
        Ok(())
    }

    /// Commits and tells the accounts. Returns what to begin the next one with, and whether anything
    /// was written.
    pub(in crate::queue) fn commit(mut self) -> rusqlite::Result<(Notes, bool)> {
        if self.is_dirty.get() {
            for (endpoint, touched) in &self.touched {
                if touched.change != Tally::default() {
                    touched.change.save(self.connection, *endpoint)?;
                }
            }
            self.note()?;
        }
        // Everything in the transaction is on disk when this returns (`synchronous=FULL`): only
        // from here on may any of it be acknowledged.
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        self.is_open = false;
        for (endpoint, touched) in &self.touched {
            let account = &touched.account;
            account.id.store(*endpoint, Ordering::Relaxed);
            account.committed(&touched.change);
            if let Some(paused) = touched.paused {
                account.paused.store(paused, Ordering::Relaxed);
            }
            if touched.is_live_again {
                // From the first row on; another number each time, so that who is looking with the
                // last one notices.
                account.oldest.store(-self.now, Ordering::Relaxed);
            }
            // Of a paused endpoint nothing is due, whatever is appended.
            let may_be_due = touched.is_due && !account.paused.load(Ordering::Relaxed);
            if may_be_due || touched.paused.is_some() {
                account.changed.notify_one();
            }
        }
        Ok((self.notes, self.is_dirty.get()))
    }
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        // After some errors SQLite has rolled back by itself.
        if self.is_open && !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }
}
