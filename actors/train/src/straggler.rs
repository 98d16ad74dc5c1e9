//! Which rank holds the others up, step by step: [`Stragglers`], a pure state machine.

use sixfold_parallel::RankTime;
use sixfold_topology::Rank;

/// So much slower than the median is a rank that is named ...
const RATIO: f32 = 1.5;
/// ... by at least so much, since shorter steps are not worth a word ...
const EXCESS_MS: f32 = 2.0;
/// ... in so many steps one after another.
const STEPS: u32 = 10;

/// The rank that computed longest in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slowest {
    pub(crate) rank: Rank,
    /// Its time, without what it waited for others.
    pub(crate) compute_ms: f32,
    /// The median rank's.
    pub(crate) median_ms: f32,
}

impl Slowest {
    /// Its time as a multiple of the median rank's.
    pub(crate) fn to_median(self) -> f32 {
        self.compute_ms / self.median_ms.max(f32::MIN_POSITIVE)
    }

    /// Of the times of all ranks; of one rank there is nothing to say.
    fn of(times: &[RankTime]) -> Option<Self> {
        let slowest = (0..).zip(times).max_by(|(_, a), (_, b)| a.compute_ms.total_cmp(&b.compute_ms))?;
        let median_ms = median(times.iter().map(|time| time.compute_ms))?;
        Some(Self { rank: Rank(slowest.0), compute_ms: slowest.1.compute_ms, median_ms })
            .filter(|_| times.len() > 1)
    }
}

/// A rank that is slower than the others for long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Straggler {
    pub(crate) rank: Rank,
    /// How much slower it was on average, as a multiple of the median.
    pub(crate) to_median: f32,
    /// In how many steps, one after another.
    pub(crate) steps: u32,
}

/// Watches for a rank that stays the slowest.
#[derive(Debug, Default)]
pub(crate) struct Stragglers {
    rank: Rank,
    steps: u32,
    /// The sum over those steps of how much slower the rank was.
    ratios: f32,
}

impl Stragglers {
    /// Takes the times of a step. Returns the slowest rank, and a straggler once it has been one for long.
    ///
    /// A rank whose part of the model is larger than others' is slow by the plan, not by its machine: a straggler
    /// also takes longer for each operation.
    pub(crate) fn after_step(&mut self, times: &[RankTime]) -> (Option<Slowest>, Option<Straggler>) {
        let Some(slowest) = Slowest::of(times) else { return (None, None) };
        let for_operation = |time: &RankTime| time.compute_ms / time.gflop.max(f32::MIN_POSITIVE);
        let usual = median(times.iter().map(for_operation)).unwrap_or_default();
        let is_slow = slowest.to_median() > RATIO
            && slowest.compute_ms - slowest.median_ms > EXCESS_MS
            && for_operation(&times[slowest.rank.index()]) > RATIO * usual;
        if !is_slow {
            *self = Self::default();
            return (Some(slowest), None);
        }
        if self.rank != slowest.rank {
            *self = Self { rank: slowest.rank, ..Self::default() };
        }
        self.steps += 1;
        self.ratios += slowest.to_median();
        let straggler =
            Straggler { rank: self.rank, to_median: self.ratios / self.steps as f32, steps: self.steps };
        (Some(slowest), (self.steps == STEPS).then_some(straggler))
    }
}

/// The lower of the two in the middle where there are two: of two ranks, the faster one is usual.
fn median(values: impl Iterator<Item = f32>) -> Option<f32> {
    let mut values: Vec<f32> = values.collect();
    values.sort_by(f32::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(compute_ms: &[f32]) -> Vec<RankTime> {
        compute_ms
            .iter()
            .map(|&compute_ms| RankTime { compute_ms, gflop: 1.0, ..RankTime::default() })
            .collect()
    }

    fn named_at(steps: &[Vec<RankTime>]) -> Vec<(usize, Straggler)> {
        let mut stragglers = Stragglers::default();
        let each = steps.iter().enumerate();
        each.filter_map(|(step, times)| Some((step, stragglers.after_step(times).1?))).collect()
    }

    #[test]
    fn the_slowest_rank_is_set_beside_the_median() {
        let (slowest, _) = Stragglers::default().after_step(&times(&[10.0, 12.0, 30.0, 11.0]));
        assert_eq!(slowest, Some(Slowest { rank: Rank(2), compute_ms: 30.0, median_ms: 11.0 }));
        assert_eq!(Stragglers::default().after_step(&times(&[10.0])), (None, None));
        assert_eq!(Stragglers::default().after_step(&[]), (None, None));
    }

    #[test]
    fn a_rank_that_stays_slow_is_named_once() {
        let slow = vec![times(&[10.0, 10.0, 10.0, 22.5]); 25];
        let named = Straggler { rank: Rank(3), to_median: 2.25, steps: STEPS };
        assert_eq!(named_at(&slow), [(9, named)]);
        assert_eq!(
            named_at(&vec![times(&[50.0, 100.0]); 12]).len(),
            1,
            "of two ranks, the faster one is usual"
        );
    }

    #[test]
    fn a_slow_step_in_between_a_short_one_and_another_rank_are_no_straggler() {
        let mut changing = vec![times(&[10.0, 10.0, 40.0]); 9];
        changing.push(times(&[10.0, 10.0, 12.0]));
        changing.extend(vec![times(&[10.0, 10.0, 40.0]); 9]);
        changing.extend(vec![times(&[40.0, 10.0, 10.0]); 9]);
        assert_eq!(named_at(&changing), []);
        assert_eq!(named_at(&vec![times(&[1.0, 1.0, 2.5]); 20]), [], "a millisecond");
    }

    #[test]
    fn a_rank_with_more_to_do_is_no_straggler() {
        let mut uneven = times(&[10.0, 10.0, 10.0, 22.0]);
        uneven[3].gflop = 2.0;
        assert_eq!(named_at(&vec![uneven; 20]), []);
    }
}
