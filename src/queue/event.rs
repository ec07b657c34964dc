//! What is asked of the store about one event, and what it answers.

use std::{fmt, time::Duration};

use bytes::Bytes;
use uuid::Uuid;

use super::{Lease, fault::StorageFault};
use crate::dedup::KeyReuse;

/// A 16-byte keyed digest of an idempotency key, made with [`Queue::hash_secret`].
///
/// The digest and not the key: five million of them fit 400 MiB, what a sender wrote is not kept,
/// and a stranger cannot aim at a place in the tree. The endpoint need not be part of it: keys
/// are kept per endpoint.
///
/// [`Queue::hash_secret`]: super::Queue::hash_secret
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 16]);

/// What tells one body from another: eight bits of basis (how it was made) above 56 of keyed hash.
///
/// Fingerprints of different bases tell nothing about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// Whether two bodies are known to differ.
    pub fn differs(self, other: Self) -> bool {
        self.0 >> 56 == other.0 >> 56 && self != other
    }
}

/// An idempotency key with all that decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// The key.
    pub key: Key,
    /// The body it came with.
    pub body: Option<Fingerprint>,
    /// How long it stays taken.
    pub window: Duration,
    /// What the same key with another body means: with `Forward` the key passes to the later one.
    pub key_reuse: KeyReuse,
}

/// A verified event to be kept.
#[derive(Clone)]
pub struct NewEvent {
    /// Its id; must not have been used before.
    pub id: Uuid,
    /// Its idempotency key; without one nothing protects it from being taken twice.
    pub key: Option<Keyed>,
    /// Its type when readable; cut at 128 bytes.
    pub event_type: Option<String>,
    /// Events with equal bytes here are delivered one at a time, in the order they were appended;
    /// `None`: in no particular order. Kept as a digest.
    pub lane: Option<Bytes>,
    /// [`Record::encode`](super::Record::encode)'s bytes.
    pub record: Bytes,
    /// The quarantined request it was. It goes in the same transaction, but stays when its key is
    /// taken with another body.
    pub quarantined: Option<i64>,
}

/// Shows no record: it holds headers and a body.
impl fmt::Debug for NewEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewEvent")
            .field("id", &self.id)
            .field("record_bytes", &self.record.len())
            .finish_non_exhaustive()
    }
}

/// What became of an append; either way the commit that holds the key has been synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The key was taken.
    Duplicate {
        /// It was taken with another body.
        key_reused: bool,
    },
    /// The event is on disk.
    Queued {
        /// Its key was taken with another body before.
        key_reused: bool,
    },
}

/// What became of an append of an event whose first attempt runs.
#[derive(Debug)]
pub enum AppendedLeased {
    /// The key was taken.
    Duplicate {
        /// It was taken with another body.
        key_reused: bool,
    },
    /// The event is on disk.
    Leased {
        /// Its attempt 1, the caller's to settle.
        lease: Lease,
        /// Its key was taken with another body before.
        key_reused: bool,
    },
}

/// What became of a key that was to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The body the key was taken with.
    pub body: Option<Fingerprint>,
    /// For how much longer it is taken.
    pub remaining: Duration,
}

/// Why there is no place for another event. Each is a 503; the caller says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The store is broken or closed: nothing is acknowledged any more.
    Broken,
    /// A bound is reached.
    Full(Bound),
    /// The disk takes nothing at the moment; it is tried again by itself.
    Storage(StorageFault),
}

/// Which bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Appends in progress.
    Commands,
    /// The store's log: something that reads, such as a backup, keeps it from being folded in.
    Log,
    /// [`Limits::pending_bytes`](super::Limits::pending_bytes).
    PendingBytes,
    /// [`Limits::stored_bytes`](super::Limits::stored_bytes).
    StoredBytes,
}

/// Why an event is not in the store: nothing of it was kept, its key is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The key came with another body, and [`KeyReuse::Reject`] was asked for.
    KeyReuse,
    /// See [`Refused`]. After `Broken` whether the event is on disk is not known.
    Refused(Refused),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken => f.write_str("the store is broken"),
            Self::Full(Bound::Commands) => f.write_str("too many appends are in progress"),
            Self::Full(Bound::Log) => f.write_str("the store's log is full while a backup reads"),
            Self::Full(Bound::PendingBytes) => f.write_str("max_pending_bytes is reached"),
            Self::Full(Bound::StoredBytes) => f.write_str("max_stored_bytes is reached"),
            Self::Storage(fault) => write!(f, "the store cannot be written: {fault}"),
        }
    }
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyReuse => f.write_str("the key was used with another body"),
            Self::Refused(refused) => refused.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}
impl std::error::Error for AppendError {}
