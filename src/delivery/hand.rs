//! What a worker has in hand: events leased before there is a place for them, and the question for
//! more.
//!
//! The store answers when a commit is on disk, which takes as long as many an attempt. A worker that
//! asked only once places are free would leave them empty meanwhile, so it asks for as many more as
//! places became free while it was waiting for the last answer: none while little comes or the
//! upstream is slow.

use std::{
    collections::VecDeque,
    pin::Pin,
    time::{Duration, Instant},
};

use crate::queue::{Arrivals, Lease, Leases, Refused};

/// Most events asked for at once, and most in hand.
pub(super) const BATCH: usize = 64;
/// When the store is asked again after it was out of order.
const STORE_PAUSE: Duration = Duration::from_secs(1);

type Answer = Result<Leases, Refused>;

/// One worker's.
pub(super) struct Hand {
    leases: VecDeque<Lease>,
    asked: Option<Asked>,
    /// How many more than there are places for are worth asking for.
    ahead: usize,
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
    /// have any; expects those that arrive if it has none. Unless it is being asked. Returns whether
    /// it was asked.
    pub(super) fn ask(&mut self, arrivals: &Arrivals, places: usize, now: Instant) -> bool {
        if self.asked.is_some() {
            return false;
        }
        let wanted = (places + self.ahead).min(BATCH);
        let wanted = wanted.saturating_sub(self.leases.len());
        if wanted == 0 || self.next.is_none_or(|next| next > now) {
            arrivals.expect(wanted);
            return false;
        }
        self.asked = Some(Asked {
            answer: Box::pin(arrivals.lease(wanted)),
            wanted,
            is_old: false,
        });
        true
    }

    /// The store's answer; never resolves while nothing is asked. May be dropped and called again.
    pub(super) async fn answered(&mut self) -> Answer {
        match &mut self.asked {
            Some(asked) => asked.answer.as_mut().await,
            None => std::future::pending().await,
        }
    }

    /// Takes the store's answer; `ended` attempts have ended since it was asked, whose places were
    /// empty meanwhile or would have been.
    pub(super) fn receive(&mut self, answer: Answer, ended: usize, now: Instant) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        self.ahead = ended;
        self.next = match answer {
            Ok(leased) => {
                let has_more = asked.is_old || leased.leases.len() == asked.wanted;
                self.leases.extend(leased.leases);
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

    /// Waits for the answer, during which so many attempts end; how many were leased.
    async fn answered(hand: &mut Hand, ended: usize) -> usize {
        let answer = hand.answered().await;
        let before = hand.leases.len();
        hand.receive(answer, ended, Instant::now());
        hand.leases.len() - before
    }

    #[test]
    fn as_many_are_leased_ahead_as_attempts_ended_meanwhile_and_given_back_untried() {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            let (dir, endpoint) = endpoint(10).await;
            let (arrivals, mut hand) = (endpoint.arrivals(), Hand::new(Instant::now()));
            assert!(hand.ask(&arrivals, 2, Instant::now()));
            assert!(!hand.ask(&arrivals, 2, Instant::now()), "it is being asked");
            assert_eq!(answered(&mut hand, 3).await, 2);
            assert!(hand.take().is_some() && hand.take().is_some());

            // Without a place, what was missed the last time.
            assert!(hand.ask(&arrivals, 0, Instant::now()));
            assert_eq!(answered(&mut hand, 0).await, 3);
            assert!(!hand.ask(&arrivals, 0, Instant::now()), "nothing ended");

            hand.give_back(&arrivals);
            assert!(hand.is_empty());
            assert!(hand.ask(&arrivals, 20, Instant::now()));
            assert_eq!(answered(&mut hand, 0).await, 8);
            let attempts = std::iter::from_fn(|| hand.take()).map(|lease| lease.attempt());
            assert_eq!(attempts.max(), Some(1));

            assert!(!hand.ask(&arrivals, 20, Instant::now()), "nothing is due");
            hand.hear(Instant::now());
            assert!(hand.ask(&arrivals, 20, Instant::now()));
            drop((hand, arrivals, endpoint));
            std::fs::remove_dir_all(dir).unwrap();
        });
    }
}
