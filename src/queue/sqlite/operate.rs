//! An operator's questions, on a connection that only reads, and changes, in the writer's
//! transaction.

use std::{sync::atomic::Ordering, time::Instant};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::{
    lanes,
    purge::{self, Place},
    tally::{Bin, positive},
    text,
    tx::Tx,
};
use crate::queue::{
    Attempt, CorruptRecord, Cursor, Detail, Filter, Page, Quarantined, State, Summary,
    clock::{Millis, millis},
    inbox::Change,
    record::{checksum, from_unix_millis},
    shared::{Account, Shared},
};

/// Most events one page looks at, and for how long: a reader that stays pins the log.
const PAGE_ROWS: usize = 200_000;
const PAGE_TIME: std::time::Duration = std::time::Duration::from_millis(500);

const COLUMNS: &str = "id, endpoint, state, at, attempts, created, uuid, type, bytes, \
                       last_status, last_error";

fn summary(row: &Row<'_>, shared: &Shared) -> rusqlite::Result<Summary> {
    let (state, at): (i64, Millis) = (row.get(2)?, row.get(3)?);
    let account = shared.account_of(row.get(1)?);
    let account = account.ok_or(rusqlite::Error::IntegralValueOutOfRange(1, row.get(1)?))?;
    let state_is = match Bin::of(state) {
        Some(Bin::Pending) => State::Pending,
        Some(Bin::Leased) => State::Leased,
        Some(Bin::Delivered) => State::Delivered,
        Some(Bin::Dead) => State::Dead,
        Some(Bin::Quarantined) | None => {
            return Err(rusqlite::Error::IntegralValueOutOfRange(2, state));
        }
    };
    let is_pending = state_is == State::Pending;
    Ok(Summary {
        id: Uuid::from_bytes(row.get(6)?),
        endpoint: account.name.clone(),
        event_type: text(row, 7)?,
        state: state_is,
        waits_for_lane: state == -1,
        attempts: row.get(4)?,
        appended_at: from_unix_millis(row.get(5)?),
        since: (!is_pending).then(|| from_unix_millis(at)),
        due_at: is_pending.then(|| from_unix_millis(at)),
        bytes: positive(row.get(8)?),
        last_status: row.get(9)?,
        last_error: text(row, 10)?,
    })
}

/// Whether only one row cannot be read: its columns hold what they cannot.
fn is_of_one_row(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
    )
}

/// Whether a filter lets an event through; the text of its error is given in lower case.
fn passes(filter: &Filter, error: Option<&str>, summary: &Summary, now: Millis) -> bool {
    let appended = crate::queue::record::unix_millis(summary.appended_at);
    let age = now.saturating_sub(appended);
    let fits = |error: &str| {
        let last = summary.last_error.as_deref().unwrap_or_default();
        last.to_lowercase().contains(error)
    };
    filter
        .endpoint
        .as_ref()
        .is_none_or(|e| *e == summary.endpoint)
        && filter.state.is_none_or(|s| s == summary.state)
        && (filter.event_type.is_none() || filter.event_type == summary.event_type)
        && filter.older_than.is_none_or(|d| age >= millis(d))
        && filter.newer_than.is_none_or(|d| age <= millis(d))
        && error.is_none_or(fits)
}

/// Events behind a cursor with their rows, and where to go on. Rows that cannot be read are left
/// out and logged.
pub(in crate::queue) fn list(
    connection: &Connection,
    shared: &Shared,
    filter: &Filter,
    from: Cursor,
    limit: usize,
) -> rusqlite::Result<(Vec<i64>, Page)> {
    let (began, now) = (Instant::now(), shared.clock.now());
    let error = filter.error.as_deref().map(str::to_lowercase);
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM event WHERE id > ?1 ORDER BY id"
    ))?;
    let mut rows = statement.query([from.0])?;
    let (mut ids, mut events, mut seen) = (Vec::new(), Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        match summary(row, shared) {
            Ok(event) if passes(filter, error.as_deref(), &event, now) => {
                ids.push(id);
                events.push(event);
            }
            Ok(_) => {}
            Err(error) if is_of_one_row(&error) => {
                tracing::error!(row = id, %error, "an event on disk cannot be read");
            }
            Err(error) => return Err(error),
        }
        seen += 1;
        let is_long = seen % 1024 == 0 && began.elapsed() > PAGE_TIME;
        if events.len() >= limit || seen >= PAGE_ROWS || is_long {
            let next = Some(Cursor(id));
            return Ok((ids, Page { events, next }));
        }
    }
    Ok((ids, Page { events, next: None }))
}

/// The rows of events by id, in the order asked.
pub(in crate::queue) fn rows_of(
    connection: &Connection,
    ids: &[Uuid],
) -> rusqlite::Result<Vec<i64>> {
    let mut statement = connection.prepare_cached("SELECT id FROM event WHERE uuid = ?1")?;
    let mut rows = Vec::with_capacity(ids.len());
    for id in ids {
        for row in statement.query_map([id.as_bytes()], |row| row.get(0))? {
            rows.push(row?);
        }
    }
    Ok(rows)
}

/// A row that holds what it cannot.
pub(in crate::queue) struct CorruptRow;

/// One event.
pub(in crate::queue) fn show(
    connection: &Connection,
    shared: &Shared,
    id: Uuid,
    with_record: bool,
) -> rusqlite::Result<Result<Option<Detail>, CorruptRow>> {
    match detail(connection, shared, id, with_record) {
        Err(error) if is_of_one_row(&error) => {
            tracing::error!(event_id = %id, %error, "an event on disk cannot be read");
            Ok(Err(CorruptRow))
        }
        shown => shown.map(Ok),
    }
}

fn detail(
    connection: &Connection,
    shared: &Shared,
    id: Uuid,
    with_record: bool,
) -> rusqlite::Result<Option<Detail>> {
    let found = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM event WHERE uuid = ?1"))?
        .query_row([id.as_bytes()], |row| {
            Ok((row.get(0)?, summary(row, shared)?))
        })
        .optional()?;
    let Some((row, summary)) = found else {
        return Ok(None);
    };
    let attempts = connection
        .prepare_cached(
            "SELECT number, at, status, error FROM attempt WHERE event = ?1 ORDER BY number",
        )?
        .query_map([row], |row| {
            Ok(Attempt {
                number: row.get(0)?,
                at: from_unix_millis(row.get(1)?),
                status: row.get(2)?,
                error: text(row, 3)?.unwrap_or_default(),
            })
        })?
        .collect::<Result<_, _>>()?;
    let record = if with_record {
        let event_type = summary.event_type.as_deref();
        let crc_of = |data: &[u8]| checksum(&summary.endpoint, id, event_type, data);
        Some(payload(connection, row, crc_of)?)
    } else {
        None
    };
    Ok(Some(Detail {
        summary,
        attempts,
        record,
    }))
}

/// An event's record, if it is what was written.
pub(in crate::queue) fn payload(
    connection: &Connection,
    row: i64,
    crc_of: impl FnOnce(&[u8]) -> u32,
) -> rusqlite::Result<Result<Bytes, CorruptRecord>> {
    let found = connection
        .prepare_cached("SELECT crc, data FROM payload WHERE id = ?1")?
        .query_row([row], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                Bytes::from(row.get::<_, Vec<u8>>(1)?),
            ))
        });
    match found {
        Ok((crc, data)) if crc == i64::from(crc_of(&data)) => Ok(Ok(data)),
        // Columns of the wrong type are damage in one row, like a wrong sum.
        Ok(_) | Err(rusqlite::Error::QueryReturnedNoRows) => Ok(Err(CorruptRecord)),
        Err(error) if is_of_one_row(&error) => Ok(Err(CorruptRecord)),
        Err(error) => Err(error),
    }
}

/// When the first live event of an endpoint was appended. Looks from where it ended the last time,
/// so that each delivered event is passed once.
pub(in crate::queue) fn oldest(
    connection: &Connection,
    account: &Account,
) -> rusqlite::Result<Option<Millis>> {
    let from = account.oldest.load(Ordering::Relaxed);
    let end: Option<i64> =
        connection.query_row("SELECT max(id) FROM event", [], |row| row.get(0))?;
    let found: Option<(i64, Millis)> = connection
        .prepare_cached(
            "SELECT id, created FROM event NOT INDEXED
             WHERE id >= ?1 AND endpoint = ?2 AND state < 2 ORDER BY id LIMIT 1",
        )?
        .query_row([from, account.id.load(Ordering::Relaxed)], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let first = found.map_or_else(|| end.unwrap_or(from), |(id, _)| id);
    // Unless an older one became live meanwhile.
    let _ = account
        .oldest
        .compare_exchange(from, first, Ordering::Relaxed, Ordering::Relaxed);
    Ok(found.map(|(_, created)| created))
}

/// Quarantined requests of an endpoint behind a number.
pub(in crate::queue) fn quarantined(
    connection: &Connection,
    account: &Account,
    after: i64,
    limit: usize,
) -> rusqlite::Result<Vec<Quarantined>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "SELECT number, uuid, at, reason, crc, data FROM quarantine
             WHERE endpoint = ?1 AND number > ?2 ORDER BY number LIMIT ?3",
        )?
        .query_map([account.id.load(Ordering::Relaxed), after, limit], |row| {
            let id = Uuid::from_bytes(row.get(1)?);
            let (crc, data): (i64, Vec<u8>) = (row.get(4)?, row.get(5)?);
            let is_same = crc == i64::from(checksum(&account.name, id, None, &data));
            Ok(Quarantined {
                number: row.get(0)?,
                id,
                at: from_unix_millis(row.get(2)?),
                reason: text(row, 3)?.unwrap_or_default(),
                record: if is_same {
                    Ok(data.into())
                } else {
                    Err(CorruptRecord)
                },
            })
        })?
        .collect()
}

/// Does what an operator asked for. Returns how many rows it was done to.
pub(in crate::queue) fn change(
    tx: &mut Tx<'_>,
    shared: &Shared,
    change: &Change,
) -> rusqlite::Result<u64> {
    let mut changed = 0;
    match change {
        Change::DiscardQuarantined(numbers) => {
            for number in numbers {
                let sql = "SELECT endpoint FROM quarantine WHERE number = ?1";
                let endpoint = tx.first(sql, [number], |row| row.get(0))?;
                if let Some(account) = endpoint.and_then(|id| shared.account_of(id)) {
                    changed += purge::discard(tx, &account, *number)?;
                }
            }
        }
        Change::Drop { rows, keep_key } => {
            for row in rows {
                changed += match place(tx, shared, *row)? {
                    Ok(Some(place)) => purge::drop_event(tx, *row, &place, *keep_key)?,
                    Ok(None) => 0,
                    Err(CorruptRow) => purge::drop_damaged(tx, *row)?,
                };
            }
        }
        Change::Replay(rows) => {
            for row in rows {
                if let Ok(Some(place)) = place(tx, shared, *row)? {
                    changed += replay(tx, *row, &place)?;
                }
            }
        }
    }
    Ok(changed)
}

fn place(
    tx: &Tx<'_>,
    shared: &Shared,
    row: i64,
) -> rusqlite::Result<Result<Option<Place>, CorruptRow>> {
    let found = tx.first(
        "SELECT endpoint, state, bytes, key, lane FROM event WHERE id = ?1",
        [row],
        |row| {
            Ok((
                row.get(0)?,
                row.get::<_, i64>(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ))
        },
    );
    let (endpoint, state, bytes, key, lane) = match found {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(Ok(None)),
        Err(error) if is_of_one_row(&error) => return Ok(Err(CorruptRow)),
        Err(error) => return Err(error),
    };
    let place = |account, bin| Place {
        account,
        bin,
        bytes,
        key,
        lane,
    };
    let known = shared.account_of(endpoint).zip(Bin::of(state));
    let place = known.map(|(account, bin)| Some(place(account, bin)));
    Ok(place.ok_or(CorruptRow))
}

fn replay(tx: &mut Tx<'_>, row: i64, place: &Place) -> rusqlite::Result<u64> {
    let endpoint = tx.endpoint(&place.account)?;
    match place.bin {
        Bin::Leased | Bin::Quarantined => return Ok(0),
        Bin::Pending => {
            tx.execute(
                "UPDATE event SET at = ?2, replayed_after = max(attempts, 0) WHERE id = ?1",
                params![row, tx.now],
            )?;
        }
        Bin::Dead | Bin::Delivered => {
            tx.execute(
                "UPDATE event SET state = 0, at = ?2, replayed_after = max(attempts, 0) WHERE id = ?1",
                params![row, tx.now],
            )?;
            tx.count(endpoint, |tally| {
                tally.shift(place.bin, Bin::Pending, place.bytes)
            });
            tx.is_live_again(endpoint);
        }
    }
    tx.is_due(endpoint);
    if let Some(lane) = &place.lane {
        lanes::arrange(tx, endpoint, lane)?;
    }
    Ok(1)
}
