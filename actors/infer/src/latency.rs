//! How long answers take: HDR histograms of the time to the first token, between tokens, and of
//! whole answers.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use sixfold_cluster::task::{Metric, Metrics};

use crate::message::TokenEvent;

/// Largest time that is told apart, an hour in microseconds.
const LONGEST_US: u64 = 3_600_000_000;
/// Digits that are kept of a time.
const DIGITS: u8 = 2;

/// Histograms of times in microseconds.
#[derive(Debug)]
pub struct Latencies {
    histograms: Mutex<Histograms>,
}

#[derive(Debug)]
struct Histograms {
    first_token: Histogram<u64>,
    per_token: Histogram<u64>,
    answer: Histogram<u64>,
}

/// The times of one answer.
#[derive(Debug)]
pub struct AnswerTimes {
    started: Instant,
    last_token: Option<Instant>,
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS)
        .expect("the bounds are constants that the library takes")
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            histograms: Mutex::new(Histograms { first_token: empty(), per_token: empty(), answer: empty() }),
        }
    }
}

impl Latencies {
    /// Begins the times of an answer.
    pub fn begin(&self, started: Instant) -> AnswerTimes {
        AnswerTimes { started, last_token: None }
    }

    /// Records an event of the answer.
    pub fn record(&self, answer: &mut AnswerTimes, event: &TokenEvent, now: Instant) {
        let mut histograms = self.histograms.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            TokenEvent::Token(_) => match answer.last_token.replace(now) {
                Some(last) => record(&mut histograms.per_token, last, now),
                None => record(&mut histograms.first_token, answer.started, now),
            },
            TokenEvent::Finished { .. } => record(&mut histograms.answer, answer.started, now),
            TokenEvent::Started { .. } | TokenEvent::Echo(_) | TokenEvent::Failed(_) => {}
        }
    }

    /// Counts, medians and 99th percentiles, in milliseconds.
    pub fn figures(&self) -> Metrics {
        let histograms = self.histograms.lock().unwrap_or_else(PoisonError::into_inner);
        let mut figures = Metrics::from([
            ("answers".to_owned(), Metric::Count(histograms.answer.len())),
            ("tokens".to_owned(), Metric::Count(histograms.first_token.len() + histograms.per_token.len())),
        ]);
        let named = [
            ("first_token", &histograms.first_token),
            ("per_token", &histograms.per_token),
            ("answer", &histograms.answer),
        ];
        for (name, histogram) in named.into_iter().filter(|(_, histogram)| !histogram.is_empty()) {
            for (suffix, quantile) in [("p50_ms", 0.5), ("p99_ms", 0.99)] {
                let time_ms = histogram.value_at_quantile(quantile) as f64 / 1000.0;
                figures.insert(format!("{name}_{suffix}"), Metric::Number(time_ms));
            }
        }
        figures
    }
}

fn record(histogram: &mut Histogram<u64>, from: Instant, to: Instant) {
    let time_us = u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(LONGEST_US);
    histogram.saturating_record(time_us.max(1));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::{FinishReason, TokenPiece};

    #[test]
    fn tells_the_first_token_from_the_others() {
        let latencies = Latencies::default();
        let start = Instant::now();
        let mut answer = latencies.begin(start);
        let token =
            TokenEvent::Token(TokenPiece { token: 1, text: "a".into(), surface: String::new(), score: None });
        for (time_ms, event) in [
            (100, token.clone()),
            (110, token.clone()),
            (120, token),
            (121, TokenEvent::Finished { reason: FinishReason::Stop, text: String::new() }),
        ] {
            latencies.record(&mut answer, &event, start + Duration::from_millis(time_ms));
        }
        let figures = latencies.figures();
        assert_eq!(figures["tokens"], Metric::Count(3));
        for (name, expected) in
            [("first_token_p50_ms", 100.0), ("per_token_p99_ms", 10.0), ("answer_p50_ms", 121.0)]
        {
            let Metric::Number(time_ms) = figures[name] else { panic!("{name}") };
            assert!((time_ms - expected).abs() < expected * 0.02, "{name} {time_ms}");
        }
    }
}
