//! Logits of a call, and the log probabilities that follow from them in the trainer's order.

use sixfold_tensor::{Buffer, Mirror, Stream, VocabularyShard, cross_entropy_loss};

use crate::sharding::Sharding;
use crate::tensor_group::sum_shards;
use crate::unit::Geometry;

/// A row of logits for each token for which they were wanted, in the order of the call.
#[derive(Debug)]
pub struct Logits {
    stream: Stream,
    values: Mirror,
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
    pub(crate) fn new(stream: &Stream, geometry: &Geometry, values: Buffer) -> Self {
        let (vocabulary, sharding) = (geometry.config.vocab_size, geometry.sharding.clone());
        Self { stream: stream.clone(), values: stream.mirror(values), vocabulary, sharding }
    }

    /// The rows, one after another.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.host().chunks_exact(self.vocabulary)
    }

    /// One row.
    ///
    /// # Panics
    /// If there are not so many rows.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values.host()[row * self.vocabulary..(row + 1) * self.vocabulary]
    }

    /// What turns the logits of a row into log probabilities.
    ///
    /// # Panics
    /// If there are not so many rows.
    pub fn normalizer(&self, row: usize) -> Normalizer {
        let (stream, columns) = (&self.stream, self.vocabulary);
        let logits = self.values.device().slice(row * columns..(row + 1) * columns);
        let mut max = stream.uninit(1);
        let whole = VocabularyShard { first_id: 0, columns, words: columns };
        stream.logit_maxima(logits, whole, max.view_mut());
        let mut leaf = |shard: usize| {
            let range = self.sharding.shard(shard).vocabulary.clone();
            let words = VocabularyShard { first_id: range.start, columns: range.len(), words: range.len() };
            (!range.is_empty()).then(|| {
                let mut sum = stream.uninit(1);
                stream.logit_exp_sums(logits.slice(range), words, max.view(), sum.view_mut());
                sum
            })
        };
        let add = |left: &mut Buffer, right: Buffer| stream.add_assign(left.view_mut(), right.view());
        let exp_sum = sum_shards(0..self.sharding.logical(), &mut leaf, &add);
        let [max, exp_sum] = [Some(&max), exp_sum.as_ref()].map(|one| {
            let mut value = [0.0];
            if let Some(one) = one {
                stream.to_host(one.view(), &mut value);
            }
            value[0]
        });
        Normalizer { max, exp_sum }
    }

    /// The natural logarithm of the probability of `token` in a row.
    ///
    /// # Panics
    /// If there are not so many rows, or the token is outside the vocabulary.
    pub fn log_probability(&self, row: usize, token: u32) -> f32 {
        self.normalizer(row).log_probability(self.row(row)[token as usize])
    }
}
