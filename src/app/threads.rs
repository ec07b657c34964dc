//! Event loops, each on a thread of its own; the main thread's listens to the signals.

use std::{io, sync::Arc};

use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::{mpsc, watch},
};

use super::{AppError, supervisor::Pulse};
use crate::{
    body::Budget,
    server::{self, Doors, Handler, Orders},
    shutdown::Signals,
};

/// The main thread's event loop, and the signals it has taken over.
///
/// Made before anything else: a signal that comes while things are being started waits, and does
/// what it means when they run.
pub struct MainThread {
    pub(super) runtime: LocalRuntime,
    pub(super) signals: Signals,
}

impl MainThread {
    /// Takes the signals over from the system's defaults.
    ///
    /// # Errors
    /// [`AppError::Start`] when the system refuses.
    pub fn new() -> Result<Self, AppError> {
        let failed = |error| AppError::Start("main thread".to_owned(), error);
        let runtime = runtime().map_err(failed)?;
        let signals = runtime.block_on(async { Signals::new() }).map_err(failed)?;
        Ok(Self { runtime, signals })
    }
}

pub(super) fn runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
}

pub(super) type Notices = (mpsc::Sender<()>, mpsc::Sender<io::Result<()>>);

/// Starts one event loop on a thread of its own: `started` is told by dropping its sender, and
/// `ended` stands for joining it.
pub(super) fn thread<H: Handler>(
    name: String,
    make: impl FnOnce() -> H + Send + 'static,
    sockets: Vec<server::Socket>,
    budget: Arc<Budget>,
    doors: Doors,
    orders: watch::Receiver<Orders<H::News>>,
    (pulse, (started, ended)): (Pulse, Notices),
) -> Result<(), AppError>
where
    H::News: Send + Sync,
{
    let place = name.clone();
    let body = move || {
        let outcome = runtime().and_then(|runtime| {
            let run = server::run(make(), sockets, budget, doors, orders, move || {
                drop(started)
            });
            runtime.block_on(pulse.beside(run))
        });
        if let Err(error) = &outcome {
            tracing::error!(%error, "an event loop ended");
        }
        // Nobody listens any more when the process is ending.
        let _ = ended.blocking_send(outcome);
    };
    std::thread::Builder::new()
        .name(name)
        .spawn(body)
        .map(drop)
        .map_err(|error| AppError::Start(place, error))
}
