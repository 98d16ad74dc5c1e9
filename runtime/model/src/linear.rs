//! Gradients of weights.
//!
//! Shapes: `x` is `[rows, inputs]`, `dy` is `[rows, outputs]`, the weight is `[outputs, inputs]` as
//! Hugging Face stores it.

use std::ops::Range;

use sixfold_tensor::{Mat, MatMut, Panels, Start, matmul, matmul_panels};

/// `dW += dy^T x` for the given columns of `x`, which are the weight's inputs, continuing the sums that `dw` holds.
pub(crate) fn weight_gradient(
    dy: &[f32],
    outputs: usize,
    x: &[f32],
    width: usize,
    inputs: Range<usize>,
    dw: &mut [f32],
) {
    let (rows, columns) = (x.len().checked_div(width).unwrap_or(0), inputs.len());
    matmul(
        Mat::row_major(dy, rows, outputs).transposed(),
        Mat::row_major(x, rows, width).columns(inputs),
        &mut MatMut::row_major(dw, outputs, columns),
        Start::FromC,
    );
}

/// `x` as [`shared_weight_gradient`] takes it.
pub(crate) fn pack(x: &[f32], inputs: usize) -> Panels {
    Panels::pack(Mat::row_major(x, x.len() / inputs, inputs))
}

/// As [`weight_gradient`], the same bits, for an `x` that several weights read and that is packed once.
pub(crate) fn shared_weight_gradient(dy: &[f32], x: &Panels, dw: &mut [f32]) {
    let outputs = dw.len() / x.cols();
    matmul_panels(
        Mat::row_major(dy, x.rows(), outputs).transposed(),
        x,
        &mut MatMut::row_major(dw, outputs, x.cols()),
        Start::FromC,
    );
}
