//! The gated activation of Llama-style feed-forward layers (Shazeer, "GLU Variants Improve Transformer", 2020).

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::threads;
use crate::math::exp;

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 15;
/// Cost of an element in multiply-adds.
const COST: usize = 16;

/// `out = (gate * sigmoid(gate)) * up`, element by element. A row of `gate_up` holds the `columns` gates of a row, then
/// its ups, as one product of both projections writes them.
///
/// # Panics
/// The lengths disagree.
pub fn swiglu(gate_up: &[f32], columns: usize, out: &mut [f32]) {
    check(gate_up, columns, out);
    let level = simd_level();
    let (task, cost) = (task_elements(columns), out.len() * COST);
    threads::for_each_chunk(out, task, cost, |index, out| {
        let gate_up = &gate_up[2 * index * task..][..2 * out.len()];
        forward_at(level, gate_up, columns, out);
    });
}

/// The gradients of both inputs, laid out as they are, overwriting `d_gate_up`.
///
/// # Panics
/// The lengths disagree.
pub fn swiglu_backward(d_out: &[f32], gate_up: &[f32], columns: usize, d_gate_up: &mut [f32]) {
    check(gate_up, columns, d_out);
    assert_eq!(d_gate_up.len(), gate_up.len(), "gradients of a gated activation");
    let level = simd_level();
    let (task, cost) = (task_elements(columns), d_out.len() * COST);
    threads::for_each_chunk(d_gate_up, 2 * task, cost, |index, d_gate_up| {
        let gate_up = &gate_up[2 * index * task..][..d_gate_up.len()];
        let d_out = &d_out[index * task..][..d_gate_up.len() / 2];
        backward_at(level, d_out, gate_up, columns, d_gate_up);
    });
}

fn check(gate_up: &[f32], columns: usize, out: &[f32]) {
    assert!(columns > 0 && out.len().is_multiple_of(columns), "{} outputs in rows of {columns}", out.len());
    assert_eq!(gate_up.len(), 2 * out.len(), "a gate and an up for each output");
}

/// Output elements of one task: whole rows.
fn task_elements(columns: usize) -> usize {
    (TASK_ELEMENTS / columns).max(1) * columns
}

simd_dispatch!(fn forward_at(gate_up: &[f32], columns: usize, out: &mut [f32]) = forward);
simd_dispatch!(
    fn backward_at(d_out: &[f32], gate_up: &[f32], columns: usize, d_gate_up: &mut [f32]) = backward
);

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn forward(gate_up: &[f32], columns: usize, out: &mut [f32]) {
    for (row, out) in gate_up.chunks_exact(2 * columns).zip(out.chunks_exact_mut(columns)) {
        let (gate, up) = row.split_at(columns);
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate) * up;
        }
    }
}

#[inline(always)]
fn backward(d_out: &[f32], gate_up: &[f32], columns: usize, d_gate_up: &mut [f32]) {
    let rows = gate_up.chunks_exact(2 * columns).zip(d_gate_up.chunks_exact_mut(2 * columns));
    for ((row, d_row), d_out) in rows.zip(d_out.chunks_exact(columns)) {
        let (gate, up) = row.split_at(columns);
        let (d_gate, d_up) = d_row.split_at_mut(columns);
        for i in 0..d_out.len().min(gate.len()).min(up.len()).min(d_gate.len()).min(d_up.len()) {
            let s = sigmoid(gate[i]);
            d_up[i] = d_out[i] * (gate[i] * s);
            d_gate[i] = d_out[i] * up[i] * (s * gate[i].mul_add(1.0 - s, 1.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Purpose, SimdLevel, set_threads};

    fn random(sample: u64, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Counter::new(31, 0, sample, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values.iter_mut().for_each(|value| *value *= 4.0);
        values
    }

    #[test]
    fn matches_a_double_precision_reference() {
        const COLUMNS: usize = 77;
        let (gate_up, d_out) = (random(1, 26 * COLUMNS), random(3, 13 * COLUMNS));
        let (mut out, mut d_gate_up) = (vec![0.0; d_out.len()], vec![0.0; gate_up.len()]);
        swiglu(&gate_up, COLUMNS, &mut out);
        swiglu_backward(&d_out, &gate_up, COLUMNS, &mut d_gate_up);
        for i in 0..d_out.len() {
            let gate = i / COLUMNS * 2 * COLUMNS + i % COLUMNS;
            let up = gate + COLUMNS;
            let (g, u, d) = (f64::from(gate_up[gate]), f64::from(gate_up[up]), f64::from(d_out[i]));
            let s = 1.0 / (1.0 + (-g).exp());
            let close = |actual: f32, expected: f64| {
                (f64::from(actual) - expected).abs() < 1e-6 * (1.0 + expected.abs())
            };
            assert!(close(out[i], g * s * u), "out[{i}]");
            assert!(close(d_gate_up[up], d * g * s), "d_up[{i}]");
            assert!(close(d_gate_up[gate], d * u * s * (1.0 + g * (1.0 - s))), "d_gate[{i}]");
        }
    }

    #[test]
    fn saturated_gates_stay_finite() {
        let mut out = [0.0; 4];
        swiglu(&[-200.0, -88.5, 88.5, 200.0, 1.0, 1.0, 1.0, 1.0], 4, &mut out);
        assert_eq!(out[0], 0.0);
        assert!(out[1].abs() < 1e-30);
        assert_eq!(out[2..], [88.5, 200.0]);
    }

    #[test]
    fn levels_and_threads_agree() {
        const COLUMNS: usize = 501;
        let len = (2 * TASK_ELEMENTS).next_multiple_of(COLUMNS) + 3 * COLUMNS;
        let (gate_up, d_out) = (random(4, 2 * len), random(6, len));
        let (mut expected, mut e_gate_up) = (vec![0.0; len], vec![0.0; 2 * len]);
        forward_at(SimdLevel::PLAIN, &gate_up, COLUMNS, &mut expected);
        backward_at(SimdLevel::PLAIN, &d_out, &gate_up, COLUMNS, &mut e_gate_up);
        let (mut out, mut d_gate_up) = (vec![0.0; len], vec![0.0; 2 * len]);
        for level in SimdLevel::available() {
            forward_at(level, &gate_up, COLUMNS, &mut out);
            backward_at(level, &d_out, &gate_up, COLUMNS, &mut d_gate_up);
            assert_eq!((&out, &d_gate_up), (&expected, &e_gate_up), "{}", level.name());
        }
        set_threads(2).unwrap();
        swiglu(&gate_up, COLUMNS, &mut out);
        swiglu_backward(&d_out, &gate_up, COLUMNS, &mut d_gate_up);
        set_threads(1).unwrap();
        assert_eq!((out, d_gate_up), (expected, e_gate_up));
    }
}
