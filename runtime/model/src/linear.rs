//! A matrix of weights applied to rows, forwards and backwards, with its operations counted.
//!
//! Shapes: `x` is `[rows, inputs]`, `y` is `[rows, outputs]`, the weight is `[outputs, inputs]` as
//! Hugging Face stores it.

use sixfold_tensor::{Mat, MatMut, Panels, Start, matmul, matmul_panels};

/// One unit's weight, seen as a matrix.
pub(crate) struct Linear<'a> {
    weight: &'a [f32],
    inputs: usize,
    outputs: usize,
}

impl<'a> Linear<'a> {
    /// A weight of `[outputs, inputs]`; the number of outputs follows from its length.
    pub(crate) fn new(weight: &'a [f32], inputs: usize) -> Self {
        Self { weight, inputs, outputs: weight.len() / inputs }
    }

    fn flops(&self, rows: usize) -> u64 {
        2 * rows as u64 * self.weight.len() as u64
    }

    /// `y = x W^T`.
    pub(crate) fn forward(&self, x: &[f32], flops: &mut u64) -> Vec<f32> {
        let rows = x.len() / self.inputs;
        let mut y = vec![0.0; rows * self.outputs];
        matmul(
            Mat::row_major(x, rows, self.inputs),
            Mat::row_major(self.weight, self.outputs, self.inputs).transposed(),
            &mut MatMut::row_major(&mut y, rows, self.outputs),
            Start::Zero,
        );
        *flops += self.flops(rows);
        y
    }

    /// `dx = dy W`, or `dx += dy W` continuing the sums that `dx` holds.
    pub(crate) fn input_gradient(&self, dy: &[f32], dx: &mut [f32], start: Start, flops: &mut u64) {
        let rows = dy.len() / self.outputs;
        matmul(
            Mat::row_major(dy, rows, self.outputs),
            Mat::row_major(self.weight, self.outputs, self.inputs),
            &mut MatMut::row_major(dx, rows, self.inputs),
            start,
        );
        *flops += self.flops(rows);
    }
}

/// `dW += dy^T x`, continuing the sums that `dw` holds.
pub(crate) fn weight_gradient(dy: &[f32], x: &[f32], dw: &mut [f32], inputs: usize, flops: &mut u64) {
    let (rows, outputs) = (x.len() / inputs, dw.len() / inputs);
    matmul(
        Mat::row_major(dy, rows, outputs).transposed(),
        Mat::row_major(x, rows, inputs),
        &mut MatMut::row_major(dw, outputs, inputs),
        Start::FromC,
    );
    *flops += 2 * rows as u64 * dw.len() as u64;
}

/// `x` as [`shared_weight_gradient`] takes it.
pub(crate) fn pack(x: &[f32], inputs: usize) -> Panels {
    Panels::pack(Mat::row_major(x, x.len() / inputs, inputs))
}

/// As [`weight_gradient`], the same bits, for an `x` that several weights read and that is packed once.
pub(crate) fn shared_weight_gradient(dy: &[f32], x: &Panels, dw: &mut [f32], flops: &mut u64) {
    let outputs = dw.len() / x.cols();
    matmul_panels(
        Mat::row_major(dy, x.rows(), outputs).transposed(),
        x,
        &mut MatMut::row_major(dw, outputs, x.cols()),
        Start::FromC,
    );
    *flops += 2 * (x.rows() * outputs * x.cols()) as u64;
}
