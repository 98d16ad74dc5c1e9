//! Which part of the model and of the batch belongs to which coordinate.
//!
//! Layers may be cut anywhere, since a layer's result does not depend on where it is computed
//! ([`PipelineLayout`](crate::PipelineLayout)).
//! Logical shards and data groups are leaves of a balanced binary tree of sums, so they are only
//! cut into aligned subtrees of equal size.

use std::ops::Range;

/// Most data groups that a step's sequences are divided into.
const DATA_GROUPS_MAX: usize = 8;

/// Logical data groups of a step of `sequences`: the largest power of two up to 8 that divides it.
pub fn data_groups(sequences: usize) -> usize {
    if sequences == 0 {
        return 1;
    }
    (1 << sequences.trailing_zeros().min(DATA_GROUPS_MAX.trailing_zeros())) as usize
}

/// Leaves of the aligned subtree that owner `index` of `owners` has. Both counts are powers of two
/// and `owners` is at most `leaves` (see [`ParallelPlan::validate`](crate::ParallelPlan::validate)).
///
/// # Panics
/// If `owners` is zero.
pub fn subtree(leaves: usize, owners: usize, index: usize) -> Range<usize> {
    let size = leaves / owners;
    size * index..size * (index + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn data_groups_are_the_largest_power_of_two_up_to_eight() {
        let groups: Vec<_> = [1, 2, 3, 4, 6, 8, 12, 16, 24, 0].map(data_groups).to_vec();
        assert_eq!(groups, [1, 2, 1, 4, 2, 8, 4, 8, 8, 1]);
    }

    proptest! {
        #[test]
        fn subtrees_are_aligned_and_cover_the_leaves(leaves in 0_u32..7, owners in 0_u32..7) {
            prop_assume!(owners <= leaves);
            let (leaves, owners) = (1 << leaves, 1 << owners);
            let ranges: Vec<_> = (0..owners).map(|index| subtree(leaves, owners, index)).collect();
            let all: Vec<_> = ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..leaves).collect::<Vec<_>>());
            for range in ranges {
                prop_assert!(range.len().is_power_of_two() && range.start % range.len() == 0);
            }
        }
    }
}
