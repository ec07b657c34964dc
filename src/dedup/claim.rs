//! A claim on one key, and whoever waits for it to end.
//!
//! Owns how a claim ends, on every path; who gets one is the table's to decide.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use lru::LruCache;

use super::{
    Done, Ended, InFlight, Table,
    digest::{Build, Digest, Fingerprint},
};

/// The right to deliver one event. Dropped without [`Claim::commit`], the key is given back, so
/// that a sender's retry after our failure is not taken for a duplicate.
#[derive(Debug)]
#[must_use = "an uncommitted claim lets the retry through"]
pub struct Claim {
    pub(super) table: Arc<Table>,
    /// The key, while it is this claim's.
    pub(super) owned: Option<Digest>,
    pub(super) body: Option<Fingerprint>,
    /// The body, if it was remembered under this key.
    pub(super) remembered: Option<Fingerprint>,
    pub(super) window: Duration,
}

impl Claim {
    /// The event was delivered: its key is done, for its window.
    pub fn commit(self, now: Instant) {
        let window = self.window;
        self.commit_for(window, now);
    }

    /// The event was delivered before, and its key is done for so much longer.
    pub fn commit_for(mut self, remaining: Duration, now: Instant) {
        let Some(digest) = self.owned.take() else {
            return;
        };
        let table = &*self.table;
        let until = table.end_of(remaining, now);
        let mut shard = table.shard(digest);
        let running = shard.in_flight.remove(&digest);
        let body = self.body.map_or(0, |body| body.0);
        if shard.done.cap() != table.share {
            shard.done = LruCache::with_hasher(table.share, Build::default());
        }
        let displaced = shard.done.push(digest, Done { body, until });
        drop(shard);
        table.entries.fetch_add(1, Ordering::Relaxed);
        match displaced {
            None => {}
            Some((same, _)) if same == digest => {
                table.entries.fetch_sub(1, Ordering::Relaxed);
            }
            Some((_, oldest)) if oldest.until <= table.seconds(now) => {
                table.forgotten(&table.evicted_by_expiry, 1);
            }
            Some(_) => table.forgotten(&table.evicted_by_capacity, 1),
        }
        table.end(running, Ended::Committed);
    }

    /// The event was not delivered: its key is free. `status` is what the sender hears.
    pub fn release(mut self, status: Option<u16>) {
        self.give_back(status);
    }

    fn give_back(&mut self, status: Option<u16>) {
        let Some(digest) = self.owned.take() else {
            return;
        };
        if let Some(body) = self.remembered {
            self.table.replays.forget(body, digest.0[1]);
        }
        let running = self.table.shard(digest).in_flight.remove(&digest);
        self.table.end(running, Ended::Released { status });
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.give_back(None);
    }
}

impl Table {
    fn end(&self, running: Option<InFlight>, ended: Ended) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        if let Some(ticket) = running.and_then(|running| running.ticket) {
            ticket.end(ended);
        }
    }
}

/// Waits for someone else's claim to end; may be awaited on any thread.
#[derive(Debug)]
pub struct Waiter {
    pub(super) ticket: Arc<Ticket>,
    pub(super) place: Option<u64>,
}

impl Future for Waiter {
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = self.get_mut();
        let mut waiting = this.ticket.lock();
        if let Some(ended) = waiting.ended {
            return Poll::Ready(ended);
        }
        let next = waiting.next;
        let place = *this.place.get_or_insert(next);
        waiting.next = next.max(place + 1);
        waiting.wakers.insert(place, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.ticket.lock().wakers.remove(&place);
        }
    }
}

/// Who waits for a claim, and how it ended.
#[derive(Debug, Default)]
pub(super) struct Ticket(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    ended: Option<Ended>,
    wakers: HashMap<u64, Waker>,
    next: u64,
}

impl Ticket {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn end(&self, ended: Ended) {
        let wakers = {
            let mut waiting = self.lock();
            waiting.ended = Some(ended);
            std::mem::take(&mut waiting.wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }
}
