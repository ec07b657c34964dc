//! The last hour and the last day, out of the process's own metrics.
//!
//! Sampled now and then on the operator's thread; nothing is counted anew for it. It begins with
//! the process: what was before is Prometheus' affair.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::metrics::{Buckets, Readings, quantile};

/// From one sample of the whole to the next, and how many are kept: an hour.
const STEP: (Duration, usize) = (Duration::from_secs(15), 240);
/// From one sample of each endpoint to the next, and how many are kept: a day.
const LONG_STEP: (Duration, usize) = (Duration::from_mins(30), 48);

/// What happened in one step.
#[derive(Clone, Debug, Default)]
struct Sample {
    requests: f64,
    refused: f64,
    failed: f64,
    duplicates: f64,
    pending: u64,
    dead: u64,
    half_within: Option<f64>,
    most_within: Option<f64>,
}

/// What came of one endpoint's requests in one long step.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    good: f64,
    refused: f64,
    failed: f64,
}

impl Tally {
    fn add(&mut self, outcome: &str, count: f64) {
        match outcome {
            "failed" => self.failed += count,
            "rejected" => self.refused += count,
            _ => self.good += count,
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            good: (self.good - before.good).max(0.0),
            refused: (self.refused - before.refused).max(0.0),
            failed: (self.failed - before.failed).max(0.0),
        }
    }
}

/// The figures of the last hour and day.
#[derive(Debug)]
pub(super) struct History {
    began: Instant,
    sampled: Instant,
    totals: BTreeMap<String, f64>,
    buckets: Buckets,
    samples: VecDeque<Sample>,
    /// When the long step in hand began, and what had come by then.
    long_sampled: Instant,
    tallies: BTreeMap<String, Tally>,
    days: BTreeMap<String, VecDeque<Tally>>,
}

impl History {
    /// Empty, from now on.
    pub(super) fn new(now: Instant, readings: &Readings) -> Self {
        Self {
            began: now,
            sampled: now,
            totals: totals(readings),
            buckets: readings.buckets("request_duration_seconds"),
            samples: VecDeque::new(),
            long_sampled: now,
            tallies: BTreeMap::new(),
            days: BTreeMap::new(),
        }
    }

    /// How long there is something to show of.
    pub(super) fn length(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// Whether it is time for a sample.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.sampled) >= STEP.0
    }

    /// Takes a sample; `depth` is what is on disk: pending and dead events.
    pub(super) fn sample(&mut self, now: Instant, readings: &Readings, depth: (u64, u64)) {
        self.sampled = now;
        let totals = totals(readings);
        let buckets = readings.buckets("request_duration_seconds");
        let new = |outcome: &str| {
            let of = |totals: &BTreeMap<String, f64>| totals.get(outcome).copied().unwrap_or(0.0);
            (of(&totals) - of(&self.totals)).max(0.0)
        };
        let requests = totals.keys().map(|outcome| new(outcome)).sum();
        let sample = Sample {
            requests,
            refused: new("rejected"),
            failed: new("failed"),
            duplicates: new("duplicate"),
            pending: depth.0,
            dead: depth.1,
            half_within: quantile(&self.buckets, &buckets, 0.5),
            most_within: quantile(&self.buckets, &buckets, 0.95),
        };
        push(&mut self.samples, sample, STEP.1);
        (self.totals, self.buckets) = (totals, buckets);
        if now.saturating_duration_since(self.long_sampled) >= LONG_STEP.0 {
            self.long_sampled = now;
            self.end_long_step(readings);
        }
    }

    fn end_long_step(&mut self, readings: &Readings) {
        let tallies = tallies(readings);
        for (endpoint, tally) in &tallies {
            let before = self.tallies.get(endpoint).copied().unwrap_or_default();
            let day = self.days.entry(endpoint.clone()).or_default();
            push(day, tally.since(before), LONG_STEP.1);
        }
        self.days
            .retain(|endpoint, _| tallies.contains_key(endpoint));
        self.tallies = tallies;
    }

    /// The last hour.
    pub(super) fn hour(&self) -> Value {
        fn list<T: Into<Value>>(
            samples: &VecDeque<Sample>,
            of: impl Fn(&Sample) -> T,
        ) -> Vec<Value> {
            samples.iter().map(|sample| of(sample).into()).collect()
        }
        let all = &self.samples;
        json!({
            "step_seconds": STEP.0.as_secs(),
            "requests": list(all, |s| s.requests),
            "refused": list(all, |s| s.refused),
            "failed": list(all, |s| s.failed),
            "duplicates": list(all, |s| s.duplicates),
            "pending": list(all, |s| s.pending),
            "dead": list(all, |s| s.dead),
            "p50_seconds": list(all, |s| s.half_within),
            "p95_seconds": list(all, |s| s.most_within),
        })
    }

    /// The last day of each endpoint, the step in hand included.
    pub(super) fn days(&self, readings: &Readings) -> BTreeMap<String, Value> {
        let days = tallies(readings).into_iter().map(|(endpoint, tally)| {
            let before = self.tallies.get(&endpoint).copied().unwrap_or_default();
            let past = self.days.get(&endpoint).into_iter().flatten().copied();
            let all: Vec<_> = past.chain([tally.since(before)]).collect();
            let list = |of: fn(&Tally) -> f64| all.iter().map(of).collect::<Vec<_>>();
            let day = json!({
                "step_seconds": LONG_STEP.0.as_secs(),
                "good": list(|t| t.good),
                "refused": list(|t| t.refused),
                "failed": list(|t| t.failed),
            });
            (endpoint, day)
        });
        days.collect()
    }
}

fn push<T>(to: &mut VecDeque<T>, one: T, most: usize) {
    if to.len() >= most {
        to.pop_front();
    }
    to.push_back(one);
}

/// Requests by outcome.
fn totals(readings: &Readings) -> BTreeMap<String, f64> {
    let sums = readings.sums("requests_total", ["outcome"]).into_iter();
    sums.map(|([outcome], count)| (outcome, count)).collect()
}

/// Requests by endpoint.
fn tallies(readings: &Readings) -> BTreeMap<String, Tally> {
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    for ([endpoint, outcome], count) in readings.sums("requests_total", ["endpoint", "outcome"]) {
        tallies.entry(endpoint).or_default().add(&outcome, count);
    }
    tallies
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{metrics::Metrics, rejection::Rejection};

    #[test]
    fn a_step_holds_what_came_in_it_and_the_oldest_give_way() {
        let metrics = Arc::new(Metrics::new("test"));
        let mut now = Instant::now();
        let mut history = History::new(now, &metrics.readings());
        assert!(!history.is_due(now));
        now += STEP.0;
        assert!(history.is_due(now));
        for _ in 0..3 {
            metrics.refused_unrouted(Rejection::UnknownPath);
        }
        history.sample(now, &metrics.readings(), (5, 1));
        let hour = history.hour();
        assert_eq!(hour["requests"], json!([3.0]));
        assert_eq!(hour["refused"], json!([3.0]));
        assert_eq!(
            (&hour["pending"], &hour["dead"]),
            (&json!([5]), &json!([1]))
        );
        assert_eq!(hour["p50_seconds"], json!([null]));
        for _ in 0..300 {
            now += STEP.0;
            history.sample(now, &metrics.readings(), (0, 0));
        }
        let hour = history.hour();
        assert_eq!(hour["requests"].as_array().unwrap().len(), STEP.1);
        assert_eq!(hour["requests"][0], 0.0);
        let days = history.days(&metrics.readings());
        assert_eq!(days[""]["refused"].as_array().unwrap().len(), 3);
        assert_eq!(days[""]["refused"][0], 3.0);
    }
}
