//! The keys and values of a call, packed into blocks: one KV head of one document after the other.

use std::cell::Cell;

use super::{AttentionShape, KEY_BLOCK, KeyValueBlocks, Segment, value_stride};
use crate::transpose::transpose;
use crate::{Mat, threads};

thread_local! {
    /// Packed blocks, kept because megabytes that are new in each call cost page faults.
    static PACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// The blocks of one segment: `[kv_head][block]` of keys `[head_dim][64]` and then values `[64][value_stride]`.
pub(super) struct PackedSegment<'a> {
    data: &'a [f32],
    head_len: usize,
    head_dim: usize,
}

impl PackedSegment<'_> {
    fn block(&self, kv_head: usize, block: usize) -> (&[f32], &[f32]) {
        let len = block_len(self.head_dim);
        self.data[kv_head * self.head_len + block * len..][..len].split_at(self.head_dim * KEY_BLOCK)
    }
}

impl KeyValueBlocks for PackedSegment<'_> {
    fn keys(&self, kv_head: usize, block: usize) -> &[f32] {
        self.block(kv_head, block).0
    }

    fn values(&self, kv_head: usize, block: usize) -> &[f32] {
        self.block(kv_head, block).1
    }
}

fn block_len(head_dim: usize) -> usize {
    KEY_BLOCK * (head_dim + value_stride(head_dim))
}

fn head_len(shape: &AttentionShape, segment: &Segment) -> usize {
    segment.keys.len().div_ceil(KEY_BLOCK) * block_len(shape.head_dim)
}

/// Packs what each segment reads and lends it to `work`. Slots beyond a segment's end hold anything.
pub(super) fn with_packed<R>(
    shape: &AttentionShape,
    segments: &[Segment],
    k: Mat<'_>,
    v: Mat<'_>,
    work: impl FnOnce(&[PackedSegment<'_>]) -> R,
) -> R {
    let lens = segments.iter().map(|segment| shape.kv_heads * head_len(shape, segment));
    let mut data = PACKED.take();
    let len = lens.clone().sum();
    if data.len() < len {
        data.resize(len, 0.0);
    }
    let mut rest = &mut data[..len];
    let mut tasks = Vec::new();
    for segment in segments {
        for kv_head in 0..shape.kv_heads {
            let (head, after) = rest.split_at_mut(head_len(shape, segment));
            tasks.push((segment, kv_head, head));
            rest = after;
        }
    }
    threads::for_each(&mut tasks, len, |(segment, kv_head, to)| pack(shape, segment, *kv_head, k, v, to));
    let mut first = 0;
    let packed: Vec<_> = segments
        .iter()
        .zip(lens)
        .map(|(segment, len)| {
            first += len;
            PackedSegment {
                data: &data[first - len..first],
                head_len: head_len(shape, segment),
                head_dim: shape.head_dim,
            }
        })
        .collect();
    let result = work(&packed);
    PACKED.set(data);
    result
}

fn pack(shape: &AttentionShape, segment: &Segment, kv_head: usize, k: Mat<'_>, v: Mat<'_>, to: &mut [f32]) {
    let (head_dim, stride) = (shape.head_dim, value_stride(shape.head_dim));
    for (block, to) in to.chunks_exact_mut(block_len(head_dim)).enumerate() {
        let first = segment.keys.start + block * KEY_BLOCK;
        let count = KEY_BLOCK.min(segment.keys.end - first);
        let (keys, values) = to.split_at_mut(head_dim * KEY_BLOCK);
        let from = &k.data[first * k.row_stride + kv_head * head_dim..];
        transpose(from, k.row_stride, keys, KEY_BLOCK, count, head_dim);
        for (key, row) in values.chunks_exact_mut(stride).take(count).enumerate() {
            row[..head_dim].copy_from_slice(super::head_of(v, first + key, kv_head, head_dim));
        }
    }
}
