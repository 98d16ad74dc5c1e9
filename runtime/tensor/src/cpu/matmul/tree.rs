//! Products whose sums are cut into the leaves of a tree: what a row-parallel projection computes.
//!
//! `k` is cut into leaves (logical shards). A leaf is one accumulator an element, as in
//! [`matmul_panels`](super::matmul_panels), over the leaf's ranges of `k` in their order; leaves are added in the balanced binary tree over their index. Both
//! happen tile by tile, so partial results never leave the first cache. The bits are those of one product a leaf
//! and [`tree_sum`](crate::cpu::tree_sum) over them.

use std::ops::Range;

use super::blocks::{Product, Sum};
use super::{check_dims, multiply_runs};
use crate::cpu::simd::simd_level;
use crate::cpu::{Dtype, Mat, MatMut, Panels, SimdLevel, Start};

/// Leaves at most: 2 to the number of levels.
const LEVELS: usize = 6;

/// A number that changes nothing when it is added, not even the sign of a zero.
pub(crate) const NOTHING: f32 = -0.0;

/// The leaves of a sum over `k`, in the order of the tree: each the runs of `k` that it goes over, none where the
/// leaf is empty and is left out of the tree.
///
/// A sum in bfloat16 is cut into blocks, of which one begins with each run ([`Dtype::Bf16`]): a run is what every plan sums in one piece,
/// such as a sequence or the part of a logical shard. A sum in f32 does not know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    runs: Vec<Vec<Range<usize>>>,
    /// With neighbours as one.
    joined: Vec<Vec<Range<usize>>>,
}

impl Leaves {
    /// Leaves of these runs of `k`; empty ones are dropped.
    ///
    /// # Panics
    /// Their number is no power of two, or more than 64.
    pub fn new(leaves: impl IntoIterator<Item = Vec<Range<usize>>>) -> Self {
        let filled =
            |ranges: Vec<Range<usize>>| ranges.into_iter().filter(|range| !range.is_empty()).collect();
        let runs: Vec<Vec<_>> = leaves.into_iter().map(filled).collect();
        let count = runs.len();
        assert!(count.is_power_of_two() && count <= 1 << LEVELS, "{count} leaves have no balanced tree");
        let joined = runs.iter().map(|runs| join_neighbours(runs)).collect();
        Self { runs, joined }
    }

    /// How many there are, empty ones included.
    pub fn count(&self) -> usize {
        self.runs.len()
    }

    /// The runs of each leaf, as a sum of `dtype` knows them.
    pub(crate) fn runs(&self, dtype: Dtype) -> &[Vec<Range<usize>>] {
        match dtype {
            Dtype::F32 => &self.joined,
            Dtype::Bf16 => &self.runs,
        }
    }

    /// The runs of the only leaf, of a sum over `terms`.
    ///
    /// # Panics
    /// There are other leaves, or a run lies beyond the terms.
    pub(crate) fn only(&self, dtype: Dtype, terms: usize) -> &[Range<usize>] {
        assert_eq!(self.count(), 1, "leaves of a sum that is one");
        assert!(self.end() <= terms, "a run ends at {} of {terms} terms", self.end());
        &self.runs(dtype)[0]
    }

    /// Levels of the tree above its leaves.
    pub(super) fn levels(&self) -> usize {
        self.count().ilog2() as usize
    }

    pub(crate) fn end(&self) -> usize {
        self.runs.iter().flatten().map(|range| range.end).max().unwrap_or(0)
    }
}

/// Runs of which none begins where the one before it ends.
fn join_neighbours(runs: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => joined.push(run.clone()),
        }
    }
    joined
}

/// `c = (c +) a · b`, the sum over the runs of `leaves`, which are one leaf: it continues from `c`.
///
/// # Panics
/// The dims disagree, there are other leaves, or a run lies beyond `k`.
pub fn matmul_leaf(a: Mat<'_>, b: &Panels, leaves: &Leaves, c: &mut MatMut<'_>, start: Start) {
    multiply_runs(simd_level(), a, b, leaves.only(b.dtype(), a.cols), c, start);
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
    check_dims(a, b, c);
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
    use crate::cpu::{Counter, Purpose, matmul, tree_sum};

    fn random(stream: u32, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Counter::new(3, 0, 0, stream, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values
    }

    /// One product a leaf, range by range, then the sum in the tree.
    fn reference(a: Mat<'_>, b: Mat<'_>, leaves: &Leaves) -> Vec<f32> {
        let mut partials = Vec::new();
        for ranges in &leaves.runs {
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
