//! Options of an `evaluate` stage.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::perplexity::Windows;

/// Options of an `evaluate` stage, as written in a job file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateOptions {
    /// Tokens that the model sees at once; 0 for all that it was trained for.
    pub context_tokens: usize,
    /// Tokens scored a window; each has at least `context_tokens - stride_tokens` tokens before it,
    /// but for a document's first window. 0 for half of the context.
    pub stride_tokens: usize,
    /// Held-out tokens scored at most, whole documents. Of dialogues, answers are scored, and no questions.
    pub tokens_max: u64,
    /// Texts to generate.
    pub samples: usize,
    /// Tokens of a held-out document that a sample begins with. A sample of dialogues begins with all that comes before the
    /// first answer, however long.
    pub prompt_tokens: usize,
    /// Tokens to generate a sample.
    pub sample_tokens: usize,
    /// Temperature of the samples; 0 takes the likeliest token each time.
    pub temperature: f32,
    /// Seed of the samples.
    pub seed: u64,
    /// Compute threads; 0 for as many as the machine has cores.
    pub threads: usize,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self {
            context_tokens: 0,
            stride_tokens: 0,
            tokens_max: 20_000,
            samples: 4,
            prompt_tokens: 12,
            sample_tokens: 48,
            temperature: 0.8,
            seed: 1,
            threads: 0,
        }
    }
}

impl EvaluateOptions {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// What is wrong, in words for the person who wrote the job file.
    pub fn validate(&self) -> Result<(), String> {
        if self.context_tokens == 1 {
            return Err(
                "`context_tokens` must be 0 or at least 2: a token is predicted from another".to_owned()
            );
        }
        if self.context_tokens > 0 && self.stride_tokens >= self.context_tokens {
            return Err("`stride_tokens` must be less than `context_tokens`".to_owned());
        }
        if !(0.0..=10.0).contains(&self.temperature) {
            return Err("`temperature` must be from 0 to 10".to_owned());
        }
        if self.tokens_max == 0 || self.prompt_tokens == 0 {
            return Err("`tokens_max` and `prompt_tokens` must be at least 1".to_owned());
        }
        if self.samples > 1000 || self.sample_tokens > 100_000 {
            return Err("`samples` is at most 1000, `sample_tokens` at most 100000".to_owned());
        }
        Ok(())
    }

    /// How text is cut for a model of `positions` positions.
    ///
    /// # Errors
    /// What does not fit the model, in words for the person who wrote the job file.
    pub fn windows(&self, positions: usize) -> Result<Windows, String> {
        let context = if self.context_tokens == 0 { positions } else { self.context_tokens };
        if context < 2 || context > positions {
            return Err(format!(
                "`context_tokens` is {context}; it must be from 2 to the model's {positions}"
            ));
        }
        let stride = if self.stride_tokens == 0 { context / 2 } else { self.stride_tokens };
        if stride >= context {
            return Err(format!(
                "`stride_tokens` is {stride}; it must be less than the context of {context} tokens"
            ));
        }
        Ok(Windows { context, stride })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_nonsense_is_named() {
        assert_eq!(EvaluateOptions::default().validate(), Ok(()));
        let wrong = |json: &str| {
            serde_json::from_str::<EvaluateOptions>(json).unwrap().validate().expect_err("accepted nonsense")
        };
        assert!(wrong(r#"{"context_tokens":1}"#).contains("context_tokens"));
        assert!(wrong(r#"{"context_tokens":8,"stride_tokens":8}"#).contains("stride_tokens"));
        assert!(wrong(r#"{"temperature":-1}"#).contains("temperature"));
        assert!(wrong(r#"{"tokens_max":0}"#).contains("tokens_max"));
        assert!(wrong(r#"{"samples":1001}"#).contains("samples"));
        assert!(serde_json::from_str::<EvaluateOptions>(r#"{"stride":8}"#).is_err());
    }

    #[test]
    fn windows_follow_from_the_model_and_fit_it() {
        let options = EvaluateOptions::default();
        assert_eq!(options.windows(128), Ok(Windows { context: 128, stride: 64 }));
        assert!(options.windows(1).is_err());
        let longer = EvaluateOptions { context_tokens: 256, ..options.clone() };
        assert!(longer.windows(128).unwrap_err().contains("128"));
        let wide = EvaluateOptions { stride_tokens: 128, ..options };
        assert!(wide.windows(128).unwrap_err().contains("stride_tokens"));
    }
}
