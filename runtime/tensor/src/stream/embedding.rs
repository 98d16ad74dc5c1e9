//! Rows of embedding tables, and their gradients.

use crate::cuda::embedding::{self, Table};
use crate::device::Kind;
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
        match &self.device().0 {
            Kind::Cpu(_) => cpu::embed(table.on_cpu(), width, first_id, ids.on_cpu(), out.on_cpu()),
            Kind::Cuda(cuda) => {
                let table = Table { rows: table.on_cuda(), width, first_id };
                embedding::embed(cuda, table, ids.on_cuda(), out.on_cuda());
            }
        }
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
        match &self.device().0 {
            Kind::Cpu(_) => cpu::embed_add(table.on_cpu(), width, first_id, ids.on_cpu(), out.on_cpu()),
            Kind::Cuda(cuda) => {
                let table = Table { rows: table.on_cuda(), width, first_id };
                embedding::embed_add(cuda, table, ids.on_cuda(), out.on_cuda());
            }
        }
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
        match &self.device().0 {
            Kind::Cpu(_) => {
                let (d_out, ids, d_table) = (d_out.on_cpu(), ids.on_cpu(), d_table.on_cpu());
                match groups {
                    None => cpu::embed_backward(d_out, width, first_id, ids, d_table),
                    Some(groups) => cpu::embed_backward_groups(d_out, width, first_id, ids, groups, d_table),
                }
            }
            Kind::Cuda(cuda) => {
                let d_table = Table { rows: d_table.on_cuda(), width, first_id };
                embedding::embed_backward(cuda, d_out.on_cuda(), ids.on_cuda(), groups, d_table);
            }
        }
    }
}
