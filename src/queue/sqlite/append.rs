//! Taking events and keys: the unique key decides in the same transaction.

use std::{sync::Arc, time::Duration};

use rusqlite::params;

use super::{
    lanes,
    purge::{self, STEP},
    tally::Bin,
    tx::Tx,
};
use crate::{
    dedup::KeyReuse,
    queue::{
        AppendError, Bound, Fingerprint, Key, Keyed, Refused,
        clock::{Millis, millis},
        inbox::{Accepted, Entry, Expected, Suspect, Taking},
        lease::Held,
        outage::Relayed,
        shared::Account,
    },
};

/// Keeps an event, unless its key is taken.
pub(in crate::queue) fn append(
    tx: &mut Tx<'_>,
    account: &Arc<Account>,
    entry: &Entry,
) -> rusqlite::Result<Result<Accepted<Held, Expected>, AppendError>> {
    // Who looks a second time at a request may do it twice at once; without a key nothing else tells.
    if entry.quarantined.is_some() && is_event(tx, entry)? {
        return Ok(Ok(Accepted {
            key_reused: false,
            outcome: Taking::Duplicate,
        }));
    }
    let endpoint = tx.endpoint(account)?;
    let id = tx.new_id();
    let mut key_reused = false;
    if let Some(keyed) = &entry.key {
        match claim(tx, endpoint, keyed, id)? {
            Claim::Free => {}
            Claim::Passes => key_reused = true,
            // What is no event stays where it can be looked at, unless an event has its body.
            Claim::Refused => return Ok(Err(AppendError::KeyReuse)),
            Claim::Taken { reused } => {
                if !reused {
                    release(tx, account, entry)?;
                }
                return Ok(Ok(Accepted {
                    key_reused: reused,
                    outcome: Taking::Duplicate,
                }));
            }
        }
    }
    // A key that is taken needs no room: its sender's retry hears of the first one.
    if !purge::make_room(tx, account, entry.record.len())? {
        if let Some(keyed) = &entry.key {
            give_back(tx, endpoint, keyed, id)?;
        }
        return Ok(Err(AppendError::Refused(Refused::Full(Bound::StoredBytes))));
    }
    if let Some(keyed) = entry.key.as_ref().filter(|_| key_reused) {
        pass(tx, endpoint, keyed, id)?;
    }
    release(tx, account, entry)?;
    let waits = match &entry.lane {
        Some(lane) if !entry.leased => lanes::is_used(tx.connection, endpoint, lane)?,
        _ => false,
    };
    let expecting = (!entry.leased && !waits)
        .then(|| account.expecting())
        .flatten();
    let is_leased = entry.leased || expecting.is_some();
    let state = if waits { -1 } else { i64::from(is_leased) };
    let attempts = u32::from(is_leased);
    let bytes = i64::try_from(entry.record.len()).unwrap_or(i64::MAX);
    tx.execute(
        "INSERT INTO event (id, endpoint, state, at, attempts, created, uuid, type, key, lane, bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?4, ?6, ?7, ?8, ?9, ?10)",
        params![
            id,
            endpoint,
            state,
            tx.now,
            attempts,
            entry.id.as_bytes(),
            entry.event_type,
            entry.key.as_ref().map(|k| k.key.0),
            entry.lane,
            bytes,
        ],
    )?;
    tx.execute(
        "INSERT INTO payload (id, crc, data) VALUES (?1, ?2, ?3)",
        params![id, entry.crc, &entry.record[..]],
    )?;
    if is_leased {
        tx.count(endpoint, |tally| tally.add(Bin::Leased, bytes));
        if let Some(lane) = entry.lane.as_ref().filter(|_| entry.leased) {
            // What was the lane's next waits for the attempt that runs.
            lanes::arrange(tx, endpoint, lane)?;
        }
        let held = Held {
            account: account.clone(),
            row: id,
            id: entry.id,
            event_type: entry.event_type.clone(),
            appended: tx.now,
            attempt: 1,
            tries: 1,
            resends: 0,
            bytes,
            lane: entry.lane,
        };
        return Ok(Ok(Accepted {
            key_reused,
            outcome: match expecting {
                Some(threshold) => Taking::Expected((held, threshold)),
                None => Taking::Leased(held),
            },
        }));
    }
    tx.count(endpoint, |tally| tally.add(Bin::Pending, bytes));
    if state == 0 {
        tx.is_due(endpoint);
    }
    Ok(Ok(Accepted {
        key_reused,
        outcome: Taking::Queued,
    }))
}

fn is_event(tx: &Tx<'_>, entry: &Entry) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM event WHERE uuid = ?1";
    let found: Option<i64> = tx.first(sql, [entry.id.as_bytes()], |row| row.get(0))?;
    Ok(found.is_some())
}

/// Takes the request that an event was out of the quarantine.
fn release(tx: &mut Tx<'_>, account: &Arc<Account>, entry: &Entry) -> rusqlite::Result<()> {
    if let Some(number) = entry.quarantined {
        discard(tx, account, number)?;
    }
    Ok(())
}

enum Claim {
    Free,
    /// It is another body's, and passes to this one.
    Passes,
    Refused,
    Taken {
        reused: bool,
    },
}

/// Takes a key for an event, if it is free; says what else the policy makes of it.
fn claim(tx: &mut Tx<'_>, endpoint: i64, keyed: &Keyed, id: i64) -> rusqlite::Result<Claim> {
    let (expires, body) = (expiry(tx.now, keyed.window), keyed.body.map(to_column));
    let taken = tx.execute(
        "INSERT INTO idem (endpoint, key, id, expires, body) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (endpoint, key) DO UPDATE
         SET id = excluded.id, expires = excluded.expires, body = excluded.body
         WHERE idem.expires <= ?6",
        params![endpoint, keyed.key.0, id, expires, body, seconds(tx.now)],
    )?;
    if taken > 0 {
        return Ok(Claim::Free);
    }
    let first: Option<Option<i64>> = tx.first(
        "SELECT body FROM idem WHERE endpoint = ?1 AND key = ?2",
        params![endpoint, keyed.key.0],
        |row| row.get(0),
    )?;
    let first = first.flatten().map(from_column);
    let reused = first
        .zip(keyed.body)
        .is_some_and(|(first, body)| first.differs(body));
    match (reused, keyed.key_reuse) {
        (true, KeyReuse::Forward) => Ok(Claim::Passes),
        (true, KeyReuse::Reject) => Ok(Claim::Refused),
        (true, KeyReuse::Duplicate) | (false, _) => Ok(Claim::Taken { reused }),
    }
}

/// Passes a key on from another body.
fn pass(tx: &Tx<'_>, endpoint: i64, keyed: &Keyed, id: i64) -> rusqlite::Result<()> {
    let (expires, body) = (expiry(tx.now, keyed.window), keyed.body.map(to_column));
    tx.execute(
        "UPDATE idem SET id = ?3, expires = ?4, body = ?5 WHERE endpoint = ?1 AND key = ?2",
        params![endpoint, keyed.key.0, id, expires, body],
    )?;
    Ok(())
}

/// Gives a key back that [`claim`] took.
fn give_back(tx: &Tx<'_>, endpoint: i64, keyed: &Keyed, id: i64) -> rusqlite::Result<()> {
    tx.execute(
        "DELETE FROM idem WHERE endpoint = ?1 AND key = ?2 AND id = ?3",
        params![endpoint, keyed.key.0, id],
    )?;
    Ok(())
}

/// Takes a key for a relayed event, whoever had it.
pub(in crate::queue) fn remember(
    tx: &mut Tx<'_>,
    account: &Arc<Account>,
    key: Key,
    body: Option<Fingerprint>,
    window: Duration,
) -> rusqlite::Result<()> {
    let endpoint = tx.endpoint(account)?;
    tx.execute(
        "INSERT INTO idem (endpoint, key, id, expires, body) VALUES (?1, ?2, NULL, ?3, ?4)
         ON CONFLICT (endpoint, key) DO UPDATE
         SET id = NULL, expires = excluded.expires, body = excluded.body",
        params![endpoint, key.0, expiry(tx.now, window), body.map(to_column)],
    )?;
    Ok(())
}

/// Takes a key for an event that was relayed when it could not be written, unless it was taken for
/// longer meanwhile.
pub(in crate::queue) fn remember_late(tx: &mut Tx<'_>, relayed: &Relayed) -> rusqlite::Result<()> {
    let endpoint = tx.endpoint(&relayed.account)?;
    let (expires, body) = (end(relayed.until), relayed.body.map(to_column));
    tx.execute(
        "INSERT INTO idem (endpoint, key, id, expires, body) VALUES (?1, ?2, NULL, ?3, ?4)
         ON CONFLICT (endpoint, key) DO UPDATE
         SET id = NULL, expires = excluded.expires, body = excluded.body
         WHERE idem.expires < excluded.expires",
        params![endpoint, relayed.key.0, expires, body],
    )?;
    Ok(())
}

/// Frees a key.
pub(in crate::queue) fn forget(
    tx: &mut Tx<'_>,
    account: &Arc<Account>,
    key: Key,
) -> rusqlite::Result<()> {
    let endpoint = tx.endpoint(account)?;
    tx.execute(
        "DELETE FROM idem WHERE endpoint = ?1 AND key = ?2",
        params![endpoint, key.0],
    )?;
    Ok(())
}

/// Keeps a request in the quarantine; the oldest go when it is full.
pub(in crate::queue) fn quarantine(
    tx: &mut Tx<'_>,
    account: &Arc<Account>,
    suspect: &Suspect,
) -> rusqlite::Result<()> {
    let endpoint = tx.endpoint(account)?;
    let limit = i64::try_from(account.book().quarantine_bytes()).unwrap_or(i64::MAX);
    let bytes = i64::try_from(suspect.record.len()).unwrap_or(i64::MAX);
    if bytes > limit {
        return Ok(());
    }
    trim(tx, account, limit - bytes)?;
    tx.execute(
        "INSERT INTO quarantine (endpoint, at, uuid, reason, bytes, crc, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            endpoint,
            tx.now,
            suspect.id.as_bytes(),
            suspect.reason,
            bytes,
            suspect.crc,
            &suspect.record[..],
        ],
    )?;
    tx.count(endpoint, |tally| tally.add(Bin::Quarantined, bytes));
    Ok(())
}

/// Removes the oldest quarantined requests of an endpoint until at most `limit` bytes are left, at
/// most [`STEP`] of them. Returns how many went.
pub(super) fn trim(tx: &mut Tx<'_>, account: &Arc<Account>, limit: i64) -> rusqlite::Result<u64> {
    let endpoint = tx.endpoint(account)?;
    let held = account.book().tally.quarantined.bytes;
    for removed in 0..STEP {
        if held + tx.counted(endpoint).quarantined.bytes <= limit {
            return Ok(removed.into());
        }
        let oldest: Option<i64> = tx.first(
            "SELECT number FROM quarantine WHERE endpoint = ?1 ORDER BY number LIMIT 1",
            [endpoint],
            |row| row.get(0),
        )?;
        let Some(oldest) = oldest else {
            return Ok(removed.into());
        };
        discard(tx, account, oldest)?;
    }
    Ok(STEP.into())
}

/// Removes one request of an endpoint's from the quarantine. Returns how many went.
pub(super) fn discard(
    tx: &mut Tx<'_>,
    account: &Arc<Account>,
    number: i64,
) -> rusqlite::Result<u64> {
    let endpoint = tx.endpoint(account)?;
    let bytes: Option<i64> = tx.first(
        "SELECT bytes FROM quarantine WHERE number = ?1 AND endpoint = ?2",
        [number, endpoint],
        |row| row.get(0),
    )?;
    let Some(bytes) = bytes else { return Ok(0) };
    tx.execute("DELETE FROM quarantine WHERE number = ?1", [number])?;
    tx.count(endpoint, |tally| tally.take(Bin::Quarantined, bytes));
    Ok(1)
}

/// The second a key is free again that is taken now.
fn expiry(now: Millis, window: Duration) -> i64 {
    end(now.saturating_add(millis(window)))
}

/// The second a key is free again, rounded up. Seconds, because five million of them add up.
fn end(until: Millis) -> i64 {
    until.saturating_add(999) / 1000
}

/// Now, for a comparison with [`expiry`].
pub(in crate::queue) fn seconds(now: Millis) -> i64 {
    now / 1000
}

/// SQLite's integers have a sign.
fn to_column(body: Fingerprint) -> i64 {
    i64::from_ne_bytes(body.0.to_ne_bytes())
}

/// The inverse of [`to_column`].
pub(in crate::queue) fn from_column(body: i64) -> Fingerprint {
    Fingerprint(u64::from_ne_bytes(body.to_ne_bytes()))
}
