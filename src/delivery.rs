//! Drains the queue into the upstreams: order, retry, backoff, dead letters.
//!
//! Owns the attempts at what is on disk: one thread, on it one worker for each configured endpoint.
//! An event is leased, sent, and settled by how that ended; whoever is not configured any more
//! keeps its events. It keeps no list of its own: what is not on disk is forgotten with the
//! process, and every lease is void at the next start. File formats are the queue's, one attempt is
//! the upstream's.

mod hand;
mod health;
mod worker;

use std::{collections::HashMap, io, rc::Rc, sync::Arc};

use tokio::{sync::watch, task::JoinSet};

use self::worker::Worker;
use crate::{
    endpoint::EndpointName,
    gate::{Lane, Live},
    server::{Orders, Stage},
};

/// Delivers until told to drain, then until the attempts under way have ended.
///
/// # Errors
/// When a worker panicked: better to end than to hold its endpoint's events for ever.
pub async fn run(mut orders: watch::Receiver<Orders<Arc<Live>>>) -> io::Result<()> {
    let mut workers: HashMap<EndpointName, Rc<Worker>> = HashMap::new();
    let mut tasks = JoinSet::new();
    orders.mark_changed();
    loop {
        tokio::select! {
            changed = orders.changed() => {
                // Whoever gave the orders is gone: so is the process.
                if changed.is_err() {
                    return Ok(());
                }
                let orders = orders.borrow_and_update().clone();
                let lanes: &[Arc<Lane>] = match orders.stage {
                    Stage::Open => orders.news.lanes(),
                    Stage::Draining => &[],
                };
                employ(&mut workers, lanes, &mut tasks);
                if orders.stage == Stage::Draining {
                    while let Some(ended) = tasks.join_next().await {
                        ended.map_err(io::Error::other)?;
                    }
                    return Ok(());
                }
            }
            Some(ended) = tasks.join_next() => ended.map_err(io::Error::other)?,
        }
    }
}

/// Makes the workers those of these lanes: new ones begin, others go on under the new
/// configuration, and those of no lane end after their attempts under way.
fn employ(
    workers: &mut HashMap<EndpointName, Rc<Worker>>,
    lanes: &[Arc<Lane>],
    tasks: &mut JoinSet<()>,
) {
    workers.retain(|name, worker| {
        let is_kept = lanes.iter().any(|lane| lane.endpoint.name == *name);
        if !is_kept {
            worker.stop();
        }
        is_kept
    });
    for lane in lanes {
        let Some(queue) = &lane.queue else { continue };
        let name = &lane.endpoint.name;
        if let Some(worker) = workers.get(name) {
            worker.follow(lane.clone());
        } else {
            let worker = Worker::new(lane.clone(), queue.clone());
            workers.insert(name.clone(), worker.clone());
            tasks.spawn_local(worker.run());
        }
    }
}
