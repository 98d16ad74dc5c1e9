//! What Prometheus reads.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use sixfold_infer::engine::Load;
use sixfold_telemetry::{Metrics, MetricsHandle};

use super::fake::{Fake, Fate, KEY, Replicas};
use super::wire::{exchange, post, send};
use crate::gateway::{BUCKETS, Gateway, GatewayOptions, GatewayParts};

/// The recorder of this process, which all tests share: each test here has a model of its own.
fn recorder() -> &'static MetricsHandle {
    static RECORDER: OnceLock<MetricsHandle> = OnceLock::new();
    RECORDER.get_or_init(|| Metrics::install(&BUCKETS).unwrap())
}

async fn start(model: &'static str, fakes: &[Arc<Fake>]) -> (Gateway, SocketAddr, Replicas) {
    let recorder = recorder();
    let replicas = Replicas::of(model, fakes);
    let parts = GatewayParts { metrics_text: Arc::new(|| recorder.render()), ..replicas.parts() };
    let gateway = super::start(GatewayOptions::default(), parts).await.unwrap();
    let address = gateway.address().unwrap();
    (gateway, address, replicas)
}

async fn scrape(address: SocketAddr) -> String {
    let request = format!(
        "GET /metrics HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n"
    );
    let answer = exchange(address, &request).await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    answer.body
}

/// The value of a series, written as in the text.
fn value(text: &str, series: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

async fn complete(address: SocketAddr, body: &Value) {
    assert_eq!(exchange(address, &post("/v1/completions", &body.to_string())).await.status, 200);
}

#[tokio::test]
async fn answers_are_measured_under_vllms_names() {
    let thinks = Fake::new(Fate::Thinks(1, Duration::from_millis(60)));
    let (_gateway, address, _replicas) = start("answers", &[thinks]).await;
    complete(address, &json!({"model": "answers", "prompt": [1, 2, 3], "max_tokens": 4})).await;
    complete(address, &json!({"model": "answers", "prompt": [1, 2], "stream": true})).await;
    let text = scrape(address).await;
    let of = |name: &str| value(&text, &format!("vllm:{name}{{model_name=\"answers\"}}"));
    assert_eq!((of("prompt_tokens_total"), of("generation_tokens_total")), (5.0, 16.0));
    let ended = |reason: &str| {
        let labels = format!("finished_reason=\"{reason}\",model_name=\"answers\"");
        value(&text, &format!("vllm:request_success_total{{{labels}}}"))
    };
    assert_eq!(["stop", "length", "abort"].map(ended), [1.0, 1.0, 0.0]);
    // Of 4 and of 12 tokens, the first ones came after a pause of 60 ms.
    for (name, bounds, count, sum_min_s, (bound, below_bound)) in [
        ("time_to_first_token_seconds", 22, 2.0, 0.12, ("0.04", 0.0)),
        ("inter_token_latency_seconds", 19, 14.0, 0.0, ("80", 14.0)),
        ("time_per_output_token_seconds", 19, 14.0, 0.0, ("80", 14.0)),
        ("e2e_request_latency_seconds", 21, 2.0, 0.12, ("480", 2.0)),
    ] {
        assert!(text.contains(&format!("# TYPE vllm:{name} histogram\n")), "{name}");
        let part = |part: &str| value(&text, &format!("vllm:{name}_{part}{{model_name=\"answers\"}}"));
        assert_eq!(part("count"), count, "{name}");
        assert!(part("sum") >= sum_min_s, "{name}");
        let bucket = format!("vllm:{name}_bucket{{model_name=\"answers\",le=\"");
        let buckets: Vec<(&str, f64)> = text
            .lines()
            .filter_map(|line| line.strip_prefix(&bucket)?.split_once("\"} "))
            .map(|(bound, count)| (bound, count.parse().unwrap()))
            .collect();
        assert_eq!(buckets.len(), bounds + 1, "{name}");
        assert!(buckets.is_sorted_by(|one, next| one.1 <= next.1), "{name}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&("+Inf", count)), "{name}");
        assert!(buckets.contains(&(bound, below_bound)), "{name}: {buckets:?}");
    }
    assert!(text.contains("sixfold_time_to_first_token_seconds_count{model=\"answers\"} 2\n"), "{text}");
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_is_aborted() {
    let fake = Fake::new(Fate::HangsAfter(2));
    let (_gateway, address, _replicas) = start("aborts", &[Arc::clone(&fake)]).await;
    let body = json!({"model": "aborts", "prompt": [1], "stream": true});
    let stream = send(address, &post("/v1/completions", &body.to_string())).await;
    while fake.alive.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    while fake.alive.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    let text = scrape(address).await;
    let aborted = "vllm:request_success_total{finished_reason=\"abort\",model_name=\"aborts\"}";
    assert_eq!(value(&text, aborted), 1.0);
}

#[tokio::test]
async fn replicas_say_how_full_they_are() {
    let fakes: Vec<_> = (0..3).map(|_| Fake::new(Fate::Lives)).collect();
    let load = Load { running: 2, waiting: 5, blocks_used: 3, blocks: 8, preempted: 0 };
    *fakes[0].load.lock().unwrap() = Some(load);
    *fakes[1].load.lock().unwrap() = Some(Load { waiting: 1, ..load });
    let (_gateway, address, replicas) = start("loads", &fakes).await;
    let figures = |text: &str| {
        let names =
            ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc"];
        let types: BTreeSet<_> =
            names.iter().filter(|name| text.contains(&format!("# TYPE vllm:{name} gauge\n"))).collect();
        assert_eq!(types.len(), names.len());
        names.map(|name| value(text, &format!("vllm:{name}{{model_name=\"loads\"}}")))
    };
    // The third one does not say.
    assert_eq!(figures(&scrape(address).await), [4.0, 6.0, 0.375, 0.375]);
    replicas.serve(&[]);
    // Replicas are asked once a second.
    let idle = async {
        while figures(&scrape(address).await) != [0.0; 4] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), idle).await.expect("a model that has gone is not idle");
}
