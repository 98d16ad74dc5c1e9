//! Activations of feed-forward layers.

use crate::cpu::{self, Gelu};
use crate::cuda::activation;
use crate::device::Kind;
use crate::{Stream, View, ViewMut};

impl Stream {
    /// `out = (gate * sigmoid(gate)) * up`, where a row of `gate_up` holds `columns` gates and then their ups.
    ///
    /// # Panics
    /// The lengths disagree.
    pub fn swiglu(&self, gate_up: View<'_>, columns: usize, out: ViewMut<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::swiglu(gate_up.on_cpu(), columns, out.on_cpu()),
            Kind::Cuda(cuda) => activation::swiglu(cuda, gate_up.on_cuda(), columns, out.on_cuda()),
        }
    }

    /// The gradients of gates and ups, laid out as they are.
    ///
    /// # Panics
    /// The lengths disagree.
    pub fn swiglu_backward(
        &self,
        d_out: View<'_>,
        gate_up: View<'_>,
        columns: usize,
        d_gate_up: ViewMut<'_>,
    ) {
        match &self.device().0 {
            Kind::Cpu(_) => {
                cpu::swiglu_backward(d_out.on_cpu(), gate_up.on_cpu(), columns, d_gate_up.on_cpu());
            }
            Kind::Cuda(cuda) => {
                let (d_out, gate_up) = (d_out.on_cuda(), gate_up.on_cuda());
                activation::swiglu_backward(cuda, d_out, gate_up, columns, d_gate_up.on_cuda());
            }
        }
    }

    /// `out = gelu(x)`, element by element.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn gelu(&self, form: Gelu, x: View<'_>, out: ViewMut<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::gelu(form, x.on_cpu(), out.on_cpu()),
            Kind::Cuda(cuda) => activation::gelu(cuda, form, x.on_cuda(), out.on_cuda()),
        }
    }

    /// `dx = d_out * gelu'(x)`, element by element.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn gelu_backward(&self, form: Gelu, d_out: View<'_>, x: View<'_>, dx: ViewMut<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::gelu_backward(form, d_out.on_cpu(), x.on_cpu(), dx.on_cpu()),
            Kind::Cuda(cuda) => {
                activation::gelu_backward(cuda, form, d_out.on_cuda(), x.on_cuda(), dx.on_cuda());
            }
        }
    }
}
