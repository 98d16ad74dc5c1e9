//! The micro-batches of a step, read from the token shards: [`Batches`].

use std::ops::Range;

use sixfold_artifact::tokens::{TokenShards, TokensError};
use sixfold_model::MicroBatch;
use sixfold_parallel::StepBatch;

use crate::error::TrainError;
use crate::options::TrainOptions;
use crate::order::DataOrder;

/// The training split, cut into steps, data groups and micro-batches for one rank.
///
/// Documents are packed: a sequence may hold the end of one and the beginning of the next, and
/// attention sees across. The held-out split is never opened.
pub(crate) struct Batches {
    shards: TokenShards,
    order: DataOrder,
    sequence_length: usize,
    micro_batch: usize,
    sequences_per_group: usize,
    /// The rank's data groups.
    groups: Range<usize>,
    batch_tokens: u64,
}

impl Batches {
    /// The batches of a rank that works on `groups`.
    pub(crate) fn new(
        shards: TokenShards,
        options: &TrainOptions,
        groups: Range<usize>,
    ) -> Result<Self, TrainError> {
        let sequence_length = options.sequence();
        let order = DataOrder::new(shards.len(), sequence_length, options.batch_sequences, options.seed);
        let order = order.ok_or(TrainError::TooFewTokens { tokens: shards.len(), sequence_length })?;
        Ok(Self {
            shards,
            order,
            sequence_length,
            micro_batch: options.micro_batch(),
            sequences_per_group: options.batch_sequences / options.data_groups(),
            groups,
            batch_tokens: options.batch_tokens(),
        })
    }

    /// Sequences of an epoch.
    pub(crate) fn samples(&self) -> u64 {
        self.order.samples()
    }

    /// The rank's part of a step.
    pub(crate) fn step(&self, step: u64) -> Result<StepBatch, TokensError> {
        let groups = self.groups.clone().map(|group| {
            let first = group * self.sequences_per_group;
            let sequences = first..first + self.sequences_per_group;
            sequences.step_by(self.micro_batch).map(|first| self.micro_batch(step, first)).collect()
        });
        Ok(StepBatch { groups: groups.collect::<Result<_, _>>()?, global_tokens: self.batch_tokens })
    }

    fn micro_batch(&self, step: u64, first: usize) -> Result<MicroBatch, TokensError> {
        let length = self.sequence_length;
        let mut batch = MicroBatch {
            tokens: Vec::with_capacity(self.micro_batch * length),
            targets: Vec::with_capacity(self.micro_batch * length),
            length,
            first_sample: first as u64,
        };
        let mut window = vec![0; length + 1];
        for sequence in first..first + self.micro_batch {
            self.shards.copy_to(self.order.first_token(step, sequence as u64), &mut window)?;
            batch.tokens.extend_from_slice(&window[..length]);
            batch.targets.extend_from_slice(&window[1..]);
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tokens_artifact;

    fn batches(options: &TrainOptions, groups: Range<usize>) -> Batches {
        let folder = tempfile::tempdir().unwrap();
        let store = sixfold_artifact::Store::open(folder.path()).unwrap();
        let tokens = tokens_artifact(&store, 500);
        let shards = TokenShards::from_artifact(&store, tokens, "train").unwrap();
        Batches::new(shards, options, groups).unwrap()
    }

    fn options() -> TrainOptions {
        TrainOptions {
            batch_sequences: 16,
            sequence_length: 8,
            micro_batch_sequences: 1,
            ..TrainOptions::default()
        }
    }

    #[test]
    fn ranks_take_disjoint_groups_of_the_same_step() {
        let whole = batches(&options(), 0..8).step(5).unwrap();
        let parts: Vec<_> =
            [0..4, 4..8].map(|groups| batches(&options(), groups).step(5).unwrap()).into_iter().collect();
        let joined: Vec<_> = parts.iter().flat_map(|part| part.groups.clone()).collect();
        assert_eq!(joined, whole.groups);
        assert_eq!((parts[0].global_tokens, whole.global_tokens), (16 * 8, 16 * 8));
        let samples: Vec<u64> = whole.groups.iter().flatten().map(|batch| batch.first_sample).collect();
        assert_eq!(samples, (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn targets_are_the_next_tokens() {
        let step = batches(&options(), 0..8).step(0).unwrap();
        for batch in step.groups.iter().flatten() {
            assert_eq!(batch.tokens[1..], batch.targets[..7]);
        }
    }

    #[test]
    fn micro_batches_cut_the_same_sequences() {
        let small = batches(&options(), 0..8).step(3).unwrap();
        let large = TrainOptions { micro_batch_sequences: 2, ..options() };
        let large = batches(&large, 0..8).step(3).unwrap();
        let tokens = |batch: &StepBatch| -> Vec<u32> {
            batch.groups.iter().flatten().flat_map(|batch| batch.tokens.clone()).collect()
        };
        assert_eq!(tokens(&small), tokens(&large));
        assert_eq!((small.groups[0].len(), large.groups[0].len()), (2, 1));
    }
}
