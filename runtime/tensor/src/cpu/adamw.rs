//! The AdamW update (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019), element by element.

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::threads;
use crate::math::powi_f64;

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 15;
/// Cost of an element in multiply-adds.
const COST: usize = 16;

/// The numbers of one step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay; pass 0 for norms and biases.
    pub weight_decay: f32,
    /// The step's number, from 1; corrects the moments' bias.
    pub step: u64,
    /// Factor on the gradient before anything else: 1, or what clipping asks for.
    pub gradient_scale: f32,
}

/// What an element needs, computed once a call.
#[derive(Clone, Copy)]
pub(crate) struct Coefficients {
    pub(crate) adam: AdamW,
    pub(crate) keep: f32,
    pub(crate) step_size: f32,
    pub(crate) root_correction: f32,
}

/// Updates `param` and its moments `m` and `v` from `grad`.
///
/// `g = grad * gradient_scale; param *= 1 - lr * decay; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
/// param -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
///
/// # Panics
/// The lengths differ.
pub fn adamw_step(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], adam: &AdamW) {
    let len = param.len();
    assert_eq!((m.len(), v.len(), grad.len()), (len, len, len), "lengths of an optimiser step");
    let (level, coefficients) = (simd_level(), Coefficients::new(adam));
    let chunks =
        param.chunks_mut(TASK_ELEMENTS).zip(m.chunks_mut(TASK_ELEMENTS)).zip(v.chunks_mut(TASK_ELEMENTS));
    let mut tasks: Vec<_> = chunks.zip(grad.chunks(TASK_ELEMENTS)).collect();
    threads::for_each(&mut tasks, len * COST, |(((param, m), v), grad)| {
        update_at(level, param, m, v, grad, &coefficients)
    });
}

impl Coefficients {
    pub(crate) fn new(adam: &AdamW) -> Self {
        let correction = |beta: f32| 1.0 - powi_f64(beta.into(), adam.step);
        Self {
            adam: *adam,
            keep: (1.0 - f64::from(adam.learning_rate) * f64::from(adam.weight_decay)) as f32,
            step_size: (f64::from(adam.learning_rate) / correction(adam.beta1)) as f32,
            root_correction: (1.0 / correction(adam.beta2).sqrt()) as f32,
        }
    }
}

simd_dispatch!(
    fn update_at(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], with: &Coefficients) = update
);

#[inline(always)]
fn update(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], with: &Coefficients) {
    let Coefficients { adam, keep, step_size, root_correction } = *with;
    let (rest1, rest2) = (1.0 - adam.beta1, 1.0 - adam.beta2);
    for (((param, m), v), grad) in param.iter_mut().zip(m).zip(v).zip(grad) {
        let g = grad * adam.gradient_scale;
        *m = adam.beta1.mul_add(*m, rest1 * g);
        *v = adam.beta2.mul_add(*v, rest2 * (g * g));
        let root = v.sqrt().mul_add(root_correction, adam.eps);
        *param = (-step_size).mul_add(*m / root, *param * keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Purpose, SimdLevel, set_threads};

    const ADAM: AdamW = AdamW {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step: 1,
        gradient_scale: 1.0,
    };

    /// Two steps in f64, by the published formula.
    #[test]
    fn two_steps_match_the_formula() {
        let (mut param, mut m, mut v) = ([1.0f32, -2.0, 0.5], [0.0f32; 3], [0.0f32; 3]);
        let gradients = [[0.5f32, -0.25, 1e-3], [-1.0, 0.125, 2e-3]];
        let (mut p64, mut m64, mut v64) = ([1.0f64, -2.0, 0.5], [0.0f64; 3], [0.0f64; 3]);
        for (index, gradient) in gradients.iter().enumerate() {
            let t = index as i32 + 1;
            adamw_step(&mut param, &mut m, &mut v, gradient, &AdamW { step: t as u64, ..ADAM });
            for i in 0..3 {
                let g = f64::from(gradient[i]);
                p64[i] *= 1.0 - 0.1 * 0.01;
                m64[i] = 0.9 * m64[i] + 0.1 * g;
                v64[i] = 0.999 * v64[i] + 0.001 * g * g;
                let m_hat = m64[i] / (1.0 - 0.9f64.powi(t));
                let v_hat = v64[i] / (1.0 - 0.999f64.powi(t));
                p64[i] -= 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
                assert!((f64::from(param[i]) - p64[i]).abs() < 3e-6, "step {t}: {} {}", param[i], p64[i]);
            }
        }
        // The first step of Adam moves by the learning rate: 1 * 0.999 - 0.1.
        let mut first = [1.0f32];
        adamw_step(&mut first, &mut [0.0], &mut [0.0], &[0.5], &ADAM);
        assert!((first[0] - 0.899).abs() < 1e-6);
    }

    #[test]
    fn the_gradient_scale_acts_before_the_moments() {
        let run = |gradient: f32, gradient_scale| {
            let (mut param, mut m, mut v) = ([1.0f32], [0.5f32], [0.25f32]);
            adamw_step(&mut param, &mut m, &mut v, &[gradient], &AdamW { gradient_scale, step: 3, ..ADAM });
            (param, m, v)
        };
        assert_eq!(run(8.0, 0.25), run(2.0, 1.0));
    }

    type Step<'a> = &'a dyn Fn(&mut [f32], &mut [f32], &mut [f32], &[f32]);

    #[test]
    fn levels_and_threads_agree() {
        let len = TASK_ELEMENTS + 333;
        let mut start = vec![0.0; len];
        Counter::new(1, 0, 0, 0, Purpose::INITIALISATION).fill_normal(0, &mut start);
        let moments: Vec<f32> = start.iter().map(|value| value * value).collect();
        let run = |step: Step<'_>| {
            let (mut param, mut m, mut v) = (start.clone(), start.clone(), moments.clone());
            step(&mut param, &mut m, &mut v, &start);
            (param, m, v)
        };
        let adam = AdamW { step: 17, gradient_scale: 0.7, ..ADAM };
        let coefficients = Coefficients::new(&adam);
        let expected = run(&|p, m, v, g| update_at(SimdLevel::PLAIN, p, m, v, g, &coefficients));
        for level in SimdLevel::available() {
            assert!(
                run(&|p, m, v, g| update_at(level, p, m, v, g, &coefficients)) == expected,
                "{}",
                level.name()
            );
        }
        set_threads(2).unwrap();
        let threaded = run(&|p, m, v, g| adamw_step(p, m, v, g, &adam));
        set_threads(1).unwrap();
        assert!(threaded == expected);
    }
}
