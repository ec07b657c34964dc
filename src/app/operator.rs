//! The operator's side: its listeners, what they serve, and what they are told.

use std::{
    io,
    num::NonZeroUsize,
    sync::{Arc, atomic::AtomicBool},
};

use tokio::sync::{mpsc, watch};

use super::{AppError, bind, bind::Bound, supervisor::Supervisor, thread};
use crate::{
    admin::{
        self, Admin, Given, News, Serves,
        change::{Change, Changes},
    },
    config::Config,
    gate::{Live, Shared},
    roster::Made,
    server::{Doors, Orders, Stage},
};

/// The threads of the operator's side.
pub(super) struct Operator {
    pub(super) orders: watch::Sender<Orders<Arc<News>>>,
    pub(super) changes: mpsc::Receiver<Change>,
    /// One message per thread that ended.
    pub(super) ended: mpsc::Receiver<io::Result<()>>,
    pub(super) threads: usize,
    pub(super) bound: Vec<Bound>,
    pub(super) listening: Vec<(&'static str, String)>,
}

/// The configuration, as the operator's side is told of it.
pub(super) fn news(config: &Config) -> Arc<News> {
    let given = |made: &Made| Given {
        table: made.shown(),
        revision: made.revision(),
    };
    let made = config.roster.endpoints.iter();
    Arc::new(News {
        settings: config.admin.clone(),
        effective: config.effective_json().clone(),
        given: made
            .map(|(name, made)| (name.clone(), given(made)))
            .collect(),
        export: config.roster.to_toml(),
        file: config.file().map(ToOwned::to_owned),
        warnings: config.warnings.clone(),
    })
}

/// Binds the listeners and starts a thread for each kind of them.
pub(super) fn start(
    config: &Config,
    (shared, is_ready): (&Arc<Shared>, &Arc<AtomicBool>),
    live: watch::Receiver<Orders<Arc<Live>>>,
    supervisor: &mut Supervisor,
    started: &mpsc::Sender<()>,
) -> Result<Operator, AppError> {
    let (orders, seen) = watch::channel(Orders {
        stage: Stage::Open,
        news: news(config),
    });
    let (asked, changes) = Changes::channel();
    let sources = admin::Sources {
        shared: shared.clone(),
        is_ready: is_ready.clone(),
        live,
        news: seen.clone(),
        changes: asked,
    };
    let mut kinds = vec![("admin", &config.admin_listen, Serves::Everything)];
    if let Some(own) = &config.api_listen {
        kinds = vec![
            ("admin", &config.admin_listen, Serves::Open),
            ("api", own, Serves::Api),
        ];
    }
    let (ended_one, ended) = mpsc::channel(kinds.len());
    let (mut bound, mut listening) = (Vec::new(), Vec::new());
    let threads = kinds.len();
    for (kind, addresses, serves) in kinds {
        let here = bind::all(addresses, NonZeroUsize::MIN)?;
        listening.extend(here.iter().map(|bound| (kind, bound.address.to_string())));
        let uncounted = prometheus::IntGauge::new("admin_connections", "not shown")
            .map_err(|error| AppError::Start("metrics".to_owned(), io::Error::other(error)))?;
        let sources = sources.clone();
        thread(
            format!("hookward-{kind}"),
            move || Admin::new(sources, serves),
            bind::share(&here, 0)?,
            shared.budget.clone(),
            Doors::new(uncounted, usize::MAX),
            seen.clone(),
            (supervisor.pulse(), (started.clone(), ended_one.clone())),
        )?;
        bound.extend(here);
    }
    Ok(Operator {
        orders,
        changes,
        ended,
        threads,
        bound,
        listening,
    })
}
