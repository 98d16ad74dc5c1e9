//! Layer normalisation of rows (Ba, Kiros and Hinton, "Layer Normalization", 2016), GPT-2's norm.

use crate::cpu::order::{fold_lanes, sum_lanes};
use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::{Segment, segment::rows_by_leaf, threads};

/// Rows of one task.
const TASK_ROWS: usize = 64;
/// Cost of an element in multiply-adds.
const COST: usize = 6;

/// What forward read and found out, for backward.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormSaved<'a> {
    /// The input, `[rows][width]`.
    pub x: &'a [f32],
    /// The weight, `[width]`.
    pub w: &'a [f32],
    /// Each row's mean.
    pub mean: &'a [f32],
    /// Each row's reciprocal standard deviation.
    pub rstd: &'a [f32],
}

/// `out = ((x - mean) * rstd) * w + bias` with the mean and `rstd = 1 / sqrt(variance + eps)` of each row, kept for backward.
///
/// `x` and `out` are `[rows][width]`, `w` and `bias` `[width]`, `mean` and `rstd` `[rows]`. The variance is that of the whole
/// row (not of a sample), from the differences to the mean; both sums have the lanes of [`lane_sum`](crate::cpu::lane_sum).
///
/// # Panics
/// The shapes disagree.
pub fn layer_norm(
    x: &[f32],
    w: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    assert_eq!((x.len(), out.len()), (rstd.len() * w.len(), x.len()), "shapes of a norm");
    assert_eq!((bias.len(), mean.len()), (w.len(), rstd.len()), "shapes of a norm");
    if w.is_empty() {
        return;
    }
    let (level, elements) = (simd_level(), TASK_ROWS * w.len());
    let rows = x.chunks(elements).zip(out.chunks_mut(elements));
    let found = mean.chunks_mut(TASK_ROWS).zip(rstd.chunks_mut(TASK_ROWS));
    let mut tasks: Vec<_> = rows.zip(found).collect();
    threads::for_each(&mut tasks, x.len() * COST, |((x, out), (mean, rstd))| {
        forward_at(level, x, w, bias, eps, out, mean, rstd);
    });
}

/// Writes the gradient of the input to `dx` and adds those of weight and bias to the leaves of `dw` and `d_bias`
/// (`[leaves][width]`), rows of a leaf in ascending order.
///
/// A leaf continues from its content, so that of a sequence block begins with zeros; leaves are then summed in the tree.
///
/// # Panics
/// The shapes disagree, or the segments do not cover the rows.
pub fn layer_norm_backward(
    dy: &[f32],
    saved: &LayerNormSaved<'_>,
    segments: &[Segment],
    dx: &mut [f32],
    dw: &mut [f32],
    d_bias: &mut [f32],
) {
    let LayerNormSaved { x, w, mean, rstd } = *saved;
    assert_eq!((x.len(), mean.len()), (rstd.len() * w.len(), rstd.len()), "shapes of a norm");
    assert_eq!((dy.len(), dx.len()), (x.len(), x.len()), "shapes of a norm's gradients");
    if w.is_empty() {
        return;
    }
    let (level, width) = (simd_level(), w.len());
    assert_eq!((dw.len() % width, d_bias.len()), (0, dw.len()), "a norm's leaves");
    let parts = rows_by_leaf(segments, dw.len() / width, width, dx);
    let leaves = dw.chunks_exact_mut(width).zip(d_bias.chunks_exact_mut(width));
    let mut tasks: Vec<_> = leaves.zip(parts).collect();
    threads::for_each(&mut tasks, x.len() * COST, |((dw, d_bias), parts)| {
        for (rows, dx) in parts {
            let elements = rows.start * width..rows.end * width;
            let (mean, rstd) = (&mean[rows.clone()], &rstd[rows.clone()]);
            let saved = LayerNormSaved { x: &x[elements.clone()], w, mean, rstd };
            backward_at(level, &dy[elements], &saved, dx, dw, d_bias);
        }
    });
}

simd_dispatch!(
    fn forward_at(
        x: &[f32],
        w: &[f32],
        bias: &[f32],
        eps: f32,
        out: &mut [f32],
        mean: &mut [f32],
        rstd: &mut [f32],
    ) = forward
);
simd_dispatch!(
    fn backward_at(
        dy: &[f32],
        saved: &LayerNormSaved<'_>,
        dx: &mut [f32],
        dw: &mut [f32],
        d_bias: &mut [f32],
    ) = backward
);

#[inline(always)]
fn forward(
    x: &[f32],
    w: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let width = w.len();
    let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(mean.iter_mut().zip(rstd));
    for ((x, out), (mean, rstd)) in rows {
        *mean = sum_lanes(x) / width as f32;
        *rstd = 1.0 / (squared_differences(x, *mean) / width as f32 + eps).sqrt();
        for ((out, x), (w, bias)) in out.iter_mut().zip(x).zip(w.iter().zip(bias)) {
            *out = ((x - *mean) * *rstd).mul_add(*w, *bias);
        }
    }
}

/// `sum of (x[i] - mean)^2`, in lanes.
#[inline(always)]
fn squared_differences(x: &[f32], mean: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            let difference = chunk[lane] - mean;
            lanes[lane] = difference.mul_add(difference, lanes[lane]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = (x - mean).mul_add(x - mean, *lane);
    }
    fold_lanes(lanes)
}

#[inline(always)]
fn backward(dy: &[f32], saved: &LayerNormSaved<'_>, dx: &mut [f32], dw: &mut [f32], d_bias: &mut [f32]) {
    let LayerNormSaved { x, w, mean, rstd } = *saved;
    let width = w.len();
    let rows = dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for (((dy, x), dx), (&mean, &rstd)) in rows.zip(mean.iter().zip(rstd)) {
        let normed = |x: f32| (x - mean) * rstd;
        let [shift, tilt] = sums(dy, w, x, normed).map(|sum| sum / width as f32);
        for i in 0..width {
            let normed = normed(x[i]);
            dx[i] = (-tilt).mul_add(normed, dy[i].mul_add(w[i], -shift)) * rstd;
            dw[i] = dy[i].mul_add(normed, dw[i]);
            d_bias[i] += dy[i];
        }
    }
}

/// `sum of dy[i] * w[i]` and `sum of (dy[i] * w[i]) * normed(x[i])`, in lanes.
#[inline(always)]
fn sums(dy: &[f32], w: &[f32], x: &[f32], normed: impl Fn(f32) -> f32) -> [f32; 2] {
    let (mut shift, mut tilt) = ([0.0f32; 16], [0.0f32; 16]);
    let mut add = |lane: usize, dy: f32, w: f32, x: f32| {
        shift[lane] = dy.mul_add(w, shift[lane]);
        tilt[lane] = (dy * w).mul_add(normed(x), tilt[lane]);
    };
    let ((dy_chunks, dy_rest), (w_chunks, w_rest)) = (dy.as_chunks::<16>(), w.as_chunks::<16>());
    let (x_chunks, x_rest) = x.as_chunks::<16>();
    for ((dy, w), x) in dy_chunks.iter().zip(w_chunks).zip(x_chunks) {
        for lane in 0..16 {
            add(lane, dy[lane], w[lane], x[lane]);
        }
    }
    for (lane, ((dy, w), x)) in dy_rest.iter().zip(w_rest).zip(x_rest).enumerate() {
        add(lane, *dy, *w, *x);
    }
    [fold_lanes(shift), fold_lanes(tilt)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Purpose, SimdLevel, set_threads};

    const EPS: f32 = 1e-5;

    fn random(sample: u64, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Counter::new(22, 0, sample, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values
    }

    /// Output, mean, rstd, dx, dw, d_bias.
    type Results = [Vec<f32>; 6];

    fn run(level: SimdLevel, x: &[f32], dy: &[f32], w: &[f32], bias: &[f32]) -> Results {
        let rows = x.len() / w.len();
        let (mut out, mut dx) = (vec![9.0; x.len()], vec![9.0; x.len()]);
        let (mut mean, mut rstd) = (vec![9.0; rows], vec![9.0; rows]);
        let (mut dw, mut d_bias) = (vec![0.0; w.len()], vec![0.0; w.len()]);
        forward_at(level, x, w, bias, EPS, &mut out, &mut mean, &mut rstd);
        let saved = LayerNormSaved { x, w, mean: &mean, rstd: &rstd };
        backward_at(level, dy, &saved, &mut dx, &mut dw, &mut d_bias);
        [out, mean, rstd, dx, dw, d_bias]
    }

    /// The textbook formulas in f64.
    fn reference(x: &[f32], dy: &[f32], w: &[f32], bias: &[f32]) -> [Vec<f64>; 6] {
        let width = w.len();
        let mut results: [Vec<f64>; 6] = Default::default();
        (results[4], results[5]) = (vec![0.0; width], vec![0.0; width]);
        let average = |values: &[f64]| values.iter().sum::<f64>() / width as f64;
        for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
            let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            let mean = average(&x);
            let variance = average(&x.iter().map(|x| (x - mean) * (x - mean)).collect::<Vec<_>>());
            let rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
            let normed: Vec<f64> = x.iter().map(|x| (x - mean) * rstd).collect();
            let d_normed: Vec<f64> = dy.iter().zip(w).map(|(&dy, &w)| f64::from(dy) * f64::from(w)).collect();
            let shift = average(&d_normed);
            let tilt = average(&d_normed.iter().zip(&normed).map(|(d, n)| d * n).collect::<Vec<_>>());
            results[1].push(mean);
            results[2].push(rstd);
            for i in 0..width {
                results[0].push(normed[i] * f64::from(w[i]) + f64::from(bias[i]));
                results[3].push((d_normed[i] - shift - normed[i] * tilt) * rstd);
                results[4][i] += f64::from(dy[i]) * normed[i];
                results[5][i] += f64::from(dy[i]);
            }
        }
        results
    }

    #[test]
    fn matches_golden_values() {
        // Mean 2, variance 2/3.
        let (mut out, mut mean, mut rstd) = ([9.0; 3], [9.0], [9.0]);
        let (w, bias) = ([1.0, 1.0, 2.0], [0.0, 0.5, 0.0]);
        layer_norm(&[1.0, 2.0, 3.0], &w, &bias, EPS, &mut out, &mut mean, &mut rstd);
        let golden = [-1.224_735_7, 0.5, 2.449_471_5];
        assert_eq!(mean, [2.0]);
        assert!(out.iter().zip(golden).all(|(out, golden)| (out - golden).abs() < 1e-6), "{out:?}");
    }

    #[test]
    fn matches_a_double_precision_reference_over_odd_shapes() {
        for (rows, width) in [(1, 2), (3, 7), (5, 16), (4, 33), (7, 100), (2, 769)] {
            let (mut x, dy) = (random(1, rows * width), random(2, rows * width));
            // A mean that is not near zero.
            x.iter_mut().for_each(|x| *x = 2.0 * *x + 3.0);
            let (w, bias) = (random(3, width), random(4, width));
            let expected = reference(&x, &dy, &w, &bias);
            let actual = run(crate::cpu::simd_level(), &x, &dy, &w, &bias);
            for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                for (actual, expected) in actual.iter().zip(expected) {
                    let error = (f64::from(*actual) - expected).abs();
                    assert!(
                        error < 5e-6 * (1.0 + expected.abs()),
                        "{rows}x{width} [{index}]: {actual} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn levels_agree_and_rows_are_independent() {
        for width in [1, 7, 16, 33, 100] {
            let (x, dy) = (random(5, 5 * width), random(6, 5 * width));
            let (w, bias) = (random(7, width), random(8, width));
            let expected = run(SimdLevel::PLAIN, &x, &dy, &w, &bias);
            for level in SimdLevel::available() {
                assert_eq!(run(level, &x, &dy, &w, &bias), expected, "{} width {width}", level.name());
                let part = run(level, &x[3 * width..], &dy[3 * width..], &w, &bias);
                assert_eq!(part[0], expected[0][3 * width..]);
                assert_eq!(part[3], expected[3][3 * width..]);
            }
        }
    }

    #[test]
    fn gradients_of_weight_and_bias_continue_over_rows_ascending() {
        const WIDTH: usize = 21;
        let (x, dy) = (random(9, 6 * WIDTH), random(10, 6 * WIDTH));
        let (w, bias) = (random(11, WIDTH), random(12, WIDTH));
        let [_, mean, rstd, _, expected_w, expected_bias] = run(crate::cpu::simd_level(), &x, &dy, &w, &bias);
        let (mut dw, mut d_bias, mut dx) = (vec![0.0; WIDTH], vec![0.0; WIDTH], vec![0.0; WIDTH]);
        for row in 0..6 {
            let elements = row * WIDTH..(row + 1) * WIDTH;
            let saved = LayerNormSaved {
                x: &x[elements.clone()],
                w: &w,
                mean: &mean[row..=row],
                rstd: &rstd[row..=row],
            };
            let whole = [Segment { end: 1, leaf: 0 }];
            layer_norm_backward(&dy[elements], &saved, &whole, &mut dx, &mut dw, &mut d_bias);
        }
        assert_eq!((dw, d_bias), (expected_w, expected_bias));
    }

    #[test]
    fn a_leaf_is_summed_as_if_its_rows_were_alone_whatever_the_threads() {
        const WIDTH: usize = 700;
        let segments = [(20, 0), (31, 1), (40, 0), (70, 0), (95, 1)].map(|(end, leaf)| Segment { end, leaf });
        let rows = 95;
        let (x, dy) = (random(13, rows * WIDTH), random(14, rows * WIDTH));
        let (w, bias) = (random(15, WIDTH), random(16, WIDTH));
        let of_leaf = |leaf: usize, all: &[f32], width: usize| -> Vec<f32> {
            let mut start = 0;
            let mut kept = Vec::new();
            for segment in &segments {
                if segment.leaf == leaf {
                    kept.extend_from_slice(&all[start * width..segment.end * width]);
                }
                start = segment.end;
            }
            kept
        };
        set_threads(3).unwrap();
        let (mut out, mut dx) = (vec![9.0; x.len()], vec![9.0; x.len()]);
        let (mut mean, mut rstd) = (vec![9.0; rows], vec![9.0; rows]);
        let (mut dw, mut d_bias) = (vec![0.0; 2 * WIDTH], vec![0.0; 2 * WIDTH]);
        layer_norm(&x, &w, &bias, EPS, &mut out, &mut mean, &mut rstd);
        let saved = LayerNormSaved { x: &x, w: &w, mean: &mean, rstd: &rstd };
        layer_norm_backward(&dy, &saved, &segments, &mut dx, &mut dw, &mut d_bias);
        set_threads(1).unwrap();
        for leaf in 0..2 {
            let level = crate::cpu::simd_level();
            let alone = run(level, &of_leaf(leaf, &x, WIDTH), &of_leaf(leaf, &dy, WIDTH), &w, &bias);
            let here = [&out, &mean, &rstd, &dx].into_iter().zip([WIDTH, 1, 1, WIDTH]);
            let here = here.map(|(all, width)| of_leaf(leaf, all, width));
            let sums = [&dw, &d_bias].map(|sums| sums[leaf * WIDTH..][..WIDTH].to_vec());
            assert_eq!(here.chain(sums).collect::<Vec<_>>(), alone);
        }
    }
}
