//! Replicas that die, hang, vanish and come back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::json;

use super::fake::{Cluster, Fake, Fate, sse};
use crate::gateway::GatewayOptions;

#[tokio::test]
async fn a_killed_replica_is_not_noticed_in_the_text() {
    let asked = json!({"model": "toy", "prompt": [1, 2, 3], "max_tokens": 20, "stream": true, "echo": true, "logprobs": 2,
        "stream_options": {"include_usage": true}});
    let undisturbed = sse(&Cluster::new(&[Fake::new(Fate::Lives)]).post("/v1/completions", &asked).await.1);
    for after in 0..12 {
        let fakes = [Fake::new(Fate::DiesAfter(after)), Fake::new(Fate::Lives)];
        let chunks = sse(&Cluster::new(&fakes).post("/v1/completions", &asked).await.1);
        let visible = |chunks: &[serde_json::Value]| {
            chunks.iter().map(|chunk| (chunk["choices"].clone(), chunk["usage"].clone())).collect::<Vec<_>>()
        };
        assert_eq!(visible(&chunks), visible(&undisturbed), "killed after {after} tokens");
        assert_eq!(fakes[1].asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn replicas_that_die_one_after_the_other_still_make_one_answer() {
    let fakes: Vec<_> = (0..3).map(|_| Fake::new(Fate::DiesAfter(2))).collect();
    let asked = json!({"model": "toy", "prompt": "a", "max_tokens": 20});
    let (status, answer) = Cluster::new(&fakes).post_json("/v1/completions", &asked).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer["choices"][0]["text"], " w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12!");
}

#[tokio::test]
async fn a_silent_replica_is_replaced() {
    let fakes = [Fake::new(Fate::HangsAfter(0)), Fake::new(Fate::Lives)];
    let cluster = Cluster::new(&fakes);
    let (status, answer) =
        cluster.post_json("/v1/completions", &json!({"model": "toy", "prompt": "a", "max_tokens": 1})).await;
    assert_eq!((status, answer["choices"][0]["text"].as_str()), (StatusCode::OK, Some(" w1!")));
    assert_eq!(fakes[0].alive.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_slow_replica_that_gives_signs_of_life_is_waited_for() {
    let options = GatewayOptions { event_deadline_ms: 1_000, ..GatewayOptions::default() };
    let fakes = [Fake::new(Fate::Thinks(20, Duration::from_millis(100))), Fake::new(Fate::Lives)];
    let asked = json!({"model": "toy", "prompt": "a", "stream": true});
    let (slow, quick) = (Cluster::with_options(&fakes, options), Cluster::new(&[Fake::new(Fate::Lives)]));
    let began = Instant::now();
    let chunks = sse(&slow.post("/v1/completions", &asked).await.1);
    assert!(began.elapsed() >= Duration::from_secs(2), "longer than the deadline");
    let visible = |chunks: &[serde_json::Value]| -> Vec<_> {
        chunks.iter().map(|chunk| chunk["choices"].clone()).collect()
    };
    assert_eq!(visible(&chunks), visible(&sse(&quick.post("/v1/completions", &asked).await.1)));
    assert_eq!(fakes.map(|fake| fake.asked.load(Ordering::SeqCst)), [1, 0]);
}

#[tokio::test]
async fn a_replica_whose_signs_of_life_end_is_replaced() {
    let fakes = [Fake::new(Fate::Freezes(3, Duration::from_millis(20))), Fake::new(Fate::Lives)];
    let cluster = Cluster::new(&fakes);
    let (status, answer) =
        cluster.post_json("/v1/completions", &json!({"model": "toy", "prompt": "a", "max_tokens": 1})).await;
    assert_eq!((status, answer["choices"][0]["text"].as_str()), (StatusCode::OK, Some(" w1!")));
    assert_eq!(fakes[0].alive.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn time_with_a_slow_replica_is_no_time_without_one() {
    // It works for longer than a request waits for a replica, and dies; another one comes a little later.
    let options = GatewayOptions { replica_wait_ms: 2_000, ..GatewayOptions::default() };
    let slow = Fake::new(Fate::Freezes(25, Duration::from_millis(100)));
    let cluster = Arc::new(Cluster::with_options(&[Arc::clone(&slow)], options));
    let waiting = Arc::clone(&cluster);
    let answer = tokio::spawn(async move {
        waiting.post_json("/v1/completions", &json!({"model": "toy", "prompt": "a", "max_tokens": 2})).await
    });
    slow.kill.notify_one();
    while slow.asked.load(Ordering::SeqCst) < 1 || slow.alive.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    *slow.fate.lock().unwrap() = Fate::Lives;
    assert_eq!(answer.await.unwrap().1["choices"][0]["text"], " w1 w2!");
}

#[tokio::test]
async fn waits_for_a_replica_to_come_back_and_gives_up_in_the_end() {
    let options = GatewayOptions { replica_wait_ms: 30_000, ..GatewayOptions::default() };
    let cluster = Arc::new(Cluster::with_options(&[Fake::new(Fate::Lives)], options));
    assert!(cluster.shared.pool.knows("toy"));
    cluster.serve(&[]);
    let waiting = Arc::clone(&cluster);
    let asked = json!({"model": "toy", "prompt": "a", "max_tokens": 2});
    let body = asked.clone();
    let answer = tokio::spawn(async move { waiting.post_json("/v1/completions", &body).await });
    tokio::task::yield_now().await;
    cluster.serve(&[Fake::new(Fate::Lives)]);
    assert_eq!(answer.await.unwrap().1["choices"][0]["text"], " w1 w2!");
    let dying = Cluster::new(&[Fake::new(Fate::DiesAfter(0))]);
    let (status, answer) = dying.post_json("/v1/completions", &asked).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer["error"]["message"].as_str().unwrap().contains("killed"));
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_stream_is_an_event() {
    // Dies before the first token, after its start: the stream has begun.
    let cluster = Cluster::new(&[Fake::new(Fate::DiesAfter(0))]);
    let asked = json!({"model": "toy", "prompt": "a", "stream": true});
    let (status, text) = cluster.post("/v1/completions", &asked).await;
    assert_eq!(status, StatusCode::OK);
    let chunks = sse(&text);
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0]["error"]["code"], "unavailable");
}

#[tokio::test]
async fn requests_are_spread_over_the_replicas() {
    let fakes: Vec<_> = (0..4).map(|_| Fake::new(Fate::HangsAfter(0))).collect();
    let options = GatewayOptions { event_deadline_ms: 60_000, ..GatewayOptions::default() };
    let cluster = Cluster::with_options(&fakes, options);
    let asked = json!({"model": "toy", "prompt": "a", "stream": true});
    let mut open = Vec::new();
    for _ in 0..8 {
        let request = super::fake::post("/v1/completions", &asked);
        open.push(tower::ServiceExt::oneshot(cluster.router.clone(), request).await.unwrap());
    }
    let alive: Vec<usize> = fakes.iter().map(|fake| fake.alive.load(Ordering::SeqCst)).collect();
    assert_eq!(alive, [2, 2, 2, 2]);
}
