//! The micro-kernel for AVX-512: a row of 32 columns is two registers, twelve rows keep 24 accumulators.

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_and_si512, _mm512_castsi512_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_storeu_ps,
};

use super::UPPER_HALF;

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

/// [`kernel`] for a right operand of pairs, see [`PairKernel`](super::PairKernel).
///
/// # Safety
/// As for [`kernel`].
#[target_feature(enable = "avx512f")]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn pairs<const R: usize>(
    depth: usize,
    second: bool,
    mut a: *const f32,
    mut b: *const u32,
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
    let upper = _mm512_set1_epi32(UPPER_HALF);
    /// Adds the term that `$widen` takes from the words.
    macro_rules! term {
        ($widen:expr) => {
            let b_low = _mm512_castsi512_ps($widen(_mm512_loadu_si512(b.cast())));
            let b_high = _mm512_castsi512_ps($widen(_mm512_loadu_si512(b.wrapping_add(b_half).cast())));
            for r in 0..R {
                let factor = _mm512_set1_ps(*a.add(r));
                low[r] = _mm512_fmadd_ps(factor, b_low, low[r]);
                high[r] = _mm512_fmadd_ps(factor, b_high, high[r]);
            }
            a = a.wrapping_add(R);
        };
    }
    let first_term = |words| _mm512_slli_epi32::<16>(words);
    let second_term = |words| _mm512_and_si512(words, upper);
    // SAFETY: the caller promises words of both halves of `b` and `R` elements in `a` for each of `depth` terms; the
    // pointers end one step beyond what is read, hence the wrapping additions. A prefetch never faults.
    unsafe {
        let begun = usize::from(second && depth > 0);
        if begun == 1 {
            term!(second_term);
            b = b.wrapping_add(16);
        }
        for _ in 0..(depth - begun) / 2 {
            if R <= 2 {
                let ahead = b.cast::<i8>().wrapping_add(PREFETCH_BYTES);
                _mm_prefetch::<_MM_HINT_T0>(ahead);
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(4 * b_half));
            }
            term!(first_term);
            term!(second_term);
            b = b.wrapping_add(16);
        }
        if (depth - begun) % 2 == 1 {
            term!(first_term);
        }
    }
    let _ = a;
    for r in 0..R {
        // SAFETY: as for the loads from `c`.
        unsafe {
            _mm512_storeu_ps(c.add(r * c_step), low[r]);
            _mm512_storeu_ps(c.add(r * c_step + 16), high[r]);
        }
    }
}
