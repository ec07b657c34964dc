//! Removing what is over: events whose time to be kept is over, keys whose window is.

use std::sync::Arc;

use rusqlite::{Connection, params};

use super::{append, lanes, tally::Bin, tally::positive, tx::Tx};
use crate::queue::{clock::Millis, inbox::Purge, shared::Account, sqlite::append::seconds};

/// Most rows removed in one transaction.
pub(in crate::queue) const STEP: u32 = 500;
/// Most delivered events removed in one transaction to make room for new ones; one step may go
/// beyond.
const ROOM_STEP: u64 = 2000;
/// Keys looked at in one step of a sweep.
const KEYS_STEP: u32 = 4096;

/// Removes up to [`STEP`] events or quarantined requests, the oldest first. Returns how many.
pub(in crate::queue) fn purge(
    tx: &mut Tx<'_>,
    account: &Arc<Account>,
    purge: &Purge,
) -> rusqlite::Result<u64> {
    let endpoint = tx.endpoint(account)?;
    let (state, bin, until, bytes) = match *purge {
        Purge::Events {
            dead: true,
            until,
            bytes,
        } => (3, Bin::Dead, until, bytes),
        Purge::Events {
            dead: false,
            until,
            bytes,
        } => (2, Bin::Delivered, until, bytes),
        Purge::Quarantine => {
            let limit = i64::try_from(account.book().quarantine_bytes()).unwrap_or(i64::MAX);
            return append::trim(tx, account, limit);
        }
    };
    oldest(tx, endpoint, (state, bin), until, bytes)
}

/// Removes delivered events, the oldest first, until a record of `bytes` fits below the endpoint's
/// `stored_bytes`. `false`: it does not, though the transaction removed as many as it may.
pub(super) fn make_room(
    tx: &mut Tx<'_>,
    account: &Arc<Account>,
    bytes: usize,
) -> rusqlite::Result<bool> {
    let endpoint = tx.endpoint(account)?;
    let book = account.book();
    let Some(limits) = book.limits else {
        return Ok(true);
    };
    let mut after = book.tally;
    after.apply(&tx.counted(endpoint));
    let wanted = after
        .stored_bytes()
        .saturating_add(bytes.try_into().unwrap_or(u64::MAX));
    let excess = wanted.saturating_sub(limits.stored_bytes);
    if excess == 0 || after.delivered.events <= 0 {
        // Whether it is kept was decided when it was admitted.
        return Ok(true);
    }
    if tx.room_made() >= ROOM_STEP {
        return Ok(false);
    }
    let removed = oldest(tx, endpoint, (2, Bin::Delivered), Millis::MAX, excess)?;
    tx.makes_room(removed);
    let mut left = book.tally;
    left.apply(&tx.counted(endpoint));
    Ok(after.stored_bytes().saturating_sub(left.stored_bytes()) >= excess)
}

/// Removes up to [`STEP`] events in a state, the oldest first, no more than needed to free `bytes`.
fn oldest(
    tx: &mut Tx<'_>,
    endpoint: i64,
    (state, bin): (i64, Bin),
    until: Millis,
    bytes: u64,
) -> rusqlite::Result<u64> {
    let found: Vec<(i64, i64)> = tx
        .connection
        .prepare_cached(
            "SELECT id, bytes FROM event INDEXED BY event_state
             WHERE endpoint = ?1 AND state = ?2 AND at <= ?3 ORDER BY at, id LIMIT ?4",
        )?
        .query_map(params![endpoint, state, until, STEP], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect::<Result<_, _>>()?;
    let (mut removed, mut freed) = (0, 0);
    for (row, size) in found {
        if freed >= bytes {
            break;
        }
        remove(tx, row)?;
        tx.count(endpoint, |tally| tally.take(bin, size));
        (removed, freed) = (removed + 1, freed + positive(size));
    }
    Ok(removed)
}

fn remove(tx: &mut Tx<'_>, row: i64) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM event WHERE id = ?1", [row])?;
    tx.execute("DELETE FROM payload WHERE id = ?1", [row])?;
    tx.execute("DELETE FROM attempt WHERE event = ?1", [row])?;
    Ok(())
}

/// What an operator's change needs of a row.
pub(super) struct Place {
    pub(super) account: Arc<Account>,
    pub(super) bin: Bin,
    pub(super) bytes: i64,
    pub(super) key: Option<[u8; 16]>,
    pub(super) lane: Option<[u8; 16]>,
}

/// Removes an event that is not leased. Returns how many went.
pub(super) fn drop_event(
    tx: &mut Tx<'_>,
    row: i64,
    place: &Place,
    keep_key: bool,
) -> rusqlite::Result<u64> {
    if place.bin == Bin::Leased {
        return Ok(0);
    }
    let endpoint = tx.endpoint(&place.account)?;
    remove(tx, row)?;
    if let Some(key) = place.key.filter(|_| !keep_key) {
        tx.execute(
            "DELETE FROM idem WHERE endpoint = ?1 AND key = ?2 AND id = ?3",
            params![endpoint, key, row],
        )?;
    }
    tx.count(endpoint, |tally| tally.take(place.bin, place.bytes));
    match &place.lane {
        Some(lane) if place.bin == Bin::Pending => lanes::arrange(tx, endpoint, lane)?,
        _ => {}
    }
    Ok(1)
}

/// Removes an event whose row is damaged. Which counts it is in cannot be told: they stay too high
/// until the store is checked. Returns how many went.
pub(super) fn drop_damaged(tx: &mut Tx<'_>, row: i64) -> rusqlite::Result<u64> {
    tracing::warn!(
        row,
        "an event with a damaged row is dropped; counts may stay off by it"
    );
    remove(tx, row)?;
    Ok(1)
}

/// Removes quarantined requests. Returns how many went.
pub(super) fn discard(
    tx: &mut Tx<'_>,
    account: &Arc<Account>,
    number: i64,
) -> rusqlite::Result<u64> {
    append::discard(tx, account, number)
}

/// Where a sweep through the keys is.
pub(in crate::queue) type KeyCursor = (i64, [u8; 16]);

/// Keys found expired behind a cursor, and where to go on; `None`: that was the last.
///
/// A sweep in the order of the table needs no index on the expiry, which would be half as large as
/// the table, and what it removes lies side by side.
pub(in crate::queue) fn expired_keys(
    connection: &Connection,
    after: KeyCursor,
    now: i64,
) -> rusqlite::Result<(Vec<KeyCursor>, Option<KeyCursor>)> {
    let mut statement = connection.prepare_cached(
        "SELECT endpoint, key, expires FROM idem
         WHERE (endpoint, key) > (?1, ?2) ORDER BY endpoint, key LIMIT ?3",
    )?;
    let mut rows = statement.query(params![after.0, after.1, KEYS_STEP])?;
    let (mut expired, mut seen, mut last) = (Vec::new(), 0, None);
    while let Some(row) = rows.next()? {
        let key = (row.get(0)?, row.get(1)?);
        let expires: i64 = row.get(2)?;
        if expires <= seconds(now) {
            expired.push(key);
        }
        (seen, last) = (seen + 1, Some(key));
    }
    Ok((expired, last.filter(|_| seen == KEYS_STEP)))
}

/// Removes keys that are expired. Returns how many.
pub(in crate::queue) fn sweep(tx: &mut Tx<'_>, keys: &[KeyCursor]) -> rusqlite::Result<u64> {
    let mut removed = 0;
    let now = seconds(tx.now);
    for (endpoint, key) in keys {
        removed += tx.execute(
            "DELETE FROM idem WHERE endpoint = ?1 AND key = ?2 AND expires <= ?3",
            params![endpoint, key, now],
        )?;
    }
    Ok(removed.try_into().unwrap_or(u64::MAX))
}
