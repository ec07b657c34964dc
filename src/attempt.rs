//! What follows an attempt: delivered, again after a pause, or a dead letter.
//!
//! Pure: how the attempt ended, its number, `now` and a random number go in.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, StatusCode, header};

use crate::{
    endpoint::Queueing,
    upstream::{Progress, UpstreamError},
};

/// Longest pause an upstream can ask for.
const RETRY_AFTER_LIMIT: Duration = Duration::from_hours(24);
/// How far a pause is shortened or lengthened, so that what failed together does not come again
/// together.
const JITTER: f64 = 0.2;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The upstream answered.
    Answered {
        /// With this status.
        status: StatusCode,
        /// And asked for this pause.
        retry_after: Option<Duration>,
    },
    /// There was no answer.
    Failed(UpstreamError),
    /// There was no answer within this time.
    TimedOut(Duration),
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No further attempt: a dead letter.
    Dead,
    /// Nothing: the upstream has it.
    Delivered,
    /// Another attempt after this pause.
    Retry(Duration),
}

impl Ended {
    /// The end that an answer's head makes; `now` tells how far away a date is.
    pub fn answered(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Self {
        Self::Answered {
            status,
            retry_after: retry_after(headers, now),
        }
    }

    /// The end of an attempt that came so far: an upstream that has said 2xx has the event, whether
    /// or not the rest of its answer came.
    pub fn given(self, progress: &Progress) -> Self {
        let status = progress.accepted();
        status.map_or(self, |status| Self::Answered {
            status,
            retry_after: None,
        })
    }

    /// The status, if there was an answer.
    pub fn status(self) -> Option<StatusCode> {
        match self {
            Self::Answered { status, .. } => Some(status),
            Self::Failed(_) | Self::TimedOut(_) => None,
        }
    }

    /// What follows the attempt with this number, counted from 1 since the event came or was last
    /// replayed. `chance`, from 0 to 1, moves the pause within its jitter.
    ///
    /// The upstream's `Retry-After` can make a pause longer, never shorter: an upstream that asks
    /// for a second each time would else use up days of attempts in seconds.
    pub fn verdict(self, tries: u32, queueing: &Queueing, chance: f64) -> Verdict {
        let asked = match self {
            Self::Answered { status, .. } if status.is_success() => return Verdict::Delivered,
            Self::Answered { status, .. } if queueing.permanent_statuses.contains(&status) => {
                return Verdict::Dead;
            }
            Self::Answered { retry_after, .. } => retry_after.unwrap_or_default(),
            Self::Failed(_) | Self::TimedOut(_) => Duration::ZERO,
        };
        let number = usize::try_from(tries.saturating_sub(1)).unwrap_or(usize::MAX);
        let Some(pause) = queueing.retry.get(number) else {
            return Verdict::Dead;
        };
        let factor = 1.0 - JITTER + 2.0 * JITTER * chance.clamp(0.0, 1.0);
        Verdict::Retry(pause.mul_f64(factor).max(asked))
    }
}

/// What is shown to an operator; never anything the upstream wrote.
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { status, .. } if status.is_redirection() => {
                write!(
                    f,
                    "the upstream answered {}; redirects are not followed",
                    status.as_u16()
                )
            }
            Self::Answered { status, .. } => {
                write!(f, "the upstream answered {}", status.as_u16())
            }
            Self::Failed(error) => error.fmt(f),
            Self::TimedOut(after) => write!(
                f,
                "the upstream did not answer within {}",
                humantime::format_duration(*after)
            ),
        }
    }
}

/// The pause in `Retry-After` (RFC 9110 §10.2.3): seconds or a date, at most a day. What is in the
/// past or cannot be read asks for nothing.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let pause = if is_number {
        // More digits than fit are a long time too.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(text)
            .ok()?
            .duration_since(now)
            .ok()?
    };
    Some(pause.min(RETRY_AFTER_LIMIT))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::endpoint::Ordering;

    fn queueing() -> Queueing {
        Queueing {
            ordering: Ordering::None,
            retry: [1, 5, 30].map(Duration::from_secs).to_vec(),
            permanent_statuses: vec![StatusCode::BAD_REQUEST],
            attempt_timeout: Duration::from_secs(30),
            max_pending_bytes: 1,
            max_stored_bytes: 1,
            keep_delivered: Duration::ZERO,
            keep_dead: Duration::ZERO,
        }
    }

    fn answered(status: u16, after: Option<u64>) -> Ended {
        Ended::Answered {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: after.map(Duration::from_secs),
        }
    }

    const MIDDLE: f64 = 0.5;

    #[test]
    fn every_2xx_is_a_delivery_and_nothing_else_is() {
        for status in 200..=299 {
            let verdict = answered(status, None).verdict(1, &queueing(), MIDDLE);
            assert_eq!(verdict, Verdict::Delivered, "{status}");
        }
        for status in (300..=399).chain(401..=599) {
            let verdict = answered(status, None).verdict(1, &queueing(), MIDDLE);
            let second = Verdict::Retry(Duration::from_secs(1));
            assert_eq!(verdict, second, "{status}");
        }
    }

    #[test]
    fn a_permanent_status_is_a_dead_letter_at_once() {
        let verdict = answered(400, Some(5)).verdict(1, &queueing(), MIDDLE);
        assert_eq!(verdict, Verdict::Dead);
    }

    #[test]
    fn the_schedule_is_followed_to_its_end() {
        let refused = Ended::Failed(UpstreamError::Connect(std::io::ErrorKind::TimedOut));
        let late = Ended::TimedOut(Duration::from_secs(30));
        for ended in [refused, late, answered(503, None)] {
            let verdicts = [1, 2, 3, 4, 5].map(|n| ended.verdict(n, &queueing(), MIDDLE));
            let pause = |seconds| Verdict::Retry(Duration::from_secs(seconds));
            assert_eq!(
                verdicts,
                [pause(1), pause(5), pause(30), Verdict::Dead, Verdict::Dead]
            );
        }
    }

    #[test]
    fn jitter_is_a_fifth_either_way() {
        let pause = |chance| answered(500, None).verdict(3, &queueing(), chance);
        assert_eq!(pause(0.0), Verdict::Retry(Duration::from_secs(24)));
        assert_eq!(pause(1.0), Verdict::Retry(Duration::from_secs(36)));
    }

    #[test]
    fn retry_after_lengthens_a_pause_and_never_shortens_it() {
        let pause = |after| answered(503, Some(after)).verdict(2, &queueing(), MIDDLE);
        assert_eq!(pause(120), Verdict::Retry(Duration::from_secs(120)));
        assert_eq!(pause(2), Verdict::Retry(Duration::from_secs(5)));
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date_and_is_at_most_a_day() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        let read = |text: &'static str| {
            let headers = [(header::RETRY_AFTER, HeaderValue::from_static(text))];
            retry_after(&headers.into_iter().collect(), now)
        };
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(read("120"), seconds(120));
        assert_eq!(read("0"), seconds(0));
        assert_eq!(read("Wed, 21 Oct 2026 07:30:00 GMT"), seconds(120));
        assert_eq!(read("86401"), seconds(86_400));
        assert_eq!(read("99999999999999999999999"), seconds(86_400));
        assert_eq!(read("Thu, 21 Oct 2027 07:30:00 GMT"), seconds(86_400));
        for nothing in ["", "-1", "soon", "1.5", "Wed, 21 Oct 2026 07:27:00 GMT"] {
            assert_eq!(read(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_failure_says_what_it_was() {
        assert_eq!(
            answered(302, None).to_string(),
            "the upstream answered 302; redirects are not followed"
        );
        assert_eq!(
            Ended::TimedOut(Duration::from_secs(30)).to_string(),
            "the upstream did not answer within 30s"
        );
    }
}
