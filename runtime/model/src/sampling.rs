//! Choosing the next token: greedy, temperature, top-k, top-p, with random numbers that follow
//! from (seed, position), so that another replica continues a request with the same tokens.

use serde::{Deserialize, Serialize};
use sixfold_tensor::math::exp;
use sixfold_tensor::{Counter, Purpose};

/// How the next token is chosen from its logits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingOptions {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Only so many most likely tokens are candidates; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that reach this probability together are candidates; 1 for all.
    pub top_p: f32,
    /// What the random numbers follow from.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// The token with the largest logit, the first of equals.
pub fn greedy(logits: &[f32]) -> u32 {
    let better = |best: (usize, f32), next: (usize, f32)| if next.1 > best.1 { next } else { best };
    let all = logits.iter().copied().enumerate();
    all.fold((0, f32::NEG_INFINITY), better).0 as u32
}

/// The token for `position` (counted from the start of the sequence, prompt included).
pub fn sample(logits: &[f32], options: &SamplingOptions, position: u64) -> u32 {
    if options.temperature <= 0.0 {
        return greedy(logits);
    }
    let candidates = candidates(logits, options);
    let total: f32 = candidates.iter().map(|(_, weight)| weight).sum();
    let mut left = Counter::new(options.seed, 0, position, 0, Purpose::SAMPLING).uniform(0) * total;
    for (token, weight) in &candidates {
        left -= weight;
        if left < 0.0 {
            return *token;
        }
    }
    candidates.last().map_or_else(|| greedy(logits), |(token, _)| *token)
}

/// Tokens that may be chosen, most likely first, with weights relative to the most likely.
fn candidates(logits: &[f32], options: &SamplingOptions) -> Vec<(u32, f32)> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if options.top_k > 0 && options.top_k < order.len() {
        order.select_nth_unstable_by(options.top_k, by_logit);
        order.truncate(options.top_k);
    }
    order.sort_unstable_by(by_logit);
    let best = order.first().map_or(0.0, |token| logits[*token as usize]);
    let weight = |token: u32| exp((logits[token as usize] - best) / options.temperature);
    let mut weighted: Vec<(u32, f32)> = order.into_iter().map(|token| (token, weight(token))).collect();
    if options.top_p < 1.0 {
        let wanted = options.top_p * weighted.iter().map(|(_, weight)| weight).sum::<f32>();
        let mut reached = 0.0;
        let kept = weighted.iter().take_while(|(_, weight)| {
            let more = reached < wanted;
            reached += weight;
            more
        });
        let kept = kept.count().max(1);
        weighted.truncate(kept);
    }
    weighted
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, 2.0, -1.0];

    fn options(temperature: f32, top_k: usize, top_p: f32) -> SamplingOptions {
        SamplingOptions { temperature, top_k, top_p, seed: 3 }
    }

    fn shares(options: &SamplingOptions) -> Vec<f32> {
        let mut counts = [0_u32; LOGITS.len()];
        (0..4000).for_each(|position| counts[sample(&LOGITS, options, position) as usize] += 1);
        counts.iter().map(|count| *count as f32 / 4000.0).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(greedy(&LOGITS), 1);
        assert_eq!(sample(&LOGITS, &options(0.0, 0, 1.0), 9), 1);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        for (share, logit) in shares(&options(1.0, 0, 1.0)).iter().zip(LOGITS) {
            assert!((share - logit.exp() / total).abs() < 0.03, "{share} {logit}");
        }
    }

    #[test]
    fn top_k_and_top_p_exclude_the_tail() {
        let kept = |options| shares(&options).iter().map(|share| *share > 0.0).collect::<Vec<_>>();
        assert_eq!(kept(options(1.0, 3, 1.0)), [false, true, true, true, false]);
        assert_eq!(kept(options(1.0, 0, 0.7)), [false, true, false, true, false]);
        assert_eq!(kept(options(1.0, 1, 1.0)), [false, true, false, false, false]);
        assert_eq!(kept(options(1.0, 0, 0.0)), [false, true, false, false, false]);
    }

    #[test]
    fn a_position_always_gets_the_same_token() {
        let at = |position| sample(&LOGITS, &options(1.0, 0, 1.0), position);
        assert_eq!((0..50).map(at).collect::<Vec<_>>(), (0..50).map(at).collect::<Vec<_>>());
    }
}
