//! Which events were seen: a claim on an idempotency key, its commit, its return.
//!
//! A key is *free*, *in flight* (one claim holds it, others may wait for how it ends) or *done*.
//! Only done keys live in the `lru` and can be evicted; keys in flight live in a bounded map of
//! their own and never are. A [`Claim`] that is dropped on any path gives its key back. Keys are
//! kept as keyed 128-bit digests, bodies as keyed fingerprints: what a sender wrote is not held,
//! and a stranger cannot aim at a place in the table.
//!
//! It leaves to others what counts as the key, why a claim came back, and the clock: `now` is an
//! argument everywhere.

mod ask;
mod claim;
mod digest;
mod replay;

use std::{
    collections::HashMap,
    hash::Hasher,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use lru::LruCache;
use siphasher::sip128::{Hasher128, SipHasher13};

pub use self::{
    ask::{Ask, Decision, Ended, Evictions, KeyReuse, Policy, Replay},
    claim::{Claim, Waiter},
    digest::{BodyHash, BodyHasher, Digest, Fingerprint, HashKeys},
};
use self::{claim::Ticket, digest::Build, replay::Index};

/// Keys in one shard, at most twice; more shards than this helps no one on few cores.
const KEYS_PER_SHARD: usize = 4096;
/// Most shards.
const SHARDS_LIMIT: usize = 64;
/// Most expired keys that one sweep takes out of one shard, so that a claim waits for no more.
const SWEEP_STEP: usize = 1024;

/// The duplicate table, shared by all threads.
#[derive(Debug)]
pub struct Table {
    /// Most done keys in one shard.
    share: NonZeroUsize,
    shards: Box<[Mutex<Shard>]>,
    in_flight: AtomicUsize,
    max_in_flight: usize,
    entries: AtomicUsize,
    evicted_by_capacity: AtomicU64,
    evicted_by_expiry: AtomicU64,
    next_sweep: AtomicUsize,
    replays: Index,
    keys: HashKeys,
    created: Instant,
}

#[derive(Debug)]
struct Shard {
    done: LruCache<Digest, Done, Build>,
    in_flight: HashMap<Digest, InFlight, Build>,
}

/// A delivered event.
#[derive(Clone, Copy, Debug)]
struct Done {
    /// Its fingerprint, 0 for none.
    body: u64,
    /// The second from which its key is free.
    until: u32,
}

#[derive(Debug)]
struct InFlight {
    body: Option<Fingerprint>,
    /// Made when the first one comes to wait.
    ticket: Option<Arc<Ticket>>,
}

impl Table {
    /// An empty table for `capacity` done keys and `max_in_flight` claims at a time.
    ///
    /// A shard reserves its memory with its first key, so that no request waits for it to grow, and
    /// takes it as keys come. With more than one shard the capacity is met to within the
    /// unevenness of hashing: each shard holds its share, rounded up.
    pub fn new(
        capacity: NonZeroUsize,
        max_in_flight: usize,
        keys: HashKeys,
        created: Instant,
    ) -> Arc<Self> {
        let shards = (capacity.get() / KEYS_PER_SHARD)
            .next_power_of_two()
            .min(SHARDS_LIMIT);
        let share = NonZeroUsize::new(capacity.get().div_ceil(shards)).unwrap_or(NonZeroUsize::MIN);
        let shard = || {
            Mutex::new(Shard {
                done: LruCache::unbounded_with_hasher(Build::default()),
                in_flight: HashMap::default(),
            })
        };
        Arc::new(Self {
            share,
            shards: (0..shards).map(|_| shard()).collect(),
            in_flight: AtomicUsize::new(0),
            max_in_flight,
            entries: AtomicUsize::new(0),
            evicted_by_capacity: AtomicU64::new(0),
            evicted_by_expiry: AtomicU64::new(0),
            next_sweep: AtomicUsize::new(0),
            replays: Index::new(capacity),
            keys,
            created,
        })
    }

    fn hasher(&self, purpose: u8, endpoint: &str) -> SipHasher13 {
        let mut hasher = SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        hasher.write_u8(purpose);
        hasher.write(endpoint.as_bytes());
        // No endpoint's name contains it: what follows cannot be mistaken for more of the name.
        hasher.write_u8(0xff);
        hasher
    }

    /// The digest of a key at an endpoint.
    pub fn digest(&self, endpoint: &str, key: &[u8]) -> Digest {
        let mut hasher = self.hasher(b'k', endpoint);
        hasher.write(key);
        let hash = hasher.finish128();
        Digest([hash.h1, hash.h2])
    }

    /// The digest of an event that has its body for a key.
    pub fn digest_of_body(&self, endpoint: &str, body: &BodyHash) -> Digest {
        let mut hasher = self.hasher(b'b', endpoint);
        hasher.write_u64(body.0[0]);
        hasher.write_u64(body.0[1]);
        let hash = hasher.finish128();
        Digest([hash.h1, hash.h2])
    }

    /// A hasher for a whole body.
    pub fn body_hasher(&self) -> BodyHasher {
        BodyHasher(SipHasher13::new_with_keys(self.keys.1, self.keys.0))
    }

    /// The fingerprint of a body by a MAC over it alone; `basis` (below 255) tells which key made
    /// the MAC, so that the same body under another secret is not taken for another body.
    pub fn fingerprint(&self, endpoint: &str, basis: u8, tag: &[u8]) -> Fingerprint {
        let mut hasher = self.hasher(b't', endpoint);
        hasher.write(tag);
        Fingerprint::new(basis.min(254), hasher.finish128().h1)
    }

    /// The fingerprint of a body by its own hash.
    pub fn fingerprint_of_body(&self, endpoint: &str, body: &BodyHash) -> Fingerprint {
        let mut hasher = self.hasher(b'f', endpoint);
        hasher.write_u64(body.0[0]);
        hasher.write_u64(body.0[1]);
        Fingerprint::new(255, hasher.finish128().h1)
    }

    fn shard(&self, digest: Digest) -> MutexGuard<'_, Shard> {
        let number = usize::try_from(digest.0[1]).unwrap_or(usize::MAX) % self.shards.len();
        let shard = self
            .shards
            .get(number)
            .expect("a remainder is below its divisor");
        // A panic while it is held cannot happen: nothing in here runs foreign code.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whole seconds since the table was made, rounded down.
    fn seconds(&self, now: Instant) -> u32 {
        let age = now.saturating_duration_since(self.created).as_secs();
        u32::try_from(age).unwrap_or(u32::MAX)
    }

    /// The second from which a key taken now is free, rounded up: never forgotten early.
    fn end_of(&self, window: Duration, now: Instant) -> u32 {
        let end = now
            .saturating_duration_since(self.created)
            .saturating_add(window);
        let seconds = end.as_secs() + u64::from(end.subsec_nanos() > 0);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// Asks for the right to deliver an event.
    pub fn claim(self: &Arc<Self>, ask: Ask) -> Decision {
        let Some(digest) = ask.digest else {
            return self.claim_unkeyed(ask);
        };
        let mut shard = self.shard(digest);
        let differs = |body: Option<Fingerprint>| {
            ask.body
                .zip(body)
                .is_some_and(|(new, old)| new.differs(old))
        };
        if let Some(running) = shard.in_flight.get_mut(&digest) {
            let key_reused = differs(running.body);
            return match (key_reused, ask.policy.key_reuse) {
                (true, KeyReuse::Reject) => Decision::KeyReuse,
                // The key belongs to the other claim: this event goes through beside it.
                (true, KeyReuse::Forward) => Decision::First {
                    claim: self.unowned(ask, None),
                    key_reused,
                    replayed: false,
                },
                (true, KeyReuse::Duplicate) | (false, _) => {
                    let ticket = running.ticket.get_or_insert_default().clone();
                    Decision::InFlight {
                        waiter: Waiter {
                            ticket,
                            place: None,
                        },
                        key_reused,
                    }
                }
            };
        }
        let mut key_reused = false;
        if let Some(done) = shard.done.get(&digest) {
            let (until, body) = (done.until, done.body);
            if self.seconds(ask.now) < until {
                key_reused = differs((body != 0).then_some(Fingerprint(body)));
                match (key_reused, ask.policy.key_reuse) {
                    (true, KeyReuse::Reject) => return Decision::KeyReuse,
                    (true, KeyReuse::Forward) => {}
                    (true, KeyReuse::Duplicate) | (false, _) => {
                        return Decision::Duplicate { key_reused };
                    }
                }
            } else {
                shard.done.pop(&digest);
                self.forgotten(&self.evicted_by_expiry, 1);
            }
        }
        let take = |n: usize| (n < self.max_in_flight).then_some(n + 1);
        if self
            .in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .is_err()
        {
            return Decision::Full;
        }
        shard.in_flight.insert(
            digest,
            InFlight {
                body: ask.body,
                ticket: None,
            },
        );
        drop(shard);
        let mut claim = self.unowned(ask, Some(digest));
        claim.owned = Some(digest);
        match self.remember(ask, digest.0[1]) {
            None => Decision::Replay,
            Some(replayed) => Decision::First {
                claim,
                key_reused,
                replayed,
            },
        }
    }

    /// Remembers a body that came under a key before a restart, for so much longer: it is known
    /// again when it comes under another.
    pub fn recall(&self, key: Digest, body: Fingerprint, remaining: Duration, now: Instant) {
        let (seconds, until) = (self.seconds(now), self.end_of(remaining, now));
        self.replays.note(body, key.0[1], seconds, until, false);
    }

    /// Whether a key is done or in flight.
    pub fn knows(&self, digest: Digest) -> bool {
        let shard = self.shard(digest);
        shard.in_flight.contains_key(&digest) || shard.done.contains(&digest)
    }

    fn claim_unkeyed(self: &Arc<Self>, ask: Ask) -> Decision {
        match self.remember(ask, 0) {
            None => Decision::Replay,
            Some(replayed) => Decision::First {
                claim: self.unowned(ask, None),
                key_reused: false,
                replayed,
            },
        }
    }

    /// A claim that holds no key (yet).
    fn unowned(self: &Arc<Self>, ask: Ask, key: Option<Digest>) -> Claim {
        let body = ask.body.filter(|_| ask.policy.replay != Replay::Off);
        let table = self.clone();
        let remembered = key.and(body);
        Claim {
            table,
            owned: None,
            body: ask.body,
            remembered,
            window: ask.policy.window,
        }
    }

    /// Remembers a body under its key; whether it came under another one, `None` if that is
    /// refused (and nothing remembered).
    fn remember(&self, ask: Ask, key: u64) -> Option<bool> {
        let Some(body) = ask.body else {
            return Some(false);
        };
        let (now, until) = (
            self.seconds(ask.now),
            self.end_of(ask.policy.window, ask.now),
        );
        match ask.policy.replay {
            Replay::Off => Some(false),
            Replay::Flag => Some(self.replays.note(body, key, now, until, true)),
            Replay::Reject => (!self.replays.note(body, key, now, until, false)).then_some(false),
        }
    }

    fn forgotten(&self, cause: &AtomicU64, count: usize) {
        cause.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.entries.fetch_sub(count, Ordering::Relaxed);
    }

    /// Done keys held.
    pub fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Keys in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Keys forgotten so far.
    pub fn evictions(&self) -> Evictions {
        Evictions {
            capacity: self.evicted_by_capacity.load(Ordering::Relaxed),
            expired: self.evicted_by_expiry.load(Ordering::Relaxed),
        }
    }

    /// Forgets every done key, where a store knows them too and some were freed there.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let count = shard.done.len();
            shard.done.clear();
            self.entries.fetch_sub(count, Ordering::Relaxed);
        }
    }

    /// Takes expired keys out of the next shard, oldest use first, a bounded number.
    pub fn sweep(&self, now: Instant) {
        let number = self.next_sweep.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        let Some(shard) = self.shards.get(number) else {
            return;
        };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.seconds(now);
        let mut taken = 0;
        while taken < SWEEP_STEP && shard.done.peek_lru().is_some_and(|(_, d)| d.until <= now) {
            shard.done.pop_lru();
            taken += 1;
        }
        self.forgotten(&self.evicted_by_expiry, taken);
    }
}

#[cfg(test)]
mod tests;
