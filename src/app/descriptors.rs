//! Descriptors, shared out before there are too few.
//!
//! A process that runs out of them can do nothing: not accept, not connect to an upstream, not
//! answer the operator who wants to know why. So senders get what is left when everybody else has
//! had a share, and one connection too many hears 503 from us and not silence from the kernel.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{admin, config::Config};

/// What a process has open besides connections: log, store, listeners, an operator's socket, and
/// the files of a reload.
const HOUSEHOLD: usize = 64;
/// What an event loop has open, and a connection that is told there is no room for it.
const PER_THREAD: usize = 8;

/// How many connections of senders there are descriptors for, having raised the limit as far as
/// the system lets us. Where that is fewer than configured, the log says so.
///
/// What upstreams take is bounded by `max_concurrency`, as configured at the start; they get half
/// at most.
pub(super) fn room_for_senders(config: &Config) -> usize {
    let Some(limit) = raised_limit() else {
        return usize::MAX;
    };
    let upstreams = config
        .endpoints
        .iter()
        .map(|endpoint| endpoint.upstream.max_concurrency.get())
        .fold(0, usize::saturating_add);
    let room = share(limit, config.server.threads.get(), upstreams);
    let wanted = config.limits.max_connections;
    if room < wanted {
        tracing::warn!(
            max_connections = wanted,
            descriptors = limit,
            room,
            "fewer connections than limits.max_connections: raise the limit of open files"
        );
    }
    room
}

/// The limit on open files, soft raised to hard; `None` where there is none.
fn raised_limit() -> Option<usize> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // Where the system refuses, what we were given has to do.
    let is_raised = setrlimit(Resource::Nofile, raised).is_ok();
    let limit = if is_raised { maximum } else { current };
    usize::try_from(limit?).ok()
}

/// What is left for senders of `limit` descriptors; at least one.
fn share(limit: usize, threads: usize, upstreams: usize) -> usize {
    let operator = admin::MAX_CONNECTIONS.min(limit / 8);
    let ours = HOUSEHOLD
        .saturating_add(PER_THREAD.saturating_mul(threads))
        .saturating_add(operator);
    let rest = limit.saturating_sub(ours);
    rest.saturating_sub(upstreams.min(rest / 2)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_get_what_the_others_leave() {
        // 1024 less 64, 2 × 8 and 128 are 816.
        assert_eq!(share(1024, 2, 64), 752);
        assert_eq!(share(1024, 2, 100_000), 408, "upstreams get half at most");
        assert_eq!(share(1 << 30, 2, 64), (1 << 30) - 64 - 16 - 256 - 64);
        assert_eq!(share(32, 2, 64), 1);
    }
}
