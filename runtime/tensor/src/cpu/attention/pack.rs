//! Where a task finds the keys and values of its head: in a cache's blocks, or in matrices, of which it packs blocks.

use std::cell::Cell;

use super::{AttentionShape, KEY_BLOCK, KeyValueBlocks, Segment, head_of, value_stride};
use crate::cpu::transpose::transpose;
use crate::cpu::{Mat, threads};

thread_local! {
    /// Packed blocks, kept because memory that is new in each call costs page faults.
    static PACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// The blocks of one KV head of one segment.
pub(super) trait HeadBlocks {
    /// Keys `[head_dim][64]` and values `[64][value_stride]` of a block; slots beyond the segment's end hold anything.
    fn block(&self, block: usize) -> (&[f32], &[f32]);
}

/// The keys and values of one segment.
pub(super) trait Source: Sync {
    /// Lends the blocks of one KV head to `work`.
    fn with_head(&self, kv_head: usize, work: impl FnOnce(&dyn HeadBlocks));
}

/// The blocks of a cache.
pub(super) struct Cached<'a, B>(pub(super) &'a B);

struct CachedHead<'a, B> {
    blocks: &'a B,
    kv_head: usize,
}

impl<B: KeyValueBlocks> Source for Cached<'_, B> {
    fn with_head(&self, kv_head: usize, work: impl FnOnce(&dyn HeadBlocks)) {
        work(&CachedHead { blocks: self.0, kv_head });
    }
}

impl<B: KeyValueBlocks> HeadBlocks for CachedHead<'_, B> {
    fn block(&self, block: usize) -> (&[f32], &[f32]) {
        (self.blocks.keys(self.kv_head, block), self.blocks.values(self.kv_head, block))
    }
}

/// Keys and values as matrices. A task that takes all rows of a head packs the head itself, while it is in the caches.
pub(super) struct Unpacked<'a> {
    pub(super) shape: &'a AttentionShape,
    pub(super) segment: &'a Segment,
    pub(super) k: Mat<'a>,
    pub(super) v: Mat<'a>,
}

impl Source for Unpacked<'_> {
    fn with_head(&self, kv_head: usize, work: impl FnOnce(&dyn HeadBlocks)) {
        with_scratch(head_len(self.shape, self.segment), |data| {
            self.pack(kv_head, data);
            work(&PackedHead { data, head_dim: self.shape.head_dim });
        });
    }
}

impl Unpacked<'_> {
    fn pack(&self, kv_head: usize, to: &mut [f32]) {
        let (head_dim, stride) = (self.shape.head_dim, value_stride(self.shape.head_dim));
        for (block, to) in to.chunks_exact_mut(block_len(head_dim)).enumerate() {
            let first = self.segment.keys.start + block * KEY_BLOCK;
            let count = KEY_BLOCK.min(self.segment.keys.end - first);
            let (keys, values) = to.split_at_mut(head_dim * KEY_BLOCK);
            let from = &self.k.data[first * self.k.row_stride + kv_head * head_dim..];
            transpose(from, self.k.row_stride, keys, KEY_BLOCK, count, head_dim);
            for (key, row) in values.chunks_exact_mut(stride).take(count).enumerate() {
                row[..head_dim].copy_from_slice(head_of(self.v, first + key, kv_head, head_dim));
            }
        }
    }
}

/// Packed blocks, which several tasks share.
pub(super) struct Packed<'a> {
    /// `[kv_head][block]`
    data: &'a [f32],
    head_len: usize,
    head_dim: usize,
}

impl Source for Packed<'_> {
    fn with_head(&self, kv_head: usize, work: impl FnOnce(&dyn HeadBlocks)) {
        let data = &self.data[kv_head * self.head_len..][..self.head_len];
        work(&PackedHead { data, head_dim: self.head_dim });
    }
}

/// One head: blocks of keys and then values.
struct PackedHead<'a> {
    data: &'a [f32],
    head_dim: usize,
}

impl HeadBlocks for PackedHead<'_> {
    fn block(&self, block: usize) -> (&[f32], &[f32]) {
        let len = block_len(self.head_dim);
        self.data[block * len..][..len].split_at(self.head_dim * KEY_BLOCK)
    }
}

fn block_len(head_dim: usize) -> usize {
    KEY_BLOCK * (head_dim + value_stride(head_dim))
}

fn head_len(shape: &AttentionShape, segment: &Segment) -> usize {
    segment.keys.len().div_ceil(KEY_BLOCK) * block_len(shape.head_dim)
}

/// Lends `len` elements that hold anything.
fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut data = PACKED.take();
    if data.len() < len {
        data.resize(len, 0.0);
    }
    let result = work(&mut data[..len]);
    PACKED.set(data);
    result
}

/// Packs all heads of all segments first and lends them to `work`.
pub(super) fn with_packed(
    shape: &AttentionShape,
    sources: &[Unpacked<'_>],
    work: impl FnOnce(&[Packed<'_>]),
) {
    let lens: Vec<_> = sources.iter().map(|source| head_len(shape, source.segment)).collect();
    let len = shape.kv_heads * lens.iter().sum::<usize>();
    with_scratch(len, |data| {
        let mut rest = &mut *data;
        let mut tasks = Vec::new();
        for (source, &len) in sources.iter().zip(&lens) {
            for kv_head in 0..shape.kv_heads {
                let (head, after) = rest.split_at_mut(len);
                tasks.push((source, kv_head, head));
                rest = after;
            }
        }
        threads::for_each(&mut tasks, len, |(source, kv_head, to)| source.pack(*kv_head, to));
        let mut rest = &*data;
        let packed = lens.iter().map(|&head_len| {
            let (data, after) = rest.split_at(shape.kv_heads * head_len);
            rest = after;
            Packed { data, head_len, head_dim: shape.head_dim }
        });
        work(&packed.collect::<Vec<_>>());
    });
}
