//! Where gradients of weights go, and how they are summed: [`Gradients`].
//!
//! Shapes: `x` is `[rows, inputs]`, `dy` is `[rows, outputs]`, the weight is `[outputs, inputs]` as
//! Hugging Face stores it.

use std::ops::Range;

use sixfold_tensor::{
    Dtype, Leaves, Mat, MatMut, Panels, Start, add_assign, embed_backward, matmul_panels, matmul_tree,
    tree_sum,
};

use crate::batch::MicroBatch;
use crate::unit::{Place, Tensor, UnitBuffer, UnitId};

/// The gradients that a micro-batch adds to.
///
/// A sum over rows is one accumulator an element for a data group, which its micro-batches continue in order; groups are
/// added in the tree. A micro-batch that holds several groups does both at once.
pub(crate) struct Gradients<'a> {
    sums: &'a mut UnitBuffer,
    /// Whether the sums of the group so far are continued; whole groups begin at zero.
    start: Start,
    groups: Vec<Range<usize>>,
    leaves: Leaves,
    /// What the operands of products are rounded to.
    dtype: Dtype,
}

impl<'a> Gradients<'a> {
    /// Those of `batch`, into `sums`.
    ///
    /// # Panics
    /// If sums are to be continued by a micro-batch of several groups, which has no place in the order.
    pub(crate) fn new(sums: &'a mut UnitBuffer, start: Start, batch: &MicroBatch, dtype: Dtype) -> Self {
        assert!(start == Start::Zero || batch.groups == 1, "sums of whole groups are continued");
        let groups: Vec<_> = batch.group_rows().collect();
        let leaves = Leaves::new(groups.iter().map(|rows| vec![rows.clone()]));
        Self { sums, start, groups, leaves, dtype }
    }

    /// Where the units of `tensors` and `shards` lie; see [`Self::of_outputs`].
    pub(crate) fn run(&self, place: Place, tensors: &[Tensor], shards: &Range<usize>) -> Range<usize> {
        self.sums.index().run(place, tensors, shards)
    }

    /// `dW = dy^T x` for units whose outputs are cut and which lie side by side at `run` of the buffer.
    pub(crate) fn of_outputs(&mut self, run: Range<usize>, dy: &[f32], x: &Panels) {
        let outputs = run.len() / x.cols();
        let mut out = MatMut::row_major(&mut self.sums.values_mut()[run], outputs, x.cols());
        product(self.start, &self.leaves, dy, x, &mut out);
    }

    /// `dW = dy^T x` for units whose inputs are cut: each has the given columns of `x`, which they cover.
    pub(crate) fn of_inputs(
        &mut self,
        units: &[(UnitId, Range<usize>)],
        dy: &[f32],
        outputs: usize,
        x: &[f32],
    ) {
        let width = units.iter().map(|(_, columns)| columns.len()).sum();
        if width == 0 {
            return;
        }
        let x = pack(x, width, self.dtype);
        let mut whole = vec![0.0; outputs * width];
        if self.start == Start::FromC {
            for (unit, columns) in units.iter().filter(|(_, columns)| !columns.is_empty()) {
                let rows = self.sums.unit(*unit).chunks_exact(columns.len());
                for (row, from) in whole.chunks_exact_mut(width).zip(rows) {
                    row[columns.clone()].copy_from_slice(from);
                }
            }
        }
        product(self.start, &self.leaves, dy, &x, &mut MatMut::row_major(&mut whole, outputs, width));
        for (unit, columns) in units.iter().filter(|(_, columns)| !columns.is_empty()) {
            let rows = self.sums.unit_mut(*unit).chunks_exact_mut(columns.len());
            for (row, to) in whole.chunks_exact(width).zip(rows) {
                to.copy_from_slice(&row[columns.clone()]);
            }
        }
    }

    /// Has `add` add to the leaves of a unit that is kept in parts (sequence blocks): `[groups][the unit's numbers]`.
    pub(crate) fn add_leaves(&mut self, unit: UnitId, add: impl FnOnce(&mut [f32])) {
        let sum = self.sums.unit_mut(unit);
        if self.groups.len() == 1 {
            if self.start == Start::Zero {
                sum.fill(0.0);
            }
            return add(sum);
        }
        let mut leaves = vec![0.0; self.groups.len() * sum.len()];
        add(&mut leaves);
        let mut leaves: Vec<_> = leaves.chunks_exact_mut(sum.len()).collect();
        tree_sum(&mut leaves);
        sum.copy_from_slice(leaves[0]);
    }

    /// Adds the gradient `dx` (`[rows, d]`) of each row to the row of its token in a shard of the embedding, whose
    /// first row is that of token `first_id`; or to that of its position.
    pub(crate) fn of_embedding(
        &mut self,
        unit: UnitId,
        dx: &[f32],
        d: usize,
        first_id: usize,
        tokens: &[u32],
    ) {
        let table = self.sums.unit_mut(unit);
        if self.start == Start::Zero {
            table.fill(0.0);
        }
        if self.groups.len() == 1 {
            return embed_backward(dx, d, first_id, tokens, table);
        }
        // Most rows belong to few groups. A group without the token would add +0, which changes no bit, since a sum
        // that began with +0 is never -0.
        let inside = |id: u32| (id as usize).checked_sub(first_id).filter(|row| (row + 1) * d <= table.len());
        let mut rows: Vec<(usize, usize)> =
            (0..tokens.len()).filter_map(|row| inside(tokens[row]).map(|of_table| (of_table, row))).collect();
        rows.sort_unstable();
        let group_len = tokens.len() / self.groups.len();
        for rows in rows.chunk_by(|a, b| a.0 == b.0) {
            let sum = tree_of_groups(rows, 0..self.groups.len(), group_len, d, dx);
            table[rows[0].0 * d..][..d].copy_from_slice(&sum);
        }
    }
}

/// The sum of rows of `dx`, given in order: in order within a group, then in the tree over `groups`.
fn tree_of_groups(
    rows: &[(usize, usize)],
    groups: Range<usize>,
    group_len: usize,
    d: usize,
    dx: &[f32],
) -> Vec<f32> {
    if groups.len() == 1 {
        let mut sum = vec![0.0; d];
        rows.iter().for_each(|(_, row)| add_assign(&mut sum, &dx[row * d..][..d]));
        return sum;
    }
    let middle = groups.start + groups.len() / 2;
    let (left, right) = rows.split_at(rows.partition_point(|(_, row)| row / group_len < middle));
    match (left, right) {
        ([], rows) => tree_of_groups(rows, middle..groups.end, group_len, d, dx),
        (rows, []) => tree_of_groups(rows, groups.start..middle, group_len, d, dx),
        (left, right) => {
            let mut sum = tree_of_groups(left, groups.start..middle, group_len, d, dx);
            add_assign(&mut sum, &tree_of_groups(right, middle..groups.end, group_len, d, dx));
            sum
        }
    }
}

fn product(start: Start, leaves: &Leaves, dy: &[f32], x: &Panels, out: &mut MatMut<'_>) {
    let dy = Mat::row_major(dy, x.rows(), out.rows).transposed();
    match leaves.count() {
        1 => matmul_panels(dy, x, out, start),
        _ => matmul_tree(dy, x, leaves, out),
    }
}

/// `x` as products with it take it.
pub(crate) fn pack(x: &[f32], inputs: usize, dtype: Dtype) -> Panels {
    Panels::pack(Mat::row_major(x, x.len() / inputs, inputs), dtype)
}
