//! Activations on a GPU.

use super::{Cuda, Run};
use crate::Gelu;

const SOURCE: &str = "activation";
const THREADS: u32 = 256;

pub(crate) fn swiglu(cuda: &Cuda, gate_up: Run, columns: usize, out: Run) {
    check(gate_up, columns, out);
    let launch = cuda.kernel(SOURCE, "swiglu").run(gate_up).count(columns).run(out);
    launch.launch([out.len / columns, 1], [THREADS, 1]);
}

pub(crate) fn swiglu_backward(cuda: &Cuda, d_out: Run, gate_up: Run, columns: usize, d_gate_up: Run) {
    check(gate_up, columns, d_out);
    assert_eq!(d_gate_up.len, gate_up.len, "gradients of a gated activation");
    let launch = cuda.kernel(SOURCE, "swiglu_backward").run(d_out).run(gate_up).count(columns).run(d_gate_up);
    launch.launch([d_out.len / columns, 1], [THREADS, 1]);
}

fn check(gate_up: Run, columns: usize, out: Run) {
    assert!(columns > 0 && out.len.is_multiple_of(columns), "{} outputs in rows of {columns}", out.len);
    assert_eq!(gate_up.len, 2 * out.len, "a gate and an up for each output");
}

pub(crate) fn gelu(cuda: &Cuda, form: Gelu, x: Run, out: Run) {
    assert_eq!(x.len, out.len, "lengths of an activation");
    cuda.kernel(SOURCE, "gelu").u32(is_tanh(form)).run(x).size(x.len).run(out).over(x.len);
}

pub(crate) fn gelu_backward(cuda: &Cuda, form: Gelu, d_out: Run, x: Run, dx: Run) {
    assert_eq!((d_out.len, x.len), (dx.len, dx.len), "lengths of an activation's gradients");
    let launch = cuda.kernel(SOURCE, "gelu_backward").u32(is_tanh(form)).run(d_out).run(x);
    launch.size(x.len).run(dx).over(x.len);
}

fn is_tanh(form: Gelu) -> u32 {
    u32::from(form == Gelu::Tanh)
}
