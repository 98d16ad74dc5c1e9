//! Root-mean-square normalisation of rows (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019).

use crate::order::{dot_lanes, fold_lanes};
use crate::simd::{simd_dispatch, simd_level};

/// `out = (x * rstd) * w` with `rstd = 1 / sqrt(mean(x^2) + eps)` of each row, kept in `rstd` for backward.
///
/// `x` and `out` are `[rows][width]`, `w` is `[width]`, `rstd` is `[rows]`. The sum of squares has the lanes of
/// [`lane_sum`](crate::lane_sum).
///
/// # Panics
/// The shapes disagree.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32], rstd: &mut [f32]) {
    assert_eq!((x.len(), out.len()), (rstd.len() * w.len(), x.len()), "shapes of a norm");
    if !w.is_empty() {
        forward_at(simd_level(), x, w, eps, out, rstd);
    }
}

/// Writes the gradient of the input to `dx` and adds the weight's to `dw`, rows in ascending order.
///
/// `dw` continues from its content, so a sequence block's gradient begins with zeros; blocks are then summed in the
/// tree.
///
/// # Panics
/// The shapes disagree.
pub fn rms_norm_backward(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    assert_eq!(x.len(), rstd.len() * w.len(), "shapes of a norm");
    assert_eq!((dy.len(), dx.len(), dw.len()), (x.len(), x.len(), w.len()), "shapes of a norm's gradients");
    if !w.is_empty() {
        backward_at(simd_level(), dy, x, w, rstd, dx, dw);
    }
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
    use crate::{Counter, Purpose, SimdLevel};

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
        rms_norm_backward(&dy, &x, &w, &rstd, &mut dx, &mut dw);
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
}
