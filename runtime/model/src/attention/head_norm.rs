//! The norms of single heads of queries and keys, in families that have them (Dehghani et al., "Scaling Vision Transformers
//! to 22 Billion Parameters", 2023): RMSNorms with one weight for all heads of a layer.
//!
//! Every rank has the heads of its shards, whether the ranks share rows or not. So the weight's gradient is summed by logical
//! shard, over the rows and in each row over the shard's heads, in ascending order; [`finish`](crate::gradient::finish) adds
//! the shards. Copies of a key head have the gradient that their own queries give; the sum over shards is that of all.
//!
//! Shapes: `qkv` is `[rows, queries | keys | values]`, each with the rank's shards side by side; `x` is a part of it with
//! shards one after another, `[shard][rows, heads * head]`.

use sixfold_tensor::{Buffer, Mat, MatMut, RmsNormSaved, Segment, View, ViewMut};

use super::Heads;
use crate::linear::Gradients;
use crate::pass::Pass;
use crate::unit::{Tensor, UnitId};

/// The norms, in the order in which `qkv` has what they norm.
const NORMS: [Tensor; 2] = [Tensor::QueryNorm, Tensor::KeyNorm];

/// Norms the queries and keys of `qkv`, and returns what they were.
pub(super) fn forward(pass: &Pass<'_>, layer: usize, qkv: ViewMut<'_>) -> Buffer {
    let (mut qkv, heads) = (qkv, Heads::of(pass, layer));
    let former = pass.stream.copy_of(qkv.as_view());
    for (part, norm) in NORMS.into_iter().enumerate() {
        let parts = Parts::of(pass, &heads, part);
        let x = parts.take(former.view());
        let (normed, _) = parts.normed(UnitId::of_layer(layer, norm, 0), &x);
        parts.put(&normed, qkv.reborrow());
    }
    former
}

/// Turns the gradients of normed queries and keys into those of what they were, `former`, and adds to those of the weights.
pub(super) fn backward(
    pass: &Pass<'_>,
    layer: usize,
    former: View<'_>,
    d_qkv: ViewMut<'_>,
    gradients: &mut Gradients<'_>,
) {
    let (stream, mut d_qkv, heads) = (pass.stream, d_qkv, Heads::of(pass, layer));
    for (part, norm) in NORMS.into_iter().enumerate() {
        let (parts, unit) = (Parts::of(pass, &heads, part), UnitId::of_layer(layer, norm, 0));
        let (x, dy) = (parts.take(former), parts.take(d_qkv.as_view()));
        let (mut dx, rstd) = parts.normed(unit, &x);
        let w = pass.parameters.plain().unit(unit);
        let saved = RmsNormSaved { x: x.view(), w, rstd: rstd.view() };
        gradients.add_leaves_if_wanted(unit, pass.leaves() * w.len(), |leaves| {
            stream.rms_norm_backward(dy.view(), saved, &parts.segments(), dx.view_mut(), leaves);
        });
        parts.put(&dx, d_qkv.reborrow());
    }
}

/// The queries, or the keys, of the rank's shards.
struct Parts<'a, 'p> {
    pass: &'a Pass<'p>,
    heads: &'a [Heads],
    /// Which of queries, keys and values.
    part: usize,
}

impl<'a, 'p> Parts<'a, 'p> {
    fn of(pass: &'a Pass<'p>, heads: &'a [Heads], part: usize) -> Self {
        Self { pass, heads, part }
    }

    /// Columns of all shards.
    fn width(&self) -> usize {
        self.heads.iter().map(|heads| heads.qkv[self.part].len()).sum()
    }

    fn head_dim(&self) -> usize {
        self.pass.geometry.config.head_dim
    }

    /// `x`, from a `qkv`.
    fn take(&self, qkv: View<'_>) -> Buffer {
        let (stream, rows) = (self.pass.stream, self.pass.rows());
        let mut x = stream.uninit(rows * self.width());
        let mut rest = x.view_mut();
        for heads in self.heads {
            let columns = heads.qkv[self.part].clone();
            let (to, after) = rest.split_at(rows * columns.len());
            let from = Mat::row_major(qkv, rows, qkv.len() / rows).columns(columns.clone());
            stream.copy_matrix(from, MatMut::row_major(to, rows, columns.len()));
            rest = after;
        }
        x
    }

    /// Puts `x` back to where it lies in a `qkv`.
    fn put(&self, x: &Buffer, mut qkv: ViewMut<'_>) {
        let (stream, rows) = (self.pass.stream, self.pass.rows());
        let (mut first, width) = (0, qkv.len() / rows);
        for heads in self.heads {
            let columns = heads.qkv[self.part].clone();
            let last = first + rows * columns.len();
            let from = Mat::row_major(x.slice(first..last), rows, columns.len());
            stream.copy_matrix(from, MatMut::row_major(qkv.reborrow(), rows, width).columns(columns));
            first = last;
        }
    }

    /// The normed heads of `x`, and the reciprocal root mean square of each.
    fn normed(&self, norm: UnitId, x: &Buffer) -> (Buffer, Buffer) {
        let (stream, eps) = (self.pass.stream, self.pass.geometry.config.rms_norm_eps);
        let (mut y, mut rstd) = (stream.uninit(x.len()), stream.uninit(x.len() / self.head_dim()));
        let w = self.pass.parameters.plain().unit(norm);
        stream.rms_norm(x.view(), w, eps, y.view_mut(), rstd.view_mut());
        (y, rstd)
    }

    /// The heads of `x`, each as a row, with the leaf to which they belong: data groups, and within a group shards.
    fn segments(&self) -> Vec<Segment> {
        let (rows, logical) = (self.pass.rows(), self.pass.geometry.sharding.logical());
        let (mut segments, mut first) = (Vec::new(), 0);
        for heads in self.heads {
            let in_row = heads.qkv[self.part].len() / self.head_dim();
            for (group, of_group) in self.pass.batch.group_rows().enumerate() {
                segments.push(Segment {
                    end: first + of_group.end * in_row,
                    leaf: group * logical + heads.shard,
                });
            }
            first += rows * in_row;
        }
        segments
    }
}
