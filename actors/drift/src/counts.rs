//! Counts of tokens, the distributions that follow from them, and how far two of them are apart.
//!
//! One bin a token id of the vocabulary. The reference is smoothed: with a pseudo-count `a`, a token
//! that occurs `c` times among `n` has the probability `(c + a) / (n + a * V)` in a vocabulary of `V`,
//! so that a token that was never trained on makes the divergence large and not infinite. What is
//! asked is not smoothed: `c / n`, with `0 ln 0 = 0`. Smoothing a sample of a few thousand tokens
//! over a vocabulary of many thousands would mostly measure the pseudo-counts.
//!
//! Since the sample is sparse, a comparison visits its own tokens alone; the rest of the vocabulary
//! enters as one mass.

use std::collections::BTreeMap;
use std::f64::consts::LN_2;

/// How often each token of a sample occurs; no count is 0.
pub type SampleCounts = BTreeMap<u32, u64>;

/// Counts the tokens of a sample.
pub fn count(tokens: &[u32]) -> SampleCounts {
    let mut counts = SampleCounts::new();
    tokens.iter().for_each(|token| *counts.entry(*token).or_default() += 1);
    counts
}

/// How far a sample is from a reference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Kullback-Leibler divergence of the reference from the sample, `sum p ln(p / q)` with the sample's
    /// `p` and the reference's `q`, in nats.
    pub kl_nats: f64,
    /// Jensen-Shannon distance: the square root of the divergence in bits, from 0 to 1.
    pub js_distance: f64,
}

/// How often each token of a vocabulary occurs in the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenCounts {
    counts: Vec<u64>,
    tokens: u64,
    smoothing: f64,
}

impl TokenCounts {
    /// No tokens yet; `smoothing` is the pseudo-count of each token of the vocabulary, above 0.
    pub fn new(vocabulary: u32, smoothing: f64) -> Self {
        Self { counts: vec![0; vocabulary as usize], tokens: 0, smoothing }
    }

    /// Tokens counted.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Entries of the vocabulary.
    pub fn vocabulary(&self) -> u32 {
        // It was made from a `u32`.
        self.counts.len() as u32
    }

    /// Adds a sample; tokens outside the vocabulary are passed over.
    pub fn add(&mut self, sample: &SampleCounts) {
        for (&token, &count) in sample {
            if let Some(counted) = self.counts.get_mut(token as usize) {
                *counted += count;
                self.tokens += count;
            }
        }
    }

    /// Takes away a sample that was added before.
    pub fn remove(&mut self, sample: &SampleCounts) {
        for (&token, &count) in sample {
            if let Some(counted) = self.counts.get_mut(token as usize) {
                let gone = count.min(*counted);
                *counted -= gone;
                self.tokens -= gone;
            }
        }
    }

    /// How far `sample` is from this reference; nothing is no distance away.
    pub fn divergence_of(&self, sample: &SampleCounts) -> Divergence {
        let tokens = sample.values().sum::<u64>() as f64;
        let whole = self.tokens as f64 + self.smoothing * self.counts.len() as f64;
        let (mut kl, mut js, mut seen) = (0.0, 0.0, 0);
        for (&token, &count) in sample {
            let counted = self.counts.get(token as usize).copied().unwrap_or(0);
            let (p, q) = (count as f64 / tokens, (counted as f64 + self.smoothing) / whole);
            let middle = (p + q) / 2.0;
            kl += p * (p / q).ln();
            js += (p * (p / middle).ln() + q * (q / middle).ln()) / 2.0;
            seen += counted;
        }
        if sample.is_empty() {
            return Divergence::default();
        }
        // Tokens that the sample lacks: each adds q ln(q / (q / 2)) / 2.
        let lacking = self.counts.len().saturating_sub(sample.len()) as f64;
        let rest = ((self.tokens - seen) as f64 + self.smoothing * lacking) / whole;
        js += rest * LN_2 / 2.0;
        Divergence { kl_nats: kl, js_distance: (js / LN_2).max(0.0).sqrt() }
    }
}

#[cfg(test)]
mod tests;
