//! Numbers of a seed: [`Random`].

use std::ops::Range;

use sixfold_tensor::{Counter, Purpose};

/// The numbers of a seed. Of every fourth seed some are infinite, undefined, zero or close to it.
pub(crate) struct Random {
    seed: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed }
    }

    fn counter(&self, sample: u64) -> Counter {
        Counter::new(self.seed, 0, sample, 0, Purpose::INITIALISATION)
    }

    /// A whole number.
    pub(crate) fn from(&self, sample: u64, range: Range<usize>) -> usize {
        range.start + self.counter(sample).word(0) as usize % range.len()
    }

    /// Normal numbers of this deviation.
    pub(crate) fn values(&self, sample: u64, len: usize, deviation: f32) -> Vec<f32> {
        const SPECIAL: [f32; 8] =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -3e38, 1e-20];
        let mut values = vec![0.0; len];
        self.counter(sample).fill_normal(1, &mut values);
        values.iter_mut().for_each(|value| *value *= deviation);
        if self.seed % 4 == 3 {
            let places = (0..len).step_by(211).skip(1);
            places.for_each(|place| values[place] = SPECIAL[self.from(place as u64, 0..SPECIAL.len())]);
        }
        values
    }
}
