//! Leases and their ends, and keys of relayed events, while the disk takes nothing: what is on disk
//! goes on being delivered, what was relayed is known when it comes again.
//!
//! Kept in memory and written when the disk takes something again; lost with the process, which
//! then repeats the attempts. Bounded: when [`LIMIT`] events are held here nothing more is leased.
//! A lane stays where it is after its first event. Of keys the latest [`LIMIT`] are held.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
};

use rusqlite::Connection;

use super::{
    Fingerprint, Key, Settled,
    clock::{Millis, duration, millis},
    inbox::Ending,
    lease::Held,
    shared::Account,
    sqlite::{append, lease, tx::Tx},
};

/// Most events held here, and most keys.
const LIMIT: usize = 10_000;

/// What could not be written, by the event's row.
#[derive(Default)]
pub(super) struct Outage {
    entries: HashMap<i64, Unwritten>,
    keys: VecDeque<Relayed>,
}

/// A key that an event was relayed under.
#[derive(Clone)]
pub(super) struct Relayed {
    pub(super) account: Arc<Account>,
    pub(super) key: Key,
    pub(super) body: Option<Fingerprint>,
    /// When it is free again.
    pub(super) until: Millis,
}

struct Unwritten {
    held: Held,
    /// How the lease ended, and when; `None`: it has not.
    ended: Option<(Ending, Millis)>,
}

impl Unwritten {
    /// The event as it may be leased again, if it is due.
    fn due(&self, now: Millis) -> Option<Held> {
        let (ending, at) = self.ended.as_ref()?;
        let mut held = self.held.clone();
        let due = match ending {
            Ending::HandedBack { delay } => at.saturating_add(delay.map_or(0, millis)),
            Ending::Settled(Settled::Retry { after, .. }) => {
                let sent = std::mem::take(&mut held.resends).saturating_add(1);
                held.attempt = lease::later(held.attempt, sent);
                held.tries = lease::later(held.tries, sent);
                at.saturating_add(millis(*after))
            }
            Ending::Settled(Settled::Dead { .. } | Settled::Delivered { .. }) => return None,
        };
        (due <= now).then_some(held)
    }
}

impl Outage {
    /// Whether the end of every lease is written.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets what [`Outage::write`] wrote, once that is committed.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.keys.clear();
    }

    /// Holds a key until it can be written.
    pub(super) fn remember(&mut self, relayed: Relayed) {
        if self.keys.len() >= LIMIT {
            self.keys.pop_front();
        }
        self.keys.push_back(relayed);
    }

    /// Leases up to `limit` events that are due, without writing.
    pub(super) fn lease(
        &mut self,
        connection: &Connection,
        account: &Arc<Account>,
        limit: usize,
        now: Millis,
    ) -> rusqlite::Result<Vec<Held>> {
        if account.paused.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let of_account = |u: &&Unwritten| Arc::ptr_eq(&u.held.account, account);
        let again = self.entries.values().filter(of_account);
        let mut leased: Vec<Held> = again.filter_map(|u| u.due(now)).take(limit).collect();
        let limit = (limit - leased.len()).min(LIMIT.saturating_sub(self.entries.len()));
        if limit > 0 {
            let known = self.entries.values().filter(of_account).count();
            let endpoint = account.id.load(Ordering::Relaxed);
            let due = lease::due(connection, account, endpoint, now, limit + known)?;
            let fresh = due
                .into_iter()
                .filter(|h| !self.entries.contains_key(&h.row));
            leased.extend(fresh.take(limit).map(|mut held| {
                held.attempt = lease::later(held.attempt, 1);
                held.tries = lease::later(held.tries, 1);
                held
            }));
        }
        for held in &leased {
            let unwritten = Unwritten {
                held: held.clone(),
                ended: None,
            };
            self.entries.insert(held.row, unwritten);
        }
        Ok(leased)
    }

    /// Takes back the leases of a process that ended. Returns how many there were, which is not
    /// bounded here but by what that process leased.
    pub(super) fn void(
        &mut self,
        connection: &Connection,
        account: &Arc<Account>,
        now: Millis,
    ) -> rusqlite::Result<usize> {
        let leased = lease::leased(connection, account, account.id.load(Ordering::Relaxed))?;
        let count = leased.len();
        for held in leased {
            self.end(held, Ending::Settled(lease::ended_with_process()), now);
        }
        Ok(count)
    }

    /// Ends a lease given out here or before. `false`: it is not the event's any more.
    pub(super) fn end(&mut self, held: Held, ending: Ending, now: Millis) -> bool {
        let current = self.entries.get(&held.row);
        if current.is_some_and(|c| c.ended.is_some() || c.held.attempt != held.attempt) {
            return false;
        }
        let unwritten = Unwritten {
            ended: Some((ending, now)),
            held,
        };
        self.entries.insert(unwritten.held.row, unwritten);
        true
    }

    /// Writes everything.
    pub(super) fn write(&self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        for relayed in &self.keys {
            append::remember_late(tx, relayed)?;
        }
        for Unwritten { held, ended } in self.entries.values() {
            if !lease::make_leased(tx, held)? {
                continue;
            }
            let Some((ending, at)) = ended else { continue };
            let passed = tx.now.saturating_sub(*at);
            let rest = |d| duration(millis(d).saturating_sub(passed));
            let ending = match ending.clone() {
                Ending::HandedBack { delay } => Ending::HandedBack {
                    delay: delay.map(rest),
                },
                Ending::Settled(Settled::Retry {
                    after,
                    status,
                    error,
                }) => Ending::Settled(Settled::Retry {
                    after: rest(after),
                    status,
                    error,
                }),
                ending @ Ending::Settled(Settled::Dead { .. } | Settled::Delivered { .. }) => {
                    ending
                }
            };
            lease::settle(tx, held, &ending)?;
        }
        Ok(())
    }
}
