//! Log lines: where they go, and how many refusals are worth one each.
//!
//! Owns the subscriber (JSON or text on stderr, written by a thread of its own so that a slow
//! reader of stderr holds up no request) and the sampling of refusals under flood. What is logged
//! is each room's own business; secrets and bodies are in no room's lines.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, reload};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Lines that may wait to be written; room for them is taken at the start.
const WAITING_LINES: usize = 1024;
/// Refusals logged in one period.
const PER_PERIOD: u64 = 10;
const PERIOD: Duration = Duration::from_secs(1);

/// Lets ten refusals a second into the log and counts the others.
#[derive(Debug)]
pub struct Sampler {
    start: Instant,
    /// Which period it is, in the upper half; how many refusals it has seen, in the lower.
    state: AtomicU64,
    suppressed: AtomicU64,
}

impl Sampler {
    /// A sampler whose periods begin now.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            state: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Whether a refusal at `now` is logged, and how many before it were not. Threads read their
    /// clocks apart: one that comes late counts to the period that runs.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let age = now.saturating_duration_since(self.start).as_secs() / PERIOD.as_secs();
        let period = age & u64::from(u32::MAX);
        let count = |state: u64| match state >> 32 {
            current if current >= period => Some(state.saturating_add(1)),
            _ => Some(period << 32 | 1),
        };
        let before = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, count);
        let before = before.unwrap_or_default();
        let is_new = before >> 32 < period;
        if is_new || before & u64::from(u32::MAX) < PER_PERIOD {
            Some(self.suppressed.swap(0, Ordering::AcqRel))
        } else {
            self.suppressed.fetch_add(1, Ordering::AcqRel);
            None
        }
    }
}

/// Changes what is logged while the process runs.
pub struct Switch {
    directives: Option<String>,
    put: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error>>,
}

impl Switch {
    /// Logs from `level` on, under the directives that were given at the start.
    pub fn set(&self, level: &str) {
        if let Ok(filter) = filter(level, self.directives.as_deref()) {
            // Fails only when the subscriber is gone, and the process with it.
            let _ = (self.put)(filter);
        }
    }
}

fn filter(level: &str, directives: Option<&str>) -> io::Result<EnvFilter> {
    let text = [level]
        .into_iter()
        .chain(directives)
        .collect::<Vec<_>>()
        .join(",");
    EnvFilter::try_new(text).map_err(|_| {
        io::Error::other(
            "HOOKWARD_LOG or log.level: expected directives such as info or hookward=debug",
        )
    })
}

/// Sends log lines to stderr from here on, filtered by `level` and `directives` (an env-filter)
/// over it. Lines are flushed when the guard is dropped; under a flood that stderr cannot take,
/// lines are lost, not requests.
///
/// # Errors
/// When the directives make no sense, or a subscriber is set already.
pub fn start(
    level: &str,
    directives: Option<&str>,
    format: Format,
) -> io::Result<(WorkerGuard, Switch)> {
    let filter = filter(level, directives)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES)
        .lossy(true)
        .thread_name("hookward-log")
        .finish(io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_target(false);
    let (outcome, put): (_, Box<dyn Fn(_) -> _>) = match format {
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.try_init(), Box::new(move |f| handle.reload(f)))
        }
        Format::Text => {
            let builder = builder.with_ansi(false).with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.try_init(), Box::new(move |f| handle.reload(f)))
        }
    };
    outcome.map_err(|error| io::Error::other(error.to_string()))?;
    let directives = directives.map(str::to_owned);
    Ok((guard, Switch { directives, put }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_refusals_a_second_are_logged_and_the_rest_is_counted() {
        let start = Instant::now();
        let sampler = Sampler::new(start);
        let admitted = (0..100).filter(|_| sampler.admit(start).is_some()).count();
        assert_eq!(admitted, 10);
        assert_eq!(sampler.admit(start + PERIOD), Some(90));
        assert_eq!(sampler.admit(start + PERIOD), Some(0));
    }

    #[test]
    fn an_older_moment_begins_no_period() {
        let start = Instant::now();
        let sampler = Sampler::new(start);
        let moments = (0..100).map(|n| start + PERIOD * (5 - n % 2));
        assert_eq!(
            moments.filter(|at| sampler.admit(*at).is_some()).count(),
            10
        );
    }
}
