//! Products whose sums are cut into the leaves of a tree: what a row-parallel projection computes.
//!
//! `k` is cut into leaves (logical shards). A leaf is one accumulator an element, as in
//! [`matmul_panels`](super::matmul_panels), over the leaf's ranges of `k` in their order; leaves are added in the balanced binary tree over their index. Both
//! happen tile by tile, so partial results never leave the first cache. The bits are those of one product a leaf
//! and [`tree_sum`](crate::tree_sum) over them.

use std::ops::Range;

use super::{NARROW_ROWS, PACKED_ROWS, exchange, pack_rows, wide};
use crate::simd::simd_level;
use crate::tile::{Operands, RowLayout, TILE_ROWS, multiply};
use crate::{Mat, MatMut, PANEL_COLUMNS, Panels, SimdLevel, Start, threads};

/// Elements of one block of panels, which stays in L2 while rows go by: as many as in a plain product.
const BLOCK_ELEMENTS: usize = super::PANEL_BLOCK * super::K_BLOCK * PANEL_COLUMNS;
/// Elements of a tile.
const TILE: usize = TILE_ROWS * PANEL_COLUMNS;
/// Leaves at most: 2 to the number of levels.
const LEVELS: usize = 6;

/// A number that changes nothing when it is added, not even the sign of a zero.
const NOTHING: f32 = -0.0;

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

    fn end(&self) -> usize {
        self.0.iter().flatten().map(|range| range.end).max().unwrap_or(0)
    }
}

/// `c = a · b`, the sum over `k` cut into `leaves`; where all of them are empty, `c` is filled with -0, which changes
/// nothing when it is added.
///
/// # Panics
/// The dims disagree, or a leaf lies beyond `k`.
pub fn matmul_tree(a: Mat<'_>, b: &Panels, leaves: &Leaves, c: &mut MatMut<'_>) {
    matmul_tree_at(simd_level(), a, b, leaves, c);
}

pub(crate) fn matmul_tree_at(level: SimdLevel, a: Mat<'_>, b: &Panels, leaves: &Leaves, c: &mut MatMut<'_>) {
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
        return (0..c.rows).for_each(|row| c.row_mut(row).fill(NOTHING));
    }
    let product = Product { level, b, leaves };
    if c.rows <= NARROW_ROWS { product.narrow(a, c) } else { wide(a, c, |a, c| product.wide_rows(a, c)) }
}

/// A tile's sum, and one for each level of the tree that waits for its other half.
struct Tiles {
    sum: [f32; TILE],
    spare: [[f32; TILE]; LEVELS],
}

impl Default for Tiles {
    fn default() -> Self {
        Self { sum: [0.0; TILE], spare: [[0.0; TILE]; LEVELS] }
    }
}

struct Product<'a> {
    level: SimdLevel,
    b: &'a Panels,
    leaves: &'a Leaves,
}

impl Product<'_> {
    /// Few rows: each task takes some panels and all rows.
    fn narrow(&self, a: Mat<'_>, c: &mut MatMut<'_>) {
        let (rows, cost) = (c.rows, c.rows * a.cols * c.cols);
        let mut packed = PACKED_ROWS.take();
        pack_rows(a, &mut packed);
        let len = PANEL_COLUMNS * rows;
        let mut outputs = vec![0.0f32; self.b.count() * len];
        let panels_a_task = self.b.count().div_ceil(threads::parts(cost));
        threads::for_each_chunk(&mut outputs, panels_a_task * len, cost, |task, outputs| {
            let mut tiles = Tiles::default();
            for (offset, output) in outputs.chunks_exact_mut(len).enumerate() {
                let panel = self.b.panel(task * panels_a_task + offset);
                for (a_tile, c_tile) in packed.chunks(a.cols * TILE_ROWS).zip(output.chunks_mut(TILE)) {
                    let tile = self.tile(a_tile, a.cols, panel, &mut tiles);
                    c_tile.copy_from_slice(&tile[..c_tile.len()]);
                }
            }
        });
        PACKED_ROWS.set(packed);
        exchange(c, &mut outputs, |c_row, output| c_row.copy_from_slice(output));
    }

    fn wide_rows(&self, a: Mat<'_>, mut c: MatMut<'_>) {
        let mut packed = PACKED_ROWS.take();
        pack_rows(a, &mut packed);
        let mut tiles = Tiles::default();
        let panels_a_block = (BLOCK_ELEMENTS / (a.cols * PANEL_COLUMNS)).max(1);
        for first_panel in (0..self.b.count()).step_by(panels_a_block) {
            let panels = first_panel..self.b.count().min(first_panel + panels_a_block);
            for (index, a_tile) in packed.chunks(a.cols * TILE_ROWS).enumerate() {
                for panel in panels.clone() {
                    let tile = self.tile(a_tile, a.cols, self.b.panel(panel), &mut tiles);
                    let (first_row, first_column) = (index * TILE_ROWS, panel * PANEL_COLUMNS);
                    let columns = PANEL_COLUMNS.min(c.cols - first_column);
                    for row in 0..a_tile.len() / a.cols {
                        c.row_mut(first_row + row)[first_column..][..columns]
                            .copy_from_slice(&tile[row * PANEL_COLUMNS..][..columns]);
                    }
                }
            }
        }
        PACKED_ROWS.set(packed);
    }

    /// The sum of all leaves for the rows of a packed tile of `depth` terms and one panel.
    fn tile<'a>(&self, a: &[f32], depth: usize, panel: &[f32], tiles: &'a mut Tiles) -> &'a [f32; TILE] {
        self.subtree(&self.leaves.0, a, a.len() / depth, panel, &mut tiles.sum, &mut tiles.spare);
        &tiles.sum
    }

    /// The sum of an aligned run of leaves; false where all of them are empty, then `sum` is left as it was.
    fn subtree(
        &self,
        leaves: &[Vec<Range<usize>>],
        a: &[f32],
        rows: usize,
        panel: &[f32],
        sum: &mut [f32; TILE],
        spare: &mut [[f32; TILE]],
    ) -> bool {
        if let [ranges] = leaves {
            return self.leaf(ranges, a, rows, panel, sum);
        }
        let (left, right) = leaves.split_at(leaves.len() / 2);
        let has_left = self.subtree(left, a, rows, panel, sum, spare);
        let Some((other, spare)) = spare.split_first_mut() else { return has_left };
        if !has_left {
            return self.subtree(right, a, rows, panel, sum, spare);
        }
        if self.subtree(right, a, rows, panel, other, spare) {
            let elements = rows * PANEL_COLUMNS;
            sum[..elements].iter_mut().zip(&other[..elements]).for_each(|(sum, other)| *sum += other);
        }
        true
    }

    fn leaf(
        &self,
        ranges: &[Range<usize>],
        a: &[f32],
        rows: usize,
        panel: &[f32],
        sum: &mut [f32; TILE],
    ) -> bool {
        for (number, range) in ranges.iter().enumerate() {
            let operands = Operands {
                depth: range.len(),
                a: &a[range.start * rows..],
                a_layout: RowLayout::Packed,
                a_step: rows,
                b: &panel[range.start * PANEL_COLUMNS..],
                b_step: PANEL_COLUMNS,
                start: if number == 0 { Start::Zero } else { Start::FromC },
            };
            multiply(self.level, rows, operands, sum, PANEL_COLUMNS);
        }
        !ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, Purpose, matmul, tree_sum};

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
                    matmul_tree_at(level, a, &Panels::pack(b), &leaves, &mut out);
                    assert_eq!(bits(&c), bits(&expected), "{rows}x{cols} {cut:?} {}", level.name());
                }
            }
        }
    }

    #[test]
    fn no_leaf_at_all_changes_nothing_when_it_is_added() {
        let mut c = [7.0];
        let (a, b) = (Mat::row_major(&[], 1, 0), Panels::pack(Mat::row_major(&[], 0, 1)));
        matmul_tree(a, &b, &Leaves::new([vec![], vec![]]), &mut MatMut::row_major(&mut c, 1, 1));
        assert_eq!(c[0].to_bits(), (-0.0_f32).to_bits());
    }

    #[test]
    #[should_panic(expected = "no balanced tree")]
    fn three_leaves_are_refused() {
        Leaves::new(vec![Vec::new(); 3]);
    }
}
