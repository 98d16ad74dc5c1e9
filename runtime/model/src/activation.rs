//! The activation of the feed-forward layer, by family.
//!
//! Shapes: `inner` is what the projections into the layer give, `[rows, columns]` for each of them side by side; the result is
//! `[rows, columns]`.

use sixfold_tensor::{Gelu, gelu, gelu_backward, swiglu, swiglu_backward};

use crate::family::Family;

/// The activation: SwiGLU of gates and ups, or GELU.
pub(crate) fn forward(family: Family, inner: &[f32], columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; inner.len() / family.feed_forward_inputs().len()];
    match family {
        _ if out.is_empty() => {}
        Family::Llama => swiglu(inner, columns, &mut out),
        Family::Gpt2 => gelu(Gelu::Tanh, inner, &mut out),
    }
    out
}

/// The gradient of `inner`.
pub(crate) fn backward(family: Family, d_out: &[f32], inner: &[f32], columns: usize) -> Vec<f32> {
    let mut d_inner = vec![0.0; inner.len()];
    match family {
        _ if d_out.is_empty() => {}
        Family::Llama => swiglu_backward(d_out, inner, columns, &mut d_inner),
        Family::Gpt2 => gelu_backward(Gelu::Tanh, d_out, inner, &mut d_inner),
    }
    d_inner
}
