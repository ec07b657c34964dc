//! One endpoint's part of the queue: a place, an append, a lease.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::{
    AppendError, Appended, AppendedLeased, Fingerprint, Key, Leases, NewEvent, Refused, Seen,
};
use crate::endpoint::EndpointName;

/// How much an endpoint may hold, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records of pending and leased events, in bytes.
    pub pending_bytes: u64,
    /// Records of all events, in bytes: near it delivered ones go early, oldest first, then dead
    /// ones.
    pub stored_bytes: u64,
    /// How long delivered events are kept.
    pub keep_delivered: Duration,
    /// How long dead ones are kept.
    pub keep_dead: Duration,
    /// Quarantined requests, in bytes; beyond it the oldest go. 0: none is kept.
    pub quarantine_bytes: u64,
}

/// A handle on one endpoint's events; cheap to clone, for every thread.
#[derive(Clone)]
pub struct Endpoint {
    name: EndpointName,
}

/// Room for one event, taken before its body is read. Dropped, it is given back.
#[must_use]
pub struct Place {
    endpoint: Endpoint,
}

impl Endpoint {
    /// Its name.
    pub fn name(&self) -> &EndpointName {
        &self.name
    }

    /// Takes the place for an event of about `bytes` (its announced length, or 0).
    ///
    /// # Errors
    /// See [`Refused`]. Never waits.
    pub fn place(&self, bytes: u64) -> Result<Place, Refused> {
        let _ = bytes;
        unimplemented!()
    }

    /// Whether a key is taken. A question of the store's reader: tens of microseconds.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn seen(&self, key: Key) -> Result<Option<Seen>, Refused> {
        let _ = key;
        unimplemented!()
    }

    /// Takes a key for an event that was relayed; resolves when that is on disk. A key that is
    /// taken is taken anew from now.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn remember(
        &self,
        key: Key,
        body: Option<Fingerprint>,
        window: Duration,
    ) -> Result<(), Refused> {
        let _ = (key, body, window);
        unimplemented!()
    }

    /// Frees a key; resolves when that is on disk.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn forget(&self, key: Key) -> Result<(), Refused> {
        let _ = key;
        unimplemented!()
    }

    /// Leases up to `limit` events that are due, the longest due first; of a lane only the first
    /// event that is neither delivered nor dead, and only while none of it is leased. None while
    /// the endpoint is paused.
    ///
    /// # Errors
    /// [`Refused::Broken`] only: what is on disk goes on being delivered while nothing can be
    /// written.
    pub async fn lease(&self, limit: usize) -> Result<Leases, Refused> {
        let _ = limit;
        unimplemented!()
    }

    /// Resolves when an event may have become due since this resolved last, without its time
    /// having come: appended, settled, handed back, replayed, resumed. For one caller at a time.
    pub async fn changed(&self) {
        unimplemented!()
    }

    /// Whether it accepts and holds.
    pub fn is_paused(&self) -> bool {
        unimplemented!()
    }

    /// Keeps a request whose signature did not match, if there is room for the effort: it is not
    /// waited for, and dropped when many are being written. `reason` is a label.
    pub fn quarantine(&self, id: Uuid, reason: &'static str, record: Bytes) {
        let _ = (id, reason, record);
        unimplemented!()
    }
}

impl Place {
    /// Keeps an event. Resolves after the commit that holds it and its key was synced; a duplicate
    /// of an event whose commit is pending waits for that commit. If the future is dropped, the
    /// event is kept all the same.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn append(self, event: NewEvent) -> Result<Appended, AppendError> {
        let _ = (&self.endpoint, event);
        unimplemented!()
    }

    /// Keeps an event whose attempt 1 is running: it is on disk leased, and nobody else is given
    /// it until that attempt is settled or the process ends.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn append_leased(self, event: NewEvent) -> Result<AppendedLeased, AppendError> {
        let _ = event;
        unimplemented!()
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Endpoint").field(&self.name).finish()
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Place").field(&self.endpoint.name).finish()
    }
}
