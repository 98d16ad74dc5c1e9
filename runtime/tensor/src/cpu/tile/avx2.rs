//! The micro-kernel for AVX2 with FMA: sixteen registers hold 6 rows by 16 columns, so a tile is done in up to four parts.

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32,
    _mm256_storeu_ps,
};

use super::{PAIR_BLOCK, UPPER_HALF};

/// Rows of one part.
const PART_ROWS: usize = 6;

/// `R` rows of 16 columns, which is half of a tile; the rows of `a` lie `A_ROW` elements apart.
///
/// # Safety
/// The machine has AVX2 and FMA, and `a`, `b` and `c` hold every element that [`Operands`](super::Operands) names for
/// `depth` terms, in the columns that `b` and `c` begin at.
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn kernel<const R: usize, const A_ROW: usize>(
    depth: usize,
    a: *const f32,
    a_step: usize,
    b: *const f32,
    b_step: usize,
    _b_half: usize,
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    for row in (0..R).step_by(PART_ROWS) {
        // SAFETY: the row stays inside of the tile, so the operands of the part lie inside of the tile's.
        unsafe {
            let (a, c) = (a.add(row * A_ROW), c.add(row * c_step));
            match R - row {
                1 => part::<1, A_ROW>(depth, a, a_step, b, b_step, c, c_step, from_c),
                2 => part::<2, A_ROW>(depth, a, a_step, b, b_step, c, c_step, from_c),
                3 => part::<3, A_ROW>(depth, a, a_step, b, b_step, c, c_step, from_c),
                4 => part::<4, A_ROW>(depth, a, a_step, b, b_step, c, c_step, from_c),
                5 => part::<5, A_ROW>(depth, a, a_step, b, b_step, c, c_step, from_c),
                _ => part::<PART_ROWS, A_ROW>(depth, a, a_step, b, b_step, c, c_step, from_c),
            }
        }
    }
}

/// `R` rows of 16 columns.
///
/// # Safety
/// As for [`kernel`].
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn part<const R: usize, const A_ROW: usize>(
    depth: usize,
    mut a: *const f32,
    a_step: usize,
    mut b: *const f32,
    b_step: usize,
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    let mut low: [__m256; R] = [_mm256_setzero_ps(); R];
    let mut high: [__m256; R] = [_mm256_setzero_ps(); R];
    if from_c {
        for r in 0..R {
            // SAFETY: the caller promises 16 elements from here on in each row of `c`.
            unsafe {
                low[r] = _mm256_loadu_ps(c.add(r * c_step));
                high[r] = _mm256_loadu_ps(c.add(r * c_step + 8));
            }
        }
    }
    for _ in 0..depth {
        // SAFETY: the caller promises `depth` rows of `b` and `R` rows of `depth` elements in `a`; the pointers end one step
        // beyond what is read, hence the wrapping additions.
        unsafe {
            let b_low = _mm256_loadu_ps(b);
            let b_high = _mm256_loadu_ps(b.add(8));
            for r in 0..R {
                let factor = _mm256_set1_ps(*a.add(r * A_ROW));
                low[r] = _mm256_fmadd_ps(factor, b_low, low[r]);
                high[r] = _mm256_fmadd_ps(factor, b_high, high[r]);
            }
        }
        a = a.wrapping_add(a_step);
        b = b.wrapping_add(b_step);
    }
    for r in 0..R {
        // SAFETY: as for the loads from `c`.
        unsafe {
            _mm256_storeu_ps(c.add(r * c_step), low[r]);
            _mm256_storeu_ps(c.add(r * c_step + 8), high[r]);
        }
    }
}

/// Rows of one part of a product of pairs, whose even and odd terms have accumulators of their own.
const PAIR_PART_ROWS: usize = 3;

/// [`kernel`] for a right operand of pairs, see [`PairKernel`](super::PairKernel).
///
/// # Safety
/// As for [`kernel`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn pairs<const R: usize>(
    depth: usize,
    a: *const f32,
    b: *const u32,
    _b_half: usize,
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    for row in (0..R).step_by(PAIR_PART_ROWS) {
        // SAFETY: the row stays inside of the tile, so the operands of the part lie inside of the tile's.
        unsafe {
            let (a, c) = (a.add(row), c.add(row * c_step));
            match R - row {
                1 => pairs_part::<1, R>(depth, a, b, c, c_step, from_c),
                2 => pairs_part::<2, R>(depth, a, b, c, c_step, from_c),
                _ => pairs_part::<PAIR_PART_ROWS, R>(depth, a, b, c, c_step, from_c),
            }
        }
    }
}

/// `R` of the `A_STEP` rows that are packed side by side.
///
/// # Safety
/// As for [`kernel`].
#[target_feature(enable = "avx2,fma")]
unsafe fn pairs_part<const R: usize, const A_STEP: usize>(
    depth: usize,
    mut a: *const f32,
    mut b: *const u32,
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    let upper = _mm256_set1_epi32(UPPER_HALF);
    for first in (0..depth).step_by(PAIR_BLOCK) {
        let terms = PAIR_BLOCK.min(depth - first);
        let mut even = [[_mm256_setzero_ps(); 2]; R];
        let mut odd = [[_mm256_setzero_ps(); 2]; R];
        /// Adds the term that `$widen` takes from the words to `$sums`.
        macro_rules! term {
            ($sums:ident, $widen:expr) => {
                let b_low = _mm256_castsi256_ps($widen(_mm256_loadu_si256(b.cast())));
                let b_high = _mm256_castsi256_ps($widen(_mm256_loadu_si256(b.add(8).cast())));
                for r in 0..R {
                    let factor = _mm256_set1_ps(*a.add(r));
                    $sums[r][0] = _mm256_fmadd_ps(factor, b_low, $sums[r][0]);
                    $sums[r][1] = _mm256_fmadd_ps(factor, b_high, $sums[r][1]);
                }
                a = a.wrapping_add(A_STEP);
            };
        }
        let even_term = |words| _mm256_slli_epi32::<16>(words);
        let odd_term = |words| _mm256_and_si256(words, upper);
        // SAFETY: the caller promises words of `b` and `R` elements in `a` for each of `depth` terms; the pointers end one step
        // beyond what is read, hence the wrapping additions.
        unsafe {
            for _ in 0..terms / 2 {
                term!(even, even_term);
                term!(odd, odd_term);
                b = b.wrapping_add(16);
            }
            if terms % 2 == 1 {
                term!(even, even_term);
            }
        }
        for r in 0..R {
            for half in 0..2 {
                // SAFETY: the caller promises 16 elements from here on in each of the `R` rows of `c`.
                unsafe {
                    let c = c.add(r * c_step + 8 * half);
                    let so_far = if from_c || first > 0 { _mm256_loadu_ps(c) } else { _mm256_setzero_ps() };
                    let block = _mm256_add_ps(even[r][half], odd[r][half]);
                    _mm256_storeu_ps(c, _mm256_add_ps(so_far, block));
                }
            }
        }
    }
    let _ = a;
}
