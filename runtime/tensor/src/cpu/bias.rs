//! A vector added to every row, as by projections with a bias, and its gradient.

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::threads;

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 15;
/// Columns of one task of the gradient: whole lines, so that threads share none.
const TASK_COLUMNS: usize = 128;

/// `x[r][n] += bias[n]`; `x` is `[rows][bias.len()]`.
///
/// # Panics
/// `x` is not a whole number of rows.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    check(x, bias);
    let (level, rows, cost) = (simd_level(), (TASK_ELEMENTS / bias.len().max(1)).max(1), x.len());
    threads::for_each_chunk(x, rows * bias.len().max(1), cost, |_, x| forward_at(level, x, bias));
}

/// Adds the sum of the rows of `dy` (`[rows][d_bias.len()]`) to `d_bias`, rows in ascending order.
///
/// `d_bias` continues from its content, so a sequence block's gradient begins with zeros; blocks are then summed in the
/// tree.
///
/// # Panics
/// `dy` is not a whole number of rows.
pub fn bias_gradient(dy: &[f32], d_bias: &mut [f32]) {
    check(dy, d_bias);
    let (level, width) = (simd_level(), d_bias.len());
    threads::for_each_chunk(d_bias, TASK_COLUMNS, dy.len(), |index, d_bias| {
        gradient_at(level, dy, width, index * TASK_COLUMNS, d_bias);
    });
}

fn check(rows: &[f32], bias: &[f32]) {
    let whole = rows.len().checked_rem(bias.len()).unwrap_or(rows.len());
    assert_eq!(whole, 0, "{} elements in rows of {}", rows.len(), bias.len());
}

simd_dispatch!(fn forward_at(x: &mut [f32], bias: &[f32]) = forward);
simd_dispatch!(fn gradient_at(dy: &[f32], width: usize, first: usize, d_bias: &mut [f32]) = gradient);

#[inline(always)]
fn forward(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    }
}

/// The columns from `first` on.
#[inline(always)]
fn gradient(dy: &[f32], width: usize, first: usize, d_bias: &mut [f32]) {
    for row in dy.chunks_exact(width) {
        d_bias.iter_mut().zip(&row[first..]).for_each(|(sum, dy)| *sum += dy);
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
                gradient_at(level, &x, width, 0, &mut gradient);
                assert_eq!((&out, &gradient), (&expected, &e_gradient), "{} {rows}x{width}", level.name());
            }
            set_threads(3).unwrap();
            let (mut out, mut gradient) = (x.clone(), start);
            add_bias(&mut out, &bias);
            bias_gradient(&x, &mut gradient);
            set_threads(1).unwrap();
            assert_eq!((out, gradient), (expected, e_gradient), "{rows}x{width}");
            let sums =
                (0..width).map(|n| x.iter().skip(n).step_by(width).map(|&x| f64::from(x)).sum::<f64>());
            let mut gradient = vec![0.0; width];
            bias_gradient(&x, &mut gradient);
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
