//! What clients get: whole answers, and chunks of streamed ones.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use sixfold_infer::message::{FinishReason, Score, TokenEvent, TokenPiece};

/// JSON has no minus infinity; OpenAI's API says this instead.
const LOGPROB_MIN: f32 = -9999.0;

/// Which of the two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Form {
    /// `/v1/completions`.
    Completion,
    /// `/v1/chat/completions`.
    Chat,
}

/// What all parts of one response have in common.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Shape {
    form: Form,
    id: String,
    model: String,
    created_s: u64,
    scored: bool,
}

/// A choice as far as it has come.
#[derive(Clone, Debug, Default)]
pub(in crate::gateway) struct Collected {
    text: String,
    pieces: Vec<TokenPiece>,
    reason: Option<FinishReason>,
    prompt_tokens: usize,
    output_tokens: usize,
}

impl Collected {
    /// Adds an event.
    pub(in crate::gateway) fn add(&mut self, event: TokenEvent) {
        match event {
            TokenEvent::Started { prompt_tokens } => self.prompt_tokens = prompt_tokens.len(),
            TokenEvent::Echo(pieces) => pieces.into_iter().for_each(|piece| self.push(piece)),
            TokenEvent::Token(piece) => {
                self.output_tokens += 1;
                self.push(piece);
            }
            TokenEvent::Finished { reason, text } => {
                self.reason = Some(reason);
                self.text += &text;
            }
            TokenEvent::Failed(_) | TokenEvent::Alive => {}
        }
    }

    fn push(&mut self, piece: TokenPiece) {
        self.text += &piece.text;
        self.pieces.push(piece);
    }
}

/// A part of a choice that is streamed.
#[derive(Clone, Debug, Default)]
pub(super) struct Delta {
    /// Which choice.
    pub(super) index: usize,
    /// Whether it is the choice's first.
    pub(super) first: bool,
    /// New text.
    pub(super) text: String,
    /// Characters of the choice's text before it.
    pub(super) offset: usize,
    /// The tokens.
    pub(super) pieces: Vec<TokenPiece>,
    /// The end.
    pub(super) reason: Option<FinishReason>,
}

/// Tokens that a response cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) output_tokens: usize,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
        })
    }
}

impl Shape {
    /// The shape of a response that begins now. `number` makes its id.
    pub(in crate::gateway) fn new(form: Form, model: &str, scored: bool, number: u128) -> Self {
        let created_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let prefix = match form {
            Form::Completion => "cmpl",
            Form::Chat => "chatcmpl",
        };
        Self { form, id: format!("{prefix}-{number:032x}"), model: model.to_owned(), created_s, scored }
    }

    #[cfg(test)]
    pub(super) fn fixed(form: Form, scored: bool) -> Self {
        Self { form, id: "id".into(), model: "m".into(), created_s: 7, scored }
    }

    /// Whether tokens are sent with their log-probabilities.
    pub(super) fn is_scored(&self) -> bool {
        self.scored
    }

    /// A whole answer.
    pub(in crate::gateway) fn whole(&self, choices: &[Collected]) -> Value {
        let usage = choices.iter().fold(Usage::default(), |sum, choice| Usage {
            prompt_tokens: sum.prompt_tokens + choice.prompt_tokens,
            output_tokens: sum.output_tokens + choice.output_tokens,
        });
        let choices: Vec<Value> =
            choices.iter().enumerate().map(|(index, choice)| self.choice(index, choice)).collect();
        let mut body = self.head(match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion",
        });
        body.insert("choices".into(), choices.into());
        body.insert("usage".into(), usage.json());
        body.into()
    }

    fn choice(&self, index: usize, choice: &Collected) -> Value {
        let logprobs = self.logprobs(&choice.pieces, 0);
        let reason = finish_reason(choice.reason);
        match self.form {
            Form::Completion => {
                json!({"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": reason})
            }
            Form::Chat => json!({
                "index": index,
                "message": {"role": "assistant", "content": choice.text},
                "logprobs": logprobs,
                "finish_reason": reason,
            }),
        }
    }

    /// A chunk of a streamed answer. With `usage_follows`, it says that it has none yet.
    pub(super) fn chunk(&self, delta: &Delta, usage_follows: bool) -> Value {
        let logprobs =
            if delta.pieces.is_empty() { Value::Null } else { self.logprobs(&delta.pieces, delta.offset) };
        let (index, reason) = (delta.index, finish_reason(delta.reason));
        let choice = match self.form {
            Form::Completion => {
                json!({"index": index, "text": delta.text, "logprobs": logprobs, "finish_reason": reason})
            }
            Form::Chat => {
                let mut said = Map::new();
                if delta.first {
                    said.insert("role".into(), "assistant".into());
                }
                if delta.first || !delta.text.is_empty() {
                    said.insert("content".into(), delta.text.as_str().into());
                }
                json!({"index": index, "delta": said, "logprobs": logprobs, "finish_reason": reason})
            }
        };
        let mut body = self.chunk_head();
        body.insert("choices".into(), json!([choice]));
        if usage_follows {
            body.insert("usage".into(), Value::Null);
        }
        body.into()
    }

    /// The one chunk without choices that ends a stream whose client asked for the usage.
    pub(super) fn usage_chunk(&self, usage: Usage) -> Value {
        let mut body = self.chunk_head();
        body.insert("choices".into(), json!([]));
        body.insert("usage".into(), usage.json());
        body.into()
    }

    fn chunk_head(&self) -> Map<String, Value> {
        self.head(match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion.chunk",
        })
    }

    fn head(&self, object: &str) -> Map<String, Value> {
        Map::from_iter([
            ("id".to_owned(), self.id.as_str().into()),
            ("object".to_owned(), object.into()),
            ("created".to_owned(), self.created_s.into()),
            ("model".to_owned(), self.model.as_str().into()),
        ])
    }

    fn logprobs(&self, pieces: &[TokenPiece], offset: usize) -> Value {
        match (self.scored, self.form) {
            (false, _) => Value::Null,
            (true, Form::Completion) => completion_logprobs(pieces, offset),
            (true, Form::Chat) => {
                json!({"content": pieces.iter().filter_map(chat_logprob).collect::<Vec<_>>()})
            }
        }
    }
}

/// Four lists, one entry a token; the first token of a prompt has no score.
fn completion_logprobs(pieces: &[TokenPiece], mut offset: usize) -> Value {
    let mut offsets = Vec::with_capacity(pieces.len());
    for piece in pieces {
        offsets.push(offset);
        offset += piece.text.chars().count();
    }
    let tokens: Vec<&str> = pieces.iter().map(|piece| piece.surface.as_str()).collect();
    let logprobs: Vec<Option<f32>> =
        pieces.iter().map(|piece| piece.score.as_ref().map(|s| finite(s.logprob))).collect();
    let top: Vec<Option<BTreeMap<&str, f32>>> =
        pieces.iter().map(|piece| piece.score.as_ref().map(|score| top_of(piece, score))).collect();
    json!({"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets})
}

/// The most likely tokens and the token itself, as OpenAI's API has it.
fn top_of<'a>(piece: &'a TokenPiece, score: &'a Score) -> BTreeMap<&'a str, f32> {
    let mut top = BTreeMap::from([(piece.surface.as_str(), finite(score.logprob))]);
    for other in &score.top {
        top.entry(&other.surface).or_insert(finite(other.logprob));
    }
    top
}

fn chat_logprob(piece: &TokenPiece) -> Option<Value> {
    let score = piece.score.as_ref()?;
    let entry = |surface: &str, logprob: f32| json!({"token": surface, "logprob": finite(logprob), "bytes": surface.as_bytes()});
    let mut value = entry(&piece.surface, score.logprob);
    value["top_logprobs"] = score.top.iter().map(|other| entry(&other.surface, other.logprob)).collect();
    Some(value)
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LOGPROB_MIN)
}

fn finish_reason(reason: Option<FinishReason>) -> Option<&'static str> {
    reason.map(|reason| match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    })
}
