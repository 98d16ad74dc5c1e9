//! Which sequence of the corpus is trained on when: [`DataOrder`], a pure function.

use sixfold_tensor::{Counter, Purpose};

/// Rounds of the permutation; four are enough for a Feistel network to look random
/// (Luby and Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom functions").
const ROUNDS: u64 = 4;

/// The order of training sequences.
///
/// A corpus is cut, or its documents are packed, into samples of equal length. Epoch after epoch, each in an order
/// of its own, every sample is used once. The sample at a place of a step is a function of the seed and that
/// place, so no state is kept, and a step that is done again is the same step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataOrder {
    samples: u64,
    batch_sequences: u64,
    seed: u64,
}

impl DataOrder {
    /// The order of `samples`, or nothing if there are none.
    pub fn new(samples: u64, batch_sequences: usize, seed: u64) -> Option<Self> {
        (samples > 0).then_some(Self { samples, batch_sequences: batch_sequences as u64, seed })
    }

    /// The sample that is sequence `sequence` of step `step`.
    pub fn sample(&self, step: u64, sequence: u64) -> u64 {
        let place = step * self.batch_sequences + sequence;
        let (epoch, index) = (place / self.samples, place % self.samples);
        self.permute(epoch, index)
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

    fn order(samples: u64, batch: usize, seed: u64) -> DataOrder {
        DataOrder::new(samples, batch, seed).unwrap()
    }

    proptest! {
        #[test]
        fn every_epoch_uses_every_sample_once(samples in 1_u64..300, batch in 1_usize..9, seed: u64) {
            let order = order(samples, batch, seed);
            for epoch in 0..2 {
                let places = epoch * samples..(epoch + 1) * samples;
                let sample = |place: u64| order.sample(place / batch as u64, place % batch as u64);
                let mut used: Vec<u64> = places.map(sample).collect();
                used.sort_unstable();
                prop_assert_eq!(used, (0..samples).collect::<Vec<_>>());
            }
        }

        #[test]
        fn samples_are_those_that_there_are(samples in 1_u64..5000, step in 0_u64..1 << 40, seed: u64) {
            let order = order(samples, 4, seed);
            for sequence in 0..4 {
                prop_assert!(order.sample(step, sequence) < samples);
            }
        }
    }

    #[test]
    fn seeds_and_epochs_have_orders_of_their_own() {
        let epoch = |seed, epoch: u64| -> Vec<u64> {
            let order = order(1001, 1, seed);
            (0..1001).map(|step| order.sample(epoch * 1001 + step, 0)).collect()
        };
        assert_eq!(epoch(1, 0), epoch(1, 0));
        assert_ne!(epoch(1, 0), epoch(2, 0));
        assert_ne!(epoch(1, 0), epoch(1, 1));
        let kept = epoch(1, 0).windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
        assert!(kept < 20, "{kept} neighbours stayed neighbours");
    }

    #[test]
    fn no_samples_have_no_order() {
        assert_eq!(DataOrder::new(0, 1, 0), None);
        assert_eq!(order(1, 1, 0).sample(7, 0), 0);
    }
}
