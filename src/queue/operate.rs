//! What an operator asks: which events there are, what became of them, and what to do with them.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use uuid::Uuid;

use super::fault::StorageFault;
use crate::endpoint::EndpointName;

/// Where an event is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Given up.
    Dead,
    /// Accepted by the upstream.
    Delivered,
    /// An attempt runs.
    Leased,
    /// Waits for its time, or for an earlier event of its lane.
    Pending,
}

impl State {
    /// The word in output and filters.
    pub fn label(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Delivered => "delivered",
            Self::Leased => "leased",
            Self::Pending => "pending",
        }
    }
}

/// Which events; what is `None` excludes none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this endpoint.
    pub endpoint: Option<EndpointName>,
    /// Of this type.
    pub event_type: Option<String>,
    /// In this state.
    pub state: Option<State>,
    /// Appended at least so long ago.
    pub older_than: Option<Duration>,
    /// Appended at most so long ago.
    pub newer_than: Option<Duration>,
    /// Whose last error holds this text, in any case of letters.
    pub error: Option<String>,
}

/// Where a listing goes on; an opaque number that stays valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(pub i64);

/// A part of a listing.
#[derive(Clone, Debug)]
pub struct Page {
    /// In the order they were appended, at most as many as were asked for. May be empty though
    /// there is more: a page looks at a bounded number of events.
    pub events: Vec<Summary>,
    /// Where to go on; `None`: that was all.
    pub next: Option<Cursor>,
}

/// An event without its headers and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub endpoint: EndpointName,
    /// Its type when known.
    pub event_type: Option<String>,
    /// Where it is.
    pub state: State,
    /// Waits for an earlier event of its lane.
    pub waits_for_lane: bool,
    /// Attempts begun.
    pub attempts: u32,
    /// When it was appended.
    pub appended_at: SystemTime,
    /// Since when it is leased, delivered or dead.
    pub since: Option<SystemTime>,
    /// When it is due, while pending.
    pub due_at: Option<SystemTime>,
    /// The record's size.
    pub bytes: u64,
    /// The upstream's last status.
    pub last_status: Option<u16>,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// An event in full.
#[derive(Clone, Debug)]
pub struct Detail {
    /// What a listing shows.
    pub summary: Summary,
    /// The last 20 attempts that ended badly, oldest first.
    pub attempts: Vec<Attempt>,
    /// The record when it was asked for; `Err` when its checksum does not match it.
    pub record: Option<Result<Bytes, CorruptRecord>>,
}

/// An attempt that ended badly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its number.
    pub number: u32,
    /// When it ended.
    pub at: SystemTime,
    /// The upstream's status, if it answered.
    pub status: Option<u16>,
    /// What went wrong.
    pub error: String,
}

/// A record that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorruptRecord;

/// Which events an operation is for.
#[derive(Clone, Debug)]
pub enum Selection {
    /// Those a filter lets through.
    All(Filter),
    /// These.
    Ids(Vec<Uuid>),
}

/// What one endpoint holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Whose figures.
    pub endpoint: EndpointName,
    /// Accepts and holds.
    pub paused: bool,
    /// Events that wait, without those leased.
    pub pending: u64,
    /// Events an attempt is running for.
    pub leased: u64,
    /// Events given up.
    pub dead: u64,
    /// Events accepted by the upstream.
    pub delivered: u64,
    /// Records of pending and leased events, in bytes.
    pub pending_bytes: u64,
    /// Records of all events, in bytes.
    pub stored_bytes: u64,
    /// Quarantined requests.
    pub quarantined: u64,
    /// Records of quarantined requests, in bytes.
    pub quarantined_bytes: u64,
    /// How long ago the oldest pending or leased event was appended.
    pub oldest_age: Option<Duration>,
}

/// A request whose signature did not match, kept for a second look.
#[derive(Clone)]
pub struct Quarantined {
    /// Its number, for [`NewEvent::quarantined`](super::NewEvent::quarantined).
    pub number: i64,
    /// The id it was answered with.
    pub id: Uuid,
    /// When it came.
    pub at: SystemTime,
    /// The refusal's label, such as `signature_mismatch`.
    pub reason: String,
    /// What was sent; `Err` when its checksum does not match it.
    pub record: Result<Bytes, CorruptRecord>,
}

impl fmt::Debug for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quarantined")
            .field("number", &self.number)
            .field("id", &self.id)
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperateError {
    /// The store is broken or closed.
    Broken,
    /// Too many operations wait.
    Busy,
    /// A file could not be written: what, and what the system said.
    File(String),
    /// The store cannot be written at the moment.
    Storage(StorageFault),
    /// The endpoint has never held anything.
    UnknownEndpoint,
    /// The event is there, but what is noted about it is damaged.
    Unreadable(Uuid),
}

impl fmt::Display for OperateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken => f.write_str("the store is broken or closed"),
            Self::Busy => f.write_str("too many operations wait; try again"),
            Self::File(said) => f.write_str(said),
            Self::Storage(fault) => write!(f, "the store cannot be written: {fault}"),
            Self::UnknownEndpoint => f.write_str("the queue holds no such endpoint"),
            Self::Unreadable(id) => write!(
                f,
                "{id}: its row in the store is damaged and cannot be shown; others are not \
                 concerned. The log says how; hookward queue drop {id} removes it"
            ),
        }
    }
}

impl std::error::Error for OperateError {}
