//! Series of endpoints and secrets that are no longer configured.
//!
//! Names are an operator's to make and to take away at run time: what is counted under them goes
//! with them, or a loop over names would fill memory and every scrape. Of one that is made again
//! counters begin at 0, as after a restart.

use std::sync::Arc;

use prometheus::core::{MetricVec, MetricVecBuilder};

use super::{
    Metrics,
    labels::{CLASSES, EventLabel, Outcome},
};
use crate::{endpoint::Endpoint, rejection::Rejection};

impl Metrics {
    /// Takes away what belongs to endpoints or secrets that are no longer configured.
    pub fn retain(&self, running: &[Arc<Endpoint>], before: &[Arc<Endpoint>]) {
        for old in before {
            let kept = running.iter().find(|e| e.name == old.name);
            self.forget_secrets(old, kept.map(|endpoint| &**endpoint));
            if kept.is_none() {
                self.forget(old.name.as_str());
            }
        }
    }

    fn forget_secrets(&self, old: &Endpoint, kept: Option<&Endpoint>) {
        let name = old.name.as_str();
        for secret in old.secrets.names() {
            let all = kept.into_iter().flat_map(|endpoint| {
                let secrets = &endpoint.secrets;
                secrets.names().zip(secrets.expiries())
            });
            let mut same = all.filter(|(kept, _)| *kept == secret).peekable();
            if same.peek().is_none() {
                remove(&self.secret_matches, &[name, secret]);
            }
            if !same.any(|(_, expiry)| expiry.is_some()) {
                remove(&self.secret_expiry, &[name, secret]);
            }
        }
    }

    fn forget(&self, name: &str) {
        self.queue.forget(name);
        for outcome in Outcome::ALL.map(Outcome::label) {
            remove(&self.duration, &[name, outcome]);
            for event in EventLabel::LABELS {
                for class in CLASSES {
                    remove(&self.requests, &[name, event, outcome, class]);
                }
            }
        }
        for kind in Rejection::KINDS {
            remove(&self.rejections, &[name, kind.label()]);
        }
        for class in CLASSES.iter().chain(&["error"]) {
            remove(&self.upstream_responses, &[name, class]);
        }
        remove(&self.upstream_duration, &[name]);
        remove(&self.body_bytes, &[name]);
        remove(&self.in_flight, &[name]);
        remove(&self.key_reuse, &[name]);
        remove(&self.replays, &[name]);
        remove(&self.last_verified, &[name]);
    }
}

/// Takes a series away; many of those that may be were never there.
pub(super) fn remove<B: MetricVecBuilder>(of: &MetricVec<B>, labels: &[&str]) {
    let _ = of.remove_label_values(labels);
}
