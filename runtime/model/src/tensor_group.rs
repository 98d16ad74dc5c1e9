//! The seam through which tensor parallelism is applied to the model from outside.
//!
//! Layers compute one logical shard at a time and hand partial results to [`sum_shards`], which
//! adds this rank's shards in a balanced binary tree; a [`TensorGroup`] adds the upper part of the
//! same tree over the ranks of the group. [`Alone`] is the group of one rank that owns every shard.

use std::error::Error;
use std::ops::Range;

use sixfold_tensor::{Stream, ViewMut};

use crate::site::Site;

/// A number that changes nothing when it is added, not even the sign of a zero: what a rank whose
/// shards are all empty hands to the group.
pub const NOTHING: f32 = -0.0;

/// A collective of the tensor-parallel group failed. The step is lost; the gang is placed anew.
#[derive(Debug, thiserror::Error)]
#[error("the tensor-parallel group failed: {0}")]
pub struct GroupError(#[source] pub Box<dyn Error + Send + Sync>);

/// The ranks that own the logical shards of the same layers. Every rank calls the same methods
/// with the same lengths in the same order. The numbers lie on the device of `stream`.
pub trait TensorGroup {
    /// Replaces each rank's partial sum by the sum over the group, in the tree's order.
    ///
    /// # Errors
    /// [`GroupError`] if a peer is gone or disagrees about the length.
    fn sum(&mut self, stream: &Stream, partial: ViewMut<'_>) -> Result<(), GroupError>;

    /// Replaces each rank's values by the largest of the group.
    ///
    /// # Errors
    /// As [`Self::sum`].
    fn max(&mut self, stream: &Stream, values: ViewMut<'_>) -> Result<(), GroupError>;

    /// The first half of [`Self::sum`], with the same bits: of the pieces `cuts[i]..cuts[i + 1]` of `partial`, one for
    /// each rank, this rank's ([`Self::piece`]) becomes the sum over the group. The rest holds anything afterwards.
    ///
    /// # Errors
    /// As [`Self::sum`].
    fn reduce_scatter(
        &mut self,
        stream: &Stream,
        partial: ViewMut<'_>,
        cuts: &[usize],
    ) -> Result<(), GroupError>;

    /// The second half: gives every rank the pieces of all others.
    ///
    /// # Errors
    /// As [`Self::sum`].
    fn all_gather(&mut self, stream: &Stream, whole: ViewMut<'_>, cuts: &[usize]) -> Result<(), GroupError>;

    /// Which piece the group's rank `index` has. Ranks are counted in the order of their logical shards.
    fn piece(&self, index: usize) -> usize;

    /// Says what the sums that follow are a part of, so that a group can tell where a number went wrong.
    fn enter(&mut self, _site: Site) {}
}

/// The group of a rank that owns every logical shard.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl TensorGroup for Alone {
    fn sum(&mut self, _stream: &Stream, _partial: ViewMut<'_>) -> Result<(), GroupError> {
        Ok(())
    }

    fn max(&mut self, _stream: &Stream, _values: ViewMut<'_>) -> Result<(), GroupError> {
        Ok(())
    }

    fn reduce_scatter(
        &mut self,
        _stream: &Stream,
        _partial: ViewMut<'_>,
        _cuts: &[usize],
    ) -> Result<(), GroupError> {
        Ok(())
    }

    fn all_gather(
        &mut self,
        _stream: &Stream,
        _whole: ViewMut<'_>,
        _cuts: &[usize],
    ) -> Result<(), GroupError> {
        Ok(())
    }

    fn piece(&self, index: usize) -> usize {
        index
    }
}

/// Adds the leaves of `shards` in a balanced binary tree over the index; empty leaves are skipped.
///
/// `shards` is a power of two long. A leaf is computed only when its turn comes, so that at most
/// `log2(shards) + 1` of them exist at a time.
pub fn sum_shards<T>(
    shards: Range<usize>,
    leaf: &mut impl FnMut(usize) -> Option<T>,
    add: &impl Fn(&mut T, T),
) -> Option<T> {
    if shards.is_empty() {
        return None;
    }
    if shards.len() == 1 {
        return leaf(shards.start);
    }
    let middle = shards.start + shards.len() / 2;
    let left = sum_shards(shards.start..middle, leaf, add);
    let right = sum_shards(middle..shards.end, leaf, add);
    match (left, right) {
        (Some(mut left), Some(right)) => {
            add(&mut left, right);
            Some(left)
        }
        (left, right) => left.or(right),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(leaves: &[Option<f32>]) -> Option<f32> {
        sum_shards(0..leaves.len(), &mut |index| leaves[index], &|left, right| *left += right)
    }

    #[test]
    fn adds_neighbours_first() {
        // (1 + 2^-24) rounds to 1, and 2^-24 + 2^-24 does not vanish against it.
        let small = 2.0_f32.powi(-24);
        assert_eq!(sum(&[Some(1.0), Some(small), Some(small), Some(small)]), Some(1.0 + 2.0 * small));
        assert_eq!(sum(&[Some(small), Some(small), Some(1.0), Some(small)]), Some(1.0 + 2.0 * small));
    }

    #[test]
    fn empty_leaves_leave_no_trace() {
        assert_eq!(sum(&[None, Some(-0.0), None, None]).map(f32::to_bits), Some((-0.0_f32).to_bits()));
        assert_eq!(sum(&[None, None]), None);
    }

    #[test]
    fn nothing_is_the_identity_of_addition() {
        for value in [0.0_f32, -0.0, 1.5, -3.0e-40, f32::INFINITY] {
            assert_eq!((value + NOTHING).to_bits(), value.to_bits());
        }
    }
}
