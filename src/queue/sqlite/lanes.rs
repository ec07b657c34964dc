//! Lanes: events of one lane are delivered one at a time, in the order they were appended.
//!
//! At most one event of a lane is pending (0) and the others wait (-1), so that finding what is due
//! never meets an event that may not go. Whenever one leaves, [`arrange`] chooses the next.

use rusqlite::{Connection, params};

use super::tx::Tx;

/// Whether any event of the lane is neither delivered nor dead.
pub(in crate::queue) fn is_used(
    connection: &Connection,
    endpoint: i64,
    lane: &[u8; 16],
) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM event INDEXED BY event_lane
             WHERE endpoint = ?1 AND lane = ?2 AND state < 2 LIMIT 1",
        )?
        .exists(params![endpoint, lane])
}

/// Lets the lane's first live event be due when its time comes, and all others wait; while one is
/// leased, all others wait.
pub(super) fn arrange(tx: &mut Tx<'_>, endpoint: i64, lane: &[u8; 16]) -> rusqlite::Result<()> {
    let first = |tx: &Tx<'_>, state: i64| {
        tx.first(
            "SELECT id FROM event INDEXED BY event_lane
             WHERE endpoint = ?1 AND lane = ?2 AND state = ?3 AND state < 2 ORDER BY id LIMIT 1",
            params![endpoint, lane, state],
            |row| row.get::<_, i64>(0),
        )
    };
    let (pending, waiting) = (first(tx, 0)?, first(tx, -1)?);
    let next = if first(tx, 1)?.is_some() {
        None
    } else {
        pending.into_iter().chain(waiting).min()
    };
    if pending.is_some() {
        tx.execute(
            "UPDATE event INDEXED BY event_lane SET state = -1
             WHERE endpoint = ?1 AND lane = ?2 AND state = 0 AND state < 2 AND id IS NOT ?3",
            params![endpoint, lane, next],
        )?;
    }
    let Some(next) = next else { return Ok(()) };
    if pending != Some(next) {
        tx.execute("UPDATE event SET state = 0 WHERE id = ?1", [next])?;
    }
    tx.is_due(endpoint);
    Ok(())
}
