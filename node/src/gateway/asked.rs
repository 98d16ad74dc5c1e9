//! What is asked: how often each token occurred in prompts, by model. Counts only, never text.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

/// Models that are counted; more are not.
const MODELS_MAX: usize = 64;
/// Distinct tokens of a model that are counted, more than any vocabulary has.
const TOKENS_MAX: usize = 1 << 18;

/// Counts of tokens in prompts.
#[derive(Debug, Default)]
pub(super) struct AskedCounts {
    models: Mutex<HashMap<String, HashMap<u32, u64>>>,
}

impl AskedCounts {
    /// Counts a prompt's tokens.
    pub(super) fn record(&self, model: &str, prompt_tokens: &[u32]) {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if models.len() >= MODELS_MAX && !models.contains_key(model) {
            return;
        }
        let counts = models.entry(model.to_owned()).or_default();
        for token in prompt_tokens {
            if counts.len() < TOKENS_MAX || counts.contains_key(token) {
                *counts.entry(*token).or_default() += 1;
            }
        }
    }

    /// The counts of a model so far.
    pub(super) fn counts(&self, model: &str) -> BTreeMap<u32, u64> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.get(model).into_iter().flatten().map(|(&token, &count)| (token, count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_tokens_by_model_and_stays_bounded() {
        let asked = AskedCounts::default();
        asked.record("a", &[1, 2, 1]);
        asked.record("b", &[3]);
        assert_eq!(asked.counts("a"), BTreeMap::from([(1, 2), (2, 1)]));
        let many: Vec<u32> = (0..300_000).collect();
        asked.record("a", &many);
        assert_eq!(asked.counts("a").len(), TOKENS_MAX);
        assert_eq!(asked.counts("a")[&1], 3);
        for model in 0..100 {
            asked.record(&model.to_string(), &[1]);
        }
        assert!(asked.counts("99").is_empty());
    }
}
