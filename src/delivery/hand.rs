//! What a worker has in hand: events leased before there is a place for them, and the question for
//! more.
//!
//! The store gives events out when a commit is on disk, which takes as long as many an attempt. A worker
//! that asked only once places are free would leave them empty meanwhile, so it asks for as many more as
//! attempts ended of late: none while little comes or the upstream is slow.

use std::{
    collections::VecDeque,
    pin::Pin,
    time::{Duration, Instant},
};

use crate::queue::{Arrivals, Lease, Leases, Refused};

/// Most events asked for at once, and most in hand.
pub(super) const BATCH: usize = 256;
/// Bytes of records worth having ahead, about.
const AHEAD_BYTES: usize = 4 * 1024 * 1024;
/// How long "of late" is: a few commits.
const LATE: Duration = Duration::from_millis(10);
/// When the store is asked again after it was out of order.
const STORE_PAUSE: Duration = Duration::from_secs(1);

type Answer = Result<Leases, Refused>;

/// One worker's.
pub(super) struct Hand {
    leases: VecDeque<Lease>,
    asked: Option<Asked>,
    /// Attempts that ended of late: how many more than there are places for are worth asking for.
    ahead: usize,
    /// Attempts that have ended since then.
    ended: (usize, Instant),
    /// Bytes of a record, on average of the last eight or so.
    record_bytes: usize,
    /// When the store may have more; `None`: news tell.
    next: Option<Instant>,
}

/// A question to the store.
struct Asked {
    answer: Pin<Box<dyn Future<Output = Answer>>>,
    wanted: usize,
    /// The store may have got more since.
    is_old: bool,
}

impl Hand {
    /// An empty one.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            leases: VecDeque::new(),
            asked: None,
            ahead: 0,
            ended: (0, now),
            record_bytes: 0,
            next: Some(now),
        }
    }

    /// Whether nothing is leased and nothing will be.
    pub(super) fn is_empty(&self) -> bool {
        self.leases.is_empty() && self.asked.is_none()
    }

    /// When it is worth asking; `None`: when news come.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next.filter(|_| self.asked.is_none())
    }

    /// Counts attempts that have ended.
    pub(super) fn count(&mut self, ended: usize, now: Instant) {
        let (count, since) = &mut self.ended;
        *count += ended;
        let passed = now.saturating_duration_since(*since);
        if passed >= LATE {
            // After a pause none ended of late.
            self.ahead = if passed < 2 * LATE { *count } else { 0 };
            (*count, *since) = (0, now);
        }
    }

    /// The store may have more from now on.
    pub(super) fn hear(&mut self, now: Instant) {
        self.next = Some(now);
        if let Some(asked) = &mut self.asked {
            asked.is_old = true;
        }
    }

    /// The event that goes next.
    pub(super) fn take(&mut self) -> Option<Lease> {
        self.leases.pop_front()
    }

    /// Puts back what found no place.
    pub(super) fn put_back(&mut self, lease: Lease) {
        self.leases.push_front(lease);
    }

    /// Takes what has arrived.
    pub(super) fn welcome(&mut self, leases: Vec<Lease>) {
        for lease in &leases {
            self.record_bytes = (self.record_bytes * 7 + lease.record().len()) / 8;
        }
        self.leases.extend(leases);
    }

    /// Gives the store back what is in hand, none of which was tried, and expects nothing.
    pub(super) fn give_back(&mut self, arrivals: &Arrivals) {
        arrivals.expect(0);
        self.ahead = 0;
        for lease in self.leases.drain(..) {
            lease.hand_back(None);
        }
    }

    /// Asks for events for this many places, and for what is worth having ahead, if the store may
    /// have any; expects those that arrive if it has none. Does nothing while the store is being asked.
    pub(super) fn ask(&mut self, arrivals: &Arrivals, places: usize, now: Instant) {
        if self.asked.is_some() {
            return;
        }
        let ahead = self.ahead.min(AHEAD_BYTES / self.record_bytes.max(1));
        let wanted = (places + ahead).min(BATCH);
        let wanted = wanted.saturating_sub(self.leases.len());
        if wanted == 0 || self.next.is_none_or(|next| next > now) {
            arrivals.expect(wanted);
            return;
        }
        self.asked = Some(Asked {
            answer: Box::pin(arrivals.lease(wanted)),
            wanted,
            is_old: false,
        });
    }

    /// The store's answer; never resolves while nothing is asked. May be dropped and called again.
    pub(super) async fn answered(&mut self) -> Answer {
        match &mut self.asked {
            Some(asked) => asked.answer.as_mut().await,
            None => std::future::pending().await,
        }
    }

    /// Takes the store's answer.
    pub(super) fn receive(&mut self, answer: Answer, now: Instant) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        self.next = match answer {
            Ok(leased) => {
                let has_more = asked.is_old || leased.leases.len() == asked.wanted;
                self.welcome(leased.leases);
                let due = leased.next_due.map(|due| due.max(Duration::from_millis(1)));
                if has_more {
                    Some(now)
                } else {
                    due.map(|due| now + due)
                }
            }
            Err(Refused::Broken | Refused::Full(_) | Refused::Storage(_)) => {
                Some(now + STORE_PAUSE)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::{
        endpoint::EndpointName,
        queue::{Appended, Endpoint, NewEvent, Observer, Options, Queue},
    };

    /// An endpoint with so many events, and the directory they are in.
    async fn endpoint(events: u128) -> (std::path::PathBuf, Endpoint) {
        let dir = std::env::temp_dir().join(format!("hookward-hand-{}", Uuid::new_v4()));
        let options = Options {
            places: 8,
            wall_clock: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            observer: Observer::default(),
        };
        let queue = Queue::open(&dir, options).unwrap();
        let endpoint = queue.endpoint(&EndpointName::new("crm").unwrap(), None);
        for id in 1..=events {
            let event = NewEvent {
                id: Uuid::from_u128(id),
                key: None,
                event_type: None,
                lane: None,
                record: Bytes::from_static(b"a record"),
                quarantined: None,
            };
            let appended = endpoint.place(0).unwrap().append(event).await;
            assert!(matches!(appended, Ok(Appended::Queued { .. })));
        }
        (dir, endpoint)
    }

    /// How many were leased.
    async fn answered(hand: &mut Hand) -> usize {
        let answer = hand.answered().await;
        let before = hand.leases.len();
        hand.receive(answer, Instant::now());
        hand.leases.len() - before
    }

    #[test]
    fn as_many_are_leased_ahead_as_attempts_ended_of_late_and_given_back_untried() {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            let (dir, endpoint) = endpoint(10).await;
            let start = Instant::now();
            let (arrivals, mut hand) = (endpoint.arrivals(), Hand::new(start));
            let is_asked = |hand: &mut Hand, places| {
                hand.ask(&arrivals, places, Instant::now());
                hand.asked.is_some()
            };
            assert!(is_asked(&mut hand, 2));
            assert_eq!(answered(&mut hand).await, 2);
            assert!(hand.take().is_some() && hand.take().is_some());
            assert!(!is_asked(&mut hand, 0), "nothing ended");

            // Without a place, what ended of late.
            hand.count(3, start + LATE);
            assert!(is_asked(&mut hand, 0));
            assert_eq!(answered(&mut hand).await, 3);
            assert!(!is_asked(&mut hand, 0), "as many are in hand");
            hand.record_bytes = AHEAD_BYTES / 2;
            hand.give_back(&arrivals);
            hand.count(9, start + 2 * LATE);
            assert!(is_asked(&mut hand, 0));
            assert_eq!(answered(&mut hand).await, 2, "large ones");
            hand.count(1, start + 5 * LATE);
            assert_eq!(hand.ahead, 0, "that was long ago");

            hand.give_back(&arrivals);
            assert!(hand.is_empty());
            assert!(is_asked(&mut hand, 20));
            assert_eq!(answered(&mut hand).await, 8);
            let attempts = std::iter::from_fn(|| hand.take()).map(|lease| lease.attempt());
            assert_eq!(attempts.max(), Some(1));

            assert!(!is_asked(&mut hand, 20), "nothing is due");
            hand.hear(Instant::now());
            assert!(is_asked(&mut hand, 20));
            drop((hand, arrivals, endpoint));
            std::fs::remove_dir_all(dir).unwrap();
        });
    }
}
