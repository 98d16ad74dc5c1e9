//! Copying a matrix with rows and columns exchanged, in 4 x 4 blocks: eight shuffles of SSE2, which every x86-64 has. Two
//! rows that are left over, as of tiles of six, are half a block.
#![allow(unsafe_code)]

/// Side of a block.
const BLOCK: usize = 4;
/// Columns done before the next rows: what they write stays in L1, and each line that they read is used whole.
const STRIP: usize = 64;

/// `to[column * to_stride + row] = from[row * from_stride + column]` for `rows` by `columns` elements.
///
/// # Panics
/// A slice is too short.
pub(crate) fn transpose(
    from: &[f32],
    from_stride: usize,
    to: &mut [f32],
    to_stride: usize,
    rows: usize,
    columns: usize,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(from.len() >= (rows - 1) * from_stride + columns, "the source is shorter than the matrix");
    assert!(to.len() >= (columns - 1) * to_stride + rows, "the target is shorter than the matrix");
    let full_columns = columns - columns % BLOCK;
    let (four, full_rows) = (rows - rows % BLOCK, rows - rows % (BLOCK / 2));
    for strip in (0..full_columns).step_by(STRIP) {
        let strip = strip..full_columns.min(strip + STRIP);
        for row in (0..four).step_by(BLOCK) {
            for column in strip.clone().step_by(BLOCK) {
                let from = from[row * from_stride + column..].as_ptr();
                let to = to[column * to_stride + row..].as_mut_ptr();
                // SAFETY: the block lies inside of the rows and columns, which the assertions above found in the slices.
                unsafe { block(from, from_stride, to, to_stride) };
            }
        }
        if full_rows > four {
            for column in strip.step_by(BLOCK) {
                let from = from[four * from_stride + column..].as_ptr();
                let to = to[column * to_stride + four..].as_mut_ptr();
                // SAFETY: as above.
                unsafe { half_block(from, from_stride, to, to_stride) };
            }
        }
    }
    for row in 0..rows {
        let done = if row < full_rows { full_columns } else { 0 };
        for column in done..columns {
            to[column * to_stride + row] = from[row * from_stride + column];
        }
    }
}

/// # Safety
/// There are four rows of four elements at `from`, and four of four at `to`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn block(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::{
        _mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_storeu_ps, _mm_unpackhi_ps, _mm_unpacklo_ps,
    };
    // SAFETY: the caller promises the elements.
    unsafe {
        let row = |r: usize| _mm_loadu_ps(from.add(r * from_stride));
        let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
        let (low01, low23) = (_mm_unpacklo_ps(r0, r1), _mm_unpacklo_ps(r2, r3));
        let (high01, high23) = (_mm_unpackhi_ps(r0, r1), _mm_unpackhi_ps(r2, r3));
        _mm_storeu_ps(to, _mm_movelh_ps(low01, low23));
        _mm_storeu_ps(to.add(to_stride), _mm_movehl_ps(low23, low01));
        _mm_storeu_ps(to.add(2 * to_stride), _mm_movelh_ps(high01, high23));
        _mm_storeu_ps(to.add(3 * to_stride), _mm_movehl_ps(high23, high01));
    }
}

/// # Safety
/// There are two rows of four elements at `from`, and four of two at `to`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn half_block(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::{
        _mm_castps_pd, _mm_loadu_ps, _mm_storeh_pd, _mm_storel_pd, _mm_unpackhi_ps, _mm_unpacklo_ps,
    };
    // SAFETY: the caller promises the elements; what is stored as two elements of 64 bits need not be aligned.
    unsafe {
        let (r0, r1) = (_mm_loadu_ps(from), _mm_loadu_ps(from.add(from_stride)));
        let (low, high) = (_mm_castps_pd(_mm_unpacklo_ps(r0, r1)), _mm_castps_pd(_mm_unpackhi_ps(r0, r1)));
        _mm_storel_pd(to.cast(), low);
        _mm_storeh_pd(to.add(to_stride).cast(), low);
        _mm_storel_pd(to.add(2 * to_stride).cast(), high);
        _mm_storeh_pd(to.add(3 * to_stride).cast(), high);
    }
}

/// # Safety
/// There are four rows of four elements at `from`, and four of four at `to`.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
unsafe fn block(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: as the caller promises.
    unsafe { rows_of_block::<BLOCK>(from, from_stride, to, to_stride) };
}

/// # Safety
/// There are two rows of four elements at `from`, and four of two at `to`.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
unsafe fn half_block(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: as the caller promises.
    unsafe { rows_of_block::<{ BLOCK / 2 }>(from, from_stride, to, to_stride) };
}

/// # Safety
/// There are `ROWS` rows of four elements at `from`, and four of `ROWS` at `to`.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
unsafe fn rows_of_block<const ROWS: usize>(
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    for r in 0..ROWS {
        for c in 0..BLOCK {
            // SAFETY: the caller promises the elements.
            unsafe { *to.add(c * to_stride + r) = *from.add(r * from_stride + c) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_rows_and_columns_of_odd_shapes_and_touches_nothing_else() {
        for (rows, columns) in [(1, 1), (4, 4), (3, 70), (6, 130), (12, 129), (65, 6)] {
            let (from_stride, to_stride) = (columns + 2, rows + 3);
            let from: Vec<f32> = (0..rows * from_stride).map(|index| index as f32).collect();
            let mut to = vec![-1.0; columns * to_stride];
            transpose(&from, from_stride, &mut to, to_stride, rows, columns);
            for c in 0..columns {
                for r in 0..to_stride {
                    let expected = if r < rows { from[r * from_stride + c] } else { -1.0 };
                    assert_eq!(to[c * to_stride + r], expected, "{rows}x{columns} at {r}, {c}");
                }
            }
        }
    }
}
