//! The micro-kernel without vector instructions, and the definition that the others are compared with.

use super::{HALF_COLUMNS, PAIR_BLOCK, UPPER_HALF};
use crate::cpu::PANEL_COLUMNS;

/// `R` rows of 32 columns; the rows of `a` lie `A_ROW` elements apart.
///
/// # Safety
/// `a`, `b` and `c` hold every element that [`Operands`](super::Operands) names for `depth` terms.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn kernel<const R: usize, const A_ROW: usize>(
    depth: usize,
    a: *const f32,
    a_step: usize,
    b: *const f32,
    b_step: usize,
    b_half: usize,
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    for r in 0..R {
        // SAFETY: the caller promises 32 elements in each of the `R` rows of `c`.
        let row = unsafe { std::slice::from_raw_parts_mut(c.add(r * c_step), PANEL_COLUMNS) };
        if !from_c {
            row.fill(0.0);
        }
        for k in 0..depth {
            for (half, sums) in row.as_chunks_mut::<HALF_COLUMNS>().0.iter_mut().enumerate() {
                // SAFETY: the caller promises `depth` elements a row of `a` and `depth` rows of both halves of `b`.
                let (factor, values) = unsafe {
                    let values = b.add(k * b_step + half * b_half).cast::<[f32; HALF_COLUMNS]>();
                    (*a.add(r * A_ROW + k * a_step), &*values)
                };
                for (sum, &value) in sums.iter_mut().zip(values) {
                    *sum = factor.mul_add(value, *sum);
                }
            }
        }
    }
}

/// [`kernel`] for a right operand of pairs, see [`PairKernel`](super::PairKernel).
///
/// # Safety
/// As for [`kernel`].
pub(super) unsafe fn pairs<const R: usize>(
    depth: usize,
    a: *const f32,
    b: *const u32,
    b_half: usize,
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    for r in 0..R {
        // SAFETY: the caller promises 32 elements in each of the `R` rows of `c`.
        let row = unsafe { std::slice::from_raw_parts_mut(c.add(r * c_step), PANEL_COLUMNS) };
        if !from_c {
            row.fill(0.0);
        }
        for first in (0..depth).step_by(PAIR_BLOCK) {
            let mut sums = [[0.0f32; PANEL_COLUMNS]; 2];
            for k in first..depth.min(first + PAIR_BLOCK) {
                for (half, sums) in sums[k % 2].as_chunks_mut::<HALF_COLUMNS>().0.iter_mut().enumerate() {
                    // SAFETY: the caller promises `depth` elements a row of `a`, and the words of `depth` terms in both halves
                    // of `b`.
                    let (factor, words) = unsafe {
                        let words = b.add(k / 2 * HALF_COLUMNS + half * b_half).cast::<[u32; HALF_COLUMNS]>();
                        (*a.add(r + k * R), &*words)
                    };
                    for (sum, &word) in sums.iter_mut().zip(words) {
                        let bits = if k % 2 == 0 { word << 16 } else { word & UPPER_HALF as u32 };
                        *sum = factor.mul_add(f32::from_bits(bits), *sum);
                    }
                }
            }
            let [even, odd] = sums;
            for (c, (even, odd)) in row.iter_mut().zip(even.iter().zip(odd)) {
                *c += even + odd;
            }
        }
    }
}
