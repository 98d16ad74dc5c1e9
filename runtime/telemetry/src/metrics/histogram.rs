//! A latency as Prometheus' histogram: how many times did not exceed each of some bounds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The recorded times of one series, of all time.
pub(super) struct Buckets {
    bounds_s: &'static [f64],
    /// Times up to each bound and beyond the one before it; the last ones are beyond all bounds.
    counts: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Counts {
    /// Bounds in seconds, the last one infinite, and how many times did not exceed each.
    pub(super) cumulative: Vec<(f64, u64)>,
    /// Sum of all times, in seconds.
    pub(super) sum_s: f64,
}

impl Buckets {
    /// Empty buckets up to ascending bounds.
    pub(super) fn new(bounds_s: &'static [f64]) -> Self {
        let counts = (0..=bounds_s.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds_s, counts, sum_ns: AtomicU64::new(0) }
    }

    pub(super) fn bounds_s(&self) -> &'static [f64] {
        self.bounds_s
    }

    pub(super) fn counts(&self) -> Counts {
        let bounds = self.bounds_s.iter().copied().chain([f64::INFINITY]);
        let mut count = 0;
        let cumulative = bounds.zip(&self.counts).map(|(bound, bucket)| {
            count += bucket.load(Ordering::Relaxed);
            (bound, count)
        });
        let cumulative = cumulative.collect();
        let sum_s = Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        Counts { cumulative, sum_s }
    }
}

impl Counts {
    /// How many times there were.
    pub(super) fn count(&self) -> u64 {
        self.cumulative.last().map_or(0, |(_, count)| *count)
    }
}

impl metrics::HistogramFn for Buckets {
    /// Records seconds; what is no time (negative, not a number) is left out.
    fn record(&self, value: f64) {
        let Ok(time) = Duration::try_from_secs_f64(value) else { return };
        let bucket = self.bounds_s.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(time_ns, Ordering::Relaxed);
    }
}
