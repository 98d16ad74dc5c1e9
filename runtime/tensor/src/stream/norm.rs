//! Normalisation of rows.

use crate::cpu::{self, Segment};
use crate::cuda::norm;
use crate::device::Kind;
use crate::{Stream, View, ViewMut};

/// What the forward pass of RMS normalisation read and found out, for backward.
#[derive(Clone, Copy)]
pub struct RmsNormSaved<'a> {
    /// The input, `[rows][width]`.
    pub x: View<'a>,
    /// The weight, `[width]`.
    pub w: View<'a>,
    /// Each row's reciprocal root mean square.
    pub rstd: View<'a>,
}

/// What the forward pass of layer normalisation read and found out, for backward.
#[derive(Clone, Copy)]
pub struct LayerNormSaved<'a> {
    /// The input, `[rows][width]`.
    pub x: View<'a>,
    /// The weight, `[width]`.
    pub w: View<'a>,
    /// Each row's mean.
    pub mean: View<'a>,
    /// Each row's reciprocal standard deviation.
    pub rstd: View<'a>,
}

impl Stream {
    /// `out = (x * rstd) * w`; see [`cpu::rms_norm`].
    ///
    /// # Panics
    /// The shapes disagree.
    pub fn rms_norm(&self, x: View<'_>, w: View<'_>, eps: f32, out: ViewMut<'_>, rstd: ViewMut<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::rms_norm(x.on_cpu(), w.on_cpu(), eps, out.on_cpu(), rstd.on_cpu()),
            Kind::Cuda(cuda) => {
                norm::rms_norm(cuda, x.on_cuda(), w.on_cuda(), eps, out.on_cuda(), rstd.on_cuda());
            }
        }
    }

    /// Writes the gradient of the input to `dx` and adds the weight's to the leaves of `dw` (`[leaves][width]`).
    ///
    /// # Panics
    /// The shapes disagree, or the segments do not cover the rows.
    pub fn rms_norm_backward(
        &self,
        dy: View<'_>,
        saved: RmsNormSaved<'_>,
        segments: &[Segment],
        dx: ViewMut<'_>,
        dw: ViewMut<'_>,
    ) {
        let saved = [saved.x, saved.w, saved.rstd];
        match &self.device().0 {
            Kind::Cpu(_) => {
                let [x, w, rstd] = saved.map(View::on_cpu);
                cpu::rms_norm_backward(dy.on_cpu(), x, w, rstd, segments, dx.on_cpu(), dw.on_cpu());
            }
            Kind::Cuda(cuda) => {
                let (saved, dx, dw) = (saved.map(View::on_cuda), dx.on_cuda(), dw.on_cuda());
                norm::rms_norm_backward(cuda, dy.on_cuda(), saved, segments, dx, dw);
            }
        }
    }

    /// `out = ((x - mean) * rstd) * w + bias`; see [`cpu::layer_norm`]. `parameters` are the weight and the bias, `found` takes
    /// each row's mean and reciprocal standard deviation.
    ///
    /// # Panics
    /// The shapes disagree.
    pub fn layer_norm(
        &self,
        x: View<'_>,
        parameters: [View<'_>; 2],
        eps: f32,
        out: ViewMut<'_>,
        found: [ViewMut<'_>; 2],
    ) {
        match &self.device().0 {
            Kind::Cpu(_) => {
                let ([w, bias], [mean, rstd]) = (parameters.map(View::on_cpu), found.map(ViewMut::on_cpu));
                cpu::layer_norm(x.on_cpu(), w, bias, eps, out.on_cpu(), mean, rstd);
            }
            Kind::Cuda(cuda) => {
                let (parameters, found) = (parameters.map(View::on_cuda), found.map(ViewMut::on_cuda));
                norm::layer_norm(cuda, x.on_cuda(), parameters, eps, out.on_cuda(), found);
            }
        }
    }

    /// Writes the gradient of the input to `dx` and adds those of weight and bias to the leaves of `d_parameters`
    /// (`[leaves][width]` each), rows of a leaf in ascending order.
    ///
    /// # Panics
    /// The shapes disagree, or the segments do not cover the rows.
    pub fn layer_norm_backward(
        &self,
        dy: View<'_>,
        saved: LayerNormSaved<'_>,
        segments: &[Segment],
        dx: ViewMut<'_>,
        d_parameters: [ViewMut<'_>; 2],
    ) {
        let saved = [saved.x, saved.w, saved.mean, saved.rstd];
        match &self.device().0 {
            Kind::Cpu(_) => {
                let [x, w, mean, rstd] = saved.map(View::on_cpu);
                let (dy, dx, [dw, d_bias]) = (dy.on_cpu(), dx.on_cpu(), d_parameters.map(ViewMut::on_cpu));
                let saved = cpu::LayerNormSaved { x, w, mean, rstd };
                cpu::layer_norm_backward(dy, &saved, segments, dx, dw, d_bias);
            }
            Kind::Cuda(cuda) => {
                let (saved, d_parameters) = (saved.map(View::on_cuda), d_parameters.map(ViewMut::on_cuda));
                norm::layer_norm_backward(cuda, dy.on_cuda(), saved, segments, dx.on_cuda(), d_parameters);
            }
        }
    }
}
