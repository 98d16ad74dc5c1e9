//! Rows of embedding tables, and their gradients.

use crate::{IndexView, Stream, View, ViewMut, cpu};

impl Stream {
    /// Copies row `ids[t]` of `table` to row `t` of `out`. A shard of the vocabulary passes its `first_id`; rows of ids outside of
    /// it stay as they are.
    ///
    /// # Panics
    /// `table` is not a whole number of rows of `width`, or `out` has not one row an id.
    pub fn embed(
        &self,
        table: View<'_>,
        width: usize,
        first_id: usize,
        ids: IndexView<'_>,
        out: ViewMut<'_>,
    ) {
        cpu::embed(table.on_cpu(), width, first_id, ids.on_cpu(), out.on_cpu());
    }

    /// As [`Self::embed`], adding to the rows of `out`.
    ///
    /// # Panics
    /// As [`Self::embed`].
    pub fn embed_add(
        &self,
        table: View<'_>,
        width: usize,
        first_id: usize,
        ids: IndexView<'_>,
        out: ViewMut<'_>,
    ) {
        cpu::embed_add(table.on_cpu(), width, first_id, ids.on_cpu(), out.on_cpu());
    }

    /// Adds row `t` of `d_out` to row `ids[t]` of `d_table`: in the order of the rows; or, of whole `groups`, each of equally
    /// many rows, the sum of a token's rows in the tree.
    ///
    /// # Panics
    /// As [`Self::embed`].
    pub fn embed_backward(
        &self,
        d_out: View<'_>,
        width: usize,
        first_id: usize,
        ids: IndexView<'_>,
        groups: Option<usize>,
        d_table: ViewMut<'_>,
    ) {
        let (d_out, ids, d_table) = (d_out.on_cpu(), ids.on_cpu(), d_table.on_cpu());
        match groups {
            None => cpu::embed_backward(d_out, width, first_id, ids, d_table),
            Some(groups) => cpu::embed_backward_groups(d_out, width, first_id, ids, groups, d_table),
        }
    }
}
