//! The store's time: the wall clock's at start, then as the monotonic clock passes.
//!
//! A wall clock that is set back or forth while the process runs changes nothing. At start time
//! begins no earlier than the last time written to the store, so that what was due in five seconds
//! is not due in an hour and five seconds because the clock went back meanwhile.

#[cfg(test)]
use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};
use std::time::{Duration, Instant, SystemTime};

use super::record::{LATEST, from_unix_millis, unix_millis};

/// Milliseconds since 1970 by the store's clock.
pub(super) type Millis = i64;

/// Tells the store's time.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    started: Instant,
    origin: Millis,
    #[cfg(test)]
    ahead: Arc<AtomicI64>,
}

impl Clock {
    /// Begins at the wall clock's time, but not before the last time the store knows. One that
    /// cannot be a time is damage: by it everything would be over and be removed.
    pub(super) fn new(wall_clock: SystemTime, last_known: Millis) -> Self {
        let last_known = Some(last_known).filter(|known| *known <= LATEST);
        Self {
            started: Instant::now(),
            origin: unix_millis(wall_clock).max(last_known.unwrap_or_default()),
            #[cfg(test)]
            ahead: Arc::default(),
        }
    }

    /// Now.
    pub(super) fn now(&self) -> Millis {
        let passed = millis(self.started.elapsed());
        #[cfg(test)]
        let passed = passed + self.ahead.load(Ordering::Relaxed);
        self.origin.saturating_add(passed)
    }

    /// How far it began ahead of a wall clock.
    pub(super) fn ahead_of(&self, wall_clock: SystemTime) -> Duration {
        from_unix_millis(self.origin)
            .duration_since(wall_clock)
            .unwrap_or_default()
    }

    /// Lets time pass.
    #[cfg(test)]
    pub(super) fn advance(&self, by: Duration) {
        self.ahead.fetch_add(millis(by), Ordering::Relaxed);
    }
}

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> Millis {
    duration.as_millis().try_into().unwrap_or(Millis::MAX)
}

/// Milliseconds as a duration; negative ones are none.
pub(super) fn duration(millis: Millis) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}
