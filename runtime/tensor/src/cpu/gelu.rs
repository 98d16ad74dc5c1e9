//! The activation of GPT-2 and BERT (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016), in both of its forms.

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::threads;
use crate::math::{exp, normal};

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 15;
/// Cost of an element in multiply-adds.
const COST: usize = 16;
/// `sqrt(2 / pi)`
const SLOPE: f32 = 0.797_884_6;
/// The cubic term of the approximation, from the paper.
const CUBIC: f32 = 0.044_715;

/// Which of the two functions is meant; they differ by up to 5e-4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gelu {
    /// `x (1 + erf(x / sqrt 2)) / 2`: Hugging Face's `gelu`.
    Erf,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`: `gelu_new` and `gelu_pytorch_tanh`, GPT-2's.
    Tanh,
}

/// `out = gelu(x)`, element by element.
///
/// The error is at most 8e-7 (`Erf`, for `x` down to -12) or 3e-6 (`Tanh`, down to -5) of the value; below, the value is less than
/// 2e-6. Minus infinity gives NaN.
///
/// # Panics
/// The lengths differ.
pub fn gelu(form: Gelu, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "lengths of an activation");
    let (level, cost) = (simd_level(), x.len() * COST);
    threads::for_each_chunk(out, TASK_ELEMENTS, cost, |index, out| {
        forward_at(level, form, &x[index * TASK_ELEMENTS..][..out.len()], out);
    });
}

/// `dx = d_out * gelu'(x)`, element by element; the derivative is within 1e-6 of the true one.
///
/// # Panics
/// The lengths differ.
pub fn gelu_backward(form: Gelu, d_out: &[f32], x: &[f32], dx: &mut [f32]) {
    assert_eq!((d_out.len(), x.len()), (dx.len(), dx.len()), "lengths of an activation's gradients");
    let (level, cost) = (simd_level(), x.len() * COST);
    threads::for_each_chunk(dx, TASK_ELEMENTS, cost, |index, dx| {
        let range = index * TASK_ELEMENTS..index * TASK_ELEMENTS + dx.len();
        backward_at(level, form, &d_out[range.clone()], &x[range], dx);
    });
}

simd_dispatch!(fn forward_at(form: Gelu, x: &[f32], out: &mut [f32]) = forward);
simd_dispatch!(fn backward_at(form: Gelu, d_out: &[f32], x: &[f32], dx: &mut [f32]) = backward);

#[inline(always)]
fn forward(form: Gelu, x: &[f32], out: &mut [f32]) {
    match form {
        Gelu::Erf => out.iter_mut().zip(x).for_each(|(out, &x)| *out = x * normal(x).0),
        Gelu::Tanh => out.iter_mut().zip(x).for_each(|(out, &x)| *out = x * gate(x).0),
    }
}

#[inline(always)]
fn backward(form: Gelu, d_out: &[f32], x: &[f32], dx: &mut [f32]) {
    let elements = dx.iter_mut().zip(d_out.iter().zip(x));
    match form {
        Gelu::Erf => elements.for_each(|(dx, (d_out, &x))| {
            let (cdf, density) = normal(x);
            *dx = d_out * x.mul_add(density, cdf);
        }),
        Gelu::Tanh => elements.for_each(|(dx, (d_out, &x))| *dx = d_out * tanh_derivative(x)),
    }
}

/// `g = (1 + tanh(u)) / 2` and `g (1 - g)`: the logistic function of `2 u`, which in this form is as exact in its lower tail as
/// above, where `1 + tanh` cancels.
#[inline(always)]
fn gate(x: f32) -> (f32, f32) {
    let u = SLOPE * x * (x * x).mul_add(CUBIC, 1.0);
    let e = exp(-2.0 * u.abs());
    let upper = 1.0 / (1.0 + e);
    let lower = e * upper;
    (if u > 0.0 { upper } else { lower }, upper * lower)
}

#[inline(always)]
fn tanh_derivative(x: f32) -> f32 {
    // From here on the gate is 0 or 1 and the second term 0; without the limit it would be 0 times infinity.
    let x = if x > 32.0 { 32.0 } else { x };
    let x = if x < -32.0 { -32.0 } else { x };
    let ((gate, product), slope) = (gate(x), 2.0 * SLOPE * (x * x).mul_add(3.0 * CUBIC, 1.0));
    (x * slope).mul_add(product, gate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Purpose, SimdLevel, set_threads};

    const FORMS: [Gelu; 2] = [Gelu::Erf, Gelu::Tanh];

    fn random(sample: u64, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Counter::new(32, 0, sample, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values.iter_mut().for_each(|value| *value *= 3.0);
        values
    }

    /// Simpson's rule for the integral of the density, so that nothing is shared with what is tested.
    fn cdf(x: f64) -> f64 {
        let (steps, width) = (400, x / 400.0);
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let sum: f64 = (0..=steps)
            .map(|i| {
                let weight = if i == 0 || i == steps { 1.0 } else { 2.0 + 2.0 * f64::from(i % 2) };
                weight * density(f64::from(i) * width)
            })
            .sum();
        0.5 + sum * width / 3.0
    }

    /// Value in f64 by the definitions.
    fn reference(form: Gelu, x: f64) -> f64 {
        match form {
            Gelu::Erf => x * cdf(x),
            Gelu::Tanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + u.tanh())
            }
        }
    }

    #[test]
    fn values_match_a_double_precision_reference() {
        for (form, bound) in [(Gelu::Erf, 8e-7), (Gelu::Tanh, 3e-6)] {
            let mut x = random(1, 3001);
            x.iter_mut().for_each(|x| *x = if form == Gelu::Tanh { x.max(-5.0) } else { *x });
            let mut out = vec![0.0; x.len()];
            gelu(form, &x, &mut out);
            for (&x, &actual) in x.iter().zip(&out) {
                let expected = reference(form, x.into());
                // The reference itself cancels in the lower tail.
                let tolerance = bound * expected.abs() + 1e-12;
                assert!(
                    (f64::from(actual) - expected).abs() <= tolerance,
                    "{form:?}({x}) = {actual}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for form in FORMS {
            let (x, d_out) = (random(2, 1001), random(3, 1001));
            let mut dx = vec![0.0; x.len()];
            gelu_backward(form, &d_out, &x, &mut dx);
            for ((&x, &d_out), &actual) in x.iter().zip(&d_out).zip(&dx) {
                let (wide, step) = (f64::from(x), 1e-4);
                let slope = (reference(form, wide + step) - reference(form, wide - step)) / (2.0 * step);
                let expected = f64::from(d_out) * slope;
                let tolerance = 1e-6 * f64::from(d_out).abs() + 1e-8;
                assert!(
                    (f64::from(actual) - expected).abs() <= tolerance,
                    "{form:?}'({x}) {actual} {expected}"
                );
            }
        }
    }

    #[test]
    fn matches_golden_values_of_pytorch_and_saturates() {
        let x = [1.0, -1.0, 200.0, -200.0, 1e30, -1e30];
        for (form, golden) in [(Gelu::Erf, 0.841_344_7), (Gelu::Tanh, 0.841_192)] {
            let (mut out, mut dx) = ([9.0; 6], [9.0; 6]);
            gelu(form, &x, &mut out);
            gelu_backward(form, &[1.0; 6], &x, &mut dx);
            assert!((out[0] - golden).abs() < 2e-7 && (out[1] - (golden - 1.0)).abs() < 2e-7, "{out:?}");
            assert_eq!(out[2..], [200.0, 0.0, 1e30, 0.0]);
            assert_eq!(dx[2..], [1.0, 0.0, 1.0, 0.0], "{form:?}");
        }
    }

    #[test]
    fn levels_and_threads_agree() {
        let len = 2 * TASK_ELEMENTS + 77;
        let (x, d_out) = (random(4, len), random(5, len));
        for form in FORMS {
            let (mut expected, mut e_dx) = (vec![0.0; len], vec![0.0; len]);
            forward_at(SimdLevel::PLAIN, form, &x, &mut expected);
            backward_at(SimdLevel::PLAIN, form, &d_out, &x, &mut e_dx);
            let (mut out, mut dx) = (vec![9.0; len], vec![9.0; len]);
            for level in SimdLevel::available() {
                forward_at(level, form, &x, &mut out);
                backward_at(level, form, &d_out, &x, &mut dx);
                assert_eq!((&out, &dx), (&expected, &e_dx), "{form:?} {}", level.name());
            }
            set_threads(2).unwrap();
            gelu(form, &x, &mut out);
            gelu_backward(form, &d_out, &x, &mut dx);
            set_threads(1).unwrap();
            assert_eq!((out, dx), (expected, e_dx), "{form:?}");
        }
    }
}
