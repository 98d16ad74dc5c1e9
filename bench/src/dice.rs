//! Random choices that a seed decides: [`Dice`].

/// SplitMix64 of a seed.
pub struct Dice(u64);

impl Dice {
    /// The dice of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, or 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound.max(1)
    }

    /// Whether it comes up heads.
    pub fn heads(&mut self) -> bool {
        self.below(2) == 0
    }

    /// One of `all`.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_all_choices_and_each_comes_up() {
        let choices = |seed| {
            let mut dice = Dice::new(seed);
            (0..100).map(|_| *dice.pick(&[1, 2, 3])).collect::<Vec<_>>()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
        assert!([1, 2, 3].iter().all(|one| choices(1).contains(one)));
        assert_eq!(Dice::new(1).below(0), 0);
    }
}
