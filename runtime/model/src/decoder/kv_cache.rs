//! Keys and values of sequences, in blocks of 64 positions taken from a bounded pool.
//!
//! A sequence owns its blocks, so sequences of one call may be written side by side; the pool only
//! counts. Read [`KvPool`] first.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sixfold_tensor::{AttentionShape, Buffer, KEY_BLOCK, KvBlocks, Mat, MatMut, Stream, View, ViewMut};

use crate::config::ModelConfig;

/// A bounded number of blocks for the sequences of one model. Clones share the bound.
#[derive(Clone, Debug)]
pub struct KvPool {
    stream: Stream,
    layout: KvBlocks,
    /// Of each layer.
    windows: Arc<[Option<NonZeroUsize>]>,
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

impl KvPool {
    pub(super) fn new(stream: Stream, config: &ModelConfig, blocks_max: usize) -> Self {
        let layout = KvBlocks {
            layers: config.num_hidden_layers,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let windows = (0..config.num_hidden_layers).map(|layer| config.window(layer)).collect();
        Self { stream, layout, windows, blocks_max, in_use: Arc::default() }
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
        self.layout.block_len() * size_of::<f32>()
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
    blocks: Vec<Buffer>,
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
        let KvPool { stream, layout, .. } = &self.pool;
        // Zeros: slots beyond the end take part in products whose results are dropped, slowly if they hold denormals.
        self.blocks.extend((0..missing).map(|_| stream.zeros(layout.block_len())));
        Ok(())
    }

    /// Writes the keys and values of the next tokens, `[tokens][kv heads][head]`, of one layer.
    pub(super) fn write(&mut self, layer: usize, k_thd: View<'_>, v_thd: View<'_>) {
        let KvPool { stream, layout, .. } = &self.pool;
        stream.write_blocks(*layout, layer, self.tokens, [k_thd, v_thd], &mut self.blocks);
    }

    /// Attention of the next tokens' queries, `[tokens][query heads][head]`, in one layer whose
    /// keys and values have been written.
    pub(super) fn attend(&self, layer: usize, q_heads: usize, q_thd: View<'_>, out_thd: ViewMut<'_>) {
        let KvPool { stream, layout, .. } = &self.pool;
        let width = q_heads * layout.head_dim;
        let tokens = q_thd.len() / width;
        let shape = AttentionShape {
            tokens,
            q_heads,
            kv_heads: layout.kv_heads,
            head_dim: layout.head_dim,
            keys: self.tokens + tokens,
            query_offset: self.tokens,
            window: self.pool.windows[layer],
        };
        let mut lse = stream.uninit(tokens * q_heads);
        let (q, out) = (Mat::row_major(q_thd, tokens, width), MatMut::row_major(out_thd, tokens, width));
        stream.attention_blocks(q, (*layout, layer), &self.blocks, &shape, out, lse.view_mut());
    }

    /// Counts tokens whose keys and values have been written in every layer.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }
}
