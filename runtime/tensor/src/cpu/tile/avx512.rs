//! The micro-kernel for AVX-512: a row of 32 columns is two registers, twelve rows keep 24 accumulators.

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_and_si512, _mm512_castsi512_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_storeu_ps,
};

use super::{PAIR_BLOCK, UPPER_HALF};

/// How far ahead a single row's panel is fetched: it is read once, so the memory sets the pace.
const PREFETCH_BYTES: usize = 4096;

/// `R` rows of 32 columns; the rows of `a` lie `A_ROW` elements apart.
///
/// # Safety
/// The machine has AVX-512F, and `a`, `b` and `c` hold every element that [`Operands`](super::Operands) names for
/// `depth` terms.
#[target_feature(enable = "avx512f")]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn kernel<const R: usize, const A_ROW: usize>(
    depth: usize,
    mut a: *const f32,
    a_step: usize,
    mut b: *const f32,
    b_step: usize,
    b_half: usize,
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    let mut low: [__m512; R] = [_mm512_setzero_ps(); R];
    let mut high: [__m512; R] = [_mm512_setzero_ps(); R];
    if from_c {
        for r in 0..R {
            // SAFETY: the caller promises 32 elements in each of the `R` rows of `c`.
            unsafe {
                low[r] = _mm512_loadu_ps(c.add(r * c_step));
                high[r] = _mm512_loadu_ps(c.add(r * c_step + 16));
            }
        }
    }
    for _ in 0..depth {
        // SAFETY: the caller promises 32 elements in each of the `depth` rows of `b`, and `R` rows of `depth`
        // elements in `a`. The pointers end one step beyond what is read, hence the wrapping additions. A prefetch never faults.
        unsafe {
            if R <= 2 {
                _mm_prefetch::<_MM_HINT_T0>(b.cast::<i8>().wrapping_add(PREFETCH_BYTES));
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(b_half).cast::<i8>().wrapping_add(PREFETCH_BYTES));
            }
            let b_low = _mm512_loadu_ps(b);
            let b_high = _mm512_loadu_ps(b.add(b_half));
            for r in 0..R {
                let factor = _mm512_set1_ps(*a.add(r * A_ROW));
                low[r] = _mm512_fmadd_ps(factor, b_low, low[r]);
                high[r] = _mm512_fmadd_ps(factor, b_high, high[r]);
            }
        }
        a = a.wrapping_add(a_step);
        b = b.wrapping_add(b_step);
    }
    for r in 0..R {
        // SAFETY: as for the loads from `c`.
        unsafe {
            _mm512_storeu_ps(c.add(r * c_step), low[r]);
            _mm512_storeu_ps(c.add(r * c_step + 16), high[r]);
        }
    }
}

/// Rows of one part of a product of pairs, whose even and odd terms have accumulators of their own.
const PAIR_PART_ROWS: usize = 6;

/// [`kernel`] for a right operand of pairs, see [`PairKernel`](super::PairKernel).
///
/// # Safety
/// As for [`kernel`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pairs<const R: usize>(
    depth: usize,
    a: *const f32,
    b: *const u32,
    b_half: usize,
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    for row in (0..R).step_by(PAIR_PART_ROWS) {
        // SAFETY: the row stays inside of the tile, so the operands of the part lie inside of the tile's.
        unsafe {
            let (a, c) = (a.add(row), c.add(row * c_step));
            match R - row {
                1 => pairs_part::<1, R>(depth, a, b, b_half, c, c_step, from_c),
                2 => pairs_part::<2, R>(depth, a, b, b_half, c, c_step, from_c),
                3 => pairs_part::<3, R>(depth, a, b, b_half, c, c_step, from_c),
                4 => pairs_part::<4, R>(depth, a, b, b_half, c, c_step, from_c),
                5 => pairs_part::<5, R>(depth, a, b, b_half, c, c_step, from_c),
                _ => pairs_part::<PAIR_PART_ROWS, R>(depth, a, b, b_half, c, c_step, from_c),
            }
        }
    }
}

/// `R` of the `A_STEP` rows that are packed side by side.
///
/// # Safety
/// As for [`kernel`].
#[target_feature(enable = "avx512f")]
unsafe fn pairs_part<const R: usize, const A_STEP: usize>(
    depth: usize,
    mut a: *const f32,
    mut b: *const u32,
    b_half: usize,
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    let upper = _mm512_set1_epi32(UPPER_HALF);
    for first in (0..depth).step_by(PAIR_BLOCK) {
        let terms = PAIR_BLOCK.min(depth - first);
        let mut even = [[_mm512_setzero_ps(); 2]; R];
        let mut odd = [[_mm512_setzero_ps(); 2]; R];
        /// Adds the term that `$widen` takes from the words to `$sums`.
        macro_rules! term {
            ($sums:ident, $widen:expr) => {
                let b_low = _mm512_castsi512_ps($widen(_mm512_loadu_si512(b.cast())));
                let b_high = _mm512_castsi512_ps($widen(_mm512_loadu_si512(b.wrapping_add(b_half).cast())));
                for r in 0..R {
                    let factor = _mm512_set1_ps(*a.add(r));
                    $sums[r][0] = _mm512_fmadd_ps(factor, b_low, $sums[r][0]);
                    $sums[r][1] = _mm512_fmadd_ps(factor, b_high, $sums[r][1]);
                }
                a = a.wrapping_add(A_STEP);
            };
        }
        let even_term = |words| _mm512_slli_epi32::<16>(words);
        let odd_term = |words| _mm512_and_si512(words, upper);
        // SAFETY: the caller promises words of both halves of `b` and `R` elements in `a` for each of `depth` terms; the
        // pointers end one step beyond what is read, hence the wrapping additions. A prefetch never faults.
        unsafe {
            for _ in 0..terms / 2 {
                if R <= 2 {
                    let ahead = b.cast::<i8>().wrapping_add(PREFETCH_BYTES);
                    _mm_prefetch::<_MM_HINT_T0>(ahead);
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(4 * b_half));
                }
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
                // SAFETY: the caller promises 32 elements in each of the `R` rows of `c`.
                unsafe {
                    let c = c.add(r * c_step + 16 * half);
                    let so_far = if from_c || first > 0 { _mm512_loadu_ps(c) } else { _mm512_setzero_ps() };
                    let block = _mm512_add_ps(even[r][half], odd[r][half]);
                    _mm512_storeu_ps(c, _mm512_add_ps(so_far, block));
                }
            }
        }
    }
    let _ = a;
}
