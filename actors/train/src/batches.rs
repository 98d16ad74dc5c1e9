//! The micro-batches of a step, read from the token shards: [`Batches`], and those of an evaluation: [`HeldOut`].

use std::ops::Range;

use sixfold_artifact::tokens::{TokenShards, TokensError};
use sixfold_model::MicroBatch;
use sixfold_parallel::StepBatch;

use crate::error::TrainError;
use crate::options::TrainOptions;
use crate::order::DataOrder;
use crate::sequences::{Packed, Sequences};

/// How the sequences of a step are dealt out to data groups and micro-batches.
struct Deal {
    micro_batch: usize,
    length: usize,
    sequences_per_group: usize,
    /// The rank's data groups.
    groups: Range<usize>,
    batch_sequences: u64,
}

impl Deal {
    fn new(options: &TrainOptions, groups: Range<usize>) -> Self {
        Self {
            micro_batch: options.micro_batch(),
            length: options.sequence(),
            sequences_per_group: options.batch_sequences / options.data_groups(),
            groups,
            batch_sequences: options.batch_sequences as u64,
        }
    }

    /// The rank's part of a step whose sequences `sample` names; those that it does not are padding.
    fn step(
        &self,
        sequences: &Sequences,
        sample: impl Fn(u64) -> Option<u64>,
    ) -> Result<StepBatch, TokensError> {
        let micro_batch = |first: usize| -> Result<MicroBatch, TokensError> {
            let rows = self.micro_batch * self.length;
            let mut batch = MicroBatch {
                groups: 1,
                tokens: Vec::with_capacity(rows),
                targets: Vec::with_capacity(rows),
                document_starts: Vec::new(),
                length: self.length,
                first_sample: first as u64,
            };
            for sequence in first..first + self.micro_batch {
                match sample(sequence as u64) {
                    Some(sample) => sequences.append(sample, &mut batch)?,
                    None => sequences.append_nothing(&mut batch),
                }
            }
            Ok(batch)
        };
        let groups = self.groups.clone().map(|group| {
            let first = group * self.sequences_per_group;
            let firsts = (first..first + self.sequences_per_group).step_by(self.micro_batch);
            firsts.map(micro_batch).collect()
        });
        // Of the whole step, other ranks' sequences too: what the loss is divided by.
        let counted = (0..self.batch_sequences).filter_map(&sample).map(|sample| sequences.counted(sample));
        Ok(StepBatch { global_targets: counted.sum(), groups: groups.collect::<Result<_, _>>()? })
    }
}

/// The training split, dealt out to steps, data groups and micro-batches for one rank.
pub(crate) struct Batches {
    sequences: Sequences,
    order: DataOrder,
    deal: Deal,
    packed: Packed,
}

impl Batches {
    /// The batches of a rank that works on `groups`.
    pub(crate) fn new(
        shards: TokenShards,
        options: &TrainOptions,
        groups: Range<usize>,
    ) -> Result<Self, TrainError> {
        let (tokens, sequence_length) = (shards.len(), options.sequence());
        let (sequences, packed) = Sequences::new(shards, sequence_length)?;
        let order = DataOrder::new(sequences.samples(), options.batch_sequences, options.seed);
        let order = order.ok_or(TrainError::TooFewTokens { tokens, sequence_length })?;
        Ok(Self { sequences, order, deal: Deal::new(options, groups), packed })
    }

    /// Sequences of an epoch.
    pub(crate) fn samples(&self) -> u64 {
        self.sequences.samples()
    }

    /// What became of the documents, where they are packed whole.
    pub(crate) fn packed(&self) -> Packed {
        self.packed
    }

    /// The rank's part of a step.
    pub(crate) fn step(&self, step: u64) -> Result<StepBatch, TokensError> {
        self.deal.step(&self.sequences, |sequence| Some(self.order.sample(step, sequence)))
    }
}

/// The first tokens of the held-out split, dealt out to one rank as the steps' are.
pub(crate) struct HeldOut {
    sequences: Sequences,
    deal: Deal,
    /// Targets that count, of all ranks.
    counted: u64,
}

impl HeldOut {
    /// The held-out batches of a rank that works on `groups`.
    ///
    /// # Errors
    /// [`TrainError::NoHeldOut`] if the split has not enough for one sequence.
    pub(crate) fn new(
        shards: TokenShards,
        options: &TrainOptions,
        groups: Range<usize>,
    ) -> Result<Self, TrainError> {
        let tokens = shards.len();
        let (sequences, _) = Sequences::up_to(shards, options.sequence(), options.evaluate_tokens)
            .map_err(|_| TrainError::NoHeldOut { tokens })?;
        let counted = (0..sequences.samples()).map(|sample| sequences.counted(sample)).sum();
        match counted {
            0 => Err(TrainError::NoHeldOut { tokens }),
            counted => Ok(Self { sequences, deal: Deal::new(options, groups), counted }),
        }
    }

    /// Targets of all batches that count, of all ranks.
    pub(crate) fn counted(&self) -> u64 {
        self.counted
    }

    /// The rank's part of each batch, in order. The last one is filled up with padding.
    pub(crate) fn batches(&self) -> impl Iterator<Item = Result<StepBatch, TokensError>> {
        let (samples, batch) = (self.sequences.samples(), self.deal.batch_sequences);
        (0..samples.div_ceil(batch)).map(move |index| {
            let sample = |sequence| Some(index * batch + sequence).filter(|&sample| sample < samples);
            self.deal.step(&self.sequences, sample)
        })
    }
}

#[cfg(test)]
mod tests {
    use sixfold_tensor::IGNORED_TARGET;

    use super::*;
    use crate::testing::{END_OF_TEXT, batches, dialogue_batches};

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

    /// Of dialogues whose odd tokens are to be learned.
    #[test]
    fn dialogues_are_packed_whole_and_only_answers_are_targets() {
        let options = TrainOptions { sequence_length: 10, ..options() };
        let batches =
            dialogue_batches(&options, 0..8, &[&[1, 3, 5, 7], &[2, 4, 9], &[8, 6, 1, 3, 5, 11], &[2, 4]]);
        assert_eq!(batches.packed(), Packed { documents: 3, cut: 0, left_out: 1 });
        assert_eq!(batches.samples(), 1, "3 + 2 + 5 rows");
        let step = batches.step(0).unwrap();
        let batch = &step.groups[0][0];
        assert_eq!(batch.tokens, [8, 6, 1, 3, 5, 1, 3, 5, 2, 4]);
        let no = IGNORED_TARGET;
        assert_eq!(batch.targets, [no, 1, 3, 5, 11, 3, 5, 7, no, 9]);
        assert_eq!(batch.document_starts, [0, 5, 8]);
        assert_eq!(step.global_targets, 8 * 16, "the only sequence, sixteen times");
    }

    #[test]
    fn what_is_left_of_a_sequence_is_padding_and_a_long_dialogue_loses_its_end() {
        let options = TrainOptions { sequence_length: 4, batch_sequences: 2, ..options() };
        let batches = dialogue_batches(&options, 0..2, &[&[1, 3, 5, 7, 9, 11], &[2, 3, 4]]);
        assert_eq!(batches.packed(), Packed { documents: 2, cut: 1, left_out: 0 });
        let step = batches.step(0).unwrap();
        let mut all: Vec<&MicroBatch> = step.groups.iter().flatten().collect();
        all.sort_by_key(|batch| batch.tokens[0]);
        let no = IGNORED_TARGET;
        assert_eq!(
            (all[0].tokens.as_slice(), all[0].targets.as_slice()),
            (&[1, 3, 5, 7][..], &[3, 5, 7, 9][..])
        );
        assert_eq!(
            (all[1].tokens.as_slice(), all[1].targets.as_slice()),
            (&[2, 3, 0, 0][..], &[3, no, no, no][..])
        );
        assert_eq!(all[1].document_starts, [0, 2]);
        assert_eq!(step.global_targets, 5);
    }
}
