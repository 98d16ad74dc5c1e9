//! Where gradients of weights go, and how they are summed: [`Gradients`].
//!
//! Shapes: `x` is `[rows, inputs]`, `dy` is `[rows, outputs]`, the weight is `[outputs, inputs]` as
//! Hugging Face stores it.

use std::ops::Range;

use sixfold_tensor::{Dtype, IndexView, Leaves, Mat, MatMut, Panels, Start, Stream, View, ViewMut};

use crate::batch::MicroBatch;
use crate::unit::{Place, Tensor, UnitId};
use crate::unit_buffer::DeviceUnits;

/// What the gradients of a micro-batch meet in the sums that they go into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onto {
    /// Nothing that counts: the micro-batch begins a data group, or holds several.
    Nothing,
    /// The sum of its group so far, which it continues. It holds no other group.
    Group,
    /// The sum of as many whole groups as it holds, those before its own: the left branch of a tree, to which
    /// its own, which are whole, are added.
    Branch,
}

/// The gradients that a micro-batch adds to.
///
/// A sum over rows is one accumulator an element for a data group, which its micro-batches continue in order; groups are
/// added in the tree. A micro-batch that holds several groups does both at once.
pub(crate) struct Gradients<'a> {
    stream: &'a Stream,
    sums: &'a mut DeviceUnits,
    onto: Onto,
    groups: usize,
    leaves: Leaves,
    /// What the operands of products are rounded to.
    dtype: Dtype,
}

impl<'a> Gradients<'a> {
    /// Those of `batch`, into `sums`.
    ///
    /// # Panics
    /// If the sum of a group is to be continued by a micro-batch of several groups, which has no place in the order.
    pub(crate) fn new(
        stream: &'a Stream,
        sums: &'a mut DeviceUnits,
        onto: Onto,
        batch: &MicroBatch,
        dtype: Dtype,
    ) -> Self {
        assert!(onto != Onto::Group || batch.groups == 1, "sums of whole groups are continued");
        let leaves = Leaves::new(batch.group_rows().map(|rows| batch.sequence_rows(rows).collect()));
        Self { stream, sums, onto, groups: batch.groups, leaves, dtype }
    }

    /// Whether the gradient of a unit is wanted.
    pub(crate) fn wants(&self, unit: UnitId) -> bool {
        self.sums.index().range(unit).is_some()
    }

    /// Where the units of `tensors` and `shards` lie, of which none may be wanted; see [`Self::of_outputs`].
    pub(crate) fn run(&self, place: Place, tensors: &[Tensor], shards: &Range<usize>) -> Range<usize> {
        self.sums.index().run(place, tensors, shards)
    }

    /// `dW = dy^T x` for units whose outputs are cut and which lie side by side at `run` of the buffer; `dy` is
    /// `[rows, outputs]`.
    pub(crate) fn of_outputs(&mut self, run: Range<usize>, dy: Mat<'_>, x: &Panels) {
        let out = MatMut::row_major(self.sums.slice_mut(run), dy.cols(), x.cols());
        product(self.stream, self.onto, &self.leaves, dy, x, out);
    }

    /// `dW = dy^T x` for units whose inputs are cut: each has the given columns of `x`, which they cover.
    pub(crate) fn of_inputs(
        &mut self,
        units: &[(UnitId, Range<usize>)],
        dy: View<'_>,
        outputs: usize,
        x: View<'_>,
    ) {
        let (stream, width) = (self.stream, units.iter().map(|(_, columns)| columns.len()).sum());
        if width == 0 || !units.iter().any(|(unit, _)| self.wants(*unit)) {
            return;
        }
        let x = pack(stream, x, width, self.dtype);
        let mut whole = stream.uninit(outputs * width);
        if self.onto != Onto::Nothing {
            for (unit, columns) in units.iter().filter(|(_, columns)| !columns.is_empty()) {
                let from = Mat::row_major(self.sums.unit(*unit), outputs, columns.len());
                let to = MatMut::row_major(whole.view_mut(), outputs, width).columns(columns.clone());
                stream.copy_matrix(from, to);
            }
        }
        let dy = Mat::row_major(dy, x.rows(), outputs);
        let out = MatMut::row_major(whole.view_mut(), outputs, width);
        product(stream, self.onto, &self.leaves, dy, &x, out);
        let whole = Mat::row_major(whole.view(), outputs, width);
        for (unit, columns) in units.iter().filter(|(_, columns)| !columns.is_empty()) {
            let to = MatMut::row_major(self.sums.unit_mut(*unit), outputs, columns.len());
            stream.copy_matrix(whole.columns(columns.clone()), to);
        }
    }

    /// Has `add` add to the leaves of a unit that is kept in parts (sequence blocks): `[groups][the unit's numbers]`.
    pub(crate) fn add_leaves(&mut self, unit: UnitId, add: impl FnOnce(ViewMut<'_>)) {
        let (stream, mut sum) = (self.stream, self.sums.unit_mut(unit));
        if self.groups == 1 && self.onto != Onto::Branch {
            if self.onto == Onto::Nothing {
                stream.fill(sum.reborrow(), 0.0);
            }
            return add(sum);
        }
        let mut leaves = stream.zeros(self.groups * sum.len());
        add(leaves.view_mut());
        stream.tree_sum(leaves.view_mut(), sum.len());
        let groups = leaves.slice(0..sum.len());
        match self.onto {
            Onto::Branch => stream.add_assign(sum, groups),
            Onto::Nothing | Onto::Group => stream.copy(groups, sum),
        }
    }

    /// As [`Self::add_leaves`], for an `add` that is called for more than what it adds: where that is not wanted, it goes into `len`
    /// numbers that are dropped.
    pub(crate) fn add_leaves_if_wanted(&mut self, unit: UnitId, len: usize, add: impl FnOnce(ViewMut<'_>)) {
        match self.wants(unit) {
            true => self.add_leaves(unit, add),
            false => add(self.stream.zeros(len).view_mut()),
        }
    }

    /// Adds the gradient `dx` (`[rows, d]`) of each row to the row of its token in a shard of the embedding, whose
    /// first row is that of token `first_id`; or to that of its position. Nothing is done where it is not wanted.
    pub(crate) fn of_embedding(
        &mut self,
        unit: UnitId,
        dx: View<'_>,
        d: usize,
        first_id: usize,
        ids: IndexView<'_>,
    ) {
        if !self.wants(unit) {
            return;
        }
        let (stream, mut table) = (self.stream, self.sums.unit_mut(unit));
        if self.onto == Onto::Nothing {
            stream.fill(table.reborrow(), 0.0);
        }
        let whole = self.groups > 1 || self.onto == Onto::Branch;
        stream.embed_backward(dx, d, first_id, ids, whole.then_some(self.groups), table);
    }
}

/// `out = (out +) dy^T x` for `dy` of `[rows, outputs]`.
fn product(stream: &Stream, onto: Onto, leaves: &Leaves, dy: Mat<'_>, x: &Panels, out: MatMut<'_>) {
    let dy = dy.transposed();
    match (onto, leaves.count()) {
        (Onto::Nothing, 1) => stream.matmul_leaf(dy, x, leaves, out, Start::Zero),
        (Onto::Nothing, _) => stream.matmul_tree(dy, x, leaves, out, Start::Zero),
        (Onto::Group, _) => stream.matmul_leaf(dy, x, leaves, out, Start::FromC),
        (Onto::Branch, _) => stream.matmul_tree(dy, x, leaves, out, Start::FromC),
    }
}

/// `x` as products with it take it.
pub(crate) fn pack(stream: &Stream, x: View<'_>, inputs: usize, dtype: Dtype) -> Panels {
    stream.pack(Mat::row_major(x, x.len() / inputs, inputs), dtype)
}
