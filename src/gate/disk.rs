//! The disk's side of a request: a place for it before its body is read, its key, itself.

use std::time::Duration;

use bytes::Bytes;

use super::{Gate, Reached, Relay, live::Lane, visit::Visit};
use crate::{
    body::Body,
    dedup::{Ask, KeyReuse},
    endpoint::{MissingKey, Mode, Ordering},
    event, kept,
    queue::{AppendError, Appended, Bound, Fingerprint, Key, Keyed, NewEvent, Place, Refused},
    rejection::Rejection,
    signature::KeySource,
};

/// How long the table keeps a key that the store has said is taken, without for how long: the
/// store is asked again afterwards.
pub(super) const BRIEFLY: Duration = Duration::ZERO;

impl Lane {
    /// Takes the place for an event of about so many bytes.
    pub(super) fn place(&self, bytes: u64) -> Result<Place, Rejection> {
        // A configuration that puts events on disk and has no place there is refused.
        let queue = self.queue.as_ref().ok_or(Rejection::Storage)?;
        queue.place(bytes).map_err(refusal)
    }
}

pub(super) fn refusal(refused: Refused) -> Rejection {
    match refused {
        Refused::Broken | Refused::Storage(_) => Rejection::Storage,
        Refused::Full(Bound::Commands | Bound::Log) => Rejection::Overloaded,
        Refused::Full(Bound::PendingBytes | Bound::StoredBytes) => Rejection::QueueFull,
    }
}

/// What an event has in common with those it waits for, and they with it.
pub(crate) fn lane_of(ordering: &Ordering, body: &[u8]) -> Option<Bytes> {
    match ordering {
        Ordering::None => None,
        Ordering::Endpoint => Some(Bytes::new()),
        Ordering::Pointer(pointer) => event::text_at(body, pointer).map(Bytes::from),
    }
}

pub(super) fn length(event: &NewEvent) -> u64 {
    u64::try_from(event.record.len()).unwrap_or(u64::MAX)
}

fn keyed(ask: &Ask) -> Option<Keyed> {
    Some(Keyed {
        key: Key(ask.digest?.to_bytes()),
        body: ask.body.map(|body| Fingerprint(body.to_number())),
        window: ask.policy.window,
        key_reuse: ask.policy.key_reuse,
    })
}

impl Relay<'_> {
    /// The event as it is put on disk.
    ///
    /// # Errors
    /// 413 for an event that no record can hold.
    pub(super) fn event(
        &self,
        visit: &Visit,
        body: &Body,
        ask: &Ask,
    ) -> Result<NewEvent, Rejection> {
        let body = body.as_bytes();
        let record = kept::record(self.head, self.origin, body);
        let ordering = &self.lane.endpoint.queueing.ordering;
        Ok(NewEvent {
            id: visit.uuid(),
            key: keyed(ask),
            event_type: self.event_type.clone(),
            lane: lane_of(ordering, body),
            record: record.map_err(|_| Rejection::BodyTooLarge)?,
            quarantined: None,
        })
    }

    /// Keeps a request for a second look, where the endpoint wants that.
    pub(super) fn quarantine(&self, visit: &Visit, body: &Body, reason: &'static str) {
        if self.lane.endpoint.quarantine == 0 {
            return;
        }
        let record = kept::record(self.head, self.origin, body.as_bytes());
        if let (Some(queue), Ok(record)) = (&self.lane.queue, record) {
            queue.quarantine(visit.uuid(), reason, record);
        }
    }
}

impl Gate {
    /// Looks whether there is room on disk for an event of this endpoint, if it is queued. No room
    /// is held: whoever sends the body may be a stranger. Where there is none, an event that may
    /// be on disk already is read all the same: its sender is to hear that it is.
    ///
    /// # Errors
    /// 503: the body need not be read.
    pub(super) async fn check_room(
        &self,
        lane: &Lane,
        header_key: Option<&[u8]>,
        announced: Option<u64>,
    ) -> Result<(), Rejection> {
        if let Mode::Relay { .. } = lane.endpoint.mode {
            return Ok(());
        }
        match lane.place(announced.unwrap_or_default()).map(drop) {
            Err(Rejection::QueueFull) if self.may_be_kept(lane, header_key).await => Ok(()),
            outcome => outcome,
        }
    }

    /// Whether an event with this key, if it has one in a header, may be on disk.
    async fn may_be_kept(&self, lane: &Lane, header_key: Option<&[u8]>) -> bool {
        let endpoint = &*lane.endpoint;
        let Some(key) = header_key else {
            let is_in_body = matches!(endpoint.scheme.key_source(), KeySource::Pointer(_));
            return is_in_body || endpoint.dedup.missing_key == MissingKey::Body;
        };
        let digest = self.shared.table.digest(endpoint.name.as_str(), key);
        if self.shared.table.knows(digest) {
            return true;
        }
        let Some(queue) = &lane.queue else {
            return false;
        };
        let seen = queue.seen(Key(digest.to_bytes())).await;
        seen.is_ok_and(|seen| seen.is_some())
    }

    /// Whether an earlier event of the same order is on disk and not delivered: one that comes
    /// after it waits behind it there.
    pub(super) async fn must_wait(
        &self,
        relay: &Relay<'_>,
        body: &Body,
    ) -> Result<bool, Rejection> {
        let ordering = &relay.lane.endpoint.queueing.ordering;
        let queue = relay.lane.queue.as_ref().filter(|queue| queue.holds_any());
        match (queue, ordering) {
            (None, _) | (_, Ordering::None) => Ok(false),
            (Some(queue), ordering) => match lane_of(ordering, body.as_bytes()) {
                Some(order) => queue.holds(&order).await.map_err(refusal),
                None => Ok(false),
            },
        }
    }

    /// Puts an event on disk.
    pub(super) async fn queue(
        &self,
        relay: &Relay<'_>,
        visit: &Visit,
        body: &Body,
        ask: &Ask,
    ) -> Result<Reached, Rejection> {
        match self.append(relay, visit, body, ask).await {
            // What is there already needs no room.
            Err(Rejection::QueueFull) => match self.seen(relay, visit, body, ask).await? {
                Some(remaining) => Ok(Reached::Before(remaining)),
                None => Err(Rejection::QueueFull),
            },
            appended => appended,
        }
    }

    async fn append(
        &self,
        relay: &Relay<'_>,
        visit: &Visit,
        body: &Body,
        ask: &Ask,
    ) -> Result<Reached, Rejection> {
        let event = relay.event(visit, body, ask)?;
        let place = relay.lane.place(length(&event))?;
        let deadline = visit.deadline(&relay.lane.endpoint);
        let appended = relay.watch.until(deadline, place.append(event)).await;
        match appended {
            Some(Ok(Appended::Queued { key_reused })) => {
                self.note_reuse(key_reused, relay, visit, body);
                Ok(Reached::Disk)
            }
            Some(Ok(Appended::Duplicate { key_reused })) => {
                self.note_reuse(key_reused, relay, visit, body);
                Ok(Reached::Before(BRIEFLY))
            }
            Some(Err(AppendError::KeyReuse)) => {
                self.note_reuse(true, relay, visit, body);
                Err(Rejection::KeyReuse)
            }
            Some(Err(AppendError::Refused(refused))) => Err(refusal(refused)),
            // It may be kept all the same: then the sender's retry is a duplicate.
            None => Err(Rejection::Storage),
        }
    }

    /// Whether the store knows the key of an event that the table does not know, and for how much
    /// longer.
    pub(super) async fn seen(
        &self,
        relay: &Relay<'_>,
        visit: &Visit,
        body: &Body,
        ask: &Ask,
    ) -> Result<Option<Duration>, Rejection> {
        let (Some(queue), Some(keyed)) = (&relay.lane.queue, keyed(ask)) else {
            return Ok(None);
        };
        let Some(seen) = queue.seen(keyed.key).await.map_err(refusal)? else {
            return Ok(None);
        };
        let both = keyed.body.zip(seen.body);
        let key_reused = both.is_some_and(|(new, old)| new.differs(old));
        self.note_reuse(key_reused, relay, visit, body);
        match (key_reused, keyed.key_reuse) {
            (true, KeyReuse::Forward) => Ok(None),
            (true, KeyReuse::Reject) => Err(Rejection::KeyReuse),
            (true, KeyReuse::Duplicate) | (false, _) => Ok(Some(seen.remaining)),
        }
    }

    /// Puts the key of an event that the upstream has taken on disk, so that a restart does not
    /// let it through again. The upstream's answer goes out whether that works or not.
    pub(super) async fn remember(&self, relay: &Relay<'_>, visit: &Visit, ask: &Ask) {
        let (Some(queue), Some(keyed)) = (&relay.lane.queue, keyed(ask)) else {
            return;
        };
        let remembered = queue.remember(keyed.key, keyed.body, keyed.window);
        let deadline = visit.deadline(&relay.lane.endpoint);
        let what = match relay.watch.until(deadline, remembered).await {
            Some(Ok(())) => return,
            Some(Err(Refused::Storage(_))) => {
                "idempotency key not on disk yet: a restart before the store can be written forgets it"
            }
            Some(Err(Refused::Broken | Refused::Full(_))) | None => {
                "idempotency key not put on disk, a restart forgets it"
            }
        };
        visit.notice(&self.shared, what);
    }

    /// Counts, logs and keeps what came with a key that another body had before.
    pub(super) fn note_reuse(
        &self,
        key_reused: bool,
        relay: &Relay<'_>,
        visit: &Visit,
        body: &Body,
    ) {
        if key_reused {
            relay.lane.metrics.key_reuse.inc();
            visit.notice(&self.shared, "idempotency key reused with another body");
            relay.quarantine(visit, body, "key_reuse");
        }
    }
}
