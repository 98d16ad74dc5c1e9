//! The tokens that were asked last.

use std::collections::VecDeque;
use std::collections::btree_map::Entry;

use crate::counts::SampleCounts;

/// The newest observations that together have at least so many tokens.
///
/// Observations are kept whole: the oldest one goes once the others are enough. As each of their
/// entries counts a token at least, memory is bounded by the window and one observation.
#[derive(Clone, Debug)]
pub struct AskedWindow {
    tokens_wanted: u64,
    observations: VecDeque<SampleCounts>,
    counts: SampleCounts,
    tokens: u64,
}

impl AskedWindow {
    /// An empty window of `tokens_wanted` tokens.
    pub fn new(tokens_wanted: u64) -> Self {
        Self { tokens_wanted, observations: VecDeque::new(), counts: SampleCounts::new(), tokens: 0 }
    }

    /// Adds what was asked, and forgets what is too old.
    pub fn push(&mut self, mut observation: SampleCounts) {
        observation.retain(|_, count| *count > 0);
        if observation.is_empty() {
            return;
        }
        for (&token, &count) in &observation {
            *self.counts.entry(token).or_default() += count;
        }
        self.tokens += tokens_of(&observation);
        self.observations.push_back(observation);
        while self.oldest_tokens().is_some_and(|oldest| self.tokens - oldest >= self.tokens_wanted) {
            self.forget_oldest();
        }
    }

    fn oldest_tokens(&self) -> Option<u64> {
        self.observations.front().map(tokens_of)
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.observations.pop_front() else { return };
        self.tokens -= tokens_of(&oldest);
        for (token, count) in oldest {
            if let Entry::Occupied(mut entry) = self.counts.entry(token) {
                *entry.get_mut() -= count;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// Tokens in the window.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// How often each token was asked.
    pub fn counts(&self) -> &SampleCounts {
        &self.counts
    }
}

fn tokens_of(observation: &SampleCounts) -> u64 {
    observation.values().sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keeps_the_newest_observations_that_are_enough() {
        let mut window = AskedWindow::new(10);
        window.push([(1, 6)].into());
        window.push([(2, 6)].into());
        assert_eq!((window.tokens(), window.counts().len()), (12, 2), "without the first it is too small");
        window.push([(2, 3), (3, 1), (4, 0)].into());
        assert_eq!(window.counts(), &[(2, 9), (3, 1)].into());
        window.push([(5, 1_000_000)].into());
        assert_eq!(window.counts(), &[(5, 1_000_000)].into());
        (0..10).for_each(|_| window.push([(1, 1)].into()));
        assert_eq!(window.counts(), &[(1, 10)].into(), "a flood goes like everything else");
    }

    proptest! {
        #[test]
        fn counts_are_those_of_its_observations(
            observations in prop::collection::vec(prop::collection::btree_map(0_u32..20, 0_u64..9, 0..6), 0..60),
            wanted in 1_u64..50,
        ) {
            let mut window = AskedWindow::new(wanted);
            for (last, observation) in observations.iter().enumerate() {
                window.push(observation.clone());
                let mut expected = SampleCounts::new();
                for observation in observations[..=last].iter().rev() {
                    if expected.values().sum::<u64>() >= wanted {
                        break;
                    }
                    for (&token, &count) in observation.iter().filter(|(_, count)| **count > 0) {
                        *expected.entry(token).or_default() += count;
                    }
                }
                prop_assert_eq!(window.counts(), &expected);
                prop_assert_eq!(window.tokens(), expected.values().sum::<u64>());
                prop_assert!(window.observations.len() as u64 <= wanted);
            }
        }
    }
}
