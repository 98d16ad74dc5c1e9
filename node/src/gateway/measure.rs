//! Names and moments of the gateway's metrics.

use std::time::Instant;

use metrics::{counter, gauge, histogram};
use sixfold_infer::message::TokenEvent;

/// Requests by route and status.
const REQUESTS: &str = "sixfold_http_requests_total";
/// Requests in the making.
const RUNNING: &str = "sixfold_http_requests_running";
/// From a request to its first token.
const FIRST_TOKEN: &str = "sixfold_time_to_first_token_seconds";
/// From a token to the next.
const PER_TOKEN: &str = "sixfold_time_per_output_token_seconds";
/// From a request to the end of its answer.
const ANSWER: &str = "sixfold_e2e_request_latency_seconds";
/// Tokens of prompts.
const PROMPT_TOKENS: &str = "sixfold_prompt_tokens_total";
/// Tokens of answers.
const GENERATION_TOKENS: &str = "sixfold_generation_tokens_total";
/// Answers that another replica had to continue.
const RESUMED: &str = "sixfold_answers_resumed_total";

/// Counts a response.
pub(super) fn responded(route: &str, status: u16) {
    counter!(REQUESTS, "route" => route.to_owned(), "status" => status.to_string()).increment(1);
}

/// Sets how many requests are in the making.
pub(super) fn running(requests: usize) {
    gauge!(RUNNING).set(requests as f64);
}

/// The times of one answer.
pub(super) struct AnswerTimes {
    model: String,
    started: Instant,
    last_token: Option<Instant>,
}

impl AnswerTimes {
    pub(super) fn new(model: &str) -> Self {
        Self { model: model.to_owned(), started: Instant::now(), last_token: None }
    }

    /// Records an event.
    pub(super) fn record(&mut self, event: &TokenEvent) {
        let now = Instant::now();
        let model = self.model.clone();
        match event {
            TokenEvent::Started { prompt_tokens } => {
                counter!(PROMPT_TOKENS, "model" => model).increment(prompt_tokens.len() as u64);
            }
            TokenEvent::Token(_) => {
                counter!(GENERATION_TOKENS, "model" => model.clone()).increment(1);
                match self.last_token.replace(now) {
                    Some(last) => histogram!(PER_TOKEN, "model" => model).record(now - last),
                    None => histogram!(FIRST_TOKEN, "model" => model).record(now - self.started),
                }
            }
            TokenEvent::Finished { .. } => histogram!(ANSWER, "model" => model).record(now - self.started),
            TokenEvent::Echo(_) | TokenEvent::Failed(_) => {}
        }
    }

    /// Records that other replicas went on with the answer.
    pub(super) fn resumed(&self, times: u64) {
        counter!(RESUMED, "model" => self.model.clone()).increment(times);
    }
}
