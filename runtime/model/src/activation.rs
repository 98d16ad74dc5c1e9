//! The activation of the feed-forward layer, by family.
//!
//! Shapes: `inner` is what the projections into the layer give, `[rows, columns]` for each of them side by side; the result is
//! `[rows, columns]`.

use sixfold_tensor::{Buffer, Gelu, Stream, View};

use crate::families::Family;

/// The activation: SwiGLU of gates and ups, or GELU.
pub(crate) fn forward(stream: &Stream, family: Family, inner: View<'_>, columns: usize) -> Buffer {
    let mut out = stream.uninit(inner.len() / family.feed_forward_inputs().len());
    match family.is_gated() {
        _ if out.is_empty() => {}
        true => stream.swiglu(inner, columns, out.view_mut()),
        false => stream.gelu(Gelu::Tanh, inner, out.view_mut()),
    }
    out
}

/// The gradient of `inner`.
pub(crate) fn backward(
    stream: &Stream,
    family: Family,
    d_out: View<'_>,
    inner: View<'_>,
    columns: usize,
) -> Buffer {
    let mut d_inner = stream.uninit(inner.len());
    match family.is_gated() {
        _ if d_out.is_empty() => {}
        true => stream.swiglu_backward(d_out, inner, columns, d_inner.view_mut()),
        false => stream.gelu_backward(Gelu::Tanh, d_out, inner, d_inner.view_mut()),
    }
    d_inner
}
