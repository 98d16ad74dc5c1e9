//! Keys and values as attention reads them: in blocks of 64 positions, keys transposed.

use super::KEY_BLOCK;
use crate::cpu::PANEL_COLUMNS;
use crate::cpu::transpose::transpose;

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
        let end = self.tokens + k_thd.len() / width;
        self.reserve(end);
        let (mut k_thd, mut v_thd) = (k_thd, v_thd);
        while self.tokens < end {
            let tokens = (KEY_BLOCK - self.tokens % KEY_BLOCK).min(end - self.tokens);
            for kv_head in 0..self.kv_heads {
                self.store(
                    kv_head,
                    &k_thd[kv_head * self.head_dim..],
                    &v_thd[kv_head * self.head_dim..],
                    tokens,
                );
            }
            (k_thd, v_thd) = (&k_thd[tokens * width..], &v_thd[tokens * width..]);
            self.tokens += tokens;
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

    /// Stores `tokens` tokens of one head, which fit into the current block.
    fn store(&mut self, kv_head: usize, keys: &[f32], values: &[f32], tokens: usize) {
        let (head_dim, width, stride) =
            (self.head_dim, self.kv_heads * self.head_dim, value_stride(self.head_dim));
        let (head, slot) = (self.tokens / KEY_BLOCK * self.kv_heads + kv_head, self.tokens % KEY_BLOCK);
        let stored = &mut self.keys[head * head_dim * KEY_BLOCK + slot..];
        transpose(keys, width, stored, KEY_BLOCK, tokens, head_dim);
        let stored = self.values[(head * KEY_BLOCK + slot) * stride..].chunks_exact_mut(stride).take(tokens);
        for (stored, value) in stored.zip(values.chunks(width)) {
            stored[..head_dim].copy_from_slice(&value[..head_dim]);
        }
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
