//! Keys and values of sequences, in blocks of 64 positions taken from a bounded pool.
//!
//! A sequence owns its blocks, so sequences of one call may be written side by side; the pool only
//! counts. Read [`KvPool`] first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sixfold_tensor::{
    AttentionShape, KEY_BLOCK, KeyValueBlocks, Mat, MatMut, attention_blocks, value_stride,
};

use crate::config::ModelConfig;

/// A bounded number of blocks for the sequences of one model. Clones share the bound.
#[derive(Debug, Clone)]
pub struct KvPool {
    shape: BlockShape,
    blocks_max: usize,
    in_use: Arc<AtomicUsize>,
}

/// The pool has not enough blocks left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} more blocks of keys and values are needed, {free} are free")]
pub struct OutOfBlocks {
    /// Blocks that the call needs in addition.
    pub wanted: usize,
    /// Blocks that no sequence holds.
    pub free: usize,
}

/// Sizes of a block: `[layer][kv head]` of keys `[head][64]` and then values `[64][stride]`.
#[derive(Debug, Clone, Copy)]
struct BlockShape {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl BlockShape {
    fn keys(&self) -> usize {
        self.head_dim * KEY_BLOCK
    }

    fn head(&self) -> usize {
        self.keys() + KEY_BLOCK * value_stride(self.head_dim)
    }

    fn head_start(&self, layer: usize, kv_head: usize) -> usize {
        (layer * self.kv_heads + kv_head) * self.head()
    }
}

impl KvPool {
    pub(super) fn new(config: &ModelConfig, blocks_max: usize) -> Self {
        let shape = BlockShape {
            layers: config.num_hidden_layers,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        Self { shape, blocks_max, in_use: Arc::default() }
    }

    /// An empty sequence. It gives its blocks back when it is dropped.
    pub fn sequence(&self) -> KvSequence {
        KvSequence { pool: self.clone(), blocks: Vec::new(), tokens: 0 }
    }

    /// Most blocks that all sequences together may hold.
    pub fn blocks_max(&self) -> usize {
        self.blocks_max
    }

    /// Blocks that sequences hold.
    pub fn blocks_in_use(&self) -> usize {
        self.in_use.load(Ordering::Acquire)
    }

    /// Memory of one block over all layers, in bytes.
    pub fn block_bytes(&self) -> usize {
        self.shape.layers * self.shape.kv_heads * self.shape.head() * size_of::<f32>()
    }

    /// Counts `wanted` more blocks as in use, or none.
    fn take(&self, wanted: usize) -> Result<(), OutOfBlocks> {
        let more = |in_use: usize| in_use.checked_add(wanted).filter(|sum| *sum <= self.blocks_max);
        match self.in_use.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(()),
            Err(in_use) => Err(OutOfBlocks { wanted, free: self.blocks_max.saturating_sub(in_use) }),
        }
    }

    fn give_back(&self, blocks: usize) {
        self.in_use.fetch_sub(blocks, Ordering::AcqRel);
    }
}

/// The keys and values of one sequence's tokens so far.
#[derive(Debug)]
pub struct KvSequence {
    pool: KvPool,
    blocks: Vec<Box<[f32]>>,
    tokens: usize,
}

impl Drop for KvSequence {
    fn drop(&mut self) {
        self.pool.give_back(self.blocks.len());
    }
}

impl KvSequence {
    /// Tokens that the sequence has.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Blocks that the sequence holds.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Forgets the tokens from `tokens` on, and gives back the blocks that only they needed.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
        let kept = self.tokens.div_ceil(KEY_BLOCK).min(self.blocks.len());
        self.pool.give_back(self.blocks.len() - kept);
        self.blocks.truncate(kept);
    }

    /// Makes room in every sequence for its number of further tokens, or in none.
    pub(super) fn reserve(wanted: &mut [(&mut Self, usize)]) -> Result<(), OutOfBlocks> {
        let reserved = wanted.iter_mut().try_for_each(|(sequence, tokens)| sequence.grow(*tokens));
        if reserved.is_err() {
            wanted.iter_mut().for_each(|(sequence, _)| sequence.truncate(sequence.tokens));
        }
        reserved
    }

    fn grow(&mut self, more: usize) -> Result<(), OutOfBlocks> {
        let needed = (self.tokens + more).div_ceil(KEY_BLOCK);
        let missing = needed.saturating_sub(self.blocks.len());
        self.pool.take(missing)?;
        let len = self.pool.block_bytes() / size_of::<f32>();
        self.blocks.extend((0..missing).map(|_| vec![0.0; len].into_boxed_slice()));
        Ok(())
    }

    /// Writes the keys and values of the next tokens, `[tokens][kv heads][head]`, of one layer.
    pub(super) fn write(&mut self, layer: usize, k_thd: &[f32], v_thd: &[f32]) {
        let shape = self.pool.shape;
        let width = shape.kv_heads * shape.head_dim;
        for (offset, (k_hd, v_hd)) in k_thd.chunks_exact(width).zip(v_thd.chunks_exact(width)).enumerate() {
            let position = self.tokens + offset;
            let (block, slot) = (&mut self.blocks[position / KEY_BLOCK], position % KEY_BLOCK);
            let heads = k_hd.chunks_exact(shape.head_dim).zip(v_hd.chunks_exact(shape.head_dim));
            for (kv_head, (k, v)) in heads.enumerate() {
                let start = shape.head_start(layer, kv_head);
                let (keys, values) = block[start..start + shape.head()].split_at_mut(shape.keys());
                k.iter().zip(keys.chunks_exact_mut(KEY_BLOCK)).for_each(|(k, row)| row[slot] = *k);
                values[slot * value_stride(shape.head_dim)..][..shape.head_dim].copy_from_slice(v);
            }
        }
    }

    /// Attention of the next tokens' queries, `[tokens][query heads][head]`, in one layer whose
    /// keys and values have been written.
    pub(super) fn attend(&self, layer: usize, q_heads: usize, q_thd: &[f32], out_thd: &mut [f32]) {
        let shape = self.pool.shape;
        let width = q_heads * shape.head_dim;
        let tokens = q_thd.len() / width;
        let attention = AttentionShape {
            tokens,
            q_heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            keys: self.tokens + tokens,
            query_offset: self.tokens,
            window: None,
        };
        let mut lse = vec![0.0; tokens * q_heads];
        let (q, out) = (Mat::row_major(q_thd, tokens, width), MatMut::row_major(out_thd, tokens, width));
        attention_blocks(q, &LayerView { sequence: self, layer }, &attention, out, &mut lse);
    }

    /// Counts tokens whose keys and values have been written in every layer.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }
}

/// One layer of a sequence, as attention reads it.
struct LayerView<'a> {
    sequence: &'a KvSequence,
    layer: usize,
}

impl LayerView<'_> {
    fn head(&self, kv_head: usize, block: usize) -> (&[f32], &[f32]) {
        let shape = self.sequence.pool.shape;
        let start = shape.head_start(self.layer, kv_head);
        self.sequence.blocks[block][start..start + shape.head()].split_at(shape.keys())
    }
}

impl KeyValueBlocks for LayerView<'_> {
    fn keys(&self, kv_head: usize, block: usize) -> &[f32] {
        self.head(kv_head, block).0
    }

    fn values(&self, kv_head: usize, block: usize) -> &[f32] {
        self.head(kv_head, block).1
    }
}
