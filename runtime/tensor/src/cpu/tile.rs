//! The micro-kernel: up to 12 rows by 32 columns of a product, each element one accumulator in a register that goes
//! over `k` in ascending order with fused multiply-adds.
//!
//! All products of the crate, attention's included, end here. [`multiply`] is the safe entrance: it checks that the
//! operands hold what the kernel will touch, then calls the one compiled for the level and the number of rows.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

use crate::cpu::simd::Instructions;
use crate::cpu::{PANEL_COLUMNS, SimdLevel, Start};

/// Rows of the largest tile: 12 x 32 accumulators fill 24 of AVX-512's 32 registers.
pub(crate) const TILE_ROWS: usize = 12;

/// Elements from row to row of an `a` operand that is stored by rows of a block of scores.
pub(crate) const SCORE_STRIDE: usize = 64;

/// How the rows of `a` lie for one `k`.
#[derive(Clone, Copy)]
pub(crate) enum RowLayout {
    /// Side by side, as in a packed tile.
    Packed,
    /// [`SCORE_STRIDE`] elements apart, as in a block of attention scores.
    Scores,
}

/// The operands of one tile: `c[r][n] = (c[r][n] +) sum over k of a[r][k] * b[k][n]`, for 32 columns `n`.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    /// The number of terms of each sum.
    pub(crate) depth: usize,
    /// Element `(r, k)` is at `r * row_stride + k * a_step`, the row stride as the layout says.
    pub(crate) a: &'a [f32],
    pub(crate) a_layout: RowLayout,
    pub(crate) a_step: usize,
    /// Element `(k, n)` is at `k * b_step + n`.
    pub(crate) b: &'a [f32],
    pub(crate) b_step: usize,
    pub(crate) start: Start,
}

/// A kernel for a fixed number of rows: `(depth, a, a_step, b, b_step, c, c_step, continue from c)`.
type Kernel = unsafe fn(usize, *const f32, usize, *const f32, usize, *mut f32, usize, bool);

/// The kernels for 1 to 12 rows.
type Kernels = [Kernel; TILE_ROWS];

/// An array of `$module::kernel::<rows, row stride>` for 1 to 12 rows.
macro_rules! kernels {
    ($module:ident, $stride:expr) => {
        [
            $module::kernel::<1, { $stride }>,
            $module::kernel::<2, { $stride }>,
            $module::kernel::<3, { $stride }>,
            $module::kernel::<4, { $stride }>,
            $module::kernel::<5, { $stride }>,
            $module::kernel::<6, { $stride }>,
            $module::kernel::<7, { $stride }>,
            $module::kernel::<8, { $stride }>,
            $module::kernel::<9, { $stride }>,
            $module::kernel::<10, { $stride }>,
            $module::kernel::<11, { $stride }>,
            $module::kernel::<12, { $stride }>,
        ]
    };
}

static PLAIN: [Kernels; 2] = [kernels!(plain, 1), kernels!(plain, SCORE_STRIDE)];
#[cfg(target_arch = "x86_64")]
static AVX2: [Kernels; 2] = [kernels!(avx2, 1), kernels!(avx2, SCORE_STRIDE)];
#[cfg(target_arch = "x86_64")]
static AVX512: [Kernels; 2] = [kernels!(avx512, 1), kernels!(avx512, SCORE_STRIDE)];

/// Computes `rows` (1 to 12) rows of 32 columns; row `r` of the output begins at `c[r * c_step]`.
///
/// # Panics
/// An operand is too short, or there are more rows than a tile has.
pub(crate) fn multiply(level: SimdLevel, rows: usize, operands: Operands<'_>, c: &mut [f32], c_step: usize) {
    let Operands { depth, a, a_layout, a_step, b, b_step, start } = operands;
    let row_stride = match a_layout {
        RowLayout::Packed => 1,
        RowLayout::Scores => SCORE_STRIDE,
    };
    assert!((1..=TILE_ROWS).contains(&rows), "a tile of {rows} rows");
    assert!(c.len() >= (rows - 1) * c_step + PANEL_COLUMNS, "the output is shorter than the tile");
    if depth > 0 {
        assert!(
            a.len() > (rows - 1) * row_stride + (depth - 1) * a_step,
            "the left operand is shorter than the tile"
        );
        assert!(
            b.len() >= (depth - 1) * b_step + PANEL_COLUMNS,
            "the right operand is shorter than the tile"
        );
    }
    let family = match level.instructions() {
        Instructions::Plain => &PLAIN,
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => &AVX2,
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => &AVX512,
    };
    let kernel = family[a_layout as usize][rows - 1];
    // SAFETY: the level proves that the instructions exist, and the assertions above that every element the kernel touches
    // lies inside of its slice.
    unsafe {
        kernel(depth, a.as_ptr(), a_step, b.as_ptr(), b_step, c.as_mut_ptr(), c_step, start == Start::FromC);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Purpose};

    /// The definition, element by element.
    fn reference(rows: usize, o: Operands<'_>, row_stride: usize, c: &mut [f32], c_step: usize) {
        for r in 0..rows {
            for n in 0..PANEL_COLUMNS {
                let mut sum = if o.start == Start::FromC { c[r * c_step + n] } else { 0.0 };
                for k in 0..o.depth {
                    sum = o.a[r * row_stride + k * o.a_step].mul_add(o.b[k * o.b_step + n], sum);
                }
                c[r * c_step + n] = sum;
            }
        }
    }

    #[test]
    fn every_kernel_has_the_bits_of_the_definition() {
        let random = Counter::new(1, 0, 0, 0, Purpose::INITIALISATION);
        let mut data = vec![0.0; 8192];
        random.fill_normal(0, &mut data);
        for level in SimdLevel::available() {
            for rows in 1..=TILE_ROWS {
                for (depth, start) in
                    [(0, Start::Zero), (1, Start::FromC), (17, Start::Zero), (40, Start::FromC)]
                {
                    for (a_layout, row_stride, a_step) in [
                        (RowLayout::Packed, 1, 12),
                        (RowLayout::Packed, 1, 13),
                        (RowLayout::Scores, SCORE_STRIDE, 1),
                    ] {
                        let (a, b) = (&data[..2000], &data[2000..]);
                        let operands = Operands { depth, a, a_layout, a_step, b, b_step: 35, start };
                        let mut expected = data[..TILE_ROWS * 40].to_vec();
                        let mut actual = expected.clone();
                        reference(rows, operands, row_stride, &mut expected, 40);
                        multiply(level, rows, operands, &mut actual, 40);
                        assert_eq!(actual, expected, "{} rows {rows} depth {depth}", level.name());
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "right operand")]
    fn a_short_operand_is_refused() {
        let operands = Operands {
            depth: 2,
            a: &[0.0; 24],
            a_layout: RowLayout::Packed,
            a_step: 12,
            b: &[0.0; 63],
            b_step: 32,
            start: Start::Zero,
        };
        multiply(SimdLevel::PLAIN, 12, operands, &mut [0.0; 384], 32);
    }
}
