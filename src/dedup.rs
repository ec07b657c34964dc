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

mod replay;

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use lru::LruCache;
use siphasher::sip128::{Hasher128, SipHasher13};

use self::replay::Index;

/// Keys in one shard, at most twice; more shards than this helps no one on few cores.
const KEYS_PER_SHARD: usize = 4096;
/// Most shards.
const SHARDS_LIMIT: usize = 64;
/// Most expired keys that one sweep takes out of one shard, so that a claim waits for no more.
const SWEEP_STEP: usize = 1024;

/// The secret of one process's hashes.
#[derive(Clone, Copy)]
pub struct HashKeys(u64, u64);

impl HashKeys {
    /// Takes 16 secret bytes.
    pub fn new(secret: [u64; 2]) -> Self {
        Self(secret[0], secret[1])
    }
}

impl std::fmt::Debug for HashKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKeys(***)")
    }
}

/// The keyed digest of an endpoint and an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u64; 2]);

impl Digest {
    /// Its bytes; the same after a restart where the secret of the hashes is.
    pub fn to_bytes(self) -> [u8; 16] {
        let [high, low] = self.0;
        (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
    }

    /// The inverse of [`Digest::to_bytes`].
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let number = u128::from_be_bytes(bytes);
        let half = |n: u128| u64::try_from(n & u128::from(u64::MAX)).unwrap_or_default();
        Self([half(number >> 64), half(number)])
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

/// Takes a digest, which is a good hash already, for the hash.
#[derive(Clone, Copy, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

type Build = BuildHasherDefault<AsIs>;

/// What tells one body from another: eight bits of basis (how it was made), 56 of keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    const HASH: u64 = (1 << 56) - 1;

    fn new(basis: u8, hash: u64) -> Self {
        Self(u64::from(basis) << 56 | hash & Self::HASH)
    }

    /// Basis and hash in one number; the same after a restart where the secret of the hashes is.
    pub fn to_number(self) -> u64 {
        self.0
    }

    /// The inverse of [`Fingerprint::to_number`].
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Whether two bodies are known to differ. Fingerprints of different bases tell nothing.
    fn differs(self, other: Self) -> bool {
        self.0 >> 56 == other.0 >> 56 && self != other
    }
}

/// A keyed hash over a whole body, as it is fed.
pub struct BodyHasher(SipHasher13);

/// The keyed hash of a whole body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyHash([u64; 2]);

impl BodyHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The hash of all of them.
    pub fn finish(self) -> BodyHash {
        let hash = self.0.finish128();
        BodyHash([hash.h1, hash.h2])
    }
}

/// What the same key with another body means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyReuse {
    /// A duplicate all the same.
    Duplicate,
    /// An event of its own.
    Forward,
    /// A mistake, refused.
    Reject,
}

/// What the same body under another key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// It is let through and reported.
    Flag,
    /// Nothing; bodies are not remembered.
    Off,
    /// It is refused.
    Reject,
}

/// How an endpoint takes duplicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long a done key stays taken.
    pub window: Duration,
    /// Same key, other body.
    pub key_reuse: KeyReuse,
    /// Same body, other key.
    pub replay: Replay,
}

/// What is asked about one event.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Its key; `None`: it has none and is not protected, but its body is remembered.
    pub digest: Option<Digest>,
    /// Its body.
    pub body: Option<Fingerprint>,
    /// What the endpoint wants.
    pub policy: Policy,
    /// Now.
    pub now: Instant,
}

/// The table's answer.
#[derive(Debug)]
pub enum Decision {
    /// The key is done.
    Duplicate {
        /// It came with another body.
        key_reused: bool,
    },
    /// Nobody has it: the event is the caller's to deliver.
    First {
        /// The right to deliver it.
        claim: Claim,
        /// The key came with another body before.
        key_reused: bool,
        /// The body came under another key before.
        replayed: bool,
    },
    /// Too many keys are in flight.
    Full,
    /// Someone else is delivering it.
    InFlight {
        /// Resolves when that has ended.
        waiter: Waiter,
        /// It came with another body.
        key_reused: bool,
    },
    /// Refused: the key came with another body.
    KeyReuse,
    /// Refused: the body came under another key.
    Replay,
}

/// How a claim that was waited for ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The event was delivered.
    Committed,
    /// It was not; the key is free again.
    Released {
        /// What the sender heard, if anything.
        status: Option<u16>,
    },
}

/// How many keys were forgotten, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    /// For want of room.
    pub capacity: u64,
    /// Their window was over.
    pub expired: u64,
}

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

#[derive(Debug, Default)]
struct Ticket(Mutex<Waiting>);

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

    fn end(&self, ended: Ended) {
        let wakers = {
            let mut waiting = self.lock();
            waiting.ended = Some(ended);
            std::mem::take(&mut waiting.wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }
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

/// The right to deliver one event. Dropped without [`Claim::commit`], the key is given back, so
/// that a sender's retry after our failure is not taken for a duplicate.
#[derive(Debug)]
#[must_use = "an uncommitted claim lets the retry through"]
pub struct Claim {
    table: Arc<Table>,
    /// The key, while it is this claim's.
    owned: Option<Digest>,
    body: Option<Fingerprint>,
    /// The body, if it was remembered under this key.
    remembered: Option<Fingerprint>,
    window: Duration,
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

impl Table {
    fn end(&self, running: Option<InFlight>, ended: Ended) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        if let Some(ticket) = running.and_then(|running| running.ticket) {
            ticket.end(ended);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.give_back(None);
    }
}

/// Waits for someone else's claim to end; may be awaited on any thread.
#[derive(Debug)]
pub struct Waiter {
    ticket: Arc<Ticket>,
    place: Option<u64>,
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

#[cfg(test)]
mod tests;
