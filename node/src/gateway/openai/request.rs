//! What clients send, and the requests to replicas that it means.

use serde::Deserialize;
use serde_json::Value;
use sixfold_infer::message::{ChatMessage, GenerateRequest, Prompt, ReplicaError, Sampling};

use super::ApiError;

/// Prompts of one completions request.
const PROMPTS_MAX: usize = 64;
/// Tokens of a completion that does not say how many it wants, as in OpenAI's API.
const COMPLETION_TOKENS: u32 = 16;
/// Roles of a conversation's messages.
const ROLES: [&str; 4] = ["system", "developer", "user", "assistant"];

/// What both kinds of requests have.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Common {
    model: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    ignore_eos: Option<bool>,
    max_tokens: Option<u32>,
    logit_bias: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Body of `POST /v1/completions`.
#[derive(Debug, Deserialize)]
pub(in crate::gateway) struct CompletionRequest {
    #[serde(flatten)]
    common: Common,
    prompt: Prompts,
    echo: Option<bool>,
    logprobs: Option<u8>,
    best_of: Option<u32>,
    suffix: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids, or a list of lists of token ids"
)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// Body of `POST /v1/chat/completions`.
#[derive(Debug, Deserialize)]
pub(in crate::gateway) struct ChatRequest {
    #[serde(flatten)]
    common: Common,
    messages: Vec<RawMessage>,
    max_completion_tokens: Option<u32>,
    logprobs: Option<bool>,
    top_logprobs: Option<u8>,
    tools: Option<Vec<Value>>,
    functions: Option<Vec<Value>>,
    response_format: Option<ResponseFormat>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct RawMessage {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of text parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// A request, checked and understood.
#[derive(Debug)]
pub(in crate::gateway) struct Asked {
    /// Name of the model.
    pub(in crate::gateway) model: String,
    /// One for each choice of the answer.
    pub(in crate::gateway) requests: Vec<GenerateRequest>,
    /// Whether the answer is streamed.
    pub(in crate::gateway) stream: bool,
    /// Whether a streamed answer ends with its usage.
    pub(in crate::gateway) include_usage: bool,
}

impl CompletionRequest {
    /// Checks the request. `seed` is used where it has none.
    ///
    /// # Errors
    /// 400, naming the field.
    pub(in crate::gateway) fn understand(self, seed: u64) -> Result<Asked, ApiError> {
        only_one("best_of", self.best_of)?;
        if self.suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(unsupported("suffix"));
        }
        let prompts: Vec<Prompt> = match self.prompt {
            Prompts::Text(text) => vec![Prompt::Text(text)],
            Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Prompts::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Prompts::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        };
        if prompts.is_empty() || prompts.len() > PROMPTS_MAX {
            return Err(ApiError::invalid(
                Some("prompt"),
                format_args!("from 1 to {PROMPTS_MAX} prompts are allowed"),
            ));
        }
        let tokens_max = Some(self.common.max_tokens.unwrap_or(COMPLETION_TOKENS));
        let echo = self.echo.unwrap_or(false);
        self.common.understand(prompts, tokens_max, self.logprobs, echo, seed)
    }
}

impl ChatRequest {
    /// Checks the request. `seed` is used where it has none.
    ///
    /// # Errors
    /// 400, naming the field.
    pub(in crate::gateway) fn understand(self, seed: u64) -> Result<Asked, ApiError> {
        for (field, list) in [("tools", &self.tools), ("functions", &self.functions)] {
            if list.as_ref().is_some_and(|list| !list.is_empty()) {
                return Err(unsupported(field));
            }
        }
        if self.response_format.is_some_and(|format| format.kind != "text") {
            return Err(unsupported("response_format"));
        }
        let messages: Result<Vec<ChatMessage>, ApiError> =
            self.messages.into_iter().map(RawMessage::understand).collect();
        let logprobs = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                return Err(ApiError::invalid(Some("top_logprobs"), "it needs `logprobs` to be true"));
            }
        };
        let tokens_max = self.max_completion_tokens.or(self.common.max_tokens);
        self.common.understand(vec![Prompt::Chat(messages?)], tokens_max, logprobs, false, seed)
    }
}

impl RawMessage {
    fn understand(self) -> Result<ChatMessage, ApiError> {
        if !ROLES.contains(&self.role.as_str()) {
            let message = format_args!("a message's role is one of {}", ROLES.join(", "));
            return Err(ApiError::invalid(Some("messages"), message));
        }
        let role = if self.role == "developer" { "system".to_owned() } else { self.role };
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                if let Some(part) = parts.iter().find(|part| part.kind != "text") {
                    let kind: String = part.kind.chars().take(40).collect();
                    return Err(ApiError::invalid(
                        Some("messages"),
                        format_args!("parts of type `{kind}` are not supported"),
                    ));
                }
                parts.into_iter().filter_map(|part| part.text).collect()
            }
        };
        Ok(ChatMessage { role, content })
    }
}

impl Common {
    fn understand(
        self,
        prompts: Vec<Prompt>,
        output_tokens_max: Option<u32>,
        logprobs: Option<u8>,
        echo: bool,
        seed: u64,
    ) -> Result<Asked, ApiError> {
        let sampling = self.sampling(seed);
        let model = self.model.ok_or_else(|| ApiError::invalid(Some("model"), "it is missing"))?;
        only_one("n", self.n)?;
        if self.logit_bias.as_ref().and_then(Value::as_object).is_some_and(|bias| !bias.is_empty()) {
            return Err(unsupported("logit_bias"));
        }
        let stop = self.stop.map(OneOrMany::into_vec).unwrap_or_default();
        let ignore_eos = self.ignore_eos.unwrap_or(false);
        let request = |prompt| GenerateRequest {
            model: model.clone(),
            prompt,
            emitted: Vec::new(),
            output_tokens_max,
            sampling: sampling.clone(),
            stop: stop.clone(),
            ignore_eos,
            logprobs,
            echo,
        };
        let requests: Vec<GenerateRequest> = prompts.into_iter().map(request).collect();
        requests.iter().try_for_each(GenerateRequest::validate).map_err(wrong)?;
        let include_usage = self.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        Ok(Asked { model, requests, stream: self.stream.unwrap_or(false), include_usage })
    }

    fn sampling(&self, seed: u64) -> Sampling {
        let defaults = Sampling::default();
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            // -1 means all to vLLM, 0 to us.
            top_k: u32::try_from(self.top_k.unwrap_or(0)).unwrap_or(0),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            seed: self.seed.map_or(seed, i64::cast_unsigned),
        }
    }
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

fn wrong(error: ReplicaError) -> ApiError {
    match error {
        ReplicaError::Invalid { field, message } => ApiError::invalid(Some(&field), message),
        other => ApiError::invalid(None, other),
    }
}

fn only_one(field: &str, value: Option<u32>) -> Result<(), ApiError> {
    match value {
        None | Some(1) => Ok(()),
        Some(_) => Err(ApiError::invalid(Some(field), "only 1 is supported; ask several times")),
    }
}

fn unsupported(field: &str) -> ApiError {
    ApiError::invalid(Some(field), "it is not supported")
}
