//! A histogram of times, of a fixed size whatever is recorded.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Largest time that is told apart, an hour in microseconds.
const LONGEST_US: u64 = 3_600_000_000;
/// Decimal digits that are kept of a time: an error below 1 % in about 26 KiB.
const DIGITS: u8 = 2;

/// Times from a microsecond to an hour, to 1 %. Longer ones count as an hour.
#[derive(Clone, Debug)]
pub struct LatencyHistogram {
    times_us: Histogram<u64>,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        let times_us = Histogram::new_with_bounds(1, LONGEST_US, DIGITS)
            .expect("the bounds are constants that the library takes");
        Self { times_us }
    }
}

impl LatencyHistogram {
    /// Records a time.
    pub fn record(&mut self, time: Duration) {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(LONGEST_US);
        self.times_us.saturating_record(time_us.clamp(1, LONGEST_US));
    }

    /// Times recorded.
    pub fn count(&self) -> u64 {
        self.times_us.len()
    }

    /// The time that a part `quantile` of all times, from 0 to 1, does not exceed; `None` where
    /// nothing was recorded.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        (self.count() > 0).then(|| Duration::from_micros(self.times_us.value_at_quantile(quantile)))
    }

    /// Adds the times of another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.times_us.add(&other.times_us).expect("all histograms have the same bounds");
    }

    /// Forgets all times.
    pub fn clear(&mut self) {
        self.times_us.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut latencies = LatencyHistogram::default();
        assert_eq!(latencies.quantile(0.5), None);
        for time_ms in 1..=1000 {
            latencies.record(Duration::from_millis(time_ms));
        }
        for (quantile, expected_ms) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.999, 999.0)] {
            let time_ms = latencies.quantile(quantile).unwrap().as_secs_f64() * 1000.0;
            assert!((time_ms - expected_ms).abs() < expected_ms * 0.01, "{quantile}: {time_ms}");
        }
    }

    #[test]
    fn times_beyond_the_bounds_are_kept_at_them() {
        let mut latencies = LatencyHistogram::default();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::MAX);
        assert_eq!(latencies.count(), 2);
        assert_eq!(latencies.quantile(0.5), Some(Duration::from_micros(1)));
        assert!(latencies.quantile(1.0).unwrap() >= Duration::from_secs(3590));
    }

    #[test]
    fn merged_histograms_count_both() {
        let (mut one, mut two) = (LatencyHistogram::default(), LatencyHistogram::default());
        one.record(Duration::from_millis(1));
        two.record(Duration::from_millis(100));
        one.merge(&two);
        two.clear();
        assert_eq!((one.count(), two.count()), (2, 0));
        assert!(one.quantile(1.0).unwrap() >= Duration::from_millis(99));
    }
}
