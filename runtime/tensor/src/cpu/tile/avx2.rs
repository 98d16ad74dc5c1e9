//! The micro-kernel for AVX2 with FMA: sixteen registers hold 6 rows by 16 columns, so a tile is done in up to four parts.

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32,
    _mm256_storeu_ps,
};

use super::{PAIR_BLOCK, UPPER_HALF};

/// Rows of one part.
const PART_ROWS: usize = 6;
/// Terms that one turn of the innermost loop adds. With one, steps took 6 to 15 % longer in a binary where that loop did not begin on
/// a cache line than in one where it did.
const UNROLLED: usize = 4;

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
    macro_rules! add_term {
        ($a:expr, $b:expr) => {{
            // SAFETY: the caller promises `depth` rows of `b` and `R` rows of `depth` elements in `a`.
            unsafe {
                let b_low = _mm256_loadu_ps($b);
                let b_high = _mm256_loadu_ps($b.add(8));
                for r in 0..R {
                    let factor = _mm256_set1_ps(*$a.add(r * A_ROW));
                    low[r] = _mm256_fmadd_ps(factor, b_low, low[r]);
                    high[r] = _mm256_fmadd_ps(factor, b_high, high[r]);
                }
            }
        }};
    }
    // The pointers end beyond what is read, hence the wrapping additions.
    for _ in 0..depth / UNROLLED {
        for term in 0..UNROLLED {
            add_term!(a.wrapping_add(term * a_step), b.wrapping_add(term * b_step));
        }
        a = a.wrapping_add(UNROLLED * a_step);
        b = b.wrapping_add(UNROLLED * b_step);
    }
    for _ in 0..depth % UNROLLED {
        add_term!(a, b);
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
    for row in (0..R).step_by(PART_ROWS) {
        // SAFETY: the row stays inside of the tile, so the operands of the part lie inside of the tile's.
        unsafe {
            let (a, c) = (a.add(row), c.add(row * c_step));
            match R - row {
                1 => pairs_part::<1, R>(depth, a, b, c, c_step, from_c),
                2 => pairs_part::<2, R>(depth, a, b, c, c_step, from_c),
                3 => pairs_part::<3, R>(depth, a, b, c, c_step, from_c),
                4 => pairs_part::<4, R>(depth, a, b, c, c_step, from_c),
                5 => pairs_part::<5, R>(depth, a, b, c, c_step, from_c),
                _ => pairs_part::<PART_ROWS, R>(depth, a, b, c, c_step, from_c),
            }
        }
    }
}

/// `R` of the `A_STEP` rows that are packed side by side. The even terms of a block go by first and then the odd ones: accumulators for
/// both at once would not fit the registers.
///
/// # Safety
/// As for [`kernel`].
#[target_feature(enable = "avx2,fma")]
unsafe fn pairs_part<const R: usize, const A_STEP: usize>(
    depth: usize,
    a: *const f32,
    b: *const u32,
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    let mut even = [[0.0f32; 16]; R];
    for first in (0..depth).step_by(PAIR_BLOCK) {
        let terms = PAIR_BLOCK.min(depth - first);
        // SAFETY: the caller promises words of `b` and `R` elements in `a` for each of `depth` terms, and 16 elements from here on
        // in each row of `c`.
        unsafe {
            let (a, b) = (a.add(first * A_STEP), b.add(first / 2 * 16));
            even_sums::<R, A_STEP>(terms, a, b, &mut even);
            add_odd_sums::<R, A_STEP>(terms, a, b, &even, c, c_step, from_c || first > 0);
        }
    }
}

/// Each row's and column's sum over every second term of a block, from `$begin` on, which `$widen` takes from the words.
macro_rules! sums {
    ($rows:ident, $a_step:ident, $terms:ident, $a:ident, $b:ident, $begin:literal, $widen:expr) => {{
        let mut low: [__m256; $rows] = [_mm256_setzero_ps(); $rows];
        let mut high: [__m256; $rows] = [_mm256_setzero_ps(); $rows];
        for pair in 0..($terms + 1 - $begin) / 2 {
            let words = $b.add(pair * 16);
            let b_low = _mm256_castsi256_ps($widen(_mm256_loadu_si256(words.cast())));
            let b_high = _mm256_castsi256_ps($widen(_mm256_loadu_si256(words.add(8).cast())));
            let a = $a.add((2 * pair + $begin) * $a_step);
            for r in 0..$rows {
                let factor = _mm256_set1_ps(*a.add(r));
                low[r] = _mm256_fmadd_ps(factor, b_low, low[r]);
                high[r] = _mm256_fmadd_ps(factor, b_high, high[r]);
            }
        }
        (low, high)
    }};
}

/// Writes the sums over the even terms of a block. Not inlined, for their registers to be free afterwards.
///
/// # Safety
/// The machine has AVX2 and FMA; `a` and `b` hold `terms` terms.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn even_sums<const R: usize, const A_STEP: usize>(
    terms: usize,
    a: *const f32,
    b: *const u32,
    sums: &mut [[f32; 16]; R],
) {
    // SAFETY: the caller promises the terms; a row of sums has 16 elements.
    unsafe {
        let (low, high) = sums!(R, A_STEP, terms, a, b, 0, |words| _mm256_slli_epi32::<16>(words));
        for r in 0..R {
            _mm256_storeu_ps(sums[r].as_mut_ptr(), low[r]);
            _mm256_storeu_ps(sums[r].as_mut_ptr().add(8), high[r]);
        }
    }
}

/// Adds `even`, and the sums over the odd terms of a block, to `c`, which counts as zero unless it `continues`.
///
/// # Safety
/// As for [`even_sums`], and each of `R` rows of `c` has 16 elements.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_odd_sums<const R: usize, const A_STEP: usize>(
    terms: usize,
    a: *const f32,
    b: *const u32,
    even: &[[f32; 16]; R],
    c: *mut f32,
    c_step: usize,
    continues: bool,
) {
    // SAFETY: the caller promises the terms and the rows.
    unsafe {
        let upper = _mm256_set1_epi32(UPPER_HALF);
        let odd = sums!(R, A_STEP, terms, a, b, 1, |words| _mm256_and_si256(words, upper));
        for (half, odd) in [odd.0, odd.1].into_iter().enumerate() {
            for r in 0..R {
                let c = c.add(r * c_step + 8 * half);
                let so_far = if continues { _mm256_loadu_ps(c) } else { _mm256_setzero_ps() };
                let block = _mm256_add_ps(_mm256_loadu_ps(even[r].as_ptr().add(8 * half)), odd[r]);
                _mm256_storeu_ps(c, _mm256_add_ps(so_far, block));
            }
        }
    }
}
