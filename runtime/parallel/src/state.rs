//! Which numbers of its units' state a rank keeps, and which of them it saves: [`StateParts`].

use std::collections::BTreeMap;
use std::ops::Range;

use sixfold_collective::TreeGroup;
use sixfold_model::{Geometry, UnitId, is_finished_by_sum};
use sixfold_topology::{ParallelPlan, Rank};

use crate::partition::Partition;
use crate::slice::RankSlice;

/// Runs of numbers of units, none of them empty; what is not in it has none.
pub type UnitParts = BTreeMap<UnitId, Range<usize>>;

/// The parts of a rank's units whose state it keeps or saves. They follow from the plan alone. Every rank has all
/// parameters of its units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateParts {
    /// Whose moments the rank keeps: those that it updates ([`Trainer::share_optimizer`](crate::Trainer::share_optimizer)),
    /// or all.
    pub moments: UnitParts,
    /// Whose parameters and moments the rank saves. The ranks of a data-parallel group, whose states are equal, save
    /// each number once among them, and about as many each; no rank saves moments that it does not keep.
    pub saved: UnitParts,
}

impl StateParts {
    /// The parts of `rank`, which holds `slice`; `shared` says whether replicas share the optimizer. The plan has been
    /// validated against the job.
    pub fn new(
        geometry: &Geometry,
        plan: &ParallelPlan,
        slice: &RankSlice,
        rank: Rank,
        shared: bool,
    ) -> Self {
        let (parameters, sums) = (slice.parameter_index(geometry), slice.gradient_index(geometry));
        let members = plan.data_parallel;
        let piece = TreeGroup::piece_of(plan.coordinates(rank).data, members);
        let partition = Partition::new(geometry, &parameters, &sums, members, piece);
        let whole = || parameters.iter().map(|(unit, range)| (unit, 0..range.len()));
        let is_common = |unit: UnitId| !is_finished_by_sum(geometry, unit);
        let updated = partition.parts().clone();
        // What every member updates is cut as if it were one run of numbers.
        let total: usize = whole().filter(|(unit, _)| is_common(*unit)).map(|(_, all)| all.len()).sum();
        let own = piece * total / members..(piece + 1) * total / members;
        let mut saved = updated.clone();
        let mut before = 0;
        for (unit, all) in whole().filter(|(unit, _)| is_common(*unit)) {
            let cut = |at: usize| at.clamp(before, before + all.len()) - before;
            saved.insert(unit, cut(own.start)..cut(own.end));
            before += all.len();
        }
        saved.retain(|_, part| part.start < part.end);
        Self { moments: if shared { updated } else { whole().collect() }, saved }
    }
}

#[cfg(test)]
mod tests {
    use sixfold_model::ModelConfig;

    use super::*;
    use crate::slice::balanced_layout;
    use crate::verify::small::config;

    #[test]
    fn replicas_save_each_number_once_and_no_moments_that_they_do_not_keep() {
        let copies = ModelConfig { num_key_value_heads: 1, ..config() };
        let tied = ModelConfig { tie_word_embeddings: true, vocab_size: 900, ..config() };
        for (name, config) in [("plain", config()), ("copies", copies), ("tied", tied)] {
            let geometry = Geometry::new(config, 4).unwrap();
            for plan in ["dp1", "dp2", "dp8", "dp4.tp2", "dp2.tp2.pp2"] {
                let plan: ParallelPlan = plan.parse().unwrap();
                for shared in [false, true] {
                    for rank in plan.ranks() {
                        assert_group_saves_once(&geometry, &plan, rank, shared, name);
                    }
                }
            }
        }
    }

    fn assert_group_saves_once(
        geometry: &Geometry,
        plan: &ParallelPlan,
        rank: Rank,
        shared: bool,
        name: &str,
    ) {
        let layout = balanced_layout(geometry, plan, if plan.pipeline_parallel > 1 { 2 } else { 1 }).unwrap();
        let slice = RankSlice::new(geometry, plan, &layout, rank);
        let of = |rank| StateParts::new(geometry, plan, &slice, rank, shared);
        let group: Vec<_> = plan.data_group(rank).into_iter().map(of).collect();
        let index = slice.parameter_index(geometry);
        for (unit, range) in index.iter() {
            let mut saved: Vec<_> = group.iter().filter_map(|parts| parts.saved.get(&unit)).collect();
            saved.sort_by_key(|part| part.start);
            let end = saved.iter().try_fold(0, |end, part| (part.start == end).then_some(part.end));
            assert_eq!(end, Some(range.len()), "{name}, {plan}, {unit}");
        }
        let held: usize = group.iter().flat_map(|parts| parts.moments.values()).map(Range::len).sum();
        for StateParts { moments, saved } in &group {
            for (unit, part) in saved {
                let kept = &moments[unit];
                assert!(kept.start <= part.start && part.end <= kept.end, "{name}, {plan}, {unit}");
            }
            assert!(shared || moments.len() == index.iter().count());
        }
        let copies =
            if shared { held < index.len() * group.len() } else { held == index.len() * group.len() };
        assert!(copies || group.len() == 1, "{name}, {plan}: {held} moments");
    }

    #[test]
    fn replicas_save_about_as_much_each() {
        for tied in [false, true] {
            let config = ModelConfig { vocab_size: 9000, tie_word_embeddings: tied, ..config() };
            let geometry = Geometry::new(config, 4).unwrap();
            let slice = RankSlice::whole(&geometry);
            let whole = slice.parameter_index(&geometry).len();
            let plan: ParallelPlan = "dp4".parse().unwrap();
            for rank in plan.ranks() {
                let saved = StateParts::new(&geometry, &plan, &slice, rank, true).saved;
                let saved: usize = saved.values().map(Range::len).sum();
                let share = saved as f64 / whole as f64;
                assert!((share - 0.25).abs() < 0.03, "{rank} saves {share}");
            }
        }
    }
}
