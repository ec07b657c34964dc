//! Leasing what is due, and noting how an attempt ended.

use std::sync::Arc;

use rusqlite::{Row, params};
use uuid::Uuid;

use super::{lanes, tally::Bin, text, tx::Tx};
use crate::queue::{
    Settled,
    clock::{Millis, millis},
    inbox::Ending,
    lease::Held,
    shared::Account,
};

/// Attempts kept of one event.
const ATTEMPTS_KEPT: u32 = 20;
/// Longest error text kept, in bytes.
const ERROR_LIMIT: usize = 512;
/// When an event is due again whose attempt was interrupted.
pub(in crate::queue) const AFTER_INTERRUPTION: Millis = 1000;

/// No event is at a later attempt: a number that a flipped bit made large stays where it is, and
/// what waits behind it goes on.
const LAST_ATTEMPT: u32 = i32::MAX as u32;

/// The number of a later attempt.
pub(in crate::queue) fn later(attempt: u32, by: u32) -> u32 {
    attempt.saturating_add(by).min(LAST_ATTEMPT)
}

/// What is read of an event that is leased.
const COLUMNS: &str = "id, uuid, type, created, attempts, replayed_after, bytes, lane";

/// Leases up to `limit` events that are due. Returns them, and when the next is due.
pub(in crate::queue) fn lease(
    tx: &mut Tx<'_>,
    account: &Arc<Account>,
    limit: usize,
) -> rusqlite::Result<(Vec<Held>, Option<Millis>)> {
    let endpoint = tx.endpoint(account)?;
    let due = due(tx.connection, account, endpoint, tx.now, limit)?;
    let mut leased = Vec::with_capacity(due.len());
    for mut held in due {
        // The state is asked of the row again: an index that says otherwise is damaged, and what it
        // says must not be delivered.
        let changed = tx.execute(
            "UPDATE event SET state = 1, at = ?2, attempts = min(attempts + 1, ?4)
             WHERE id = ?1 AND state = 0 AND endpoint = ?3",
            params![held.row, tx.now, endpoint, LAST_ATTEMPT],
        )?;
        if changed != 1 {
            return Err(damaged("an index of the event table does not fit it"));
        }
        held.attempt = later(held.attempt, 1);
        held.tries = later(held.tries, 1);
        tx.count(endpoint, |tally| {
            tally.shift(Bin::Pending, Bin::Leased, held.bytes)
        });
        leased.push(held);
    }
    let next = tx.first(
        "SELECT at FROM event INDEXED BY event_state
         WHERE endpoint = ?1 AND state = 0 ORDER BY at LIMIT 1",
        [endpoint],
        |row| row.get(0),
    )?;
    Ok((leased, next))
}

/// Up to `limit` events that are due, with the attempts made so far.
pub(in crate::queue) fn due(
    connection: &rusqlite::Connection,
    account: &Arc<Account>,
    endpoint: i64,
    now: Millis,
    limit: usize,
) -> rusqlite::Result<Vec<Held>> {
    // The rows come from the index in order. A limit in a parameter would have the statement prepared
    // anew each time.
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM event INDEXED BY event_state
             WHERE endpoint = ?1 AND state = 0 AND at <= ?2 ORDER BY at, id"
        ))?
        .query_map([endpoint, now], |row| held(row, account))?
        .take(limit)
        .collect()
}

fn held(row: &Row<'_>, account: &Arc<Account>) -> rusqlite::Result<Held> {
    let (attempts, replayed_after): (u32, u32) = (row.get(4)?, row.get(5)?);
    Ok(Held {
        account: account.clone(),
        row: row.get(0)?,
        id: Uuid::from_bytes(row.get(1)?),
        event_type: text(row, 2)?,
        appended: row.get(3)?,
        attempt: attempts,
        tries: attempts.saturating_sub(replayed_after),
        resends: 0,
        bytes: row.get(6)?,
        lane: row.get(7)?,
    })
}

/// Makes an event leased whose lease was given out without writing. `false`: it cannot be.
pub(in crate::queue) fn make_leased(tx: &mut Tx<'_>, held: &Held) -> rusqlite::Result<bool> {
    let endpoint = tx.endpoint(&held.account)?;
    let state: Option<i64> =
        tx.first("SELECT state FROM event WHERE id = ?1", [held.row], |row| {
            row.get(0)
        })?;
    match state {
        Some(0) => tx.count(endpoint, |t| t.shift(Bin::Pending, Bin::Leased, held.bytes)),
        Some(1) => {}
        _ => return Ok(false),
    }
    tx.execute(
        "UPDATE event SET state = 1, at = ?2, attempts = ?3 WHERE id = ?1",
        params![held.row, tx.now, held.attempt],
    )?;
    Ok(true)
}

/// Takes back the leases of a process that ended: their attempts count, and they are due at once.
/// Returns how many there were.
pub(in crate::queue) fn void(tx: &mut Tx<'_>, account: &Arc<Account>) -> rusqlite::Result<usize> {
    let endpoint = tx.endpoint(account)?;
    let leased = leased(tx.connection, account, endpoint)?;
    for held in &leased {
        settle(tx, held, &Ending::Settled(ended_with_process()))?;
    }
    Ok(leased.len())
}

/// All events of an endpoint that are leased.
pub(in crate::queue) fn leased(
    connection: &rusqlite::Connection,
    account: &Arc<Account>,
    endpoint: i64,
) -> rusqlite::Result<Vec<Held>> {
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM event INDEXED BY event_state
             WHERE endpoint = ?1 AND state = 1"
        ))?
        .query_map([endpoint], |row| held(row, account))?
        .collect()
}

/// How an attempt ended during which the process did.
pub(in crate::queue) fn ended_with_process() -> Settled {
    Settled::Retry {
        after: std::time::Duration::ZERO,
        status: None,
        error: "hookward ended during the attempt".to_owned(),
    }
}

/// Ends a lease. `false`: it is not the event's any more, and nothing was changed.
pub(in crate::queue) fn settle(
    tx: &mut Tx<'_>,
    held: &Held,
    ending: &Ending,
) -> rusqlite::Result<bool> {
    let endpoint = tx.endpoint(&held.account)?;
    let retry_at = |after| tx.now.saturating_add(millis(after));
    let (state, at, status, error) = match ending {
        Ending::HandedBack { delay } => {
            return hand_back(tx, endpoint, held, delay.map_or(tx.now, retry_at));
        }
        Ending::Settled(Settled::Dead { status, error }) => (3, tx.now, *status, Some(error)),
        Ending::Settled(Settled::Delivered { status }) => (2, tx.now, Some(*status), None),
        Ending::Settled(Settled::Retry {
            after,
            status,
            error,
        }) => (0, retry_at(*after), *status, Some(error)),
    };
    let error = error.map(|error| cut(error, ERROR_LIMIT));
    let changed = tx.execute(
        "UPDATE event SET state = ?3, at = ?4, last_status = ?5, last_error = ?6,
                attempts = min(attempts + ?7, ?8)
         WHERE id = ?1 AND state = 1 AND attempts = ?2",
        params![
            held.row,
            held.attempt,
            state,
            at,
            status,
            error,
            held.resends,
            LAST_ATTEMPT,
        ],
    )?;
    if changed == 0 {
        return Ok(false);
    }
    if let Some(error) = error {
        tx.execute(
            "INSERT OR REPLACE INTO attempt (event, number, at, status, error)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![held.row, held.attempt, tx.now, status, error],
        )?;
        if let Some(too_old) = held.attempt.checked_sub(ATTEMPTS_KEPT) {
            tx.execute(
                "DELETE FROM attempt WHERE event = ?1 AND number <= ?2",
                params![held.row, too_old],
            )?;
        }
    }
    left(tx, endpoint, held, Bin::of(state).unwrap_or(Bin::Pending))?;
    Ok(true)
}

fn hand_back(tx: &mut Tx<'_>, endpoint: i64, held: &Held, at: Millis) -> rusqlite::Result<bool> {
    let changed = tx.execute(
        "UPDATE event SET state = 0, at = ?3, attempts = max(attempts - 1, 0)
         WHERE id = ?1 AND state = 1 AND attempts = ?2",
        params![held.row, held.attempt, at],
    )?;
    if changed > 0 {
        left(tx, endpoint, held, Bin::Pending)?;
    }
    Ok(changed > 0)
}

/// What a lease's end means for the counts, the lane and who waits.
fn left(tx: &mut Tx<'_>, endpoint: i64, held: &Held, to: Bin) -> rusqlite::Result<()> {
    tx.count(endpoint, |tally| tally.shift(Bin::Leased, to, held.bytes));
    if to == Bin::Pending {
        tx.is_due(endpoint);
    }
    match &held.lane {
        Some(lane) => lanes::arrange(tx, endpoint, lane),
        None => Ok(()),
    }
}

/// A text's beginning of at most `limit` bytes.
pub(in crate::queue) fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// What was read cannot be: the same as if SQLite had found the damage.
pub(in crate::queue) fn damaged(what: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
        Some(what.to_owned()),
    )
}
