//! The process's own figures, for whoever shows them.

use std::collections::BTreeMap;

use prometheus::proto::{Metric, MetricFamily};

use super::Metrics;

/// Every metric as it stood at one moment.
#[derive(Debug)]
pub struct Readings(Vec<MetricFamily>);

/// Cumulative counts by upper bound in seconds, the last of them over all.
pub type Buckets = Vec<(f64, u64)>;

impl Metrics {
    /// Reads every metric.
    pub fn readings(&self) -> Readings {
        Readings(self.registry.gather())
    }
}

impl Readings {
    fn metrics(&self, name: &str) -> &[Metric] {
        let family = self.0.iter().find(|family| {
            let short = family.name().strip_prefix("hookward_");
            short.unwrap_or(family.name()) == name
        });
        family.map(MetricFamily::get_metric).unwrap_or_default()
    }

    /// The value of a metric without labels; 0 when there is none.
    pub fn value(&self, name: &str) -> f64 {
        self.metrics(name).first().map_or(0.0, value)
    }

    /// Each series of a metric: the values of these labels, and its value.
    pub fn series<const N: usize>(&self, name: &str, labels: [&str; N]) -> Vec<([String; N], f64)> {
        let metrics = self.metrics(name).iter();
        metrics
            .map(|metric| (labels.map(|label| of(metric, label)), value(metric)))
            .collect()
    }

    /// The values of a metric, added up by the values of these labels.
    pub fn sums<const N: usize>(
        &self,
        name: &str,
        labels: [&str; N],
    ) -> BTreeMap<[String; N], f64> {
        let mut sums = BTreeMap::new();
        for (key, value) in self.series(name, labels) {
            *sums.entry(key).or_insert(0.0) += value;
        }
        sums
    }

    /// The buckets of a histogram, over all its series.
    pub fn buckets(&self, name: &str) -> Buckets {
        let mut sums: Buckets = Vec::new();
        let mut all = 0;
        for metric in self.metrics(name) {
            let histogram = metric.get_histogram();
            all += histogram.get_sample_count();
            for (number, bucket) in histogram.get_bucket().iter().enumerate() {
                match sums.get_mut(number) {
                    Some(sum) => sum.1 += bucket.cumulative_count(),
                    None => sums.push((bucket.upper_bound(), bucket.cumulative_count())),
                }
            }
        }
        sums.push((f64::INFINITY, all));
        sums
    }
}

fn of(metric: &Metric, label: &str) -> String {
    let mut labels = metric.get_label().iter();
    let found = labels.find(|pair| pair.name() == label);
    found
        .map(|pair| pair.value().to_owned())
        .unwrap_or_default()
}

/// The value of a counter or gauge: of the two, the one that it is not is 0.
fn value(metric: &Metric) -> f64 {
    metric.get_counter().get_value() + metric.get_gauge().get_value()
}

/// The time within which this part of what came between two readings was done; `None` where
/// nothing came.
pub fn quantile(before: &Buckets, now: &Buckets, part: f64) -> Option<f64> {
    let count = |number: usize, buckets: &Buckets| buckets.get(number).map_or(0, |b| b.1);
    let new = |number| count(number, now).saturating_sub(count(number, before));
    let all = float(new(now.len().checked_sub(1)?));
    if all == 0.0 {
        return None;
    }
    let wanted = all * part;
    let (mut below, mut lower) = (0.0, 0.0);
    for (number, (upper, _)) in now.iter().enumerate() {
        let here = float(new(number));
        if here >= wanted {
            // Beyond the last bound nothing more is known.
            let is_open = upper.is_infinite() || here <= below;
            let share = (wanted - below) / (here - below);
            return Some(if is_open {
                lower
            } else {
                lower + (upper - lower) * share
            });
        }
        (below, lower) = (here, *upper);
    }
    None
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let none: Buckets = Vec::new();
        let now = vec![(0.1, 50), (1.0, 90), (f64::INFINITY, 100)];
        assert_eq!(quantile(&none, &now, 0.5), Some(0.1));
        assert_eq!(quantile(&none, &now, 0.7), Some(0.55));
        assert_eq!(quantile(&none, &now, 0.99), Some(1.0));
        assert_eq!(quantile(&now, &now, 0.5), None);
        let later = vec![(0.1, 50), (1.0, 110), (f64::INFINITY, 120)];
        assert_eq!(quantile(&now, &later, 0.5), Some(0.55));
    }
}
