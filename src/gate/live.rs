//! What the gate works with: what outlives a configuration, and what belongs to one.

use std::{
    net::IpAddr,
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use http::StatusCode;
use ipnet::IpNet;

use super::Lanes;
use crate::{
    body::Budget,
    dedup::Table,
    endpoint::{Endpoint, Endpoints},
    limits::Limits,
    log::Sampler,
    metrics::{EndpointMetrics, Metrics},
    rejection::{Fault, Rejection},
    upstream::{Pool, Upstream},
};

/// What all threads share for the life of the process.
#[derive(Debug)]
pub struct Shared {
    /// Memory for bodies.
    pub budget: Arc<Budget>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Which events were seen.
    pub table: Arc<Table>,
    /// Whether each answer is worth a log line.
    pub access_log: AtomicBool,
    /// Keeps a flood of refusals from flooding the log.
    pub refusals: Refusals,
    /// The same for oddities of events that go on.
    pub notices: Sampler,
}

impl Shared {
    /// Counts and logs what was refused before there was a request: it has no event id.
    pub fn refused(&self, rejection: Rejection, peer: Option<IpAddr>, now: Instant) {
        self.metrics.refused_unrouted(rejection);
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
    pub(super) lanes: Vec<Lane>,
}

/// One endpoint with what it needs at run time.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) metrics: Arc<EndpointMetrics>,
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
        metrics: &Arc<Metrics>,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let lane = |endpoint: &Arc<Endpoint>| {
            let name = &endpoint.name;
            let same = |lane: &&Lane| lane.endpoint.name == *name;
            let before = before.and_then(|live| live.lanes.iter().find(same));
            let upstream = Upstream::new(&endpoint.upstream, before.map(|lane| &*lane.upstream))
                .map_err(|fault| format!("endpoints.{name}.{fault}"))?;
            Ok(Lane {
                endpoint: endpoint.clone(),
                upstream: Arc::new(upstream),
                metrics: Arc::new(metrics.endpoint(endpoint)),
            })
        };
        let lanes = endpoints.iter().map(lane).collect::<Result<_, String>>()?;
        Ok(Self {
            endpoints,
            limits,
            trusted_proxies,
            lanes,
        })
    }
}

impl Lanes {
    pub(super) fn new(live: Arc<Live>) -> Self {
        let pool = |lane: &Lane| Rc::new(Pool::new(lane.upstream.clone()));
        Self {
            pools: live.lanes.iter().map(pool).collect(),
            live,
        }
    }

    /// The lane at a path, this thread's pool for it, and what of the path lies beyond a prefix.
    pub(super) fn find<'p>(&self, path: &'p str) -> Option<(&Lane, &Rc<Pool>, &'p str)> {
        let (number, _, remainder) = self.live.endpoints.find(path)?;
        Some((
            self.live.lanes.get(number)?,
            self.pools.get(number)?,
            remainder,
        ))
    }
}
