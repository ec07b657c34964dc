//! How many events of an endpoint are in which state, and how many bytes their records have.

use rusqlite::{Connection, params};

/// Where an event, or a quarantined request, is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue) enum Bin {
    /// Given up.
    Dead,
    /// Accepted.
    Delivered,
    /// An attempt runs.
    Leased,
    /// Waits.
    Pending,
    /// Signature did not match.
    Quarantined,
}

impl Bin {
    /// Of `event.state`; `None`: no such state.
    pub(in crate::queue) fn of(state: i64) -> Option<Self> {
        match state {
            -1 | 0 => Some(Self::Pending),
            1 => Some(Self::Leased),
            2 => Some(Self::Delivered),
            3 => Some(Self::Dead),
            _ => None,
        }
    }
}

/// Events and bytes; differences of them while a transaction runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::queue) struct Count {
    pub(in crate::queue) events: i64,
    pub(in crate::queue) bytes: i64,
}

/// An endpoint's counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::queue) struct Tally {
    pub(in crate::queue) dead: Count,
    pub(in crate::queue) delivered: Count,
    pub(in crate::queue) leased: Count,
    pub(in crate::queue) pending: Count,
    pub(in crate::queue) quarantined: Count,
}

impl Tally {
    fn bin(&mut self, bin: Bin) -> &mut Count {
        match bin {
            Bin::Dead => &mut self.dead,
            Bin::Delivered => &mut self.delivered,
            Bin::Leased => &mut self.leased,
            Bin::Pending => &mut self.pending,
            Bin::Quarantined => &mut self.quarantined,
        }
    }

    /// One more.
    pub(in crate::queue) fn add(&mut self, bin: Bin, bytes: i64) {
        let count = self.bin(bin);
        count.events += 1;
        count.bytes += bytes;
    }

    /// One less.
    pub(in crate::queue) fn take(&mut self, bin: Bin, bytes: i64) {
        let count = self.bin(bin);
        count.events -= 1;
        count.bytes -= bytes;
    }

    /// One from here to there.
    pub(in crate::queue) fn shift(&mut self, from: Bin, to: Bin, bytes: i64) {
        self.take(from, bytes);
        self.add(to, bytes);
    }

    /// Takes over what a transaction changed.
    pub(in crate::queue) fn apply(&mut self, change: &Self) {
        for bin in [
            Bin::Dead,
            Bin::Delivered,
            Bin::Leased,
            Bin::Pending,
            Bin::Quarantined,
        ] {
            let by = *change.clone().bin(bin);
            let count = self.bin(bin);
            count.events += by.events;
            count.bytes += by.bytes;
        }
    }

    /// Records of events that are neither delivered nor dead, in bytes.
    pub(in crate::queue) fn live_bytes(&self) -> u64 {
        positive(self.pending.bytes + self.leased.bytes)
    }

    /// Records of all events, in bytes.
    pub(in crate::queue) fn stored_bytes(&self) -> u64 {
        self.live_bytes() + positive(self.dead.bytes + self.delivered.bytes)
    }

    /// Writes a transaction's change to an endpoint's row.
    pub(in crate::queue) fn save(
        &self,
        connection: &Connection,
        endpoint: i64,
    ) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "UPDATE endpoint SET
                   pending = pending + ?2, pending_bytes = pending_bytes + ?3,
                   leased = leased + ?4, leased_bytes = leased_bytes + ?5,
                   dead = dead + ?6, dead_bytes = dead_bytes + ?7,
                   delivered = delivered + ?8, delivered_bytes = delivered_bytes + ?9,
                   quarantined = quarantined + ?10, quarantined_bytes = quarantined_bytes + ?11
                 WHERE id = ?1",
            )?
            .execute(params![
                endpoint,
                self.pending.events,
                self.pending.bytes,
                self.leased.events,
                self.leased.bytes,
                self.dead.events,
                self.dead.bytes,
                self.delivered.events,
                self.delivered.bytes,
                self.quarantined.events,
                self.quarantined.bytes,
            ])?;
        Ok(())
    }

    /// Reads an endpoint's counts; the row's columns from `first` on, in the order of
    /// [`Tally::COLUMNS`].
    pub(in crate::queue) fn read(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Self> {
        let count = |at: usize| -> rusqlite::Result<Count> {
            Ok(Count {
                events: row.get(first + at)?,
                bytes: row.get(first + at + 1)?,
            })
        };
        Ok(Self {
            dead: count(0)?,
            delivered: count(2)?,
            leased: count(4)?,
            pending: count(6)?,
            quarantined: count(8)?,
        })
    }

    /// The columns [`Tally::read`] reads.
    pub(in crate::queue) const COLUMNS: &str = "dead, dead_bytes, delivered, delivered_bytes, \
         leased, leased_bytes, pending, pending_bytes, quarantined, quarantined_bytes";
}

/// A count as it is shown; a damaged one may be negative.
pub(in crate::queue) fn positive(number: i64) -> u64 {
    number.try_into().unwrap_or_default()
}
