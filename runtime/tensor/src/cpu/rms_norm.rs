//! Root-mean-square normalisation of rows (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019).

use crate::cpu::order::{dot_lanes, fold_lanes};
use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::{Segment, segment::rows_by_leaf, threads};

/// Rows of one task.
const TASK_ROWS: usize = 64;
/// Cost of an element in multiply-adds.
const COST: usize = 4;

/// `out = (x * rstd) * w` with `rstd = 1 / sqrt(mean(x^2) + eps)` of each row, kept in `rstd` for backward.
///
/// `x` and `out` are `[rows][width]`, `w` is `[width]`, `rstd` is `[rows]`. The sum of squares has the lanes of
/// [`lane_sum`](crate::cpu::lane_sum).
///
/// # Panics
/// The shapes disagree.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32], rstd: &mut [f32]) {
    assert_eq!((x.len(), out.len()), (rstd.len() * w.len(), x.len()), "shapes of a norm");
    if w.is_empty() {
        return;
    }
    let (level, width) = (simd_level(), w.len());
    let rows =
        x.chunks(TASK_ROWS * width).zip(out.chunks_mut(TASK_ROWS * width)).zip(rstd.chunks_mut(TASK_ROWS));
    let mut tasks: Vec<_> = rows.collect();
    threads::for_each(&mut tasks, x.len() * COST, |((x, out), rstd)| forward_at(level, x, w, eps, out, rstd));
}

/// Writes the gradient of the input to `dx` and adds the weight's to the leaves of `dw` (`[leaves][width]`), rows of a
/// leaf in ascending order.
///
/// A leaf continues from its content, so that of a sequence block begins with zeros; leaves are then summed in the tree.
///
/// # Panics
/// The shapes disagree, or the segments do not cover the rows.
pub fn rms_norm_backward(
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    rstd: &[f32],
    segments: &[Segment],
    dx: &mut [f32],
    dw: &mut [f32],
) {
    assert_eq!(x.len(), rstd.len() * w.len(), "shapes of a norm");
    assert_eq!((dy.len(), dx.len()), (x.len(), x.len()), "shapes of a norm's gradients");
    if w.is_empty() {
        return;
    }
    assert_eq!(dw.len() % w.len(), 0, "a norm's leaves");
    let (level, width) = (simd_level(), w.len());
    let parts = rows_by_leaf(segments, dw.len() / width, width, dx);
    let mut tasks: Vec<_> = dw.chunks_exact_mut(width).zip(parts).collect();
    threads::for_each(&mut tasks, x.len() * COST, |(dw, parts)| {
        for (rows, dx) in parts {
            let elements = rows.start * width..rows.end * width;
            backward_at(level, &dy[elements.clone()], &x[elements], w, &rstd[rows.clone()], dx, dw);
        }
    });
}

simd_dispatch!(fn forward_at(x: &[f32], w: &[f32], eps: f32, out: &mut [f32], rstd: &mut [f32]) = forward);
simd_dispatch!(
    fn backward_at(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32], dw: &mut [f32]) = backward
);

#[inline(always)]
fn forward(x: &[f32], w: &[f32], eps: f32, out: &mut [f32], rstd: &mut [f32]) {
    let width = w.len();
    for ((row, out), rstd) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(rstd) {
        let mean = dot_lanes(row, row) / width as f32;
        *rstd = 1.0 / (mean + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(row).zip(w) {
            *out = x * *rstd * w;
        }
    }
}

#[inline(always)]
fn backward(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let width = w.len();
    let rows = dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width)).zip(rstd);
    for (((dy, x), dx), &rstd) in rows {
        let shift = weighted_dot(dy, w, x) * (rstd * rstd * rstd) / width as f32;
        for i in 0..width {
            dx[i] = (-shift).mul_add(x[i], dy[i] * w[i] * rstd);
            dw[i] = dy[i].mul_add(x[i] * rstd, dw[i]);
        }
    }
}

/// `sum of (a[i] * w[i]) * b[i]`, in lanes.
#[inline(always)]
fn weighted_dot(a: &[f32], w: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let ((a_chunks, a_rest), (w_chunks, w_rest)) = (a.as_chunks::<16>(), w.as_chunks::<16>());
    let (b_chunks, b_rest) = b.as_chunks::<16>();
    for ((a, w), b) in a_chunks.iter().zip(w_chunks).zip(b_chunks) {
        for lane in 0..16 {
            lanes[lane] = (a[lane] * w[lane]).mul_add(b[lane], lanes[lane]);
        }
    }
    for (lane, ((a, w), b)) in lanes.iter_mut().zip(a_rest.iter().zip(w_rest).zip(b_rest)) {
        *lane = (a * w).mul_add(*b, *lane);
    }
    fold_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Purpose, SimdLevel};

    const EPS: f32 = 1e-5;

    fn random(sample: u64, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Counter::new(21, 0, sample, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values
    }

    #[test]
    fn matches_golden_values() {
        // mean(1, 4, 9, 16) = 7.5; 1 / sqrt(7.5) = 0.365148...
        let (mut out, mut rstd) = ([0.0; 4], [0.0]);
        rms_norm(&[1.0, -2.0, 3.0, -4.0], &[1.0, 1.0, 2.0, 0.5], 0.0, &mut out, &mut rstd);
        let golden = [0.365_148_37, -0.730_296_7, 2.190_890_2, -0.730_296_7];
        for (actual, expected) in out.iter().zip(golden) {
            assert!((actual - expected).abs() < 2e-7, "{out:?}");
        }
    }

    #[test]
    fn levels_agree_and_rows_are_independent() {
        for width in [1, 7, 16, 33, 100] {
            let (x, w, dy) = (random(1, 5 * width), random(2, width), random(3, 5 * width));
            let run = |level, first: usize| {
                let (x, dy) = (&x[first * width..], &dy[first * width..]);
                let (mut out, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                let (mut rstd, mut dw) = (vec![0.0; 5 - first], vec![0.0; width]);
                forward_at(level, x, &w, EPS, &mut out, &mut rstd);
                backward_at(level, dy, x, &w, &rstd, &mut dx, &mut dw);
                (out, rstd, dx, dw)
            };
            let expected = run(SimdLevel::PLAIN, 0);
            for level in SimdLevel::available() {
                assert_eq!(run(level, 0), expected, "{} width {width}", level.name());
                assert_eq!(run(level, 3).0, expected.0[3 * width..]);
                assert_eq!(run(level, 3).2, expected.2[3 * width..]);
            }
        }
    }

    /// The loss `sum(dy * out)` in f64, for finite differences.
    fn loss(x: &[f64], w: &[f64], dy: &[f32]) -> f64 {
        let width = w.len();
        let mut sum = 0.0;
        for (row, dy) in x.chunks(width).zip(dy.chunks(width)) {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
            let rstd = 1.0 / (mean + f64::from(EPS)).sqrt();
            sum += row.iter().zip(w).zip(dy).map(|((x, w), &dy)| x * rstd * w * f64::from(dy)).sum::<f64>();
        }
        sum
    }

    #[test]
    fn gradients_match_finite_differences() {
        let (rows, width) = (3, 19);
        let (x, w, dy) = (random(4, rows * width), random(5, width), random(6, rows * width));
        let (mut out, mut rstd) = (vec![0.0; x.len()], vec![0.0; rows]);
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; width]);
        rms_norm(&x, &w, EPS, &mut out, &mut rstd);
        let whole = [Segment { end: rows, leaf: 0 }];
        rms_norm_backward(&dy, &x, &w, &rstd, &whole, &mut dx, &mut dw);
        let x64: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        let w64: Vec<f64> = w.iter().map(|&w| w.into()).collect();
        let slope = |at: &[f64], index: usize, f: &dyn Fn(&[f64]) -> f64| {
            let (mut up, mut down) = (at.to_vec(), at.to_vec());
            up[index] += 1e-5;
            down[index] -= 1e-5;
            (f(&up) - f(&down)) / 2e-5
        };
        for (index, &actual) in dx.iter().enumerate() {
            let expected = slope(&x64, index, &|x| loss(x, &w64, &dy));
            assert!((f64::from(actual) - expected).abs() < 2e-6, "dx[{index}] {actual} {expected}");
        }
        for (index, &actual) in dw.iter().enumerate() {
            let expected = slope(&w64, index, &|w| loss(&x64, w, &dy));
            assert!((f64::from(actual) - expected).abs() < 4e-6, "dw[{index}] {actual} {expected}");
        }
    }

    #[test]
    fn a_leaf_is_summed_as_if_its_rows_were_alone() {
        let (rows, width) = (9, 21);
        let (x, w, dy, rstd) =
            (random(7, rows * width), random(8, width), random(9, rows * width), vec![0.7; rows]);
        let segments = [(2, 0), (3, 1), (3, 0), (7, 0), (9, 1)].map(|(end, leaf)| Segment { end, leaf });
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; 2 * width]);
        rms_norm_backward(&dy, &x, &w, &rstd, &segments, &mut dx, &mut dw);
        for (leaf, kept) in [[0, 1, 3, 4, 5, 6].as_slice(), &[2, 7, 8]].into_iter().enumerate() {
            let of_leaf = |all: &[f32]| -> Vec<f32> {
                kept.iter().flat_map(|row| all[row * width..][..width].to_vec()).collect()
            };
            let (mut dx_alone, mut dw_alone) = (vec![0.0; kept.len() * width], vec![0.0; width]);
            let whole = [Segment { end: kept.len(), leaf: 0 }];
            let (dy, x) = (of_leaf(&dy), of_leaf(&x));
            rms_norm_backward(&dy, &x, &w, &rstd[..kept.len()], &whole, &mut dx_alone, &mut dw_alone);
            assert_eq!((of_leaf(&dx), &dw[leaf * width..][..width]), (dx_alone, dw_alone.as_slice()));
        }
    }
}
