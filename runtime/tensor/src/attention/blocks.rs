//! Keys and values as attention reads them: in blocks of 64 positions, keys transposed.

use super::KEY_BLOCK;
use crate::PANEL_COLUMNS;

/// Elements from one value row to the next in a block: the head dim rounded up to a whole panel.
pub fn value_stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PANEL_COLUMNS)
}

/// The keys and values of one sequence, in blocks of [`KEY_BLOCK`] positions from its start.
///
/// Slots beyond the sequence's end are never read as keys of a visible position, but they do pass through the
/// arithmetic of scores, whose results are then dropped; they may hold anything.
pub trait KeyValueBlocks: Sync {
    /// Keys of one KV head in `block`, as `[head_dim][64]`.
    fn keys(&self, kv_head: usize, block: usize) -> &[f32];

    /// Values of one KV head in `block`, as `[64][`[`value_stride`]`(head_dim)]`.
    fn values(&self, kv_head: usize, block: usize) -> &[f32];
}

/// Keys and values of one sequence in memory of their own: what [`attention`](super::attention) packs into, and a KV cache that
/// grows by blocks.
#[derive(Clone, Debug)]
pub struct BlockedKeyValues {
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
    /// `[block][kv_head][head_dim][64]`
    keys: Vec<f32>,
    /// `[block][kv_head][64][value_stride]`
    values: Vec<f32>,
}

impl BlockedKeyValues {
    /// No tokens yet.
    pub fn new(kv_heads: usize, head_dim: usize) -> Self {
        Self { kv_heads, head_dim, tokens: 0, keys: Vec::new(), values: Vec::new() }
    }

    /// Tokens held.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Appends tokens: `k_thd` and `v_thd` are `[new tokens][kv_heads][head_dim]`.
    ///
    /// # Panics
    /// The two differ in length or are not whole tokens.
    pub fn push(&mut self, k_thd: &[f32], v_thd: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        assert_eq!((k_thd.len(), k_thd.len() % width), (v_thd.len(), 0), "keys and values of whole tokens");
        self.reserve(self.tokens + k_thd.len() / width);
        for (k_hd, v_hd) in k_thd.chunks_exact(width).zip(v_thd.chunks_exact(width)) {
            self.push_token(k_hd, v_hd);
        }
    }

    /// Forgets the tokens from `tokens` on; their memory is kept.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
    }

    fn reserve(&mut self, tokens: usize) {
        let heads = tokens.div_ceil(KEY_BLOCK) * self.kv_heads;
        self.keys.resize(self.keys.len().max(heads * self.key_len()), 0.0);
        self.values.resize(self.values.len().max(heads * self.value_len()), 0.0);
    }

    fn push_token(&mut self, k_hd: &[f32], v_hd: &[f32]) {
        let (block, slot) = (self.tokens / KEY_BLOCK, self.tokens % KEY_BLOCK);
        let heads = k_hd.chunks_exact(self.head_dim).zip(v_hd.chunks_exact(self.head_dim));
        for (kv_head, (key, value)) in heads.enumerate() {
            let head = block * self.kv_heads + kv_head;
            let keys = &mut self.keys[head * self.head_dim * KEY_BLOCK + slot..];
            keys.iter_mut().step_by(KEY_BLOCK).zip(key).for_each(|(stored, &element)| *stored = element);
            let stride = value_stride(self.head_dim);
            self.values[(head * KEY_BLOCK + slot) * stride..][..self.head_dim].copy_from_slice(value);
        }
        self.tokens += 1;
    }

    fn key_len(&self) -> usize {
        self.head_dim * KEY_BLOCK
    }

    fn value_len(&self) -> usize {
        value_stride(self.head_dim) * KEY_BLOCK
    }
}

impl KeyValueBlocks for BlockedKeyValues {
    fn keys(&self, kv_head: usize, block: usize) -> &[f32] {
        &self.keys[(block * self.kv_heads + kv_head) * self.key_len()..][..self.key_len()]
    }

    fn values(&self, kv_head: usize, block: usize) -> &[f32] {
        &self.values[(block * self.kv_heads + kv_head) * self.value_len()..][..self.value_len()]
    }
}
