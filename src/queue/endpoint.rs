//! One endpoint's part of the queue: a place, an append, a lease.

use std::{
    fmt,
    hash::Hasher as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use siphasher::sip128::{Hasher128 as _, SipHasher13};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use uuid::Uuid;

use super::{
    AppendError, Appended, AppendedLeased, Arrivals, Bound, Fingerprint, Key, Lease, Leases,
    NewEvent, Refused, Seen,
    arrivals::Threshold,
    inbox::{Accepted, Command, Entry, Suspect, Taking},
    reader::Job,
    record::checksum,
    shared::{Account, Shared},
    sqlite::lease::cut,
    threads::Threads,
};
use crate::endpoint::EndpointName;

/// Longest event type kept, in bytes.
const EVENT_TYPE_LIMIT: usize = 128;
/// Largest record, in bytes: SQLite holds at most 1 GiB in one place.
const RECORD_LIMIT: usize = 512 * 1024 * 1024;
/// The log's length in pages at which nothing more is taken: 1 GiB.
const LOG_PAGES: u32 = 256 * 1024;

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
    shared: Arc<Shared>,
    account: Arc<Account>,
    /// Ended with the last handle.
    _threads: Arc<Threads>,
}

/// Room for one event, taken before its body is read. Dropped, it is given back.
#[must_use]
pub struct Place {
    endpoint: Endpoint,
    permit: OwnedSemaphorePermit,
}

impl Endpoint {
    pub(super) fn new(shared: Arc<Shared>, account: Arc<Account>, threads: Arc<Threads>) -> Self {
        Self {
            shared,
            account,
            _threads: threads,
        }
    }

    /// Its name.
    pub fn name(&self) -> &EndpointName {
        &self.account.name
    }

    /// Takes the place for an event of about `bytes` (its announced length, or 0).
    ///
    /// # Errors
    /// See [`Refused`]. Never waits.
    pub fn place(&self, bytes: u64) -> Result<Place, Refused> {
        if let Some(refused) = self.shared.refusal() {
            return Err(refused);
        }
        if self.shared.log_pages.load(Ordering::Relaxed) > LOG_PAGES {
            return Err(Refused::Full(Bound::Log));
        }
        self.account.has_room(bytes)?;
        let places = self.shared.places.clone();
        let permit = places.try_acquire_owned();
        Ok(Place {
            endpoint: self.clone(),
            permit: permit.map_err(|_| Refused::Full(Bound::Commands))?,
        })
    }

    /// Whether a key is taken. A question of the store's reader: tens of microseconds.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn seen(&self, key: Key) -> Result<Option<Seen>, Refused> {
        let account = self.account.clone();
        let ask = |reply| Job::Seen {
            account,
            key,
            reply,
        };
        self.shared.desk.look(ask).await
    }

    /// Whether it holds any event that is neither delivered nor dead; as of the last commit.
    pub fn holds_any(&self) -> bool {
        let tally = self.account.book().tally;
        tally.pending.events > 0 || tally.leased.events > 0
    }

    /// Whether it holds an event of a lane that is neither delivered nor dead. A question of the
    /// store's reader.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn holds(&self, lane: &[u8]) -> Result<bool, Refused> {
        let (account, lane) = (self.account.clone(), self.lane(lane));
        let ask = |reply| Job::Holds {
            account,
            lane,
            reply,
        };
        self.shared.desk.look(ask).await
    }

    /// Takes a key for an event that was relayed; resolves when that is on disk. A key that is
    /// taken is taken anew from now.
    ///
    /// # Errors
    /// See [`Refused`]. After [`Refused::Storage`] it is held in memory, among the latest 10,000,
    /// and written when the disk takes something again.
    pub async fn remember(
        &self,
        key: Key,
        body: Option<Fingerprint>,
        window: Duration,
    ) -> Result<(), Refused> {
        let account = self.account.clone();
        self.ask(|reply| Command::Remember {
            account,
            key,
            body,
            window,
            reply,
        })
        .await
    }

    /// Frees a key; resolves when that is on disk.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn forget(&self, key: Key) -> Result<(), Refused> {
        let account = self.account.clone();
        self.ask(|reply| Command::Forget {
            account,
            key,
            reply,
        })
        .await
    }

    /// Leases up to `limit` events that are due, the longest due first; of a lane only the first
    /// event that is neither delivered nor dead, and only while none of it is leased. None while
    /// the endpoint is paused.
    ///
    /// # Errors
    /// [`Refused::Broken`] only: what is on disk goes on being delivered while nothing can be
    /// written.
    pub async fn lease(&self, limit: usize) -> Result<Leases, Refused> {
        self.lease_or_expect(limit, None).await
    }

    pub(super) async fn lease_or_expect(
        &self,
        limit: usize,
        rest: Option<Arc<Threshold>>,
    ) -> Result<Leases, Refused> {
        // The writer would say the same, and be woken for it.
        if self.is_paused() {
            return Ok(Leases::default());
        }
        let account = self.account.clone();
        self.ask(|reply| Command::Lease {
            account,
            limit,
            rest,
            reply,
        })
        .await
    }

    /// The right to its events as they arrive, from now on.
    pub fn arrivals(&self) -> Arrivals {
        Arrivals::new(self.clone(), self.account.new_threshold())
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Command,
    ) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        // Refused, the reply is dropped with the command.
        self.shared.inbox.send(command(reply));
        answer.await.unwrap_or(Err(Refused::Broken))
    }

    /// Resolves when an event may have become due since this resolved last, without its time
    /// having come: appended, settled, handed back, replayed, resumed. For one caller at a time.
    pub async fn changed(&self) {
        self.account.changed.notified().await;
    }

    /// Whether it accepts and holds.
    pub fn is_paused(&self) -> bool {
        self.account.paused.load(Ordering::Relaxed)
    }

    /// Keeps a request whose signature did not match, if there is room for the effort: it is not
    /// waited for, and dropped when many are being written. `reason` is a label.
    pub fn quarantine(&self, id: Uuid, reason: &'static str, record: Bytes) {
        let fits = u64::try_from(record.len())
            .is_ok_and(|bytes| bytes <= self.account.book().quarantine_bytes());
        if !fits || self.shared.refusal().is_some() {
            return;
        }
        let Ok(place) = self.shared.quarantine_places.clone().try_acquire_owned() else {
            return;
        };
        let suspect = Suspect {
            id,
            reason,
            crc: checksum(self.name(), id, None, &record),
            record,
        };
        self.shared.inbox.send(Command::Quarantine {
            account: self.account.clone(),
            suspect: Box::new(suspect),
            _place: place,
        });
    }

    /// A lane as the store knows it.
    fn lane(&self, lane: &[u8]) -> [u8; 16] {
        let [k0, k1] = self.shared.hash_secret;
        let mut hasher = SipHasher13::new_with_keys(k0, k1);
        hasher.write(lane);
        hasher.finish128().as_bytes()
    }

    fn entry(&self, event: NewEvent, leased: bool) -> Entry {
        let event_type = event
            .event_type
            .map(|text| cut(&text, EVENT_TYPE_LIMIT).to_owned());
        let lane = event.lane.map(|lane| self.lane(&lane));
        Entry {
            id: event.id,
            key: event.key,
            crc: checksum(self.name(), event.id, event_type.as_deref(), &event.record),
            event_type,
            lane,
            record: event.record,
            quarantined: event.quarantined,
            leased,
        }
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
        let Accepted {
            key_reused,
            outcome,
        } = self.keep(event, false).await?;
        Ok(match outcome {
            Taking::Duplicate => Appended::Duplicate { key_reused },
            // A lease that nobody asked for is given back by being dropped.
            Taking::Leased(_) | Taking::Queued => Appended::Queued { key_reused },
        })
    }

    /// Keeps an event whose attempt 1 is running: it is on disk leased, and nobody else is given
    /// it until that attempt is settled or the process ends.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn append_leased(self, event: NewEvent) -> Result<AppendedLeased, AppendError> {
        let Accepted {
            key_reused,
            outcome,
        } = self.keep(event, true).await?;
        Ok(match outcome {
            Taking::Leased(lease) => AppendedLeased::Leased { lease, key_reused },
            Taking::Duplicate | Taking::Queued => AppendedLeased::Duplicate { key_reused },
        })
    }

    async fn keep(self, event: NewEvent, leased: bool) -> Result<Accepted<Lease>, AppendError> {
        let Self { endpoint, permit } = self;
        if let Some(refused) = endpoint.shared.refusal() {
            return Err(AppendError::Refused(refused));
        }
        let bytes = event.record.len();
        if bytes > RECORD_LIMIT {
            return Err(AppendError::Refused(Refused::Full(Bound::PendingBytes)));
        }
        let admitted = endpoint.account.admit(bytes.try_into().unwrap_or(u64::MAX));
        admitted.map_err(AppendError::Refused)?;
        let entry = Box::new(endpoint.entry(event, leased));
        let (reply, answer) = oneshot::channel();
        let sent = endpoint.shared.inbox.send(Command::Append {
            account: endpoint.account.clone(),
            entry,
            place: permit,
            reply,
        });
        if !sent {
            endpoint
                .account
                .arrived(bytes.try_into().unwrap_or(u64::MAX));
        }
        let broken = Err(AppendError::Refused(Refused::Broken));
        answer.await.unwrap_or(broken)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(self.name()).finish()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(self.endpoint.name()).finish()
    }
}
