//! What a service manager is told (sd_notify(3)): that it is ready, reads its configuration again,
//! ends; and, where that is asked for, that every event loop still turns.
//!
//! Without `NOTIFY_SOCKET` nothing is said, without `WATCHDOG_USEC` nothing beats.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Looks at the loops in the time the service manager waits for one sign of life: a sign may come
/// late three times.
const LOOKS: u32 = 4;
/// Beats of a loop between two looks.
const BEATS: u32 = 2;

/// The side of the main thread.
#[derive(Debug)]
pub(super) struct Supervisor {
    watchdog: Option<Watchdog>,
}

#[derive(Debug)]
struct Watchdog {
    every: Duration,
    /// `None` until the first wait for one.
    next_look: Option<Instant>,
    loops: Vec<Loop>,
}

#[derive(Debug)]
struct Loop {
    beats: Arc<AtomicU64>,
    /// As many as there were at the last look.
    seen: u64,
}

/// The side of one event loop.
#[derive(Debug)]
pub(super) struct Pulse(Option<(Arc<AtomicU64>, Duration)>);

impl Supervisor {
    /// Looks into the environment for what the service manager wants to hear.
    pub(super) fn new() -> Self {
        Self {
            watchdog: sd_notify::watchdog_enabled().map(|within| Watchdog {
                every: within / LOOKS,
                next_look: None,
                loops: Vec::new(),
            }),
        }
    }

    /// The pulse of one more event loop.
    pub(super) fn pulse(&mut self) -> Pulse {
        Pulse(self.watchdog.as_mut().map(|watchdog| {
            let beats = Arc::new(AtomicU64::new(0));
            watchdog.loops.push(Loop {
                beats: beats.clone(),
                seen: 0,
            });
            (beats, watchdog.every / BEATS)
        }))
    }

    /// It serves this many endpoints.
    pub(super) fn ready(&self, endpoints: usize) {
        let status = format!("endpoints: {endpoints}");
        tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// It reads its configuration; [`Supervisor::ready`] or [`Supervisor::refused`] follows.
    pub(super) fn reloading(&self) {
        // A clock that cannot be read: better no word than one that must be followed by its time.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            tell(&[NotifyState::Reloading, now]);
        }
    }

    /// It goes on with the configuration it had.
    pub(super) fn refused(&self) {
        let status = "configuration refused, the running one stays; see the log";
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// It ends.
    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// Gives signs of life for as long as every loop has beaten between two looks; never resolves.
    pub(super) async fn watch(&mut self) -> Infallible {
        let Some(watchdog) = &mut self.watchdog else {
            return std::future::pending().await;
        };
        loop {
            let after = |now: Instant| now + watchdog.every;
            sleep_until(
                *watchdog
                    .next_look
                    .get_or_insert_with(|| after(Instant::now())),
            )
            .await;
            watchdog.next_look = Some(after(Instant::now()));
            if watchdog.all_beat() {
                tell(&[NotifyState::Watchdog]);
            } else {
                tracing::warn!("an event loop stands still");
            }
        }
    }
}

impl Watchdog {
    fn all_beat(&mut self) -> bool {
        let mut all = true;
        for each in &mut self.loops {
            let beats = each.beats.load(Ordering::Relaxed);
            all &= beats != each.seen;
            each.seen = beats;
        }
        all
    }
}

impl Pulse {
    /// Runs what the loop is for, and beats beside it.
    pub(super) async fn beside<F: Future>(self, run: F) -> F::Output {
        let mut beating = JoinSet::new();
        if let Some((beats, every)) = self.0 {
            beating.spawn_local(async move {
                loop {
                    beats.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(every).await;
                }
            });
        }
        run.await
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told at NOTIFY_SOCKET");
    }
}
