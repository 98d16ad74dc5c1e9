//! Matrix products over packed panels.
//!
//! `C[m][n] = (C[m][n] +) sum over ascending k of A[m][k] * B[k][n]`: one accumulator an element, each term a fused
//! multiply-add. Where the sum is cut into parts of `k`, a part continues from what the one before it stored, so the
//! cut is invisible in the result; so are tiles and threads. Operands in bfloat16 are added in an order of their own, in blocks of 32
//! terms ([`Dtype::Bf16`]). [`matmul_panels`] is the function to read first.

mod blocks;
mod left;
mod tree;

use std::cell::RefCell;
use std::ops::Range;

use crate::cpu::simd::simd_level;
use crate::cpu::{Dtype, Mat, MatMut, Panels, SimdLevel, Start};

use blocks::{Product, Sum};
pub(crate) use tree::NOTHING;
pub use tree::{Leaves, matmul_leaf, matmul_tree};

thread_local! {
    /// Packed `B` of a product whose right operand is used once, kept because allocating megabytes for each product
    /// costs page faults.
    static PACKED_PANELS: RefCell<Panels> = RefCell::new(Panels::default());
}

/// `c = (c +) a · b`, for a right operand that is used once; see the module for the order of additions.
///
/// # Panics
/// The dims disagree.
pub fn matmul(a: Mat<'_>, b: Mat<'_>, c: &mut MatMut<'_>, start: Start) {
    matmul_at(simd_level(), a, b, c, start);
}

/// `c = (c +) a · b` for packed weights: the same bits as [`matmul`], for one row or many.
///
/// # Panics
/// The dims disagree.
pub fn matmul_panels(a: Mat<'_>, b: &Panels, c: &mut MatMut<'_>, start: Start) {
    matmul_panels_at(simd_level(), a, b, c, start);
}

pub(crate) fn matmul_at(level: SimdLevel, a: Mat<'_>, b: Mat<'_>, c: &mut MatMut<'_>, start: Start) {
    let mut panels = PACKED_PANELS.take();
    panels.pack_from(b, Dtype::F32);
    matmul_panels_at(level, a, &panels, c, start);
    PACKED_PANELS.set(panels);
}

pub(crate) fn matmul_panels_at(level: SimdLevel, a: Mat<'_>, b: &Panels, c: &mut MatMut<'_>, start: Start) {
    let whole = 0..a.cols;
    let runs = if a.cols == 0 { &[] } else { std::slice::from_ref(&whole) };
    multiply_runs(level, a, b, runs, c, start);
}

/// The sum over runs of `k`, none of which is empty.
fn multiply_runs(
    level: SimdLevel,
    a: Mat<'_>,
    b: &Panels,
    runs: &[Range<usize>],
    c: &mut MatMut<'_>,
    start: Start,
) {
    check_dims(a, b, c);
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    if !runs.is_empty() {
        Product { level, b, sum: Sum::Leaf(runs, start) }.run(a, c);
    } else if start == Start::Zero {
        (0..c.rows).for_each(|row| c.row_mut(row).fill(0.0));
    }
}

fn check_dims(a: Mat<'_>, b: &Panels, c: &MatMut<'_>) {
    assert_eq!(
        (a.cols, a.rows, b.cols()),
        (b.rows(), c.rows, c.cols),
        "dims of a product: a k, c rows, c columns"
    );
}

#[cfg(test)]
mod tests;
