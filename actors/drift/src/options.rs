//! Options of a `drift` stage.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Largest window: comparing one of this size takes milliseconds.
const WINDOW_TOKENS_MAX: u64 = 1 << 16;
/// Largest reference; it is in memory while its noise is measured.
const REFERENCE_TOKENS_MAX: u64 = 50_000_000;

/// Options of a `drift` stage, as written in a job file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DriftOptions {
    /// Name of the model that is watched, as its replicas announce it.
    pub model_name: String,
    /// Tokens of the training split that are read; the first ones.
    pub reference_tokens_max: u64,
    /// Tokens asked last that are compared.
    pub window_tokens: u64,
    /// Fewer tokens get no verdict.
    pub min_tokens: u64,
    /// Pseudo-count of each token of the vocabulary in the reference.
    pub smoothing: f64,
    /// Smallest excess of the Jensen-Shannon distance over that of training text that counts as
    /// drift, however certain it is.
    pub effect_min: f64,
}

impl Default for DriftOptions {
    fn default() -> Self {
        Self {
            model_name: "sixfold".to_owned(),
            reference_tokens_max: 5_000_000,
            window_tokens: 4096,
            min_tokens: 512,
            smoothing: 0.5,
            effect_min: 0.02,
        }
    }
}

impl DriftOptions {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// What is wrong, in words for the person who wrote the job file.
    pub fn validate(&self) -> Result<(), String> {
        if self.model_name.is_empty() {
            return Err("`model_name` must name the model that is watched".to_owned());
        }
        if self.min_tokens < 2 || self.window_tokens < self.min_tokens {
            return Err("`min_tokens` must be at least 2 and at most `window_tokens`".to_owned());
        }
        if self.window_tokens > WINDOW_TOKENS_MAX || self.reference_tokens_max > REFERENCE_TOKENS_MAX {
            return Err(format!(
                "`window_tokens` is at most {WINDOW_TOKENS_MAX}, `reference_tokens_max` at most {REFERENCE_TOKENS_MAX}"
            ));
        }
        if !(self.smoothing > 0.0 && self.smoothing <= 1000.0) {
            return Err("`smoothing` must be above 0 and at most 1000".to_owned());
        }
        if !(0.0..=1.0).contains(&self.effect_min) {
            return Err("`effect_min` must be from 0 to 1".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_nonsense_is_named() {
        assert_eq!(DriftOptions::default().validate(), Ok(()));
        for (json, field) in [
            (r#"{"model_name":""}"#, "model_name"),
            (r#"{"min_tokens":1}"#, "min_tokens"),
            (r#"{"min_tokens":5000}"#, "window_tokens"),
            (r#"{"window_tokens":1000000}"#, "window_tokens"),
            (r#"{"reference_tokens_max":1000000000}"#, "reference_tokens_max"),
            (r#"{"smoothing":0}"#, "smoothing"),
            (r#"{"effect_min":-0.1}"#, "effect_min"),
        ] {
            let refused = serde_json::from_str::<DriftOptions>(json).unwrap().validate().unwrap_err();
            assert!(refused.contains(field), "{json}: {refused}");
        }
        let unknown = serde_json::from_str::<DriftOptions>(r#"{"window":1}"#).unwrap_err();
        assert!(unknown.to_string().contains("unknown field"), "{unknown}");
    }
}
