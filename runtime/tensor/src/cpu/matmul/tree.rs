//! Products whose sums are cut into the leaves of a tree: what a row-parallel projection computes.
//!
//! `k` is cut into leaves (logical shards). A leaf is one accumulator an element, as in
//! [`matmul_panels`](super::matmul_panels), over the leaf's ranges of `k` in their order; leaves are added in the balanced binary tree over their index. Both
//! happen tile by tile, so partial results never leave the first cache. The bits are those of one product a leaf
//! and [`tree_sum`](crate::cpu::tree_sum) over them.

use std::ops::Range;

use super::blocks::{Product, Sum};
use crate::cpu::simd::simd_level;
use crate::cpu::{Mat, MatMut, Panels, SimdLevel, Start};

/// Leaves at most: 2 to the number of levels.
const LEVELS: usize = 6;

/// A number that changes nothing when it is added, not even the sign of a zero.
pub(crate) const NOTHING: f32 = -0.0;

/// The leaves of a sum over `k`, in the order of the tree: each the ranges of `k` that it goes over, none where the
/// leaf is empty and is left out of the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaves(Vec<Vec<Range<usize>>>);

impl Leaves {
    /// Leaves of these ranges of `k`; empty ranges are dropped.
    ///
    /// # Panics
    /// Their number is no power of two, or more than 64.
    pub fn new(leaves: impl IntoIterator<Item = Vec<Range<usize>>>) -> Self {
        let filled =
            |ranges: Vec<Range<usize>>| ranges.into_iter().filter(|range| !range.is_empty()).collect();
        let leaves: Vec<Vec<_>> = leaves.into_iter().map(filled).collect();
        let count = leaves.len();
        assert!(count.is_power_of_two() && count <= 1 << LEVELS, "{count} leaves have no balanced tree");
        Self(leaves)
    }

    /// How many there are, empty ones included.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The ranges of each leaf.
    pub(crate) fn ranges(&self) -> &[Vec<Range<usize>>] {
        &self.0
    }

    /// Levels of the tree above its leaves.
    pub(super) fn levels(&self) -> usize {
        self.0.len().ilog2() as usize
    }

    /// The most terms that go into one accumulator without a pause.
    pub(super) fn longest(&self) -> usize {
        self.0.iter().flatten().map(Range::len).max().unwrap_or(0)
    }

    pub(crate) fn end(&self) -> usize {
        self.0.iter().flatten().map(|range| range.end).max().unwrap_or(0)
    }
}

/// `c = a · b`, the sum over `k` cut into `leaves`, or `c += a · b` when `c` is the sum of other leaves
/// ([`Start::FromC`]): the root of a larger tree. Where all leaves are empty, a `c` that is not added to is filled with -0,
/// which changes nothing when it is added.
///
/// # Panics
/// The dims disagree, or a leaf lies beyond `k`.
pub fn matmul_tree(a: Mat<'_>, b: &Panels, leaves: &Leaves, c: &mut MatMut<'_>, start: Start) {
    matmul_tree_at(simd_level(), a, b, leaves, c, start);
}

pub(crate) fn matmul_tree_at(
    level: SimdLevel,
    a: Mat<'_>,
    b: &Panels,
    leaves: &Leaves,
    c: &mut MatMut<'_>,
    start: Start,
) {
    assert_eq!(
        (a.cols, a.rows, b.cols()),
        (b.rows(), c.rows, c.cols),
        "dims of a product: a k, c rows, c columns"
    );
    assert!(leaves.end() <= a.cols, "a leaf ends at {} of {} terms", leaves.end(), a.cols);
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    if leaves.end() == 0 {
        if start == Start::Zero {
            (0..c.rows).for_each(|row| c.row_mut(row).fill(NOTHING));
        }
        return;
    }
    Product { level, b, sum: Sum::Tree(leaves, start) }.run(a, c);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Dtype, Purpose, matmul, tree_sum};

    fn random(stream: u32, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Counter::new(3, 0, 0, stream, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values
    }

    /// One product a leaf, range by range, then the sum in the tree.
    fn reference(a: Mat<'_>, b: Mat<'_>, leaves: &Leaves) -> Vec<f32> {
        let mut partials = Vec::new();
        for ranges in leaves.0.iter() {
            let mut partial = vec![NOTHING; a.rows * b.cols];
            let mut start = Start::Zero;
            for range in ranges {
                let (a, b) = (a.columns(range.clone()), b.row_range(range.clone()));
                matmul(a, b, &mut MatMut::row_major(&mut partial, a.rows, b.cols), start);
                start = Start::FromC;
            }
            partials.push(partial);
        }
        tree_sum(&mut partials.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        partials.swap_remove(0)
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn has_the_bits_of_a_product_a_leaf_and_a_tree_sum() {
        let cuts: [Vec<Vec<Range<usize>>>; 5] = [
            vec![vec![0..57]],
            vec![vec![0..13], vec![13..57]],
            vec![vec![0..4, 30..31], vec![4..8, 31..40], vec![8..9, 40..57], vec![9..30]],
            vec![vec![], vec![0..10], vec![10..10], vec![10..57]],
            vec![vec![0..9], vec![9..20], vec![], vec![]],
        ];
        for (rows, cols) in [(1, 1), (3, 40), (48, 33), (49, 32), (131, 77)] {
            let (a, b) = (random(0, rows * 57), random(1, 57 * cols));
            let (a, b) = (Mat::row_major(&a, rows, 57), Mat::row_major(&b, 57, cols));
            for cut in &cuts {
                let leaves = Leaves::new(cut.clone());
                let expected = reference(a, b, &leaves);
                for level in SimdLevel::available() {
                    let mut c = vec![7.0; rows * cols];
                    let mut out = MatMut::row_major(&mut c, rows, cols);
                    let panels = Panels::pack(b, Dtype::F32);
                    matmul_tree_at(level, a, &panels, &leaves, &mut out, Start::Zero);
                    assert_eq!(bits(&c), bits(&expected), "{rows}x{cols} {cut:?} {}", level.name());
                    let mut added = random(2, rows * cols);
                    let root: Vec<f32> =
                        added.iter().zip(&expected).map(|(left, right)| left + right).collect();
                    let mut out = MatMut::row_major(&mut added, rows, cols);
                    matmul_tree_at(level, a, &panels, &leaves, &mut out, Start::FromC);
                    assert_eq!(bits(&added), bits(&root), "{rows}x{cols} {cut:?} {}", level.name());
                }
            }
        }
    }

    #[test]
    fn no_leaf_at_all_changes_nothing_when_it_is_added() {
        let mut c = [7.0];
        let (a, b) = (Mat::row_major(&[], 1, 0), Panels::pack(Mat::row_major(&[], 0, 1), Dtype::F32));
        for (start, expected) in [(Start::FromC, 7.0), (Start::Zero, -0.0_f32)] {
            let none = Leaves::new([vec![], vec![]]);
            matmul_tree(a, &b, &none, &mut MatMut::row_major(&mut c, 1, 1), start);
            assert_eq!(c[0].to_bits(), expected.to_bits());
        }
    }

    #[test]
    #[should_panic(expected = "no balanced tree")]
    fn three_leaves_are_refused() {
        Leaves::new(vec![Vec::new(); 3]);
    }
}
