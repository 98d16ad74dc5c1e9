//! The API on a real socket, byte for byte.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::fake::{Fake, Fate, KEY, Replicas, sse};
use super::wire::{exchange, post, receive, send};
use crate::gateway::{Gateway, GatewayOptions};

const WORDS: &str = " w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12!";

async fn start(fakes: &[Arc<Fake>]) -> (Gateway, Replicas) {
    let replicas = Replicas::new(fakes);
    let gateway = super::start(GatewayOptions::default(), replicas.parts()).await.unwrap();
    (gateway, replicas)
}

fn chat(stream: bool) -> String {
    json!({"model": "toy", "messages": [{"role": "user", "content": "hi"}], "stream": stream}).to_string()
}

fn text_of(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

/// Waits until the fake has so many answers in the making.
async fn alive(fake: &Fake, answers: usize) {
    let reached = async {
        while fake.alive.load(Ordering::SeqCst) != answers {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), reached).await.expect("the number of answers is another");
}

#[tokio::test]
async fn answers_come_whole_or_as_events() {
    let (gateway, _replicas) = start(&[Fake::new(Fate::Lives)]).await;
    let streamed = exchange(gateway.address().unwrap(), &post("/v1/chat/completions", &chat(true))).await;
    assert_eq!(streamed.status, 200);
    assert!(streamed.head.contains("content-type: text/event-stream"), "{}", streamed.head);
    assert_eq!(text_of(&sse(&streamed.body)), WORDS);
    let body = json!({"model": "toy", "prompt": "a", "max_tokens": 3}).to_string();
    let whole = exchange(gateway.address().unwrap(), &post("/v1/completions", &body)).await;
    assert_eq!((whole.status, &whole.json()["choices"][0]["text"]), (200, &" w1 w2 w3!".into()));
}

#[tokio::test]
async fn a_token_is_sent_before_the_next_one_exists() {
    let (gateway, _replicas) = start(&[Fake::new(Fate::HangsAfter(2))]).await;
    let mut stream = send(gateway.address().unwrap(), &post("/v1/chat/completions", &chat(true))).await;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(" w2") {
        let read = timeout(Duration::from_secs(10), stream.read_buf(&mut seen)).await.unwrap().unwrap();
        assert_ne!(read, 0, "the answer has ended");
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_answers() {
    let fake = Fake::new(Fate::HangsAfter(2));
    let (gateway, _replicas) = start(&[Arc::clone(&fake)]).await;
    for streamed in [true, false] {
        let stream = send(gateway.address().unwrap(), &post("/v1/chat/completions", &chat(streamed))).await;
        alive(&fake, 1).await;
        drop(stream);
        alive(&fake, 0).await;
    }
}

#[tokio::test]
async fn a_death_in_the_middle_is_not_seen() {
    for after in 0..12 {
        let fakes = [Fake::new(Fate::DiesAfter(after)), Fake::new(Fate::Lives)];
        let (gateway, _replicas) = start(&fakes).await;
        let answer = exchange(gateway.address().unwrap(), &post("/v1/chat/completions", &chat(true))).await;
        assert_eq!(text_of(&sse(&answer.body)), WORDS, "killed after {after} tokens");
        assert_eq!(fakes[1].asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn nothing_is_answered_without_a_key() {
    let (gateway, _replicas) = start(&[Fake::new(Fate::Lives)]).await;
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics"] {
        let request = post(path, &chat(false));
        assert_ne!(exchange(gateway.address().unwrap(), &request).await.status, 401, "{path}");
        let answer = exchange(gateway.address().unwrap(), &request.replace(KEY, "sk-other")).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (401, &"invalid_api_key".into()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn bombs_are_refused_in_the_apis_form() {
    let (gateway, _replicas) = start(&[Fake::new(Fate::Lives)]).await;
    let gigabyte = post("/v1/completions", "").replace("content-length: 0", "content-length: 1073741824");
    let answer = exchange(gateway.address().unwrap(), &gigabyte).await;
    assert_eq!((answer.status, &answer.json()["error"]["type"]), (413, &"invalid_request_error".into()));
    let answer = exchange(gateway.address().unwrap(), &post("/v1/completions", &"[".repeat(100_000))).await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("nested"), "{}", answer.body);
}

#[tokio::test]
async fn draining_finishes_what_runs() {
    let fake = Fake::new(Fate::HangsAfter(2));
    let (gateway, _replicas) = start(&[Arc::clone(&fake), Fake::new(Fate::Lives)]).await;
    let address = gateway.address().unwrap();
    let stream = send(address, &post("/v1/chat/completions", &chat(true))).await;
    alive(&fake, 1).await;
    let draining = tokio::spawn(async move { gateway.drain(Duration::from_secs(20)).await });
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    fake.kill.notify_one();
    let answer = receive(stream).await;
    assert_eq!(text_of(&sse(&answer.body)), WORDS);
    draining.await.unwrap();
}
