//! One endpoint's worker: begins attempts as the upstream has room for them, and settles them.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{sync::Notify, task::JoinSet};

use super::{
    hand::{BATCH, Hand},
    health::{Health, Leave},
};
use crate::{
    attempt::Ended,
    gate::Lane,
    kept::Kept,
    queue::{self, Arrivals, Lease, Settled},
    server,
    trace::{self, Delivery},
    upstream::{Permit, Pool, Progress},
};

/// Most attempts that have ended and are not on disk yet, beyond which none is begun.
const UNSETTLED: usize = 512;
/// How often idle connections to the upstream are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// The configuration in force, with the connections made under it.
#[derive(Debug)]
struct Running {
    lane: Arc<Lane>,
    pool: Rc<Pool>,
}

/// One endpoint's deliveries.
#[derive(Debug)]
pub(super) struct Worker {
    running: RefCell<Rc<Running>>,
    queue: queue::Endpoint,
    arrivals: Arrivals,
    health: RefCell<Health>,
    /// Attempts that have ended and are being put on disk.
    unsettled: Cell<usize>,
    /// Attempts that have ended and were not counted.
    ended: Cell<usize>,
    is_stopping: Cell<bool>,
    /// Something was said or has ended that may let attempts begin.
    news: Notify,
}

/// Until when there is nothing to begin, unless news come; `None`: only news tell.
type Until = Option<Instant>;

impl Worker {
    pub(super) fn new(lane: Arc<Lane>, queue: queue::Endpoint) -> Rc<Self> {
        Rc::new(Self {
            running: RefCell::new(Rc::new(Running::new(lane))),
            arrivals: queue.arrivals(),
            queue,
            health: RefCell::default(),
            unsettled: Cell::new(0),
            ended: Cell::new(0),
            is_stopping: Cell::new(false),
            news: Notify::new(),
        })
    }

    /// Goes on under another configuration; attempts under way end under theirs.
    pub(super) fn follow(&self, lane: Arc<Lane>) {
        let is_same = Arc::ptr_eq(&self.running.borrow().lane, &lane);
        if !is_same {
            *self.running.borrow_mut() = Rc::new(Running::new(lane));
            self.news.notify_one();
        }
    }

    /// Begins no further attempt.
    pub(super) fn stop(&self) {
        self.is_stopping.set(true);
        self.news.notify_one();
    }

    /// Delivers until it is told to stop and the attempts under way have ended.
    pub(super) async fn run(self: Rc<Self>) {
        let mut attempts = JoinSet::new();
        let mut hand = Hand::new(Instant::now());
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let until = self.begin(&mut hand, &mut attempts);
            if self.is_stopping.get() && attempts.is_empty() && hand.is_empty() {
                return;
            }
            tokio::select! {
                Some(ended) = attempts.join_next() => self.note(ended),
                answer = hand.answered() => hand.receive(answer, Instant::now()),
                leases = self.arrivals.next() => hand.welcome(leases),
                () = self.queue.changed() => hand.hear(Instant::now()),
                () = self.news.notified() => {}
                () = server::until(until.map(Into::into)) => {}
                _ = sweep.tick() => {
                    hand.hear(Instant::now());
                    self.running.borrow().pool.sweep(Instant::now());
                }
            }
            while let Some(ended) = attempts.try_join_next() {
                self.note(ended);
            }
        }
    }

    fn note(&self, ended: Result<(), tokio::task::JoinError>) {
        if ended.is_err() {
            // Its lease was dropped with it: the event comes again.
            self.health.borrow_mut().probe_unsent();
            tracing::error!(endpoint = %self.queue.name(), "an attempt's task panicked");
        }
    }

    /// Begins attempts at what is in hand as the upstream has places for it, and asks for more.
    fn begin(self: &Rc<Self>, hand: &mut Hand, attempts: &mut JoinSet<()>) -> Until {
        let running = self.running.borrow().clone();
        let upstream = &running.lane.upstream;
        let now = Instant::now();
        hand.count(self.ended.take(), now);
        loop {
            if self.is_stopping.get() || self.queue.is_paused() {
                hand.give_back(&self.arrivals);
                return None;
            }
            let (limit, is_probe) = match self.health.borrow().leave(now) {
                Leave::Any => (BATCH, false),
                Leave::Probe => (1, true),
                Leave::Not(until) => {
                    hand.give_back(&self.arrivals);
                    return until;
                }
            };
            if self.unsettled.get() >= UNSETTLED {
                self.arrivals.expect(0);
                return None;
            }
            let places = match upstream.room(now) {
                Ok(places) => places.min(limit),
                Err(wait) => {
                    self.ask(hand, 0, now);
                    return Some(now + wait);
                }
            };
            let Some(lease) = hand.take() else {
                return self.ask(hand, places, now);
            };
            // No place is held while the store is asked, so a relay may have come first.
            let Some(permit) = upstream.enter(now) else {
                hand.put_back(lease);
                continue;
            };
            if is_probe {
                self.health.borrow_mut().probing();
            }
            let attempt = self
                .clone()
                .attempt(running.clone(), lease, permit, is_probe);
            attempts.spawn_local(attempt);
        }
    }

    /// Asks the store for events for these places, if that is worth while; else says when it is.
    fn ask(&self, hand: &mut Hand, places: usize, now: Instant) -> Until {
        hand.ask(&self.arrivals, places, now);
        hand.next().filter(|next| *next > now)
    }

    /// Makes one attempt and puts on disk how it ended.
    async fn attempt(
        self: Rc<Self>,
        running: Rc<Running>,
        mut lease: Lease,
        permit: Permit,
        is_probe: bool,
    ) {
        let metrics = &running.lane.metrics;
        let progress = Progress::unheard();
        metrics.deliveries.attempts.inc();
        let ended = running.send(permit, &lease, &progress).await;
        metrics.deliveries.attempts.dec();
        self.ended.set(self.ended.get() + 1);
        self.news.notify_one();
        let Some(ended) = ended else {
            self.health.borrow_mut().probe_unsent();
            let error = "its bytes on disk cannot be read by this version".to_owned();
            metrics.deliveries.dead.inc();
            tracing::warn!(endpoint = %self.queue.name(), event_id = %lease.id(), error, "event is a dead letter");
            self.settle(
                lease,
                Settled::Dead {
                    status: None,
                    error,
                },
            )
            .await;
            return;
        };
        if !self.learn(&ended, is_probe) {
            lease.hand_back(None);
            return;
        }
        lease.sent_again(progress.resends());
        let settled = running.lane.judge(&lease, ended);
        self.settle(lease, settled).await;
    }

    /// Takes in what an attempt's end says about the upstream; whether it counts.
    fn learn(&self, ended: &Ended, is_probe: bool) -> bool {
        let mut health = self.health.borrow_mut();
        let was_down = health.is_down();
        let counts = health.learn(ended, is_probe, Instant::now());
        let endpoint = self.queue.name();
        match (was_down, health.is_down()) {
            (false, true) => {
                tracing::warn!(%endpoint, cause = %ended, "upstream is down, its events wait");
            }
            (true, false) => tracing::info!(%endpoint, "upstream is back"),
            (true, true) | (false, false) => {}
        }
        counts
    }

    async fn settle(&self, lease: Lease, settled: Settled) {
        self.unsettled.set(self.unsettled.get() + 1);
        let (id, attempt) = (lease.id(), lease.attempt());
        if let Err(error) = lease.settle(settled).await {
            tracing::warn!(
                endpoint = %self.queue.name(), event_id = %id, attempt, %error,
                "the end of an attempt was not noted"
            );
        }
        self.unsettled.set(self.unsettled.get() - 1);
    }
}

impl Running {
    fn new(lane: Arc<Lane>) -> Self {
        let pool = Rc::new(Pool::new(lane.upstream.clone()));
        Self { lane, pool }
    }

    /// Sends a leased event; `None` when it cannot be read.
    async fn send(&self, permit: Permit, lease: &Lease, progress: &Progress) -> Option<Ended> {
        let Lane {
            endpoint, metrics, ..
        } = &*self.lane;
        let kept = Kept::read(lease.record().clone()).ok()?;
        let id = lease.id().to_string();
        let head = kept.request_head(endpoint, &id, lease.event_type(), lease.attempt());
        let limit = endpoint.queueing.attempt_timeout;
        let delivery = Delivery {
            endpoint: endpoint.name.as_str(),
            event_id: &id,
            number: lease.attempt(),
        };
        let told = trace::Attempt::of_kept(&kept.headers, delivery);
        let started = Instant::now();
        // A second time only where not one byte of the first went out.
        let sent = self
            .pool
            .send(permit, head, &kept.body, false, limit, progress);
        let ended = match tokio::time::timeout(limit, sent).await {
            Ok(Ok(answer)) => Ended::answered(answer.status, &answer.headers, SystemTime::now()),
            Ok(Err(error)) => Ended::Failed(error).given(progress),
            Err(_elapsed) => Ended::TimedOut(limit).given(progress),
        };
        match ended.status() {
            Some(status) => {
                metrics.upstream_answered(status, started.elapsed());
                told.end(Ok(status));
            }
            None => {
                metrics.upstream_errors.inc();
                told.end(Err(&ended));
            }
        }
        Some(ended)
    }
}
