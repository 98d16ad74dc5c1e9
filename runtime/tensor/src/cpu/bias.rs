//! A vector added to every row, as by projections with a bias, and its gradient.

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::{Segment, segment::by_leaf, threads};

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 15;
/// `x[r][n] += bias[n]`; `x` is `[rows][bias.len()]`.
///
/// # Panics
/// `x` is not a whole number of rows.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    check(x, bias);
    let (level, rows, cost) = (simd_level(), (TASK_ELEMENTS / bias.len().max(1)).max(1), x.len());
    threads::for_each_chunk(x, rows * bias.len().max(1), cost, |_, x| forward_at(level, x, bias));
}

/// Adds the sum of the rows of `dy` (`[rows][width]`) of each leaf to that of `sums` (`[leaves][width]`), rows in ascending
/// order.
///
/// A leaf continues from its content, so that of a sequence block begins with zeros; leaves are then summed in the tree.
///
/// # Panics
/// The shapes disagree, or a segment lies beyond the rows or the leaves.
pub fn bias_gradient(dy: &[f32], width: usize, segments: &[Segment], sums: &mut [f32]) {
    if width == 0 {
        return;
    }
    assert_eq!((dy.len() % width, sums.len() % width), (0, 0), "rows of {width}");
    let level = simd_level();
    let parts = by_leaf(segments, sums.len() / width, |rows| &dy[rows.start * width..rows.end * width]);
    let mut tasks: Vec<_> = sums.chunks_exact_mut(width).zip(parts).collect();
    threads::for_each(&mut tasks, dy.len(), |(sum, parts)| {
        parts.iter().for_each(|dy| gradient_at(level, dy, sum));
    });
}

fn check(rows: &[f32], bias: &[f32]) {
    let whole = rows.len().checked_rem(bias.len()).unwrap_or(rows.len());
    assert_eq!(whole, 0, "{} elements in rows of {}", rows.len(), bias.len());
}

simd_dispatch!(fn forward_at(x: &mut [f32], bias: &[f32]) = forward);
simd_dispatch!(fn gradient_at(dy: &[f32], d_bias: &mut [f32]) = gradient);

#[inline(always)]
fn forward(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    }
}

#[inline(always)]
fn gradient(dy: &[f32], d_bias: &mut [f32]) {
    for row in dy.chunks_exact(d_bias.len()) {
        d_bias.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Purpose, SimdLevel, set_threads};

    fn random(sample: u64, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Counter::new(33, 0, sample, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values
    }

    #[test]
    fn rows_gain_the_bias_and_its_gradient_goes_over_rows_ascending_at_every_level() {
        for (rows, width) in [(1, 1), (5, 3), (40, 130), (1100, 301), (0, 7)] {
            let (x, bias, start) = (random(1, rows * width), random(2, width), random(3, width));
            let expected: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + bias[i % width]).collect();
            let mut e_gradient = start.clone();
            for (index, x) in x.iter().enumerate() {
                e_gradient[index % width] += x;
            }
            for level in SimdLevel::available() {
                let (mut out, mut gradient) = (x.clone(), start.clone());
                forward_at(level, &mut out, &bias);
                gradient_at(level, &x, &mut gradient);
                assert_eq!((&out, &gradient), (&expected, &e_gradient), "{} {rows}x{width}", level.name());
            }
            set_threads(3).unwrap();
            let (mut out, mut gradient) = (x.clone(), start);
            add_bias(&mut out, &bias);
            let middle = rows / 3;
            let segments = [middle, rows].map(|end| Segment { end, leaf: 0 });
            bias_gradient(&x, width, &segments, &mut gradient);
            set_threads(1).unwrap();
            assert_eq!((out, gradient), (expected, e_gradient), "{rows}x{width}");
            let sums =
                (0..width).map(|n| x.iter().skip(n).step_by(width).map(|&x| f64::from(x)).sum::<f64>());
            let mut gradient = vec![0.0; width];
            let middle = rows / 3;
            let segments = [middle, rows].map(|end| Segment { end, leaf: 0 });
            bias_gradient(&x, width, &segments, &mut gradient);
            for (actual, expected) in gradient.iter().zip(sums) {
                assert!((f64::from(*actual) - expected).abs() <= 1e-6 * (rows as f64), "{rows}x{width}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "7 elements in rows of 3")]
    fn parts_of_rows_are_refused() {
        add_bias(&mut [0.0; 7], &[0.0; 3]);
    }
}
