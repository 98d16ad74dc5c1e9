//! Attention over matrices and over the blocks of a cache, and rotary embedding.

use std::ops::Range;
use std::sync::Arc;

use crate::buffer::elsewhere;
use crate::cpu::{self, AttentionShape, KEY_BLOCK, KeyValueBlocks, value_stride};
use crate::cuda::attention::{self, BlockLayer};
use crate::device;
use crate::{Buffer, IndexView, Mat, MatMut, Stream, View, ViewMut};

/// Sines and cosines of positions, for the device; [`cpu::RopeTable`] on the CPU.
#[derive(Clone, Debug)]
pub struct RopeTable(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Cpu(cpu::RopeTable),
    Cuda(Arc<attention::RopeTable>),
}

/// What attention read and wrote forwards, each with a row stride of its own.
#[derive(Clone, Copy)]
pub struct AttentionSaved<'a> {
    /// Queries, `[tokens][q_heads * head_dim]`.
    pub q: Mat<'a>,
    /// Keys, `[keys][kv_heads * head_dim]`.
    pub k: Mat<'a>,
    /// Values, `[keys][kv_heads * head_dim]`.
    pub v: Mat<'a>,
    /// The output, shaped like the queries.
    pub out: Mat<'a>,
    /// The log-sum-exp, `[tokens][q_heads]`.
    pub lse_th: View<'a>,
}

/// How the keys and values of sequences lie in blocks of [`KEY_BLOCK`] positions, a buffer each: `[layer][kv head]` of keys
/// `[head_dim][64]` and then values `[64][stride]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvBlocks {
    /// Layers of the model.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
}

impl KvBlocks {
    /// Elements of a block.
    pub fn block_len(&self) -> usize {
        self.layers * self.kv_heads * self.head_len()
    }

    fn keys_len(&self) -> usize {
        self.head_dim * KEY_BLOCK
    }

    fn head_len(&self) -> usize {
        self.keys_len() + KEY_BLOCK * value_stride(self.head_dim)
    }

    fn on_cuda(&self, layer: usize) -> BlockLayer {
        let Self { kv_heads, head_dim, .. } = *self;
        BlockLayer { start: self.head(layer, 0).start, head_len: self.head_len(), kv_heads, head_dim }
    }

    fn head(&self, layer: usize, kv_head: usize) -> Range<usize> {
        let start = (layer * self.kv_heads + kv_head) * self.head_len();
        start..start + self.head_len()
    }
}

impl Stream {
    /// Sines and cosines for `positions` positions of heads of twice as many elements as there are `frequencies`; see
    /// [`cpu::RopeTable::new`].
    pub fn rope_table(&self, frequencies: &[f32], scale: f32, positions: usize) -> RopeTable {
        let table = cpu::RopeTable::new(frequencies, scale, positions);
        RopeTable(match &self.device().0 {
            device::Kind::Cpu(_) => Kind::Cpu(table),
            device::Kind::Cuda(cuda) => Kind::Cuda(Arc::new(attention::RopeTable::new(cuda, &table))),
        })
    }

    /// Turns every head of `x` (`[tokens][heads * head_dim]`) in place by its token's position, or back if `inverse`.
    ///
    /// # Panics
    /// `x` has not one row a position, a row is not a whole number of heads, or a position lies beyond the table.
    pub fn rope(&self, x: MatMut<'_>, positions: IndexView<'_>, table: &RopeTable, inverse: bool) {
        match (&table.0, &self.device().0) {
            (Kind::Cpu(table), _) => cpu::rope(x.on_cpu(), positions.on_cpu(), table, inverse),
            (Kind::Cuda(table), device::Kind::Cuda(cuda)) => {
                attention::rope(cuda, x.on_cuda(), positions.on_cuda(), table, inverse);
            }
            (Kind::Cuda(_), device::Kind::Cpu(_)) => elsewhere("the CPU"),
        }
    }

    /// Causal attention of queries over keys and values, and the log-sum-exp of each row's scores; see [`cpu::attention`].
    ///
    /// # Panics
    /// The shapes disagree, or the first query lies before the first document.
    pub fn attention(
        &self,
        qkv: [Mat<'_>; 3],
        shape: &AttentionShape,
        document_starts: &[usize],
        out: MatMut<'_>,
        lse_th: ViewMut<'_>,
    ) {
        match &self.device().0 {
            device::Kind::Cpu(_) => {
                let [q, k, v] = qkv.map(Mat::on_cpu);
                cpu::attention(q, k, v, shape, document_starts, out.on_cpu(), lse_th.on_cpu());
            }
            device::Kind::Cuda(cuda) => {
                let (qkv, out, lse_th) = (qkv.map(Mat::on_cuda), out.on_cuda(), lse_th.on_cuda());
                attention::attention(cuda, qkv, shape, document_starts, out, lse_th);
            }
        }
    }

    /// The gradients of [`Self::attention`] for the output's gradient `d_out`, written to the given columns of `d_qkv`: of queries,
    /// keys and values, which ascend.
    ///
    /// # Panics
    /// As [`Self::attention`].
    pub fn attention_backward(
        &self,
        d_out: Mat<'_>,
        saved: &AttentionSaved<'_>,
        shape: &AttentionShape,
        document_starts: &[usize],
        d_qkv: MatMut<'_>,
        columns: [Range<usize>; 3],
    ) {
        let AttentionSaved { q, k, v, out, lse_th } = *saved;
        match &self.device().0 {
            device::Kind::Cpu(_) => {
                let [q, k, v, out] = [q, k, v, out].map(Mat::on_cpu);
                let saved = cpu::AttentionSaved { q, k, v, out, lse_th: lse_th.on_cpu() };
                let [d_q, d_k, d_v] = d_qkv.columns_on_cpu(columns);
                let gradients = cpu::AttentionGradients { d_q, d_k, d_v };
                cpu::attention_backward(d_out.on_cpu(), &saved, shape, document_starts, gradients);
            }
            device::Kind::Cuda(cuda) => {
                let [q, k, v, out] = [q, k, v, out].map(Mat::on_cuda);
                let saved = attention::AttentionSaved { q, k, v, out, lse_th: lse_th.on_cuda() };
                let d_qkv = d_qkv.on_cuda();
                let gradients = columns.map(|columns| d_qkv.columns(columns));
                attention::attention_backward(
                    cuda,
                    d_out.on_cuda(),
                    &saved,
                    shape,
                    document_starts,
                    gradients,
                );
            }
        }
    }

    /// Writes keys and values `[tokens][kv heads * head_dim]` of one layer to the blocks of a sequence, from position
    /// `first` on.
    ///
    /// # Panics
    /// The lengths differ, or a position lies beyond the blocks.
    pub fn write_blocks(
        &self,
        layout: KvBlocks,
        layer: usize,
        first: usize,
        [k, v]: [View<'_>; 2],
        blocks: &mut [Buffer],
    ) {
        assert_eq!(k.len(), v.len(), "keys and values");
        if let device::Kind::Cuda(cuda) = &self.device().0 {
            let blocks = blocks.iter_mut().map(|block| block.view_mut().on_cuda());
            let layer = layout.on_cuda(layer);
            return attention::write_blocks(cuda, layer, first, [k, v].map(View::on_cuda), blocks);
        }
        let width = layout.kv_heads * layout.head_dim;
        let tokens = k.on_cpu().chunks_exact(width).zip(v.on_cpu().chunks_exact(width));
        for (position, (k, v)) in (first..).zip(tokens) {
            let block = blocks[position / KEY_BLOCK].view_mut().on_cpu();
            let slot = position % KEY_BLOCK;
            let heads = k.chunks_exact(layout.head_dim).zip(v.chunks_exact(layout.head_dim));
            for (kv_head, (k, v)) in heads.enumerate() {
                let (keys, values) = block[layout.head(layer, kv_head)].split_at_mut(layout.keys_len());
                k.iter().zip(keys.chunks_exact_mut(KEY_BLOCK)).for_each(|(k, row)| row[slot] = *k);
                values[slot * value_stride(layout.head_dim)..][..layout.head_dim].copy_from_slice(v);
            }
        }
    }

    /// Causal attention of one sequence's queries over the blocks of a layer; the bits of [`Self::attention`].
    ///
    /// # Panics
    /// The shapes disagree, or the blocks are fewer than the keys ask for.
    pub fn attention_blocks(
        &self,
        q: Mat<'_>,
        (layout, layer): (KvBlocks, usize),
        blocks: &[Buffer],
        shape: &AttentionShape,
        out: MatMut<'_>,
        lse_th: ViewMut<'_>,
    ) {
        match &self.device().0 {
            device::Kind::Cpu(_) => {
                let view = LayerOnCpu { layout, layer, blocks };
                cpu::attention_blocks(q.on_cpu(), &view, shape, out.on_cpu(), lse_th.on_cpu());
            }
            device::Kind::Cuda(cuda) => {
                let blocks = blocks.iter().map(|block| block.view().on_cuda());
                let (layer, out, lse_th) = (layout.on_cuda(layer), out.on_cuda(), lse_th.on_cuda());
                attention::attention_blocks(cuda, q.on_cuda(), layer, blocks, shape, out, lse_th);
            }
        }
    }
}

/// One layer of a sequence, as attention on the CPU reads it.
struct LayerOnCpu<'a> {
    layout: KvBlocks,
    layer: usize,
    blocks: &'a [Buffer],
}

impl LayerOnCpu<'_> {
    fn head(&self, kv_head: usize, block: usize) -> (&[f32], &[f32]) {
        let head = &self.blocks[block].view().on_cpu()[self.layout.head(self.layer, kv_head)];
        head.split_at(self.layout.keys_len())
    }
}

impl KeyValueBlocks for LayerOnCpu<'_> {
    fn keys(&self, kv_head: usize, block: usize) -> &[f32] {
        self.head(kv_head, block).0
    }

    fn values(&self, kv_head: usize, block: usize) -> &[f32] {
        self.head(kv_head, block).1
    }
}
