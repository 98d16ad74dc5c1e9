//! A latency as it is shown: quantiles of the recent past, sum and count of all time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::LatencyHistogram;

/// Quantiles tell of at least this long, and of at most twice this.
const WINDOW: Duration = Duration::from_secs(60);
/// The quantiles that are shown.
pub(super) const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// The recorded times of one series.
pub(super) struct Summary {
    times: Mutex<Times>,
}

struct Times {
    current: LatencyHistogram,
    previous: LatencyHistogram,
    began: Instant,
    count: u64,
    sum: Duration,
}

/// A summary at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures {
    /// Values of [`QUANTILES`], in seconds; not a number where nothing was recorded lately.
    pub(super) quantiles: [f64; 4],
    /// Sum of all times, in seconds.
    pub(super) sum: f64,
    /// How many there were.
    pub(super) count: u64,
}

impl Summary {
    pub(super) fn new(now: Instant) -> Self {
        let (current, previous) = (LatencyHistogram::default(), LatencyHistogram::default());
        Self { times: Mutex::new(Times { current, previous, began: now, count: 0, sum: Duration::ZERO }) }
    }

    pub(super) fn record(&self, time: Duration, now: Instant) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.turn(now);
        times.current.record(time);
        times.count += 1;
        times.sum = times.sum.saturating_add(time);
    }

    pub(super) fn figures(&self, now: Instant) -> Figures {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.turn(now);
        let mut recent = times.current.clone();
        recent.merge(&times.previous);
        let seconds = |quantile| recent.quantile(quantile).map_or(f64::NAN, |time| time.as_secs_f64());
        Figures { quantiles: QUANTILES.map(seconds), sum: times.sum.as_secs_f64(), count: times.count }
    }
}

impl Times {
    /// Forgets what is older than two windows.
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age < WINDOW {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.clear();
        if age >= 2 * WINDOW {
            self.previous.clear();
        }
        self.began = now;
    }
}

impl metrics::HistogramFn for Summary {
    /// Records seconds; what is no time (negative, not a number) is left out.
    fn record(&self, value: f64) {
        if let Ok(time) = Duration::try_from_secs_f64(value) {
            self.record(time, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_forget_and_sums_do_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let summary = Summary::new(start);
        summary.record(Duration::from_secs(8), at(1));
        summary.record(Duration::from_secs(1), at(61));
        let figures = summary.figures(at(62));
        assert!(figures.quantiles[3] > 7.9, "{figures:?}");
        let figures = summary.figures(at(122));
        assert!(figures.quantiles.iter().all(|value| (value - 1.0).abs() < 0.01), "{figures:?}");
        assert_eq!((figures.sum, figures.count), (9.0, 2));
        let figures = summary.figures(at(400));
        assert!(figures.quantiles.iter().all(|value| value.is_nan()), "{figures:?}");
        assert_eq!((figures.sum, figures.count), (9.0, 2));
    }

    #[test]
    fn what_is_no_time_is_left_out() {
        let summary = Summary::new(Instant::now());
        for value in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            metrics::HistogramFn::record(&summary, value);
        }
        assert_eq!(summary.figures(Instant::now()).count, 0);
    }
}
