//! Names and moments of the gateway's metrics: under our own names, and under vLLM's.

pub(super) mod vllm;

use std::time::Instant;

use metrics::{
    Counter, Histogram, Label, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
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

/// Says what each metric is.
pub(super) fn describe() {
    describe_counter!(REQUESTS, "Responses to HTTP requests, by route and status.");
    describe_gauge!(RUNNING, "Prompts that are being answered.");
    describe_histogram!(FIRST_TOKEN, "Time from a request to its first token, in seconds.");
    describe_histogram!(PER_TOKEN, "Time from a token to the next, in seconds.");
    describe_histogram!(ANSWER, "Time from a request to the end of its answer, in seconds.");
    describe_counter!(PROMPT_TOKENS, "Tokens of prompts.");
    describe_counter!(GENERATION_TOKENS, "Tokens of answers.");
    describe_counter!(RESUMED, "Times that another replica went on with an answer.");
    vllm::describe();
}

/// Counts a response.
pub(super) fn responded(route: &str, status: u16) {
    counter!(REQUESTS, "route" => route.to_owned(), "status" => status.to_string()).increment(1);
}

/// Sets how many requests are in the making.
pub(super) fn running(requests: usize) {
    gauge!(RUNNING).set(requests as f64);
}

/// The times and tokens of one answer.
pub(super) struct AnswerTimes {
    started: Instant,
    last_token: Option<Instant>,
    /// Whether the answer has begun and not ended.
    open: bool,
    series: Series,
}

/// What is recorded of a model's answers; looked up once an answer, not once a token.
struct Series {
    first_token: Histogram,
    per_token: Histogram,
    answer: Histogram,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    resumed: Counter,
    vllm: vllm::Series,
}

impl Series {
    fn of(model: &str) -> Self {
        let label = [Label::new("model", model.to_owned())];
        Self {
            first_token: histogram!(FIRST_TOKEN, label.iter()),
            per_token: histogram!(PER_TOKEN, label.iter()),
            answer: histogram!(ANSWER, label.iter()),
            prompt_tokens: counter!(PROMPT_TOKENS, label.iter()),
            generation_tokens: counter!(GENERATION_TOKENS, label.iter()),
            resumed: counter!(RESUMED, label.iter()),
            vllm: vllm::Series::of(model),
        }
    }
}

impl AnswerTimes {
    pub(super) fn new(model: &str) -> Self {
        Self { started: Instant::now(), last_token: None, open: false, series: Series::of(model) }
    }

    /// Records an event.
    pub(super) fn record(&mut self, event: &TokenEvent) {
        let now = Instant::now();
        match event {
            TokenEvent::Started { prompt_tokens } => {
                self.open = true;
                self.series.prompt_tokens.increment(prompt_tokens.len() as u64);
                self.series.vllm.started(prompt_tokens.len() as u64);
            }
            TokenEvent::Token(_) => {
                self.series.generation_tokens.increment(1);
                match self.last_token.replace(now) {
                    Some(last) => {
                        self.series.per_token.record(now - last);
                        self.series.vllm.next_token(now - last);
                    }
                    None => {
                        self.series.first_token.record(now - self.started);
                        self.series.vllm.first_token(now - self.started);
                    }
                }
            }
            TokenEvent::Finished { reason, .. } => {
                self.open = false;
                self.series.answer.record(now - self.started);
                self.series.vllm.finished(*reason, now - self.started);
            }
            TokenEvent::Echo(_) | TokenEvent::Failed(_) | TokenEvent::Alive => {}
        }
    }

    /// The answer failed: its client hears so.
    pub(super) fn failed(&mut self) {
        self.open = false;
    }

    /// Records that other replicas went on with the answer, and that its client did not wait for its end
    /// where it has none.
    pub(super) fn close(&self, resumed: u64) {
        self.series.resumed.increment(resumed);
        if self.open {
            self.series.vllm.aborted();
        }
    }
}
