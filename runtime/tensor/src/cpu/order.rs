//! The fixed orders of additions that are not a product: over a row, over blocks, over shards.
//!
//! [`tree_sum`] is the one to read first: it is the sum that makes parallel plans agree.

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::threads;

/// Lanes of a row's sum.
const LANES: usize = 16;

/// Elements of one block of [`sum_of_squares_blocks`].
pub const NORM_BLOCK: usize = 4096;
/// Such blocks of one task.
const TASK_BLOCKS: usize = 16;

/// Adds `parts` in a balanced binary tree over their index and leaves the sum in `parts[0]`; the others end up with
/// partial sums.
///
/// The tree has aligned subtrees: parts `0..2^j` form one, so do `2^j..2·2^j`, and so on (see [`tree_pairs`]). A
/// rank that holds an aligned subtree can therefore add it alone and send one partial. Leave empty shards out of
/// `parts` only if every plan leaves out the same ones.
///
/// # Panics
/// The parts differ in length.
pub fn tree_sum(parts: &mut [&mut [f32]]) {
    for (to, from) in tree_pairs(parts.len()) {
        let (head, tail) = parts.split_at_mut(from);
        crate::cpu::add_assign(head[to], tail[0]);
    }
}

/// The sum of `values` in the tree of [`tree_sum`]; 0 for none.
pub fn tree_sum_scalars(values: &[f32]) -> f32 {
    let mut values = values.to_vec();
    for (to, from) in tree_pairs(values.len()) {
        values[to] += values[from];
    }
    values.first().copied().unwrap_or(0.0)
}

/// The additions `(to, from)` of the tree over `leaves` leaves, in the order in which they may be done.
///
/// Neighbours first, then pairs of pairs: at distance 1, 2, 4 and so on. A leaf without a partner waits for the
/// next level.
pub fn tree_pairs(leaves: usize) -> impl Iterator<Item = (usize, usize)> {
    std::iter::successors(Some(1usize), |distance| distance.checked_mul(2))
        .take_while(move |&distance| distance < leaves)
        .flat_map(move |distance| {
            (0..leaves - distance).step_by(2 * distance).map(move |to| (to, to + distance))
        })
}

/// The sum of a row: element `i` goes to lane `i % 16`, the lanes are folded in halves (0 with 8, then 4, 2, 1).
pub fn lane_sum(row: &[f32]) -> f32 {
    lane_sum_at(simd_level(), row)
}

simd_dispatch!(pub(crate) fn lane_sum_at(row: &[f32]) -> f32 = sum_lanes);

/// Body of [`lane_sum`], for other loops to inline.
#[inline(always)]
pub(crate) fn sum_lanes(row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    fold_lanes(lanes)
}

/// `sum of a[i] * b[i]` in the lanes of [`lane_sum`], each term a fused multiply-add.
#[inline(always)]
pub(crate) fn dot_lanes(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a_chunk, b_chunk) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] = a_chunk[lane].mul_add(b_chunk[lane], lanes[lane]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane = a.mul_add(*b, *lane);
    }
    fold_lanes(lanes)
}

/// The end of every sum in lanes: lane `i` takes lane `i + width` for widths 8, 4, 2, 1.
#[inline(always)]
pub(crate) fn fold_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest of sixteen lanes.
#[inline(always)]
pub(crate) fn largest_lane(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = larger(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `b` if it is larger, else `a`: the same instruction on every level, unlike `f32::max`.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The sum of squares of each block of [`NORM_BLOCK`] elements; the last block may be shorter.
///
/// Blocks are cut inside one (tensor x logical shard), so a rank that holds some of them computes the same numbers.
/// Add them with [`tree_sum_scalars`].
pub fn sum_of_squares_blocks(values: &[f32]) -> Vec<f32> {
    let level = simd_level();
    let mut sums = vec![0.0; values.len().div_ceil(NORM_BLOCK)];
    threads::for_each_chunk(&mut sums, TASK_BLOCKS, values.len(), |task, sums| {
        let blocks = values[task * TASK_BLOCKS * NORM_BLOCK..].chunks(NORM_BLOCK);
        sums.iter_mut().zip(blocks).for_each(|(sum, block)| *sum = sum_of_squares_at(level, block));
    });
    sums
}

simd_dispatch!(pub(crate) fn sum_of_squares_at(block: &[f32]) -> f32 = sum_of_squares);

#[inline(always)]
fn sum_of_squares(block: &[f32]) -> f32 {
    dot_lanes(block, block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Purpose, SimdLevel};

    fn random(len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Counter::new(11, 0, 0, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values
    }

    fn tree_of(leaves: &[Vec<f32>]) -> Vec<f32> {
        let mut leaves = leaves.to_vec();
        tree_sum(&mut leaves.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        leaves.swap_remove(0)
    }

    #[test]
    fn the_tree_adds_neighbours_first() {
        assert_eq!(tree_pairs(6).collect::<Vec<_>>(), [(0, 1), (2, 3), (4, 5), (0, 2), (0, 4)]);
        assert_eq!(tree_pairs(1).count() + tree_pairs(0).count(), 0);
    }

    #[test]
    fn swapping_two_leaves_changes_the_bits() {
        let values = random(4 * 64);
        let leaves: Vec<Vec<f32>> = values.chunks(64).map(<[f32]>::to_vec).collect();
        let mut swapped = leaves.clone();
        swapped.swap(1, 2);
        assert_ne!(tree_of(&leaves), tree_of(&swapped));
    }

    #[test]
    fn an_aligned_subtree_may_be_added_alone() {
        let leaves: Vec<Vec<f32>> = random(7 * 8).chunks(8).map(<[f32]>::to_vec).collect();
        let halves = [tree_of(&leaves[..4]), tree_of(&leaves[4..])];
        assert_eq!(tree_of(&halves), tree_of(&leaves));
        let scalars: Vec<f32> = leaves.iter().map(|leaf| leaf[3]).collect();
        assert_eq!(tree_sum_scalars(&scalars), tree_of(&leaves)[3]);
    }

    #[test]
    fn lanes_are_folded_in_halves_at_every_level() {
        for len in [0, 1, 15, 16, 17, 100] {
            let values = random(len);
            let mut lanes = [0.0f32; 16];
            let mut squares = [0.0f32; 16];
            for (index, value) in values.iter().enumerate() {
                lanes[index % 16] += value;
                squares[index % 16] = value.mul_add(*value, squares[index % 16]);
            }
            let fold = |l: [f32; 16]| {
                let e: Vec<f32> = (0..8).map(|i| l[i] + l[i + 8]).collect();
                let f: Vec<f32> = (0..4).map(|i| e[i] + e[i + 4]).collect();
                (f[0] + f[2]) + (f[1] + f[3])
            };
            for level in SimdLevel::available() {
                assert_eq!(lane_sum_at(level, &values), fold(lanes), "{} {len}", level.name());
                assert_eq!(sum_of_squares_at(level, &values), fold(squares), "{} {len}", level.name());
            }
        }
    }

    #[test]
    fn norm_blocks_are_cut_at_fixed_places() {
        let values = random(NORM_BLOCK * 2 + 5);
        let blocks = sum_of_squares_blocks(&values);
        assert_eq!(blocks.len(), 3);
        assert_eq!(blocks[1..], sum_of_squares_blocks(&values[NORM_BLOCK..]));
    }
}
