//! Whether an upstream is up, as far as its answers tell.
//!
//! Pure. While it is down one attempt at a time goes out to see whether it is back, so that a night
//! without an upstream costs a few events one attempt each, and not every event all of its
//! attempts. Each probe is another event (the one before it waits for its own next attempt), so an
//! event that breaks the upstream cannot keep it down for the others.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::{
    attempt::Ended,
    upstream::{TlsFault, UpstreamError},
};

/// Failures in a row after which an upstream that can still be reached counts as down.
const STREAK: u32 = 5;
/// First and longest pause between two probes.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// What an attempt's end says about the upstream itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// It answered for itself.
    Alive,
    /// Nobody is there.
    Gone,
    /// No answer, or one that says that it cannot.
    Ill,
}

fn sign(ended: &Ended) -> Sign {
    match ended {
        Ended::Answered { status, .. } => match *status {
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Sign::Ill,
            _ => Sign::Alive,
        },
        // It may be this event that it ended for.
        Ended::Failed(
            UpstreamError::BrokeOff
            | UpstreamError::Tls(TlsFault::Ended)
            | UpstreamError::Unintelligible,
        )
        | Ended::TimedOut(_) => Sign::Ill,
        Ended::Failed(UpstreamError::Connect(_) | UpstreamError::Tls(_)) => Sign::Gone,
    }
}

/// How many attempts may be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// As many as there is room for.
    Any,
    /// None before this moment; [`None`]: none before the probe under way has ended.
    Not(Option<Instant>),
    /// One, to see whether the upstream is back.
    Probe,
}

/// What is known of one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Health(State);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down {
        pause: Duration,
        next: Instant,
        is_probing: bool,
    },
    Up {
        failures: u32,
    },
}

impl Health {
    /// An upstream that nothing bad is known of.
    pub(super) fn new() -> Self {
        Self(State::Up { failures: 0 })
    }

    /// Whether it counts as down.
    pub(super) fn is_down(&self) -> bool {
        matches!(self.0, State::Down { .. })
    }

    /// How many attempts may be begun now.
    pub(super) fn leave(&self, now: Instant) -> Leave {
        match self.0 {
            State::Up { .. } => Leave::Any,
            State::Down {
                is_probing: true, ..
            } => Leave::Not(None),
            State::Down { next, .. } if now < next => Leave::Not(Some(next)),
            State::Down { .. } => Leave::Probe,
        }
    }

    /// A probe has begun.
    pub(super) fn probing(&mut self) {
        if let State::Down { is_probing, .. } = &mut self.0 {
            *is_probing = true;
        }
    }

    /// A probe has ended before it was sent.
    pub(super) fn probe_unsent(&mut self) {
        if let State::Down { is_probing, .. } = &mut self.0 {
            *is_probing = false;
        }
    }

    /// Takes in how an attempt ended; whether it counts as one. Only what never left, because
    /// nobody was there, and was no probe, does not count.
    pub(super) fn learn(&mut self, ended: &Ended, is_probe: bool, now: Instant) -> bool {
        let (first, longest) = PAUSES;
        let sign = sign(ended);
        match (&mut self.0, sign) {
            (_, Sign::Alive) => {
                self.0 = State::Up { failures: 0 };
                true
            }
            (State::Up { failures }, Sign::Gone | Sign::Ill) => {
                *failures += 1;
                if sign == Sign::Gone || *failures >= STREAK {
                    self.0 = State::Down {
                        pause: first,
                        next: now + first,
                        is_probing: false,
                    };
                }
                true
            }
            (
                State::Down {
                    pause,
                    next,
                    is_probing,
                },
                Sign::Gone | Sign::Ill,
            ) => {
                if is_probe {
                    *is_probing = false;
                    *pause = (*pause * 2).min(longest);
                    *next = now + *pause;
                }
                is_probe || sign == Sign::Ill
            }
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: Ended = Ended::Failed(UpstreamError::Connect(
        std::io::ErrorKind::ConnectionRefused,
    ));
    const BROKE: Ended = Ended::Failed(UpstreamError::BrokeOff);
    const FINE: Ended = Ended::Answered {
        status: StatusCode::OK,
        retry_after: None,
    };

    #[test]
    fn nobody_there_is_down_at_once_and_only_the_first_counts() {
        let now = Instant::now();
        let mut health = Health::new();
        assert!(health.learn(&GONE, false, now));
        for _ in 0..63 {
            assert!(!health.learn(&GONE, false, now));
        }
        assert!(health.is_down());
    }

    #[test]
    fn while_down_one_probe_at_a_time_goes_out_and_counts() {
        let mut now = Instant::now();
        let mut health = Health::new();
        health.learn(&GONE, false, now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let Leave::Not(Some(next)) = health.leave(now) else {
                panic!("no pause");
            };
            pauses.push(next - now);
            now = next;
            assert_eq!(health.leave(now), Leave::Probe);
            health.probing();
            assert_eq!(health.leave(now), Leave::Not(None));
            assert!(health.learn(&GONE, true, now));
        }
        assert!(pauses.is_sorted());
        assert_eq!(pauses.first(), Some(&PAUSES.0));
        assert_eq!(pauses.last(), Some(&PAUSES.1));
        health.probing();
        health.probe_unsent();
        assert_eq!(health.leave(now + PAUSES.1), Leave::Probe);
        health.probing();
        health.learn(&FINE, true, now);
        assert_eq!(health.leave(now), Leave::Any);
    }

    #[test]
    fn what_reached_the_upstream_counts_also_while_it_is_down() {
        let now = Instant::now();
        let mut health = Health::new();
        health.learn(&GONE, false, now);
        assert!(health.learn(&BROKE, false, now));
        assert!(health.is_down());
    }

    #[test]
    fn one_bad_event_among_good_ones_never_makes_it_down() {
        let now = Instant::now();
        let mut health = Health::new();
        for _ in 0..100 {
            for _ in 1..STREAK {
                health.learn(&BROKE, false, now);
            }
            health.learn(&FINE, false, now);
        }
        assert!(!health.is_down());
        for _ in 0..STREAK {
            assert!(!health.is_down());
            assert!(health.learn(&BROKE, false, now));
        }
        assert!(health.is_down());
    }
}
