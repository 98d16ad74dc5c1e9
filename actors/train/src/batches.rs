//! The micro-batches of a step, read from the token shards: [`Batches`].

use std::ops::Range;

use sixfold_artifact::tokens::{TokenShards, TokensError};
use sixfold_model::MicroBatch;
use sixfold_parallel::StepBatch;
use sixfold_tensor::IGNORED_TARGET;

use crate::error::TrainError;
use crate::options::TrainOptions;
use crate::order::DataOrder;

/// The training split, cut into steps, data groups and micro-batches for one rank.
///
/// Documents are packed: a sequence may hold the end of one and the beginning of the next. They do
/// not see each other: a token attends to its own document, whose positions count from its first
/// token. The end-of-text token that ends a document is predicted; the first token of the next
/// document is not, since nothing that it could follow from is in sight, so that target does not
/// count in the loss. A document that a sequence's end cuts goes on in the next sequence as if it
/// began there. The held-out split is never opened.
pub(crate) struct Batches {
    shards: TokenShards,
    order: DataOrder,
    sequence_length: usize,
    micro_batch: usize,
    sequences_per_group: usize,
    /// The rank's data groups.
    groups: Range<usize>,
    batch_sequences: u64,
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
            batch_sequences: options.batch_sequences as u64,
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
        Ok(StepBatch { groups: groups.collect::<Result<_, _>>()?, global_targets: self.targets(step) })
    }

    /// Targets of the whole step that count, those of other ranks too: what the loss is divided by.
    fn targets(&self, step: u64) -> u64 {
        let length = self.sequence_length as u64;
        let counted = |sequence| length - self.starts(self.order.first_token(step, sequence)).count() as u64;
        (0..self.batch_sequences).map(counted).sum()
    }

    /// Where documents begin in the sequence whose first token is `first`, and right behind it,
    /// counted from that token, which itself is left out.
    fn starts(&self, first: u64) -> impl Iterator<Item = usize> + '_ {
        let last = first + self.sequence_length as u64;
        let later =
            self.shards.document_at(first).map_or(0, |document| document + 1)..self.shards.documents();
        let documents = later.filter_map(|document| self.shards.document(document));
        let near =
            documents.take_while(move |tokens| tokens.start <= last).filter(|tokens| !tokens.is_empty());
        near.map(move |tokens| (tokens.start - first) as usize)
    }

    fn micro_batch(&self, step: u64, first: usize) -> Result<MicroBatch, TokensError> {
        let length = self.sequence_length;
        let mut batch = MicroBatch {
            groups: 1,
            tokens: Vec::with_capacity(self.micro_batch * length),
            targets: Vec::with_capacity(self.micro_batch * length),
            document_starts: Vec::new(),
            length,
            first_sample: first as u64,
        };
        let mut window = vec![0; length + 1];
        for sequence in first..first + self.micro_batch {
            let first = self.order.first_token(step, sequence as u64);
            self.shards.copy_to(first, &mut window)?;
            self.append(first, &window, &mut batch);
        }
        Ok(batch)
    }

    /// Adds the sequence of the tokens `window`, one more than its length, and marks its documents.
    fn append(&self, first: u64, window: &[u32], batch: &mut MicroBatch) {
        let row = batch.tokens.len();
        batch.tokens.extend_from_slice(&window[..self.sequence_length]);
        batch.targets.extend_from_slice(&window[1..]);
        batch.document_starts.push(row);
        for start in self.starts(first) {
            batch.targets[row + start - 1] = IGNORED_TARGET;
            if start < self.sequence_length {
                batch.document_starts.push(row + start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{END_OF_TEXT, batches};

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
        assert_eq!([parts[0].global_targets, parts[1].global_targets], [whole.global_targets; 2]);
        let samples: Vec<u64> = whole.groups.iter().flatten().map(|batch| batch.first_sample).collect();
        assert_eq!(samples, (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn targets_are_the_next_tokens_of_the_document() {
        let batches = batches(&options(), 0..8);
        let (mut starts, mut ends) = (0, 0);
        for step in 0..4 {
            let step = batches.step(step).unwrap();
            let mut counted = 0;
            for batch in step.groups.iter().flatten() {
                counted += batch.counted_targets() as u64;
                for row in 0..8 {
                    let ended = batch.tokens[row] == END_OF_TEXT;
                    assert_eq!(batch.targets[row] == IGNORED_TARGET, ended, "{batch:?}");
                    if row < 7 {
                        assert!(ended || batch.targets[row] == batch.tokens[row + 1]);
                        assert_eq!(batch.document_starts.contains(&(row + 1)), ended, "{batch:?}");
                    }
                    ends += usize::from(ended);
                }
                assert_eq!((batch.document_starts[0], batch.validate(50, 8)), (0, Ok(())));
                starts += batch.document_starts.len() - 1;
            }
            assert_eq!(step.global_targets, counted);
        }
        assert!(starts > 3 && ends > starts, "{starts} starts and {ends} ends in four steps");
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
