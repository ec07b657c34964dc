//! What the gate works with: what outlives a configuration, and what belongs to one.

use std::{
    net::IpAddr,
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime},
};

use http::StatusCode;
use ipnet::IpNet;

use super::Lanes;
use crate::{
    attempt::{Ended, Verdict},
    body::Budget,
    connection::opening::{OpenFault, Opening},
    dedup::Table,
    endpoint::{Endpoint, Endpoints},
    feed::{Feed, Level, Seen},
    limits::Limits,
    log::Sampler,
    metrics::{EndpointMetrics, EventLabel, Metrics},
    queue::{self, Lease, Queue, Settled},
    rejection::{Fault, Rejection},
    upstream::{Pool, Upstream},
};

/// What all threads share for the life of the process.
#[derive(Debug)]
pub struct Shared {
    /// Memory for bodies.
    pub budget: Arc<Budget>,
    /// What happens, for whoever watches.
    pub feed: Arc<Feed>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Which events were seen.
    pub table: Arc<Table>,
    /// What is on disk, where there is a place for it.
    pub queue: Option<Queue>,
    /// Whether each answer is worth a log line.
    pub access_log: AtomicBool,
    /// From now on every answer asks the sender to close its connection.
    pub is_leaving: AtomicBool,
    /// Keeps a flood of refusals from flooding the log.
    pub refusals: Refusals,
    /// The same for oddities of events that go on.
    pub notices: Sampler,
}

impl Shared {
    /// Counts and logs what was refused before there was a request: it has no event id.
    pub fn refused(&self, rejection: Rejection, peer: Option<IpAddr>, now: Instant) {
        self.metrics.refused_unrouted(rejection);
        self.tell(rejection, peer);
        let Some(suppressed) = self.refusals.admit(rejection.fault(), now) else {
            return;
        };
        let reason = rejection.label();
        let status = rejection.status(StatusCode::UNAUTHORIZED).as_u16();
        let peer = peer.map(tracing::field::display);
        match rejection.fault() {
            Fault::Sender => tracing::info!(reason, status, peer, suppressed, "refused"),
            Fault::Ours | Fault::Upstream => {
                tracing::warn!(reason, status, peer, suppressed, "shed");
            }
        }
    }

    /// Tells whoever watches of a request that was none.
    fn tell(&self, rejection: Rejection, peer: Option<IpAddr>) {
        if self.feed.level() == Level::Off {
            return;
        }
        self.feed.push(Seen {
            event_id: String::new(),
            at: SystemTime::now(),
            endpoint: None,
            method: String::new(),
            target: String::new(),
            peer: peer.map(|peer| peer.to_canonical().to_string()),
            event: EventLabel::NONE.label(),
            status: rejection.status(StatusCode::UNAUTHORIZED).as_u16(),
            outcome: None,
            reason: Some(rejection.label()),
            took: Duration::ZERO,
            captured: None,
        });
    }

    /// Counts and logs a connection on which no HTTP could be spoken.
    pub fn not_opened(&self, fault: &OpenFault, peer: Option<IpAddr>, now: Instant) {
        let Some(cause) = fault.label() else { return };
        self.metrics.not_opened(cause);
        if let Some(suppressed) = self.refusals.admit(Fault::Sender, now) {
            let peer = peer.map(tracing::field::display);
            tracing::info!(%fault, cause, peer, suppressed, "connection refused");
        }
    }
}

/// A sampler for each party at fault: no stranger's flood hides a failure of ours or the
/// upstream's.
#[derive(Debug)]
pub struct Refusals {
    ours: Sampler,
    sender: Sampler,
    upstream: Sampler,
}

impl Refusals {
    /// Samplers whose periods begin now.
    pub fn new(start: Instant) -> Self {
        Self {
            ours: Sampler::new(start),
            sender: Sampler::new(start),
            upstream: Sampler::new(start),
        }
    }

    /// Whether a refusal is logged, and how many of that party's before it were not.
    pub(super) fn admit(&self, fault: Fault, now: Instant) -> Option<u64> {
        match fault {
            Fault::Ours => self.ours.admit(now),
            Fault::Sender => self.sender.admit(now),
            Fault::Upstream => self.upstream.admit(now),
        }
    }
}

/// One configuration in force.
#[derive(Debug)]
pub struct Live {
    /// Where the endpoints are.
    pub endpoints: Endpoints,
    /// The bounds.
    pub limits: Limits,
    /// Peers whose `X-Forwarded-*` are kept.
    pub trusted_proxies: Vec<IpNet>,
    /// What connections begin with, where that is more than HTTP.
    pub opening: Option<Arc<Opening>>,
    lanes: Vec<Arc<Lane>>,
}

/// One endpoint with what it needs at run time.
#[derive(Debug)]
pub struct Lane {
    /// What is configured.
    pub endpoint: Arc<Endpoint>,
    /// The application behind it, and how busy that is.
    pub upstream: Arc<Upstream>,
    /// What is counted.
    pub metrics: Arc<EndpointMetrics>,
    /// Its part of what is on disk, where there is a place for it.
    pub queue: Option<queue::Endpoint>,
}

impl Live {
    /// Puts a configuration together with its metrics and upstreams; what was busy under the
    /// previous one still counts as busy.
    ///
    /// # Errors
    /// The endpoint and what is wrong with its upstream's certificates.
    pub fn new(
        endpoints: Endpoints,
        limits: Limits,
        trusted_proxies: Vec<IpNet>,
        opening: Option<Opening>,
        shared: &Shared,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let lane = |endpoint: &Arc<Endpoint>| {
            let name = &endpoint.name;
            let same = |lane: &&Arc<Lane>| lane.endpoint.name == *name;
            let before = before.and_then(|live| live.lanes.iter().find(same));
            let upstream = Upstream::new(&endpoint.upstream, before.map(|lane| &*lane.upstream))
                .map_err(|fault| format!("endpoints.{name}.{fault}"))?;
            let limits = queue_limits(endpoint);
            let queue = shared.queue.as_ref();
            Ok(Arc::new(Lane {
                endpoint: endpoint.clone(),
                upstream: Arc::new(upstream),
                metrics: Arc::new(shared.metrics.endpoint(endpoint)),
                queue: queue.map(|queue| queue.endpoint(name, Some(limits))),
            }))
        };
        let lanes = endpoints.iter().map(lane).collect::<Result<_, String>>()?;
        Ok(Self {
            endpoints,
            limits,
            trusted_proxies,
            opening: opening.map(Arc::new),
            lanes,
        })
    }

    /// Every endpoint with what it needs, in the order of their numbers.
    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }
}

impl Lane {
    /// What is put on disk about an attempt that ended; it is counted and logged here.
    pub fn judge(&self, lease: &Lease, ended: Ended) -> Settled {
        let (endpoint, deliveries) = (&*self.endpoint, &self.metrics.deliveries);
        let (name, event_id, attempt) = (&endpoint.name, lease.id(), lease.attempt());
        let status = ended.status().map(|status| status.as_u16());
        match ended.verdict(lease.tries(), &endpoint.queueing, rand::random()) {
            Verdict::Delivered => {
                deliveries.delivered.inc();
                tracing::debug!(endpoint = %name, %event_id, attempt, status, "delivered");
                let status = status.unwrap_or_default();
                Settled::Delivered { status }
            }
            Verdict::Dead => {
                deliveries.dead.inc();
                let error = ended.to_string();
                tracing::warn!(
                    endpoint = %name, %event_id, attempt, status, error, "event is a dead letter"
                );
                Settled::Dead { status, error }
            }
            Verdict::Retry(after) => {
                deliveries.retry.inc();
                let (error, again_seconds) = (ended.to_string(), after.as_secs_f64());
                tracing::info!(
                    endpoint = %name, %event_id, attempt, status, error, again_seconds,
                    "delivery failed"
                );
                Settled::Retry {
                    after,
                    status,
                    error,
                }
            }
        }
    }
}

/// What an endpoint may hold on disk.
pub(crate) fn queue_limits(endpoint: &Endpoint) -> queue::Limits {
    let queueing = &endpoint.queueing;
    queue::Limits {
        pending_bytes: queueing.max_pending_bytes,
        stored_bytes: queueing.max_stored_bytes,
        keep_delivered: queueing.keep_delivered,
        keep_dead: queueing.keep_dead,
        quarantine_bytes: endpoint.quarantine,
    }
}

impl Lanes {
    pub(super) fn new(live: Arc<Live>) -> Self {
        let pool = |lane: &Arc<Lane>| Rc::new(Pool::new(lane.upstream.clone()));
        Self {
            pools: live.lanes.iter().map(pool).collect(),
            live,
        }
    }

    /// The lane at a path, this thread's pool for it, and what of the path lies beyond a prefix.
    pub(super) fn find<'p>(&self, path: &'p str) -> Option<(&Arc<Lane>, &Rc<Pool>, &'p str)> {
        let (number, _, remainder) = self.live.endpoints.find(path)?;
        Some((
            self.live.lanes.get(number)?,
            self.pools.get(number)?,
            remainder,
        ))
    }
}
