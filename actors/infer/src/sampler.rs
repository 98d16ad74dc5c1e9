//! Choosing the next token of a request.
//!
//! What is chosen is a function of the logits, the request's [`Sampling`], its tokens so far and
//! the position. Nothing is remembered that the tokens do not say, so an answer continues on
//! another replica as if nothing had happened.

use std::collections::{HashMap, HashSet};

use sixfold_model::{SamplingOptions, sample};
use sixfold_tensor::math::ln;

use crate::message::Sampling;

/// The model computed something that is not a number; its answer cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits at position {position} are not finite")]
pub struct NotFinite {
    /// Position of the token to choose.
    pub position: usize,
}

/// Chooses the tokens of one request.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    in_prompt: HashSet<u32>,
    in_answer: HashMap<u32, u32>,
}

impl Sampler {
    /// A sampler for a prompt; tokens of the answer follow by [`Sampler::record`].
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let repeats = sampling.repetition_penalty != 1.0;
        let in_prompt = if repeats { prompt.iter().copied().collect() } else { HashSet::new() };
        Self { sampling, in_prompt, in_answer: HashMap::new() }
    }

    /// A token of the answer, chosen here or emitted by another replica.
    pub fn record(&mut self, token: u32) {
        *self.in_answer.entry(token).or_default() += 1;
    }

    /// The token at `position`, counted from the start of the prompt.
    ///
    /// # Errors
    /// [`NotFinite`] if no logit is a finite number, or one is not a number.
    pub fn choose(&self, logits: &[f32], position: usize) -> Result<u32, NotFinite> {
        let mut adjusted = logits.to_vec();
        self.penalise(&mut adjusted);
        let best = adjusted.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !best.is_finite() || adjusted.iter().any(|logit| logit.is_nan()) {
            return Err(NotFinite { position });
        }
        let Sampling { temperature, min_p, .. } = self.sampling;
        if min_p > 0.0 && temperature > 0.0 {
            let least = best + temperature * ln(min_p);
            adjusted.iter_mut().filter(|logit| **logit < least).for_each(|logit| *logit = f32::NEG_INFINITY);
        }
        let options = SamplingOptions {
            temperature,
            top_k: usize::try_from(self.sampling.top_k).unwrap_or(usize::MAX),
            top_p: self.sampling.top_p,
            seed: self.sampling.seed,
        };
        Ok(sample(&adjusted, &options, position as u64))
    }

    /// Penalties as OpenAI's API (presence, frequency) and `transformers` (repetition) define them.
    fn penalise(&self, logits: &mut [f32]) {
        let Sampling { presence_penalty, frequency_penalty, repetition_penalty, .. } = self.sampling;
        if repetition_penalty != 1.0 {
            let answer_only = self.in_answer.keys().filter(|token| !self.in_prompt.contains(token));
            for &token in self.in_prompt.iter().chain(answer_only) {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit =
                        if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
                }
            }
        }
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            for (&token, &count) in &self.in_answer {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit -= presence_penalty + frequency_penalty * count as f32;
                }
            }
        }
    }
}

/// The most likely tokens of a row, best first, the smaller id first of equals.
pub fn most_likely(logits: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..u32::try_from(logits.len()).unwrap_or(u32::MAX)).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, by_logit);
    }
    order.truncate(count);
    order.sort_unstable_by(by_logit);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, -1.0];

    fn greedy() -> Sampling {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    #[test]
    fn penalties_count_the_answer_and_repetition_the_prompt_too() {
        let mut sampler = Sampler::new(Sampling { frequency_penalty: 0.6, ..greedy() }, &[1, 1, 1]);
        assert_eq!(sampler.choose(&LOGITS, 3), Ok(1), "the prompt does not count");
        sampler.record(1);
        assert_eq!(sampler.choose(&LOGITS, 4), Ok(1), "3 - .6 is still the best");
        sampler.record(1);
        assert_eq!(sampler.choose(&LOGITS, 5), Ok(2), "3 - 1.2 is not");
        let repeated = Sampler::new(Sampling { repetition_penalty: 2.0, ..greedy() }, &[1]);
        assert_eq!(repeated.choose(&LOGITS, 1), Ok(2));
    }

    #[test]
    fn min_p_excludes_the_tail() {
        let sampler = Sampler::new(Sampling { min_p: 0.5, ..Sampling::default() }, &[]);
        assert!((0..500).all(|position| sampler.choose(&LOGITS, position) == Ok(1)));
        let open = Sampler::new(Sampling::default(), &[]);
        assert!((0..500).any(|position| open.choose(&LOGITS, position) != Ok(1)));
    }

    #[test]
    fn a_broken_row_is_an_error() {
        let sampler = Sampler::new(Sampling::default(), &[]);
        assert_eq!(sampler.choose(&[1.0, f32::NAN], 7), Err(NotFinite { position: 7 }));
        assert_eq!(sampler.choose(&[f32::NEG_INFINITY; 2], 7), Err(NotFinite { position: 7 }));
    }

    #[test]
    fn a_resumed_sampler_chooses_the_same() {
        let sampling =
            Sampling { presence_penalty: 0.5, frequency_penalty: 0.2, seed: 9, ..Sampling::default() };
        let mut whole = Sampler::new(sampling.clone(), &[0, 3]);
        let answer: Vec<u32> = (2..40)
            .map(|position| {
                let token = whole.choose(&LOGITS, position).unwrap();
                whole.record(token);
                token
            })
            .collect();
        for cut in 0..answer.len() {
            let mut resumed = Sampler::new(sampling.clone(), &[0, 3]);
            answer[..cut].iter().for_each(|&token| resumed.record(token));
            assert_eq!(resumed.choose(&LOGITS, cut + 2), Ok(answer[cut]));
        }
    }

    #[test]
    fn the_most_likely_come_first() {
        assert_eq!(most_likely(&LOGITS, 2), [1, 2]);
        assert_eq!(most_likely(&[1.0, 1.0, 2.0], 9), [2, 0, 1]);
        assert!(most_likely(&LOGITS, 0).is_empty());
    }
}
