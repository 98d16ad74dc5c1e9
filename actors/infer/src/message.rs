//! What a gateway asks of a replica, and what it is answered.
//!
//! A [`GenerateRequest`] holds all that its answer depends on: the prompt, the seed, and the
//! tokens that another replica has already emitted. So any replica of the same model answers it
//! with the same tokens, and continues at the same place. Enums grow only at their end.

use serde::{Deserialize, Serialize};

/// Role of an inference replica among the cluster's services.
pub const ROLE: &str = "infer";
/// Key under which a replica announces the name of its model.
pub const ABOUT_MODEL: &str = "model";
/// Key under which a replica announces the artefact that it serves.
pub const ABOUT_ARTIFACT: &str = "artifact";

/// Stop strings that a request may have.
pub const STOP_STRINGS_MAX: usize = 16;
/// Length of a stop string, in bytes.
pub const STOP_BYTES_MAX: usize = 256;
/// Alternatives that may be asked for beside each token.
pub const TOP_LOGPROBS_MAX: u8 = 20;
/// Messages of a conversation.
pub const CHAT_MESSAGES_MAX: usize = 1024;

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// What to continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prompt {
    /// Text, to be tokenized.
    Text(String),
    /// Tokens, as they are.
    Tokens(Vec<u32>),
    /// A conversation, to be written out by the model's chat template.
    Chat(Vec<ChatMessage>),
}

/// How tokens are chosen. The same seed gives the same tokens, on any replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only this many of the most likely tokens; 0 for all.
    pub top_k: u32,
    /// Only the most likely tokens that together have this probability.
    pub top_p: f32,
    /// Only tokens at least this likely, relative to the most likely one.
    pub min_p: f32,
    /// Taken from the logits of tokens that the answer has.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens for each time that the answer has them.
    pub frequency_penalty: f32,
    /// Divides the positive and multiplies the negative logits of tokens that prompt or answer have.
    pub repetition_penalty: f32,
    /// Seed of the random numbers, which are functions of it and the token's position.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// A request for tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// Name of the model, as the replica announced it.
    pub model: String,
    /// What to continue.
    pub prompt: Prompt,
    /// Tokens that another replica has already emitted for this request.
    pub emitted: Vec<u32>,
    /// Tokens of the answer, those emitted included; `None` for as many as the context has room for.
    pub output_tokens_max: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Goes on after the model's end-of-text token.
    pub ignore_eos: bool,
    /// Log-probabilities for each token, with this many alternatives.
    pub logprobs: Option<u8>,
    /// Begins with the prompt, scored where `logprobs` asks for it.
    pub echo: bool,
}

/// A token's log-probability, before temperature and penalties, and the most likely alternatives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Of the token itself.
    pub logprob: f32,
    /// The most likely tokens, best first.
    pub top: Vec<Alternative>,
}

/// A token that might have been.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// The token.
    pub token: u32,
    /// Its [surface](TokenPiece::surface).
    pub surface: String,
    /// Its log-probability.
    pub logprob: f32,
}

/// A token of a prompt or an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenPiece {
    /// The token.
    pub token: u32,
    /// The text that it completes. Empty while a character or a possible stop string is incomplete.
    pub text: String,
    /// The token alone, for people: its text, or the vocabulary's name for it where it has none.
    /// Empty unless log-probabilities were asked for.
    pub surface: String,
    /// Its score, where asked for. The first token of a prompt has none.
    pub score: Option<Score>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model ended it, or a stop string came.
    Stop,
    /// The limit of tokens or the context is used up.
    Length,
}

/// What a replica says, in this order: `Started`, `Echo` (several), `Token` (several), `Finished`;
/// or `Failed` at any time, as the last. `Alive` may come at any time before the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TokenEvent {
    /// The request was accepted; these are the prompt's tokens.
    Started {
        /// The prompt as the model reads it.
        prompt_tokens: Vec<u32>,
    },
    /// Tokens of the prompt, for a request with `echo` that has emitted nothing yet.
    Echo(Vec<TokenPiece>),
    /// The next token of the answer.
    Token(TokenPiece),
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Text that was held back for a stop string that did not come.
        text: String,
    },
    /// There will be no answer from this replica.
    Failed(ReplicaError),
    /// Nothing new: the replica works, on this request or on those before it.
    Alive,
}

/// Why a replica does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ReplicaError {
    /// No replica would take it: the request itself is wrong.
    #[error("{message}")]
    Invalid {
        /// The field that is wrong, in the API's terms.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// Its queue is full.
    #[error("the replica is busy: {0}")]
    Busy(String),
    /// It serves another model.
    #[error("this replica serves `{serves}`")]
    OtherModel {
        /// What it serves.
        serves: String,
    },
    /// It is shutting down.
    #[error("the replica is shutting down")]
    Draining,
    /// It is gone or broken.
    #[error("the replica failed: {0}")]
    Lost(String),
}

impl ReplicaError {
    /// An error of the request.
    pub fn invalid(field: &str, message: impl std::fmt::Display) -> Self {
        Self::Invalid { field: field.to_owned(), message: message.to_string() }
    }

    /// Whether another replica of the same model may do better.
    pub fn elsewhere(&self) -> bool {
        !matches!(self, Self::Invalid { .. })
    }
}

impl GenerateRequest {
    /// Checks what does not depend on the model.
    ///
    /// # Errors
    /// [`ReplicaError::Invalid`] names the first field that is out of its range.
    pub fn validate(&self) -> Result<(), ReplicaError> {
        self.sampling.validate()?;
        if self.stop.len() > STOP_STRINGS_MAX {
            return Err(ReplicaError::invalid(
                "stop",
                format_args!("at most {STOP_STRINGS_MAX} are allowed"),
            ));
        }
        if self.stop.iter().any(|stop| stop.len() > STOP_BYTES_MAX) {
            let message = format_args!("a stop string may have at most {STOP_BYTES_MAX} bytes");
            return Err(ReplicaError::invalid("stop", message));
        }
        if self.logprobs.is_some_and(|top| top > TOP_LOGPROBS_MAX) {
            return Err(ReplicaError::invalid(
                "logprobs",
                format_args!("at most {TOP_LOGPROBS_MAX} are given"),
            ));
        }
        match &self.prompt {
            Prompt::Chat(messages) if messages.is_empty() || messages.len() > CHAT_MESSAGES_MAX => {
                let message = format_args!("a conversation has from 1 to {CHAT_MESSAGES_MAX} messages");
                Err(ReplicaError::invalid("messages", message))
            }
            _ => Ok(()),
        }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`ReplicaError::Invalid`] names the first field that is out of its range.
    pub fn validate(&self) -> Result<(), ReplicaError> {
        let ranges = [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, f32::MIN_POSITIVE, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
        ];
        match ranges.into_iter().find(|(_, value, low, high)| !(low..=high).contains(&value)) {
            Some((field, value, low, high)) => {
                Err(ReplicaError::invalid(field, format_args!("{value} is not from {low} to {high}")))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::request;

    #[test]
    fn names_the_field_that_is_wrong() {
        let wrong = |edit: fn(&mut GenerateRequest)| {
            let mut request = request("hello");
            edit(&mut request);
            match request.validate() {
                Err(ReplicaError::Invalid { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(request("hello").validate(), Ok(()));
        assert_eq!(wrong(|r| r.sampling.temperature = f32::NAN), "temperature");
        assert_eq!(wrong(|r| r.sampling.top_p = 0.0), "top_p");
        assert_eq!(wrong(|r| r.sampling.repetition_penalty = -1.0), "repetition_penalty");
        assert_eq!(wrong(|r| r.stop = vec!["x".into(); 17]), "stop");
        assert_eq!(wrong(|r| r.stop = vec!["x".repeat(257)]), "stop");
        assert_eq!(wrong(|r| r.logprobs = Some(21)), "logprobs");
        assert_eq!(wrong(|r| r.prompt = Prompt::Chat(Vec::new())), "messages");
    }
}
