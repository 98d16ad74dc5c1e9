//! The micro-kernel without vector instructions, and the definition that the others are compared with.

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
            // SAFETY: the caller promises `depth` elements a row of `a` and `depth` rows of `b`.
            let (factor, b_row) = unsafe {
                (*a.add(r * A_ROW + k * a_step), std::slice::from_raw_parts(b.add(k * b_step), PANEL_COLUMNS))
            };
            for (sum, &value) in row.iter_mut().zip(b_row) {
                *sum = factor.mul_add(value, *sum);
            }
        }
    }
}
