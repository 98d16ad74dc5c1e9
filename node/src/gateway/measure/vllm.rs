//! Figures under the names by which vLLM's dashboards look for them, with its label and its buckets.
//! Source: vLLM, `vllm/v1/metrics/loggers.py`; the older names are those of its version 0.8.
//!
//! Times and tokens are of the answers that this gateway gave, measured here. How full the replicas
//! are is of the whole cluster, as the replicas say: every gateway shows the same.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{
    Counter, Histogram, Label, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use sixfold_infer::engine::Load;
use sixfold_infer::message::FinishReason;

const FIRST_TOKEN: &str = "vllm:time_to_first_token_seconds";
const BETWEEN_TOKENS: &str = "vllm:inter_token_latency_seconds";
/// The older name of the same.
const PER_TOKEN: &str = "vllm:time_per_output_token_seconds";
const ANSWER: &str = "vllm:e2e_request_latency_seconds";
const PROMPT_TOKENS: &str = "vllm:prompt_tokens_total";
const GENERATION_TOKENS: &str = "vllm:generation_tokens_total";
const SUCCESS: &str = "vllm:request_success_total";
const RUNNING: &str = "vllm:num_requests_running";
const WAITING: &str = "vllm:num_requests_waiting";
const CACHE_USAGE: &str = "vllm:kv_cache_usage_perc";
/// The older name of the same.
const GPU_CACHE_USAGE: &str = "vllm:gpu_cache_usage_perc";

const MODEL: &str = "model_name";
const REASON: &str = "finished_reason";

const FIRST_TOKEN_BOUNDS_S: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const PER_TOKEN_BOUNDS_S: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const ANSWER_BOUNDS_S: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

/// Bounds of the latencies that are shown as histograms, by name; for the process's recorder.
pub(crate) const BUCKETS: [(&str, &[f64]); 4] = [
    (FIRST_TOKEN, &FIRST_TOKEN_BOUNDS_S),
    (BETWEEN_TOKENS, &PER_TOKEN_BOUNDS_S),
    (PER_TOKEN, &PER_TOKEN_BOUNDS_S),
    (ANSWER, &ANSWER_BOUNDS_S),
];

/// Says what each metric is.
pub(super) fn describe() {
    describe_histogram!(FIRST_TOKEN, "Time from a request to its first token, in seconds.");
    describe_histogram!(BETWEEN_TOKENS, "Time from a token to the next, in seconds.");
    describe_histogram!(PER_TOKEN, "Older name of vllm:inter_token_latency_seconds.");
    describe_histogram!(ANSWER, "Time from a request to the end of its answer, in seconds.");
    describe_counter!(PROMPT_TOKENS, "Tokens of prompts.");
    describe_counter!(GENERATION_TOKENS, "Tokens of answers.");
    describe_counter!(SUCCESS, "Answers that ended; `abort` where the client went away.");
    describe_gauge!(RUNNING, "Requests that the cluster's replicas compute.");
    describe_gauge!(WAITING, "Requests that wait in the queues of the cluster's replicas.");
    describe_gauge!(CACHE_USAGE, "Part of the replicas' KV blocks that is in use, from 0 to 1.");
    describe_gauge!(GPU_CACHE_USAGE, "Older name of vllm:kv_cache_usage_perc, whatever the device.");
}

/// What is recorded of a model's answers.
pub(super) struct Series {
    first_token: Histogram,
    between_tokens: [Histogram; 2],
    answer: Histogram,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    stop: Counter,
    length: Counter,
    abort: Counter,
}

impl Series {
    pub(super) fn of(model: &str) -> Self {
        let label = [Label::new(MODEL, model.to_owned())];
        let ended = |reason: &'static str| counter!(SUCCESS, MODEL => model.to_owned(), REASON => reason);
        Self {
            first_token: histogram!(FIRST_TOKEN, label.iter()),
            between_tokens: [BETWEEN_TOKENS, PER_TOKEN].map(|name| histogram!(name, label.iter())),
            answer: histogram!(ANSWER, label.iter()),
            prompt_tokens: counter!(PROMPT_TOKENS, label.iter()),
            generation_tokens: counter!(GENERATION_TOKENS, label.iter()),
            stop: ended("stop"),
            length: ended("length"),
            abort: ended("abort"),
        }
    }

    pub(super) fn started(&self, prompt_tokens: u64) {
        self.prompt_tokens.increment(prompt_tokens);
    }

    pub(super) fn first_token(&self, time: Duration) {
        self.generation_tokens.increment(1);
        self.first_token.record(time);
    }

    pub(super) fn next_token(&self, time: Duration) {
        self.generation_tokens.increment(1);
        self.between_tokens.iter().for_each(|histogram| histogram.record(time));
    }

    pub(super) fn finished(&self, reason: FinishReason, time: Duration) {
        self.answer.record(time);
        match reason {
            FinishReason::Stop => self.stop.increment(1),
            FinishReason::Length => self.length.increment(1),
        }
    }

    pub(super) fn aborted(&self) {
        self.abort.increment(1);
    }
}

/// Sets how full the replicas of each model are.
pub(in crate::gateway) fn loads(loads: &BTreeMap<String, Load>) {
    for (model, load) in loads {
        let model = || model.clone();
        gauge!(RUNNING, MODEL => model()).set(load.running as f64);
        gauge!(WAITING, MODEL => model()).set(load.waiting as f64);
        let usage = load.blocks_used as f64 / load.blocks.max(1) as f64;
        gauge!(CACHE_USAGE, MODEL => model()).set(usage);
        gauge!(GPU_CACHE_USAGE, MODEL => model()).set(usage);
    }
}
