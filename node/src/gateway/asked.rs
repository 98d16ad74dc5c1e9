//! What is asked: how often each token occurred in prompts, by model. Counts only, never text.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

/// Tokens that are told apart between two takes, those of all models together: a few large
/// vocabularies, in about 32 MiB.
const COUNTS_MAX: usize = 1 << 20;

/// Tokens and how often each was asked since the last take, by model; tokens ascend.
pub(crate) type AskedTokens = BTreeMap<String, Vec<(u32, u64)>>;

/// Counts of tokens in prompts.
#[derive(Debug, Default)]
pub(super) struct AskedCounts {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    by_model: HashMap<String, HashMap<u32, u64>>,
    distinct: usize,
}

impl AskedCounts {
    /// Counts a prompt's tokens. Beyond the bound, new ones are left out until the next take.
    pub(super) fn record(&self, model: &str, prompt_tokens: &[u32]) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { by_model, distinct } = &mut *counts;
        if *distinct >= COUNTS_MAX && !by_model.contains_key(model) {
            return;
        }
        let of_model = by_model.entry(model.to_owned()).or_default();
        for &token in prompt_tokens {
            if let Some(count) = of_model.get_mut(&token) {
                *count += 1;
            } else if *distinct < COUNTS_MAX {
                of_model.insert(token, 1);
                *distinct += 1;
            }
        }
    }

    /// The counts since the last take.
    pub(super) fn take(&self) -> AskedTokens {
        let taken = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        taken.by_model.into_iter().map(|(model, tokens)| (model, sorted(tokens))).collect()
    }
}

fn sorted(tokens: HashMap<u32, u64>) -> Vec<(u32, u64)> {
    let mut tokens: Vec<_> = tokens.into_iter().collect();
    tokens.sort_unstable();
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_take_has_what_was_asked_since_the_last_one() {
        let asked = AskedCounts::default();
        asked.record("a", &[2, 1, 1]);
        asked.record("b", &[3]);
        asked.record("a", &[1]);
        let expected = [("a".to_owned(), vec![(1, 3), (2, 1)]), ("b".to_owned(), vec![(3, 1)])];
        assert_eq!(asked.take(), AskedTokens::from(expected));
        asked.record("a", &[2]);
        assert_eq!(asked.take(), AskedTokens::from([("a".to_owned(), vec![(2, 1)])]));
        assert!(asked.take().is_empty());
    }

    #[test]
    fn counts_are_bounded_until_they_are_taken() {
        let asked = AskedCounts::default();
        let many: Vec<u32> = (0..=COUNTS_MAX as u32).collect();
        asked.record("a", &many);
        asked.record("a", &[0, COUNTS_MAX as u32]);
        asked.record("b", &[1]);
        let taken = asked.take();
        assert_eq!((taken.len(), taken["a"].len(), taken["a"][0]), (1, COUNTS_MAX, (0, 2)));
        asked.record("b", &[1]);
        assert_eq!(asked.take().len(), 1);
    }
}
