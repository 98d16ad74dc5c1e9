//! Which sequence of the corpus is trained on when: [`DataOrder`], a pure function.

use sixfold_tensor::{Counter, Purpose};

/// Rounds of the permutation; four are enough for a Feistel network to look random
/// (Luby and Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom functions").
const ROUNDS: u64 = 4;

/// The order of training sequences.
///
/// The corpus is a run of tokens, documents one after another, cut into samples of equal length;
/// what is left at the end is not used. Epoch after epoch, each in an order of its own, every
/// sample is used once. The sequence at a place of a step is a function of the seed and that place,
/// so no state is kept, and a step that is done again is the same step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataOrder {
    samples: u64,
    sequence_length: u64,
    batch_sequences: u64,
    seed: u64,
}

impl DataOrder {
    /// The order over a corpus of `tokens`, or nothing if it is shorter than one sequence and the
    /// token after it.
    pub fn new(tokens: u64, sequence_length: usize, batch_sequences: usize, seed: u64) -> Option<Self> {
        let (sequence_length, batch_sequences) = (sequence_length as u64, batch_sequences as u64);
        let samples = tokens.saturating_sub(1).checked_div(sequence_length)?;
        (samples > 0).then_some(Self { samples, sequence_length, batch_sequences, seed })
    }

    /// Sequences that an epoch consists of.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The first token of sequence `sequence` of step `step`. Its targets begin one token later.
    pub fn first_token(&self, step: u64, sequence: u64) -> u64 {
        let place = step * self.batch_sequences + sequence;
        let (epoch, index) = (place / self.samples, place % self.samples);
        self.permute(epoch, index) * self.sequence_length
    }

    /// A permutation of `0..samples`: a Feistel network over the next power of four, walked until
    /// it lands inside (on average after fewer than four applications).
    fn permute(&self, epoch: u64, index: u64) -> u64 {
        let bits = (u64::BITS - (self.samples - 1).leading_zeros()).div_ceil(2).max(1);
        let mask = (1 << bits) - 1;
        let rounds = |round| Counter::new(self.seed, epoch, round, 0, Purpose::ORDER);
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> bits, value & mask);
            for round in 0..ROUNDS {
                let mixed = left ^ (u64::from(rounds(round).word(right)) & mask);
                (left, right) = (right, mixed);
            }
            value = left << bits | right;
            if value < self.samples {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(tokens: u64, batch: usize, seed: u64) -> DataOrder {
        DataOrder::new(tokens, 8, batch, seed).unwrap()
    }

    proptest! {
        #[test]
        fn every_epoch_uses_every_sample_once(samples in 1_u64..300, batch in 1_usize..9, seed: u64) {
            let order = order(samples * 8 + 1, batch, seed);
            for epoch in 0..2 {
                let places = epoch * samples..(epoch + 1) * samples;
                let first = |place: u64| order.first_token(place / batch as u64, place % batch as u64);
                let mut used: Vec<u64> = places.map(first).collect();
                used.sort_unstable();
                prop_assert_eq!(used, (0..samples).map(|sample| sample * 8).collect::<Vec<_>>());
            }
        }

        #[test]
        fn sequences_and_their_targets_lie_inside(tokens in 9_u64..5000, step in 0_u64..1 << 40, seed: u64) {
            let order = order(tokens, 4, seed);
            for sequence in 0..4 {
                prop_assert!(order.first_token(step, sequence) + 8 < tokens);
            }
        }
    }

    #[test]
    fn seeds_and_epochs_have_orders_of_their_own() {
        let epoch = |seed, epoch: u64| -> Vec<u64> {
            let order = order(1001 * 8, 1, seed);
            (0..order.samples()).map(|step| order.first_token(epoch * order.samples() + step, 0)).collect()
        };
        assert_eq!(epoch(1, 0), epoch(1, 0));
        assert_ne!(epoch(1, 0), epoch(2, 0));
        assert_ne!(epoch(1, 0), epoch(1, 1));
        let kept = epoch(1, 0).windows(2).filter(|pair| pair[0] + 8 == pair[1]).count();
        assert!(kept < 20, "{kept} neighbours stayed neighbours");
    }

    #[test]
    fn a_corpus_shorter_than_a_sequence_has_no_order() {
        assert_eq!(DataOrder::new(8, 8, 1, 0), None);
        assert_eq!(DataOrder::new(0, 8, 1, 0), None);
        assert_eq!(order(9, 1, 0).samples(), 1);
    }
}
