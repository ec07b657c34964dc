//! How many requests an upstream takes: places at a time, and a rate.
//!
//! Owns the counting; who goes without a place hears so from whoever asked.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::Upstream;
use crate::endpoint;

/// When it is worth asking again for a place that another thread may free.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Longest time to the next place by rate; a slow rate is asked again.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How busy an upstream is; it outlives a change of configuration.
#[derive(Debug, Default)]
pub struct Load {
    running: AtomicUsize,
    bucket: Mutex<Option<Bucket>>,
}

/// Tokens for a bounded rate.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// The right to have one request at the upstream.
#[derive(Debug)]
#[must_use = "the upstream counts as busy for as long as this lives"]
pub struct Permit(Arc<Load>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Upstream {
    /// Takes a place at the upstream; `None` when it is busy to its bound.
    pub fn enter(&self, now: Instant) -> Option<Permit> {
        let take = |running: usize| (running < self.max_concurrency).then_some(running + 1);
        let running = &self.load.running;
        running
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .ok()?;
        let permit = Permit(self.load.clone());
        let Some(rate) = self.rate else {
            return Some(permit);
        };
        let mut bucket = self.load.bucket();
        let tokens = rate.tokens(*bucket, now);
        let enough = tokens >= 1.0;
        *bucket = Some(Bucket {
            tokens: if enough { tokens - 1.0 } else { tokens },
            at: now,
        });
        enough.then_some(permit)
    }

    /// How many places there are, none of which is taken by asking; where there is none, after how
    /// long it is worth asking again.
    pub fn room(&self, now: Instant) -> Result<usize, Duration> {
        let running = self.load.running.load(Ordering::Acquire);
        let free = self.max_concurrency.saturating_sub(running);
        if free == 0 {
            return Err(BUSY_PAUSE);
        }
        let Some(rate) = self.rate else {
            return Ok(free);
        };
        let tokens = rate.tokens(*self.load.bucket(), now);
        if tokens < 1.0 {
            let wait = Duration::try_from_secs_f64((1.0 - tokens) / rate.per_second);
            return Err(wait.unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE));
        }
        // One at a time is soon enough: whoever got one asks again.
        Ok(1)
    }
}

impl endpoint::Rate {
    fn tokens(self, bucket: Option<Bucket>, now: Instant) -> f64 {
        let burst = self.per_second.max(1.0);
        let Some(last) = bucket else { return burst };
        let grown = now.saturating_duration_since(last.at).as_secs_f64() * self.per_second;
        (last.tokens + grown).min(burst)
    }
}

impl Load {
    fn bucket(&self) -> MutexGuard<'_, Option<Bucket>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
