//! The gated activation of Llama-style feed-forward layers (Shazeer, "GLU Variants Improve Transformer", 2020).

use crate::math::exp;
use crate::simd::{simd_dispatch, simd_level};
use crate::threads;

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 15;
/// Cost of an element in multiply-adds.
const COST: usize = 16;

/// `out = (gate * sigmoid(gate)) * up`, element by element.
///
/// # Panics
/// The lengths differ.
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!((gate.len(), up.len()), (out.len(), out.len()), "lengths of a gated activation");
    let level = simd_level();
    let cost = out.len() * COST;
    threads::for_each_chunk(out, TASK_ELEMENTS, cost, |task, out| {
        let first = task * TASK_ELEMENTS;
        forward_at(level, &gate[first..][..out.len()], &up[first..][..out.len()], out);
    });
}

/// The gradients of both inputs, overwriting `d_gate` and `d_up`.
///
/// # Panics
/// The lengths differ.
pub fn swiglu_backward(d_out: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let len = d_out.len();
    assert_eq!(
        (gate.len(), up.len(), d_gate.len(), d_up.len()),
        (len, len, len, len),
        "lengths of gradients"
    );
    let level = simd_level();
    let outputs = d_gate.chunks_mut(TASK_ELEMENTS).zip(d_up.chunks_mut(TASK_ELEMENTS));
    let mut tasks: Vec<_> = outputs.enumerate().collect();
    threads::for_each(&mut tasks, len * COST, |(task, (d_gate, d_up))| {
        let range = *task * TASK_ELEMENTS..*task * TASK_ELEMENTS + d_up.len();
        backward_at(level, &d_out[range.clone()], &gate[range.clone()], &up[range], d_gate, d_up);
    });
}

simd_dispatch!(fn forward_at(gate: &[f32], up: &[f32], out: &mut [f32]) = forward);
simd_dispatch!(
    fn backward_at(d_out: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) = backward
);

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate * sigmoid(gate) * up;
    }
}

#[inline(always)]
fn backward(d_out: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    for i in 0..d_out.len().min(gate.len()).min(up.len()).min(d_gate.len()).min(d_up.len()) {
        let s = sigmoid(gate[i]);
        d_up[i] = d_out[i] * (gate[i] * s);
        d_gate[i] = d_out[i] * up[i] * (s * gate[i].mul_add(1.0 - s, 1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, Purpose, SimdLevel, set_threads};

    fn random(sample: u64, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Counter::new(31, 0, sample, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values.iter_mut().for_each(|value| *value *= 4.0);
        values
    }

    #[test]
    fn matches_a_double_precision_reference() {
        let (gate, up, d_out) = (random(1, 1001), random(2, 1001), random(3, 1001));
        let (mut out, mut d_gate, mut d_up) = (vec![0.0; 1001], vec![0.0; 1001], vec![0.0; 1001]);
        swiglu(&gate, &up, &mut out);
        swiglu_backward(&d_out, &gate, &up, &mut d_gate, &mut d_up);
        for i in 0..1001 {
            let (g, u, d) = (f64::from(gate[i]), f64::from(up[i]), f64::from(d_out[i]));
            let s = 1.0 / (1.0 + (-g).exp());
            let close = |actual: f32, expected: f64| {
                (f64::from(actual) - expected).abs() < 1e-6 * (1.0 + expected.abs())
            };
            assert!(close(out[i], g * s * u), "out[{i}]");
            assert!(close(d_up[i], d * g * s), "d_up[{i}]");
            assert!(close(d_gate[i], d * u * s * (1.0 + g * (1.0 - s))), "d_gate[{i}]");
        }
    }

    #[test]
    fn saturated_gates_stay_finite() {
        let mut out = [0.0; 4];
        swiglu(&[-200.0, -88.5, 88.5, 200.0], &[1.0; 4], &mut out);
        assert_eq!(out[0], 0.0);
        assert!(out[1].abs() < 1e-30);
        assert_eq!(out[2..], [88.5, 200.0]);
    }

    #[test]
    fn levels_and_threads_agree() {
        let len = 2 * TASK_ELEMENTS + 77;
        let (gate, up, d_out) = (random(4, len), random(5, len), random(6, len));
        let (mut expected, mut e_gate, mut e_up) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        forward_at(SimdLevel::PLAIN, &gate, &up, &mut expected);
        backward_at(SimdLevel::PLAIN, &d_out, &gate, &up, &mut e_gate, &mut e_up);
        let (mut out, mut d_gate, mut d_up) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        for level in SimdLevel::available() {
            forward_at(level, &gate, &up, &mut out);
            backward_at(level, &d_out, &gate, &up, &mut d_gate, &mut d_up);
            assert_eq!((&out, &d_gate, &d_up), (&expected, &e_gate, &e_up), "{}", level.name());
        }
        set_threads(2).unwrap();
        swiglu(&gate, &up, &mut out);
        swiglu_backward(&d_out, &gate, &up, &mut d_gate, &mut d_up);
        set_threads(1).unwrap();
        assert_eq!((out, d_gate, d_up), (expected, e_gate, e_up));
    }
}
