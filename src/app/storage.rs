//! The place on disk: opened before anything listens, closed after everything that writes to it.

use std::{sync::Arc, time::SystemTime};

use super::AppError;
use crate::{
    config::Config,
    dedup::HashKeys,
    metrics::Metrics,
    queue::{Observer, Options, Queue},
};

/// Events being put on disk at a time, the reading of their bodies included; the memory for bodies
/// is the nearer bound.
const PLACES: usize = 16_384;

/// Opens what `data_dir` holds, if it is set.
pub(super) fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<Queue>, AppError> {
    let Some(dir) = &config.data_dir else {
        return Ok(None);
    };
    let (committing, reading) = (metrics.clone(), metrics.clone());
    let observer = Observer {
        committed: Box::new(move |commit| committing.queue.committed(commit)),
        corrupt_record: Box::new(move |endpoint| {
            reading.queue.corrupt_record(endpoint);
            tracing::error!(%endpoint, "an event on disk is not what was written; it is a dead letter");
        }),
    };
    let options = Options {
        places: PLACES,
        wall_clock: SystemTime::now(),
        observer,
    };
    Queue::open(dir, options).map(Some).map_err(AppError::Queue)
}

/// The secret of the hashes of keys and bodies: kept on disk where keys are, so that they mean the
/// same after a restart.
pub(super) fn hash_keys(queue: Option<&Queue>) -> HashKeys {
    let fresh = || [rand::random(), rand::random()];
    HashKeys::new(queue.map_or_else(fresh, Queue::hash_secret))
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}
