//! Element-wise sums, maxima and scaling.

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::threads;

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 15;

/// `to[i] = from[i]`.
///
/// # Panics
/// The lengths differ.
pub(crate) fn copy(from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "lengths of a copy");
    let cost = to.len();
    threads::for_each_chunk(to, TASK_ELEMENTS, cost, |task, to| {
        to.copy_from_slice(&from[task * TASK_ELEMENTS..][..to.len()]);
    });
}

/// `sum[i] += term[i]`.
///
/// # Panics
/// The lengths differ.
pub fn add_assign(sum: &mut [f32], term: &[f32]) {
    assert_eq!(sum.len(), term.len(), "lengths of a sum");
    let (level, cost) = (simd_level(), sum.len());
    threads::for_each_chunk(sum, TASK_ELEMENTS, cost, |task, sum| {
        add_assign_at(level, sum, &term[task * TASK_ELEMENTS..][..sum.len()]);
    });
}

/// `out[i] = a[i] + b[i]`.
///
/// # Panics
/// The lengths differ.
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    assert_eq!((a.len(), b.len()), (out.len(), out.len()), "lengths of a sum");
    add_at(simd_level(), a, b, out);
}

/// `values[i] *= factor`.
pub fn scale(values: &mut [f32], factor: f32) {
    scale_at(simd_level(), values, factor);
}

/// `max[i] = the larger of max[i] and other[i]`; of a number and a NaN, the number.
///
/// # Panics
/// The lengths differ.
pub fn max_assign(max: &mut [f32], other: &[f32]) {
    assert_eq!(max.len(), other.len(), "lengths of a maximum");
    max.iter_mut().zip(other).for_each(|(max, other)| *max = max.max(*other));
}

simd_dispatch!(pub(crate) fn add_assign_at(sum: &mut [f32], term: &[f32]) = add_assign_body);
simd_dispatch!(fn add_at(a: &[f32], b: &[f32], out: &mut [f32]) = add_body);
simd_dispatch!(fn scale_at(values: &mut [f32], factor: f32) = scale_body);

#[inline(always)]
fn add_assign_body(sum: &mut [f32], term: &[f32]) {
    for (sum, term) in sum.iter_mut().zip(term) {
        *sum += term;
    }
}

#[inline(always)]
fn add_body(a: &[f32], b: &[f32], out: &mut [f32]) {
    for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
        *out = a + b;
    }
}

#[inline(always)]
fn scale_body(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_scales_every_element() {
        let mut values: Vec<f32> = (0..37).map(|value| value as f32).collect();
        let term = values.clone();
        let mut out = vec![0.0; 37];
        add(&values, &term, &mut out);
        add_assign(&mut values, &term);
        assert_eq!(values, out);
        scale(&mut values, 0.5);
        assert_eq!(values, term);
    }

    #[test]
    fn threads_copy_each_part_of_a_large_slice() {
        let from: Vec<f32> = (0..10 * TASK_ELEMENTS + 7).map(|index| index as f32).collect();
        let mut to = vec![-1.0; from.len()];
        crate::cpu::set_threads(3).unwrap();
        copy(&from, &mut to);
        crate::cpu::set_threads(1).unwrap();
        assert!(to == from);
    }
}
