//! Builds every part, binds, runs, drains: the only place that knows them all.
//!
//! Owns the threads, the listeners' addresses and the order in which things begin and end. It
//! decides nothing about a request.

mod bind;
mod certificates;
mod change;
mod descriptors;
mod error;
mod operator;
mod reload;
mod storage;
mod supervisor;
mod threads;

use std::{
    io,
    num::NonZeroUsize,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{mpsc, watch};

use self::{
    bind::Bound,
    certificates::{issued, note_certificates, obtain, obtaining},
    operator::Operator,
    reload::Watcher,
    supervisor::Supervisor,
    threads::thread,
};
pub use self::{error::AppError, threads::MainThread};
use crate::{
    admin::{News, change::Change},
    body::Budget,
    config::{self, Config, Fault, Listen, Sources},
    connection::opening::Opening,
    control::Control,
    dedup::Table,
    feed::Feed,
    gate::{Gate, Live, Refusals, Shared},
    log::{self, Sampler},
    metrics::Metrics,
    queue::{Broken, Queue},
    roster::Roster,
    server::{Doors, Orders, Stage},
    shutdown::Wanted,
    tls::{Tls, acme},
};

/// Keys in flight at a time, over all endpoints.
const MAX_IN_FLIGHT: usize = 65_536;
/// How long answers that say 503 may take when nothing can be put on disk any more.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the last commit may take.
const LAST_COMMIT: Duration = Duration::from_secs(10);
/// Threads that work on what is on disk: delivery, and an operator's orders.
const DISK_THREADS: usize = 2;
/// The revision that was built, where the build said so.
const REVISION: &str = match option_env!("HOOKWARD_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// A running hookward.
pub struct App {
    sources: Sources,
    config: Config,
    shared: Arc<Shared>,
    live: Arc<Live>,
    public: watch::Sender<Orders<Arc<Live>>>,
    admin: watch::Sender<Orders<Arc<News>>>,
    /// What operators wish.
    changes: mpsc::Receiver<Change>,
    /// The last reload was refused: what stood in its way may be changed at run time.
    is_behind: bool,
    is_ready: Arc<AtomicBool>,
    threads: NonZeroUsize,
    /// One message per public thread that ended.
    ended: mpsc::Receiver<io::Result<()>>,
    /// One message per thread that works on what is on disk and ended; closed without any.
    disk_ended: mpsc::Receiver<io::Result<()>>,
    admin_ended: mpsc::Receiver<io::Result<()>>,
    admin_threads: usize,
    bound: Vec<Bound>,
    listening: Vec<(&'static str, String)>,
    /// Where certificates are obtained from an authority.
    acme: Option<Arc<acme::Manager>>,
    /// Where this process logs by itself.
    log: Option<log::Switch>,
    supervisor: Supervisor,
}

impl App {
    /// Binds every listener and starts every thread. It serves when this returns, and is ready when
    /// [`App::run`] listens to the signals.
    ///
    /// # Errors
    /// See [`AppError`].
    pub fn start(config: Config, sources: Sources) -> Result<Self, AppError> {
        if let (Some(fault), Some(dir)) = (config.roster_fault, &config.data_dir) {
            let place = Roster::path(dir).display().to_string();
            return Err(AppError::Start(place, io::Error::other(fault.to_string())));
        }
        let metrics = Arc::new(Metrics::new(REVISION));
        let queue = storage::open(&config, &metrics)?;
        let keys = storage::hash_keys(queue.as_ref());
        let shared = Arc::new(Shared {
            budget: Budget::new(config.limits.max_buffered),
            table: Table::new(config.dedup_capacity, MAX_IN_FLIGHT, keys, Instant::now()),
            queue,
            access_log: AtomicBool::new(config.log.access),
            is_leaving: AtomicBool::new(false),
            feed: Feed::new(config.admin.capture),
            refusals: Refusals::new(Instant::now()),
            notices: Sampler::new(Instant::now()),
            metrics,
        });
        if let Some(queue) = &shared.queue {
            storage::recall(queue, &shared.table, &config)?;
        }
        let acme = obtaining(&config)?;
        let live = live(&config, &shared, None, acme.as_deref());
        let live = Arc::new(live.map_err(AppError::Upstream)?);
        note_certificates(&config, &shared, acme.as_deref());
        let threads = config.server.threads;
        let public = bind::public(&config.server.listen, threads)?;
        let addresses = public.iter().map(|b| ("public", b.address.to_string()));
        let mut listening: Vec<_> = addresses.collect();

        let mut supervisor = Supervisor::new();
        let is_ready = Arc::new(AtomicBool::new(false));
        let (public_orders, seen) = watch::channel(Orders {
            stage: Stage::Open,
            news: live.clone(),
        });
        let (ended_one, ended) = mpsc::channel(threads.get());
        let (started_one, mut started) = mpsc::channel(threads.get() + 1);
        let room = descriptors::room_for_senders(&config);
        let doors = Doors::new(shared.metrics.connections.clone(), room);
        for number in 0..threads.get() {
            let sockets = bind::share(&public, number)?;
            let (shared, live, doors) = (shared.clone(), live.clone(), doors.clone());
            let (orders, budget) = (seen.clone(), shared.budget.clone());
            let make = move || Gate::new(shared, live);
            let name = format!("hookward-{number}");
            let notices = (started_one.clone(), ended_one.clone());
            let pulse = supervisor.pulse();
            thread(name, make, sockets, budget, doors, orders, (pulse, notices))?;
        }
        let (disk_ended_one, disk_ended) = mpsc::channel(DISK_THREADS);
        if let (Some(queue), Some(dir)) = (&shared.queue, &config.data_dir) {
            let control = Control::new(
                queue.clone(),
                shared.table.clone(),
                Some(shared.metrics.clone()),
            );
            let (orders, ended) = (seen.clone(), disk_ended_one.clone());
            storage::control(dir, control, orders, ended)?;
            storage::delivery(seen.clone(), supervisor.pulse(), disk_ended_one)?;
        }
        let operator = operator::start(
            &config,
            (&shared, &is_ready),
            seen,
            &mut supervisor,
            &started_one,
        )?;
        drop(started_one);
        let Operator {
            orders: admin,
            changes,
            ended: admin_ended,
            threads: admin_threads,
            bound: operator,
            listening: also,
        } = operator;
        listening.extend(also);
        while started.blocking_recv().is_some() {}
        let mut bound = public;
        bound.extend(operator);
        // The threads have their own: a listener closes when they close it.
        bound.iter_mut().for_each(Bound::let_go);
        Ok(Self {
            sources,
            config,
            shared,
            live,
            public: public_orders,
            admin,
            changes,
            is_behind: false,
            is_ready,
            threads,
            ended,
            disk_ended,
            admin_ended,
            admin_threads,
            bound,
            listening,
            acme,
            log: None,
            supervisor,
        })
    }

    /// Says that it is there. Whoever hears it may send a signal at once.
    fn announce(&self) {
        for (listener, address) in &self.listening {
            tracing::info!(listener, address, "listening");
        }
        self.shared.metrics.config_took_effect(SystemTime::now());
        self.is_ready.store(true, Ordering::Release);
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            threads = self.threads.get(),
            endpoints = self.live.endpoints.len(),
            "ready"
        );
        self.supervisor.ready(self.live.endpoints.len());
    }

    /// The addresses senders connect to.
    pub fn public_addresses(&self) -> impl Iterator<Item = &Listen> {
        self.bound
            .iter()
            .take(self.config.server.listen.len())
            .map(|bound| &bound.address)
    }

    /// The addresses operators connect to.
    pub fn admin_addresses(&self) -> impl Iterator<Item = &Listen> {
        self.bound
            .iter()
            .skip(self.config.server.listen.len())
            .map(|bound| &bound.address)
    }

    /// The metrics, for whoever runs the daemon inside a process of its own.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Runs until a signal ends the process, reloading when told to or when files change.
    ///
    /// # Errors
    /// [`AppError::ThreadEnded`]: better to end than to serve with half the threads.
    pub fn run(mut self, main: MainThread, log: Option<log::Switch>) -> Result<(), AppError> {
        self.log = log;
        let MainThread {
            runtime,
            mut signals,
        } = main;
        runtime.block_on(async move {
            self.announce();
            let mut watcher = Watcher::new(&self.config.watched);
            let acme = self.acme.clone();
            let mut renewing = pin!(obtain(acme.as_deref()));
            loop {
                tokio::select! {
                    () = &mut renewing => return Err(AppError::ThreadEnded),
                    () = issued(acme.as_deref()) => {
                        note_certificates(&self.config, &self.shared, acme.as_deref());
                    }
                    wanted = signals.next() => match wanted {
                        Wanted::Reload => self.reload(&mut watcher, "signal"),
                        Wanted::Stop => break,
                    },
                    () = watcher.changed() => self.reload(&mut watcher, "changed file"),
                    Some(Change { wish, reply }) = self.changes.recv() => {
                        let outcome = self.change(wish);
                        if outcome.is_ok() && self.is_behind {
                            self.reload(&mut watcher, "changed endpoints");
                        }
                        // Whoever asked may have gone.
                        let _ = reply.send(outcome);
                    }
                    _ = self.ended.recv() => return Err(AppError::ThreadEnded),
                    Some(_) = self.disk_ended.recv() => return Err(AppError::ThreadEnded),
                    broken = broken(self.shared.queue.as_ref()) => return self.fail(broken).await,
                    _ = self.admin_ended.recv() => return Err(AppError::ThreadEnded),
                    never = self.supervisor.watch() => match never {},
                }
            }
            tokio::select! {
                outcome = self.drain() => outcome,
                () = signals.stop_again() => {
                    tracing::warn!("second signal, ending at once");
                    Err(AppError::Hurried)
                }
            }
        })
    }

    /// Ends because nothing can be put on disk any more: whoever waits for that hears 503 first.
    async fn fail(&mut self, broken: Broken) -> Result<(), AppError> {
        tracing::error!(%broken, "ending: the next start looks at the store");
        self.is_ready.store(false, Ordering::Release);
        self.public
            .send_modify(|orders| orders.stage = Stage::Draining);
        let all_ended = async {
            for _ in 0..self.threads.get() {
                self.ended.recv().await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, all_ended).await;
        self.bound.iter().for_each(Bound::remove);
        Err(AppError::Broken(broken))
    }

    /// Ends in order: not ready; still accepting for `shutdown_delay`; no longer accepting, requests
    /// and deliveries in flight finish within `shutdown_grace`, the rest stays on disk; the
    /// operator's listeners last.
    async fn drain(&mut self) -> Result<(), AppError> {
        self.is_ready.store(false, Ordering::Release);
        self.shared.is_leaving.store(true, Ordering::Relaxed);
        self.supervisor.stopping();
        let (delay, grace) = (self.config.shutdown_delay, self.config.shutdown_grace);
        tracing::info!(
            delay_seconds = delay.as_secs_f64(),
            grace_seconds = grace.as_secs_f64(),
            "stopping"
        );
        tokio::time::sleep(delay).await;
        self.public
            .send_modify(|orders| orders.stage = Stage::Draining);
        let all_ended = async {
            for _ in 0..self.threads.get() {
                self.ended.recv().await;
            }
            while self.disk_ended.recv().await.is_some() {}
        };
        let is_clean = tokio::time::timeout(grace, all_ended).await.is_ok();
        if !is_clean {
            let open = self.shared.metrics.connections.get();
            tracing::warn!(
                connections = open,
                "shutdown_grace is over, ending what is left"
            );
        }
        if let Some(queue) = &self.shared.queue {
            let _ = tokio::time::timeout(LAST_COMMIT, queue.close()).await;
        }
        self.shared.feed.close();
        self.admin
            .send_modify(|orders| orders.stage = Stage::Draining);
        let all_ended = async {
            for _ in 0..self.admin_threads {
                self.admin_ended.recv().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), all_ended).await;
        self.bound.iter().for_each(Bound::remove);
        tracing::info!("stopped");
        Ok(())
    }

    /// Tries the configuration again; a bad one changes nothing.
    fn reload(&mut self, watcher: &mut Watcher, why: &'static str) {
        self.supervisor.reloading();
        // Looked at before they are read: what changes meanwhile is read again.
        let mut seen = watcher.look();
        let mut named = Vec::new();
        let mut outcome = self.try_reload(&mut named);
        if outcome.is_err() && watcher.watch_also(&named, &mut seen) {
            // It names files nobody had looked at, and that may be there by now.
            outcome = self.try_reload(&mut Vec::new());
        }
        match outcome {
            Ok(()) => {
                self.is_behind = false;
                watcher.watch(&self.config.watched, &seen);
                self.shared.metrics.config_reloads.inc();
                self.shared.metrics.config_took_effect(SystemTime::now());
                tracing::info!(
                    why,
                    endpoints = self.live.endpoints.len(),
                    "configuration reloaded"
                );
                self.supervisor.ready(self.live.endpoints.len());
            }
            Err(faults) => {
                self.is_behind = true;
                watcher.saw(seen);
                self.shared.metrics.config_was_refused();
                for fault in faults {
                    tracing::error!(why, %fault, "configuration refused, the running one stays");
                }
                self.supervisor.refused();
            }
        }
    }

    fn try_reload(&mut self, named: &mut Vec<PathBuf>) -> Result<(), Vec<Fault>> {
        let new = config::load_naming(&self.sources, SystemTime::now(), named)?;
        let fault = |path: &str, what: String| {
            vec![Fault {
                origin: "reload".to_owned(),
                path: path.to_owned(),
                what,
            }]
        };
        let fixed = self.config.needs_restart(&new);
        if !fixed.is_empty() {
            return Err(fault(
                &fixed.join(", "),
                "needs a restart to change".to_owned(),
            ));
        }
        if let Some(error) = new.roster_fault {
            return Err(fault("data_dir", error.to_string()));
        }
        let live = live(&new, &self.shared, Some(&self.live), self.acme.as_deref())
            .map_err(|what| fault("", what))?;
        if let Some(log) = self.log.as_ref().filter(|_| new.log != self.config.log) {
            log.set(&new.log.level);
        }
        for warning in &new.warnings {
            tracing::warn!(warning, "configuration");
        }
        self.install(new, live);
        Ok(())
    }

    /// Puts a configuration in force.
    fn install(&mut self, new: Config, live: Live) {
        let live = Arc::new(live);
        self.shared.budget.resize(new.limits.max_buffered);
        let (now, before): (Vec<_>, Vec<_>) = (
            live.endpoints.iter().cloned().collect(),
            self.live.endpoints.iter().cloned().collect(),
        );
        self.shared.metrics.retain(&now, &before);
        self.public.send_modify(|orders| orders.news = live.clone());
        self.live = live;
        note_certificates(&new, &self.shared, self.acme.as_deref());
        self.shared
            .access_log
            .store(new.log.access, Ordering::Relaxed);
        if new.admin.capture != self.config.admin.capture {
            self.shared.feed.configure(new.admin.capture);
        }
        self.config = new;
        let news = operator::news(&self.config);
        self.admin.send_modify(|orders| orders.news = news);
    }
}

fn live(
    config: &Config,
    shared: &Arc<Shared>,
    before: Option<&Live>,
    acme: Option<&acme::Manager>,
) -> Result<Live, String> {
    let server = &config.server;
    let shown = || acme.map(|acme| acme.shown().clone());
    let tls = server.tls.as_ref();
    let tls = tls.map(|material| Tls::new(&material.certificates, shown()));
    Live::new(
        config.endpoints.clone(),
        config.limits,
        server.trusted_proxies.clone(),
        Opening::new(tls, server.proxies.clone()),
        shared,
        before,
    )
}

/// Resolves when the store is broken; never without one.
async fn broken(queue: Option<&Queue>) -> Broken {
    match queue {
        Some(queue) => queue.broken().await,
        None => std::future::pending().await,
    }
}
