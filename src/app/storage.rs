//! The place on disk: opened before anything listens, closed after everything that writes to it;
//! and the threads that work on what is there.

use std::{
    collections::HashSet,
    io,
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use tokio::sync::{mpsc, watch};

use super::{AppError, supervisor::Pulse, threads::runtime};
use crate::{
    config::Config,
    control::{Control, socket},
    dedup::{Digest, Fingerprint, HashKeys, Replay, Table},
    delivery,
    gate::Live,
    metrics::Metrics,
    queue::{Observer, Options, Queue, Taken},
    server::Orders,
};

/// Events being put on disk at a time, the reading of their bodies included; the memory for bodies
/// is the nearer bound.
const PLACES: usize = 16_384;

/// Keys looked at on disk at the start for the bodies they came with; what bounds how long it takes.
const RECALLED: u64 = 4_000_000;

/// Opens what `data_dir` holds, if it is set.
pub(super) fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<Queue>, AppError> {
    let Some(dir) = &config.data_dir else {
        return Ok(None);
    };
    let (committing, reading, starting) = (metrics.clone(), metrics.clone(), metrics.clone());
    let observer = Observer {
        committed: Box::new(move |commit| committing.queue.committed(commit)),
        corrupt_record: Box::new(move |endpoint| reading.queue.corrupt_record(endpoint)),
        damaged_log: Box::new(move |damage| {
            starting.queue.damaged_log();
            tracing::error!(%damage, "acknowledged events may be lost");
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

/// Takes back into memory which bodies came before the start, for the endpoints that want to know.
/// What came without a key is not on disk, and forgotten.
pub(super) fn recall(queue: &Queue, table: &Table, config: &Config) -> Result<(), AppError> {
    let endpoints = config.endpoints.iter();
    let noting = endpoints.filter(|endpoint| endpoint.dedup.policy.replay != Replay::Off);
    let noting: HashSet<_> = noting.map(|endpoint| &endpoint.name).collect();
    if noting.is_empty() {
        return Ok(());
    }
    let now = Instant::now();
    let recalled = queue.taken(RECALLED, |endpoint, taken| {
        if noting.contains(endpoint) {
            let Taken {
                key,
                body,
                remaining,
            } = taken;
            let body = Fingerprint::from_number(body.0);
            table.recall(Digest::from_bytes(key.0), body, remaining, now);
        }
    });
    if !recalled.map_err(AppError::Queue)? {
        tracing::warn!(
            keys = RECALLED,
            "more keys are on disk than are looked at: a replay of what came before this start may go unnoticed"
        );
    }
    Ok(())
}

type Seen = watch::Receiver<Orders<Arc<Live>>>;
type EndedOne = mpsc::Sender<io::Result<()>>;

/// Starts the thread that delivers.
pub(super) fn delivery(orders: Seen, pulse: Pulse, ended: EndedOne) -> Result<(), AppError> {
    thread("hookward-delivery", ended, || {
        pulse.beside(delivery::run(orders))
    })
}

/// Starts the thread that takes an operator's orders at a socket in the data directory. It has no
/// pulse: an order may take as long as it takes.
pub(super) fn control(
    dir: &Path,
    control: Control,
    orders: Seen,
    ended: EndedOne,
) -> Result<(), AppError> {
    let socket = socket::Socket::bind(dir).map_err(|error| {
        let place = format!("data_dir: no socket can be made in {}", dir.display());
        AppError::Start(place, error)
    })?;
    thread("hookward-control", ended, || {
        socket::serve(socket, control, orders)
    })
}

/// Starts a thread with an event loop of its own; `ended` hears how it ended.
fn thread<F: Future<Output = io::Result<()>>>(
    name: &str,
    ended: EndedOne,
    run: impl FnOnce() -> F + Send + 'static,
) -> Result<(), AppError> {
    let body = move || {
        let outcome = runtime().and_then(|runtime| runtime.block_on(run()));
        if let Err(error) = &outcome {
            tracing::error!(%error, "a thread that works on what is on disk ended");
        }
        // Nobody listens any more when the process is ending.
        let _ = ended.blocking_send(outcome);
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
        .map_err(|error| AppError::Start(name.to_owned(), error))
}
