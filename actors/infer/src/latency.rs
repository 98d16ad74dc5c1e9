//! How long answers take: histograms of the time to the first token, between tokens, and of
//! whole answers.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use sixfold_cluster::task::{Metric, Metrics};
use sixfold_telemetry::LatencyHistogram;

use crate::message::TokenEvent;

/// The times of a replica's answers.
#[derive(Debug, Default)]
pub struct Latencies {
    histograms: Mutex<Histograms>,
}

#[derive(Debug, Default)]
struct Histograms {
    first_token: LatencyHistogram,
    per_token: LatencyHistogram,
    answer: LatencyHistogram,
}

/// The times of one answer.
#[derive(Debug)]
pub struct AnswerTimes {
    started: Instant,
    last_token: Option<Instant>,
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
                Some(last) => histograms.per_token.record(now.saturating_duration_since(last)),
                None => histograms.first_token.record(now.saturating_duration_since(answer.started)),
            },
            TokenEvent::Finished { .. } => {
                histograms.answer.record(now.saturating_duration_since(answer.started));
            }
            TokenEvent::Started { .. } | TokenEvent::Echo(_) | TokenEvent::Failed(_) | TokenEvent::Alive => {}
        }
    }

    /// Counts, medians and 99th percentiles, in milliseconds.
    pub fn figures(&self) -> Metrics {
        let histograms = self.histograms.lock().unwrap_or_else(PoisonError::into_inner);
        let mut figures = Metrics::from([
            ("answers".to_owned(), Metric::Count(histograms.answer.count())),
            (
                "tokens".to_owned(),
                Metric::Count(histograms.first_token.count() + histograms.per_token.count()),
            ),
        ]);
        let named = [
            ("first_token", &histograms.first_token),
            ("per_token", &histograms.per_token),
            ("answer", &histograms.answer),
        ];
        for (name, histogram) in named {
            for (suffix, quantile) in [("p50_ms", 0.5), ("p99_ms", 0.99)] {
                let Some(time) = histogram.quantile(quantile) else { continue };
                figures.insert(format!("{name}_{suffix}"), Metric::Number(time.as_secs_f64() * 1000.0));
            }
        }
        figures
    }
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
