//! The norm before a branch and before the head: RMSNorm, or LayerNorm where there is a bias.
//!
//! Shapes: `x` is `[own rows, d]`, the rows that the rank has ([`row_parts`](crate::row_parts)); `h` is `[rows, d]`.

use sixfold_tensor::{Buffer, LayerNormSaved, RmsNormSaved, Stream, View};

use crate::linear::Gradients;
use crate::pass::Pass;
use crate::tensor_group::GroupError;
use crate::unit::UnitId;

/// A norm's parameters, `[d]` each.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: View<'a>,
    /// A LayerNorm has one, an RMSNorm has none.
    pub(crate) bias: Option<View<'a>>,
}

/// A norm's output, and what it found out about each row.
pub(crate) struct Rows {
    pub(crate) h: Buffer,
    /// Empty for an RMSNorm.
    mean: Buffer,
    rstd: Buffer,
}

impl Norm<'_> {
    /// The normed rows of `x`.
    pub(crate) fn forward(&self, stream: &Stream, x: View<'_>, eps: f32) -> Rows {
        let rows = x.len() / self.weight.len();
        let (mut h, mut rstd) = (stream.uninit(x.len()), stream.uninit(rows));
        let mut mean = stream.uninit(if self.bias.is_some() { rows } else { 0 });
        match self.bias {
            None => stream.rms_norm(x, self.weight, eps, h.view_mut(), rstd.view_mut()),
            Some(bias) => {
                let found = [mean.view_mut(), rstd.view_mut()];
                stream.layer_norm(x, [self.weight, bias], eps, h.view_mut(), found);
            }
        }
        Rows { h, mean, rstd }
    }
}

/// A norm's input, of the rows that the rank has, and what it made of it: `h` is of all rows, as the product that follows
/// takes it.
pub(crate) struct Normed {
    pub(crate) x: Buffer,
    pub(crate) rows: Rows,
}

impl Normed {
    pub(crate) fn forward(pass: &mut Pass<'_>, norm: UnitId, x: Buffer) -> Result<Self, GroupError> {
        let eps = pass.geometry.config.rms_norm_eps;
        let Rows { h, mean, rstd } = parameters(pass, norm).forward(pass.stream, x.view(), eps);
        Ok(Self { x, rows: Rows { h: pass.all_rows(h)?, mean, rstd } })
    }

    /// The gradient of the norm's input, from that of the rows of `h` that the rank has; the parameters' gradients are
    /// kept by sequence block, summed over the micro-batch's data groups.
    pub(crate) fn backward(
        &self,
        pass: &Pass<'_>,
        norm: UnitId,
        dh: View<'_>,
        gradients: &mut Gradients<'_>,
    ) -> Buffer {
        let (stream, w) = (pass.stream, pass.parameters.plain().unit(norm));
        let (x, rstd) = (self.x.view(), self.rows.rstd.view());
        let (mut dx, segments) = (stream.uninit(dh.len()), pass.own_segments());
        let Some(bias) = bias_of(pass, norm) else {
            gradients.add_leaves_if_wanted(norm, pass.leaves() * w.len(), |leaves| {
                let saved = RmsNormSaved { x, w, rstd };
                stream.rms_norm_backward(dh, saved, &segments, dx.view_mut(), leaves);
            });
            return dx;
        };
        let mut sums = [(); 2].map(|()| stream.zeros(pass.leaves() * w.len()));
        let saved = LayerNormSaved { x, w, mean: self.rows.mean.view(), rstd };
        let [dw, d_bias] = sums.each_mut().map(Buffer::view_mut);
        stream.layer_norm_backward(dh, saved, &segments, dx.view_mut(), [dw, d_bias]);
        for (unit, sums) in [norm, bias].into_iter().zip(&sums) {
            if gradients.wants(unit) {
                gradients.add_leaves(unit, |to| stream.add_assign(to, sums.view()));
            }
        }
        dx
    }
}

fn parameters<'a>(pass: &'a Pass<'_>, norm: UnitId) -> Norm<'a> {
    Norm {
        weight: pass.parameters.plain().unit(norm),
        bias: bias_of(pass, norm).map(|bias| pass.parameters.plain().unit(bias)),
    }
}

/// The bias of a norm that has one.
fn bias_of(pass: &Pass<'_>, norm: UnitId) -> Option<UnitId> {
    let bias = UnitId { tensor: norm.tensor.bias()?, ..norm };
    pass.parameters.plain().get(bias).map(|_| bias)
}
