//! Tests of `openai`.

use futures::StreamExt;
use futures::stream;
use sixfold_infer::message::{FinishReason, Score, TokenEvent, TokenPiece};

use super::response::{Form, Shape};
use super::sse::Chunks;

async fn streamed(form: Form, scored: bool, include_usage: bool) -> String {
    let piece = |token, text: &str| TokenPiece {
        token,
        text: text.to_owned(),
        surface: format!("t{token}"),
        score: scored.then(|| Score { logprob: -0.5, top: Vec::new() }),
    };
    let events = [
        TokenEvent::Started { prompt_tokens: vec![1, 2] },
        TokenEvent::Token(piece(5, "")),
        TokenEvent::Token(piece(6, "你")),
        TokenEvent::Finished { reason: FinishReason::Length, text: "好".to_owned() },
    ];
    let events = stream::iter(events.map(Ok)).boxed();
    let chunks = Chunks::new(Shape::fixed(form, scored), include_usage, vec![events]);
    let bytes: Vec<_> = chunks.into_bytes(()).map(Result::unwrap).collect().await;
    String::from_utf8(bytes.concat()).unwrap()
}

#[tokio::test]
async fn the_stream_of_a_chat_is_pinned() {
    let head = r#"data: {"choices":[{"#;
    let tail = r#""created":7,"id":"id","model":"m","object":"chat.completion.chunk""#;
    let expected = format!(
        "{head}\"delta\":{{\"content\":\"你\",\"role\":\"assistant\"}},\"finish_reason\":null,\"index\":0,\"logprobs\":null}}],{tail}}}\n\n\
         {head}\"delta\":{{\"content\":\"好\"}},\"finish_reason\":\"length\",\"index\":0,\"logprobs\":null}}],{tail}}}\n\n\
         data: [DONE]\n\n"
    );
    assert_eq!(streamed(Form::Chat, false, false).await, expected);
}

#[tokio::test]
async fn the_stream_of_a_completion_with_usage_and_scores_is_pinned() {
    let tail = r#""created":7,"id":"id","model":"m","object":"text_completion""#;
    let scores = |token: &str| {
        format!(
            "{{\"text_offset\":[0],\"token_logprobs\":[-0.5],\"tokens\":[\"{token}\"],\"top_logprobs\":[{{\"{token}\":-0.5}}]}}"
        )
    };
    let chunk = |text: &str, reason: &str, logprobs: &str| {
        format!(
            "data: {{\"choices\":[{{\"finish_reason\":{reason},\"index\":0,\"logprobs\":{logprobs},\"text\":\"{text}\"}}],{tail},\"usage\":null}}\n\n"
        )
    };
    let usage = "\"usage\":{\"completion_tokens\":2,\"prompt_tokens\":2,\"total_tokens\":4}";
    let expected = [
        chunk("", "null", &scores("t5")),
        chunk("你", "null", &scores("t6")),
        chunk("好", "\"length\"", "null"),
        format!("data: {{\"choices\":[],{tail},{usage}}}\n\n"),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(streamed(Form::Completion, true, true).await, expected.concat());
}
