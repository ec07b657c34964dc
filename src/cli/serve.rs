//! `serve`: the daemon.

use std::time::SystemTime;

use super::{Failure, Outcome};
use crate::{
    app::{App, AppError, MainThread},
    config::{self, Config, Sources},
    log, trace,
};

pub(super) fn run(sources: Sources) -> Outcome {
    let main = MainThread::new().map_err(|error| Failure::Failed(error.to_string()))?;
    let config = config::load(&sources, SystemTime::now())?;
    let (_flushed, log) = start_log(&config, &sources)?;
    let _traces = trace::start().map_err(|what| Failure::Usage(vec![what]))?;
    for warning in &config.warnings {
        tracing::warn!(warning, "configuration");
    }
    let app = App::start(config, sources).map_err(|error| match error {
        AppError::Broken(_)
        | AppError::Hurried
        | AppError::Queue(_)
        | AppError::Start(..)
        | AppError::ThreadEnded => Failure::Failed(error.to_string()),
        AppError::Upstream(fault) => Failure::Usage(vec![fault]),
    })?;
    app.run(main, Some(log))
        .map_err(|error| Failure::Failed(error.to_string()))
}

fn start_log(
    config: &Config,
    sources: &Sources,
) -> Result<(tracing_appender::non_blocking::WorkerGuard, log::Switch), Failure> {
    let directives = sources.env.iter().find(|(name, _)| name == "HOOKWARD_LOG");
    let directives = directives
        .map(|(_, value)| value.as_str())
        .filter(|value| !value.is_empty());
    log::start(&config.log.level, directives, config.log.format)
        .map_err(|error| Failure::Usage(vec![error.to_string()]))
}
