//! Requests and answers in OpenAI's form.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};

use super::fake::{Cluster, Fake, Fate, KEY, get, post, sse};
use crate::gateway::GatewayOptions;

const WORDS: &str = " w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12!";

fn one() -> Cluster {
    Cluster::new(&[Fake::new(Fate::Lives)])
}

fn chat() -> Value {
    json!({"model": "toy", "messages": [{"role": "user", "content": "hi"}]})
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_chat_is_answered_whole_and_streamed() {
    let cluster = one();
    let (status, whole) = cluster.post_json("/v1/chat/completions", &chat()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(whole["choices"][0]["message"], json!({"role": "assistant", "content": WORDS}));
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["usage"], json!({"prompt_tokens": 1, "completion_tokens": 12, "total_tokens": 13}));
    let asked = with(chat(), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let chunks = sse(&cluster.post("/v1/chat/completions", &asked).await.1);
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": " w1"}));
    assert_eq!(chunks[1]["choices"][0]["delta"], json!({"content": " w2"}));
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, WORDS);
    let usages = chunks.iter().filter(|chunk| chunk["choices"] == json!([])).count();
    assert_eq!(usages, 1);
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
    let plain = sse(&cluster.post("/v1/chat/completions", &with(chat(), json!({"stream": true}))).await.1);
    assert!(plain.iter().all(|chunk| chunk.get("usage").is_none() && chunk["choices"] != json!([])));
}

#[tokio::test]
async fn what_is_asked_is_counted() {
    let cluster = one();
    cluster.post("/v1/completions", &json!({"model": "toy", "prompt": [5, 5, 9]})).await;
    cluster.post("/v1/completions", &json!({"model": "toy", "prompt": [9], "stream": true})).await;
    assert_eq!(cluster.shared.asked.take()["toy"], [(5, 2), (9, 2)]);
    assert!(cluster.shared.asked.take().is_empty());
}

#[tokio::test]
async fn the_evaluation_harness_gets_a_score_for_every_token() {
    let asked = json!({"model": "toy", "prompt": [[7, 8, 9], [4, 5]], "temperature": 0, "max_tokens": 1,
        "logprobs": 1, "seed": 1234, "echo": true});
    let (status, answer) = one().post_json("/v1/completions", &asked).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    for (index, (choice, prompt)) in answer["choices"].as_array().unwrap().iter().zip([3, 2]).enumerate() {
        assert_eq!(choice["index"], index);
        let logprobs = &choice["logprobs"];
        for list in ["token_logprobs", "top_logprobs", "tokens", "text_offset"] {
            assert_eq!(logprobs[list].as_array().unwrap().len(), prompt + 1, "{list}");
        }
        assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
        for position in 1..=prompt {
            let top = logprobs["top_logprobs"][position].as_object().unwrap();
            let token = logprobs["tokens"][position].as_str().unwrap();
            assert_eq!(top[token], logprobs["token_logprobs"][position]);
        }
    }
    assert_eq!(answer["choices"][0]["text"], " w7 w8 w9 w1!");
    assert_eq!(answer["choices"][0]["logprobs"]["text_offset"], json!([0, 3, 6, 9]));
}

#[tokio::test]
async fn several_prompts_are_streamed_by_index() {
    let asked = json!({"model": "toy", "prompt": ["a", "b"], "max_tokens": 3, "stream": true});
    let chunks = sse(&one().post("/v1/completions", &asked).await.1);
    for index in 0..2 {
        let of_choice =
            chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        let text: String = of_choice.filter_map(|choice| choice["text"].as_str()).collect();
        assert_eq!(text, " w1 w2 w3!");
    }
}

#[tokio::test]
async fn only_the_probes_need_no_key() {
    let cluster = one();
    for path in ["/livez", "/healthz", "/readyz"] {
        let (status, ..) = cluster.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::OK, "{path}");
    }
    for path in ["/v1/models", "/metrics", "/v1/nothing", "/"] {
        let (status, headers, body) = cluster.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(headers.contains(&("www-authenticate".into(), "Bearer".into())));
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["error"]["code"], "invalid_api_key");
        assert!(!body.to_string().contains(KEY));
    }
    assert_eq!(cluster.send(get("/metrics")).await.2, "sixfold_up 1\n");
    assert_eq!(cluster.send(get("/v1/nothing")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(cluster.send(get("/v1/completions")).await.0, StatusCode::NOT_FOUND);
    let models: Value = serde_json::from_str(&cluster.send(get("/v1/models")).await.2).unwrap();
    assert_eq!(models["data"][0]["id"], "toy");
    assert_eq!(cluster.send(get("/v1/models/toy")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn readiness_ends_before_the_service_does() {
    let cluster = one();
    cluster.shared.draining.store(true, Ordering::Release);
    assert_eq!(cluster.send(get("/readyz")).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(cluster.send(get("/livez")).await.0, StatusCode::OK);
    let empty = Cluster::new(&[]);
    assert_eq!(empty.send(get("/readyz")).await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn an_unknown_model_is_named_beside_those_served() {
    for path in ["/v1/completions", "/v1/chat/completions"] {
        let asked = json!({"model": "gpt-9", "prompt": "a", "messages": [{"role": "user", "content": "a"}]});
        let (status, body) = one().post_json(path, &asked).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_eq!(body["error"]["code"], "model_not_found");
        assert_eq!(body["error"]["message"], "the model `gpt-9` does not exist; served: `toy`");
    }
}

#[tokio::test]
async fn wrong_requests_are_told_what_is_wrong() {
    let cluster = one();
    let completion = json!({"model": "toy", "prompt": "a"});
    let cases = [
        ("/v1/completions", json!({"model": "toy"}), "missing field `prompt`"),
        ("/v1/completions", json!({"prompt": "a"}), "`model`: it is missing"),
        (
            "/v1/completions",
            json!({"model": "toy", "prompt": {"a": 1}}),
            "expected a string, a list of strings",
        ),
        ("/v1/completions", json!({"model": "toy", "prompt": []}), "from 1 to 64 prompts"),
        ("/v1/completions", with(completion.clone(), json!({"n": 2})), "only 1 is supported"),
        ("/v1/completions", with(completion.clone(), json!({"best_of": 3})), "`best_of`"),
        (
            "/v1/completions",
            with(completion.clone(), json!({"suffix": "x"})),
            "`suffix`: it is not supported",
        ),
        ("/v1/completions", with(completion.clone(), json!({"temperature": -1})), "`temperature`"),
        (
            "/v1/completions",
            with(completion.clone(), json!({"temperature": "hot"})),
            "invalid type: string \"hot\"",
        ),
        ("/v1/completions", with(completion.clone(), json!({"logprobs": 21})), "`logprobs`"),
        ("/v1/completions", with(completion.clone(), json!({"max_tokens": -1})), "invalid value"),
        ("/v1/completions", with(completion, json!({"logit_bias": {"5": 1}})), "`logit_bias`"),
        ("/v1/chat/completions", with(chat(), json!({"tools": [{}]})), "`tools`"),
        ("/v1/chat/completions", with(chat(), json!({"messages": []})), "`messages`"),
        (
            "/v1/chat/completions",
            with(chat(), json!({"messages": [{"role": "x", "content": ""}]})),
            "role is one of",
        ),
        (
            "/v1/chat/completions",
            with(chat(), json!({"response_format": {"type": "json_object"}})),
            "`response_format`",
        ),
        ("/v1/chat/completions", with(chat(), json!({"top_logprobs": 3})), "`top_logprobs`"),
    ];
    for (path, body, expected) in cases {
        let (status, answer) = cluster.post_json(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(expected), "{body}: {message}");
    }
    let (status, ..) = cluster.send(post("/v1/completions", &json!("x".repeat(5 << 20)))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let bomb = Request::post("/v1/completions").header("authorization", format!("Bearer {KEY}"));
    assert_eq!(cluster.send(bomb.body(Body::from(deep)).unwrap()).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn overload_is_said_early() {
    let busy = Cluster::new(&[Fake::new(Fate::Busy), Fake::new(Fate::Busy)]);
    for stream in [false, true] {
        let asked = with(chat(), json!({"stream": stream}));
        let (status, headers, body) = busy.send(post("/v1/chat/completions", &asked)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        assert!(headers.contains(&("retry-after".into(), "1".into())));
    }
    let hanging = Fake::new(Fate::HangsAfter(0));
    let options = GatewayOptions { requests_per_key_max: 1, ..GatewayOptions::default() };
    let cluster = Cluster::with_options(&[Arc::clone(&hanging)], options);
    let asked = with(chat(), json!({"stream": true}));
    let response = tower::ServiceExt::oneshot(cluster.router.clone(), post("/v1/chat/completions", &asked))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(cluster.post("/v1/chat/completions", &asked).await.0, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(hanging.alive.load(Ordering::SeqCst), 1);
    drop(response);
    assert_eq!(hanging.alive.load(Ordering::SeqCst), 0, "a client that has gone cancels");
    *hanging.fate.lock().unwrap() = Fate::Lives;
    assert_eq!(cluster.post("/v1/chat/completions", &asked).await.0, StatusCode::OK);
}
