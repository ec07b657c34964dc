//! Bodies seen, so that one that comes again under another key is noticed.
//!
//! A fixed, set-associative array of 16 bytes a place, one place for each done key the table may
//! hold: when a set is full, whatever ends soonest gives way. The idempotency key is not signed, so
//! this is what tells a replayed body with a fresh key from a new event.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
};

use super::Fingerprint;

/// Places that one fingerprint may take.
const WAYS: usize = 8;
/// Parts with a lock each, at most.
const PARTS_LIMIT: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    body: u64,
    until: u32,
    key: u32,
}

#[derive(Debug)]
pub(super) struct Index {
    parts: Box<[Mutex<Vec<Place>>]>,
    sets_per_part: usize,
}

impl Index {
    pub(super) fn new(capacity: NonZeroUsize) -> Self {
        let sets = capacity.get().div_ceil(WAYS);
        let parts = sets.min(PARTS_LIMIT);
        Self {
            parts: (0..parts).map(|_| Mutex::new(Vec::new())).collect(),
            sets_per_part: sets.div_ceil(parts),
        }
    }

    fn with_set<T>(&self, body: Fingerprint, act: impl FnOnce(&mut [Place]) -> T) -> Option<T> {
        let hash = usize::try_from(body.0 & Fingerprint::HASH).unwrap_or(usize::MAX);
        let part = self.parts.get(hash % self.parts.len())?;
        let mut places = part.lock().unwrap_or_else(PoisonError::into_inner);
        if places.is_empty() {
            // Zeroed pages, which the system hands out as they are touched.
            *places = vec![Place::default(); self.sets_per_part * WAYS];
        }
        let start = hash / self.parts.len() % self.sets_per_part * WAYS;
        places.get_mut(start..start + WAYS).map(act)
    }

    /// Whether this body came under another key before and has not expired; if not, it is
    /// remembered under this one. `despite`: it goes on all the same, and is remembered for longer.
    pub(super) fn note(
        &self,
        body: Fingerprint,
        key: u64,
        now: u32,
        until: u32,
        despite: bool,
    ) -> bool {
        let key = short(key);
        let noted = self.with_set(body, |set| {
            let known = set
                .iter_mut()
                .find(|place| place.body == body.0 && place.until > now);
            if let Some(place) = known {
                // It stays under the key it came with first: when the second one is given back,
                // the first is not forgotten.
                let is_other = place.key != key;
                if !is_other || despite {
                    place.until = place.until.max(until);
                }
                return is_other;
            }
            // Expired places end soonest of all.
            if let Some(place) = set.iter_mut().min_by_key(|place| place.until) {
                *place = Place {
                    body: body.0,
                    until,
                    key,
                };
            }
            false
        });
        noted.unwrap_or(false)
    }

    /// Forgets a body that was remembered under this key.
    pub(super) fn forget(&self, body: Fingerprint, key: u64) {
        let key = short(key);
        self.with_set(body, |set| {
            for place in set.iter_mut().filter(|p| p.body == body.0 && p.key == key) {
                *place = Place::default();
            }
        });
    }
}

/// 32 bits of a key's digest: enough to know it again, and never 0, which is "no key".
fn short(key: u64) -> u32 {
    let folded = (key ^ key >> 32) & u64::from(u32::MAX);
    u32::try_from(folded).unwrap_or(1).max(u32::from(key != 0))
}
