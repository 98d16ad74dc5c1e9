//! The micro-kernel: up to 12 rows by 32 columns of a product, each element one accumulator in a register that goes
//! over `k` in ascending order with fused multiply-adds.
//!
//! All products of the crate, attention's included, end here. [`multiply`] is the safe entrance: it checks that the
//! operands hold what the kernel will touch, then calls the one compiled for the level and the number of rows.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

use std::ops::Range;

use crate::cpu::panels::Line;
use crate::cpu::simd::Instructions;
use crate::cpu::{PANEL_COLUMNS, SimdLevel, Start};

/// Rows of the largest tile: 12 x 32 accumulators fill 24 of AVX-512's 32 registers.
pub(crate) const TILE_ROWS: usize = 12;
/// Rows that a kernel of half a tile's columns does at once: 6 x 16 accumulators fill 12 of AVX2's 16 registers.
pub(crate) const HALF_TILE_ROWS: usize = 6;

/// Elements from row to row of an `a` operand that is stored by rows of a block of scores.
pub(crate) const SCORE_STRIDE: usize = 64;

/// Columns that lie side by side in any right operand.
pub(crate) const HALF_COLUMNS: usize = PANEL_COLUMNS / 2;

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
    /// Element `(k, n)` is at `k * b_step + n` for the first [`HALF_COLUMNS`], and `b_half` further on for the
    /// others, less those.
    pub(crate) b: &'a [f32],
    pub(crate) b_step: usize,
    pub(crate) b_half: usize,
    pub(crate) start: Start,
}

/// A kernel for a fixed number of rows: `(depth, a, a_step, b, b_step, b_half, c, c_step, continue from c)`.
type Kernel = unsafe fn(usize, *const f32, usize, *const f32, usize, usize, *mut f32, usize, bool);

/// The kernels for 1 to 12 rows.
type Kernels = [Kernel; TILE_ROWS];

/// Terms of a block of a sum in bfloat16.
pub(crate) const PAIR_BLOCK: usize = 32;

/// A kernel for rows that are packed side by side and a right operand of bfloat16 numbers in pairs: a word holds the terms
/// `k` (lower half) and `k + 1` (upper half) of a column, for even `k`. `(depth, a, b, b_half, c, c_step, continue from c)`.
///
/// The sum goes in blocks of [`PAIR_BLOCK`] terms, the last with those that are left. In a block the even terms are added
/// in ascending order from zero, with fused multiply-adds, and so are the odd ones; both sums are added, and then that to `c`. It
/// is what AMX does in one instruction. A product of operands is exact, and since those that are closer to zero than 2^-56
/// have become zero no sum is a denormal, which AMX does not know.
type PairKernel = unsafe fn(usize, *const f32, *const u32, usize, *mut f32, usize, bool);

/// The bits of a word that hold the second number of a pair.
const UPPER_HALF: i32 = 0xffff_0000_u32.cast_signed();

/// An array of `$module::$kernel::<rows, more>` for 1 to 12 rows.
macro_rules! kernels {
    ($module:ident::$kernel:ident $(, $more:expr)?) => {
        [
            $module::$kernel::<1 $(, { $more })?>,
            $module::$kernel::<2 $(, { $more })?>,
            $module::$kernel::<3 $(, { $more })?>,
            $module::$kernel::<4 $(, { $more })?>,
            $module::$kernel::<5 $(, { $more })?>,
            $module::$kernel::<6 $(, { $more })?>,
            $module::$kernel::<7 $(, { $more })?>,
            $module::$kernel::<8 $(, { $more })?>,
            $module::$kernel::<9 $(, { $more })?>,
            $module::$kernel::<10 $(, { $more })?>,
            $module::$kernel::<11 $(, { $more })?>,
            $module::$kernel::<12 $(, { $more })?>,
        ]
    };
}

/// The kernels of a level.
struct Family {
    /// Columns that a kernel does: all of a tile, or a half.
    columns: usize,
    /// Rows that it does best, with the rows of the left operand side by side.
    rows: usize,
    /// By row layout.
    layouts: [Kernels; 2],
    pairs: [PairKernel; TILE_ROWS],
}

static PLAIN: Family = Family {
    columns: PANEL_COLUMNS,
    rows: TILE_ROWS,
    layouts: [kernels!(plain::kernel, 1), kernels!(plain::kernel, SCORE_STRIDE)],
    pairs: kernels!(plain::pairs),
};
#[cfg(target_arch = "x86_64")]
static AVX2: Family = Family {
    columns: HALF_COLUMNS,
    rows: HALF_TILE_ROWS,
    layouts: [kernels!(avx2::kernel, 1), kernels!(avx2::kernel, SCORE_STRIDE)],
    pairs: kernels!(avx2::pairs),
};
#[cfg(target_arch = "x86_64")]
static AVX512: Family = Family {
    columns: PANEL_COLUMNS,
    rows: TILE_ROWS,
    layouts: [kernels!(avx512::kernel, 1), kernels!(avx512::kernel, SCORE_STRIDE)],
    pairs: kernels!(avx512::pairs),
};

impl Family {
    fn of(level: SimdLevel) -> &'static Self {
        match level.instructions() {
            Instructions::Plain => &PLAIN,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => &AVX2,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => &AVX512,
        }
    }

    /// The halves of a tile's columns that a kernel is called for.
    fn halves(&self) -> Range<usize> {
        0..PANEL_COLUMNS / self.columns
    }
}

/// Computes `rows` (1 to 12) rows of 32 columns; row `r` of the output begins at `c[r * c_step]`.
///
/// # Panics
/// An operand is too short, or there are more rows than a tile has.
pub(crate) fn multiply(level: SimdLevel, rows: usize, operands: Operands<'_>, c: &mut [f32], c_step: usize) {
    let family = Family::of(level);
    family.halves().for_each(|half| family.multiply(half, rows, operands, c, c_step));
}

/// Rows of the tiles that a product is best cut into.
pub(crate) fn tile_rows(level: SimdLevel) -> usize {
    Family::of(level).rows
}

/// Rows that are packed as `[tile][k][row]`, the last tile with the rows that are left.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    pub(crate) data: &'a [f32],
    /// Packed terms of each row.
    pub(crate) depth: usize,
    /// Rows of a whole tile.
    pub(crate) rows: usize,
}

/// A panel of the right operand as `[half][k][column]`, from the first term of a product on.
#[derive(Clone, Copy)]
pub(crate) struct PanelTerms<'a> {
    pub(crate) elements: Elements<'a>,
    /// Elements from the first half to the second.
    pub(crate) half: usize,
}

impl<'a> PanelTerms<'a> {
    /// Of lines of pairs, one half after the other.
    pub(crate) fn of_pairs(lines: &'a [Line]) -> Self {
        let words: &[u32] = bytemuck::cast_slice(lines);
        Self { elements: Elements::Bf16(words), half: words.len() / 2 }
    }
}

/// Elements of a packed panel.
#[derive(Clone, Copy)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    /// Pairs of terms, see [`PairKernel`].
    Bf16(&'a [u32]),
}

/// [`multiply`] for tile after tile and the given terms of each, with the same terms of neighbouring panels, which begin with
/// the first of them: a tile stays in the first cache while they go by.
///
/// # Panics
/// An operand is too short.
pub(crate) fn multiply_tiles<'a>(
    level: SimdLevel,
    tiles: Tiles<'_>,
    terms: Range<usize>,
    panels: impl Iterator<Item = PanelTerms<'a>> + Clone,
    start: Start,
    c: &mut [f32],
    c_step: usize,
) {
    let family = Family::of(level);
    for (tile, a) in tiles.data.chunks(tiles.depth * tiles.rows).enumerate() {
        let rows = a.len() / tiles.depth;
        let (depth, a) = (terms.len(), &a[terms.start * rows..]);
        let c = &mut c[tile * tiles.rows * c_step..];
        for (number, panel) in panels.clone().enumerate() {
            let c = &mut c[number * PANEL_COLUMNS..];
            match panel.elements {
                Elements::F32(b) => {
                    let (b_step, b_half) = (HALF_COLUMNS, panel.half);
                    let a_layout = RowLayout::Packed;
                    let operands = Operands { depth, a, a_layout, a_step: rows, b, b_step, b_half, start };
                    family.halves().for_each(|half| family.multiply(half, rows, operands, c, c_step));
                }
                Elements::Bf16(b) => family.halves().for_each(|half| {
                    family.multiply_pairs(half, rows, depth, a, (b, panel.half), start, c, c_step);
                }),
            }
        }
    }
}

impl Family {
    /// One call of a kernel.
    #[inline]
    fn multiply(&self, half: usize, rows: usize, operands: Operands<'_>, c: &mut [f32], c_step: usize) {
        let Operands { depth, a, a_layout, a_step, b, b_step, b_half, start } = operands;
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
                b.len() >= (depth - 1) * b_step + b_half + HALF_COLUMNS,
                "the right operand is shorter than the tile"
            );
        }
        let kernel = self.layouts[a_layout as usize][rows - 1];
        // SAFETY: the level proves that the instructions exist, and the assertions above that every element the kernel
        // touches lies inside of its slice; a half is 0 or, of kernels for half of the columns, 1.
        unsafe {
            let b = b.as_ptr().wrapping_add(half * b_half);
            let c = c.as_mut_ptr().add(half * self.columns);
            kernel(depth, a.as_ptr(), a_step, b, b_step, b_half, c, c_step, start == Start::FromC);
        }
    }

    /// One call of a kernel for `depth` terms.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn multiply_pairs(
        &self,
        half: usize,
        rows: usize,
        depth: usize,
        a: &[f32],
        (b, b_half): (&[u32], usize),
        start: Start,
        c: &mut [f32],
        c_step: usize,
    ) {
        assert!((1..=TILE_ROWS).contains(&rows), "a tile of {rows} rows");
        assert!(c.len() >= (rows - 1) * c_step + PANEL_COLUMNS, "the output is shorter than the tile");
        assert!(a.len() >= rows * depth, "the left operand is shorter than the tile");
        let words = depth.div_ceil(2) * HALF_COLUMNS;
        assert!(depth > 0 && b.len() >= words + b_half, "the right operand is shorter than the tile");
        // SAFETY: as in `multiply`.
        unsafe {
            let b = b.as_ptr().wrapping_add(half * b_half);
            let c = c.as_mut_ptr().add(half * self.columns);
            self.pairs[rows - 1](depth, a.as_ptr(), b, b_half, c, c_step, start == Start::FromC);
        }
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
                let half = n / HALF_COLUMNS * o.b_half + n % HALF_COLUMNS;
                let mut sum = if o.start == Start::FromC { c[r * c_step + n] } else { 0.0 };
                for k in 0..o.depth {
                    sum = o.a[r * row_stride + k * o.a_step].mul_add(o.b[k * o.b_step + half], sum);
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
                        for b_half in [HALF_COLUMNS, 35 * 40] {
                            let (a, b) = (&data[..2000], &data[2000..]);
                            let operands =
                                Operands { depth, a, a_layout, a_step, b, b_step: 35, b_half, start };
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
            b_half: HALF_COLUMNS,
            start: Start::Zero,
        };
        multiply(SimdLevel::PLAIN, 12, operands, &mut [0.0; 384], 32);
    }
}
