//! What the table is asked, and what it can say.

use std::time::{Duration, Instant};

use super::{Claim, Digest, Fingerprint, Waiter};

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
