//! The norm before a branch and before the head: RMSNorm, or LayerNorm where there is a bias.
//!
//! Shapes: `x`, `h` are `[rows, d]`.

use sixfold_tensor::{
    LayerNormSaved, Segment, add_assign, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward,
};

use crate::linear::Gradients;
use crate::pass::Pass;
use crate::unit::UnitId;

/// A norm's parameters, `[d]` each.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    /// A LayerNorm has one, an RMSNorm has none.
    pub(crate) bias: Option<&'a [f32]>,
}

/// A norm's output, and what it found out about each row.
pub(crate) struct Rows {
    pub(crate) h: Vec<f32>,
    /// Empty for an RMSNorm.
    mean: Vec<f32>,
    rstd: Vec<f32>,
}

impl Norm<'_> {
    /// The normed rows of `x`.
    pub(crate) fn forward(&self, x: &[f32], eps: f32) -> Rows {
        let (mut h, mut rstd) = (vec![0.0; x.len()], vec![0.0; x.len() / self.weight.len()]);
        let mut mean = Vec::new();
        match self.bias {
            None => rms_norm(x, self.weight, eps, &mut h, &mut rstd),
            Some(bias) => {
                mean.resize(rstd.len(), 0.0);
                layer_norm(x, self.weight, bias, eps, &mut h, &mut mean, &mut rstd);
            }
        }
        Rows { h, mean, rstd }
    }
}

/// A norm's input, and what it made of it.
pub(crate) struct Normed {
    pub(crate) x: Vec<f32>,
    pub(crate) rows: Rows,
}

impl Normed {
    pub(crate) fn forward(pass: &Pass<'_>, norm: UnitId, x: Vec<f32>) -> Self {
        let rows = parameters(pass, norm).forward(&x, pass.geometry.config.rms_norm_eps);
        Self { x, rows }
    }

    /// The gradient of the norm's input; the parameters' gradients are kept by sequence block, summed over the
    /// micro-batch's data groups.
    pub(crate) fn backward(
        &self,
        pass: &Pass<'_>,
        norm: UnitId,
        dh: &[f32],
        gradients: &mut Gradients<'_>,
    ) -> Vec<f32> {
        let weight = pass.parameters.unit(norm);
        let (mut dx, segments) = (vec![0.0; dh.len()], pass.segments());
        if let Some(bias) = bias_of(pass, norm) {
            let [dw, d_bias] = self.layer_norm_leaves(pass, weight, dh, &segments, &mut dx);
            gradients.add_leaves(norm, |leaves| add_assign(leaves, &dw));
            gradients.add_leaves(bias, |leaves| add_assign(leaves, &d_bias));
        } else {
            gradients.add_leaves(norm, |leaves| {
                rms_norm_backward(dh, &self.x, weight, &self.rows.rstd, &segments, &mut dx, leaves);
            });
        }
        dx
    }

    /// Writes the gradient of a LayerNorm's input, and returns those of weight and bias: `[leaves][d]` each.
    fn layer_norm_leaves(
        &self,
        pass: &Pass<'_>,
        weight: &[f32],
        dh: &[f32],
        segments: &[Segment],
        dx: &mut [f32],
    ) -> [Vec<f32>; 2] {
        let d = weight.len();
        let [mut dw, mut d_bias] = [(); 2].map(|()| vec![0.0; pass.leaves() * d]);
        let mut first = 0;
        for &Segment { end, leaf } in segments {
            let (elements, of_leaf) = (first * d..end * d, leaf * d..(leaf + 1) * d);
            let saved = LayerNormSaved {
                x: &self.x[elements.clone()],
                w: weight,
                mean: &self.rows.mean[first..end],
                rstd: &self.rows.rstd[first..end],
            };
            let (dw, d_bias) = (&mut dw[of_leaf.clone()], &mut d_bias[of_leaf]);
            layer_norm_backward(&dh[elements.clone()], &saved, &mut dx[elements], dw, d_bias);
            first = end;
        }
        [dw, d_bias]
    }
}

fn parameters<'a>(pass: &'a Pass<'_>, norm: UnitId) -> Norm<'a> {
    Norm {
        weight: pass.parameters.unit(norm),
        bias: bias_of(pass, norm).map(|bias| pass.parameters.unit(bias)),
    }
}

/// The bias of a norm that has one.
fn bias_of(pass: &Pass<'_>, norm: UnitId) -> Option<UnitId> {
    let bias = UnitId { tensor: norm.tensor.bias()?, ..norm };
    pass.parameters.get(bias).map(|_| bias)
}
