//! Logits of a call, and the log probabilities that follow from them in the trainer's order.

use std::convert::Infallible;

use sixfold_tensor::{VocabularyShard, cross_entropy_loss, logit_exp_sums, logit_maxima};

use crate::sharding::Sharding;
use crate::tensor_group::sum_shards;
use crate::unit::Geometry;

/// A row of logits for each token for which they were wanted, in the order of the call.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    values: Vec<f32>,
    vocabulary: usize,
    sharding: Sharding,
}

/// From logits to log probabilities, for one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalizer {
    max: f32,
    exp_sum: f32,
}

impl Normalizer {
    /// The natural logarithm of the probability of a token with this logit. The negative of the
    /// loss that the trainer computes, to the bit.
    pub fn log_probability(&self, logit: f32) -> f32 {
        -cross_entropy_loss(self.max, self.exp_sum, logit)
    }
}

impl Logits {
    pub(crate) fn new(geometry: &Geometry, values: Vec<f32>) -> Self {
        Self { values, vocabulary: geometry.config.vocab_size, sharding: geometry.sharding.clone() }
    }

    /// The rows, one after another.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocabulary)
    }

    /// One row.
    ///
    /// # Panics
    /// If there are not so many rows.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.vocabulary..(row + 1) * self.vocabulary]
    }

    /// What turns the logits of a row into log probabilities.
    ///
    /// # Panics
    /// If there are not so many rows.
    pub fn normalizer(&self, row: usize) -> Normalizer {
        let logits = self.row(row);
        let whole = VocabularyShard { first_id: 0, columns: logits.len(), words: logits.len() };
        let mut max = [0.0];
        logit_maxima(logits, whole, &mut max);
        let mut leaf = |shard: usize| {
            let range = self.sharding.shard(shard).vocabulary.clone();
            let words = VocabularyShard { first_id: range.start, columns: range.len(), words: range.len() };
            let mut sum = vec![0.0];
            Ok::<_, Infallible>((!range.is_empty()).then(|| {
                logit_exp_sums(&logits[range], words, &max, &mut sum);
                sum
            }))
        };
        let Ok(exp_sum) = sum_shards(0..self.sharding.logical(), &mut leaf);
        Normalizer { max: max[0], exp_sum: exp_sum.map_or(0.0, |sum| sum[0]) }
    }

    /// The natural logarithm of the probability of `token` in a row.
    ///
    /// # Panics
    /// If there are not so many rows, or the token is outside the vocabulary.
    pub fn log_probability(&self, row: usize, token: u32) -> f32 {
        self.normalizer(row).log_probability(self.row(row)[token as usize])
    }
}
