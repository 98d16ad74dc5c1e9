//! What a task of backward reads and adds up, in memory of its thread.

use super::task::{CHUNK_ROWS, Task};
use crate::cpu::attention::{AttentionSaved, KEY_BLOCK, head_of, row_place, value_stride};
use crate::cpu::order::dot_lanes;
use crate::cpu::simd::simd_dispatch;
use crate::cpu::tile::TILE_ROWS;
use crate::cpu::transpose::transpose;
use crate::cpu::{Mat, SimdLevel};

/// One task's operands, gathered from the interleaved tensors, and its sums. Rows have the value stride; what lies beyond the
/// head dim or beyond the segment is anything, and so is what becomes of it.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[blocks][64][stride]`
    pub(super) keys: Vec<f32>,
    /// `[blocks][head_dim][64]`
    pub(super) key_columns: Vec<f32>,
    /// `[blocks][head_dim][64]`
    pub(super) value_columns: Vec<f32>,
    pub(super) q: Rows,
    pub(super) d_out: Rows,
    pub(super) lse: Vec<f32>,
    /// `sum over d of d_out * out` of each row.
    pub(super) delta: Vec<f32>,
    /// `[rows][stride]`
    pub(super) d_q: Vec<f32>,
    /// `[blocks][64][stride]`
    pub(super) d_k: Vec<f32>,
    /// `[blocks][64][stride]`
    pub(super) d_v: Vec<f32>,
    /// Of a chunk of rows against one block.
    pub(super) probabilities: Vec<[f32; KEY_BLOCK]>,
    /// Gradients of its scores.
    pub(super) gradients: Vec<[f32; KEY_BLOCK]>,
}

/// A task's rows of queries or output gradients, as right and as left operand.
#[derive(Default)]
pub(super) struct Rows {
    /// `[rows][stride]`
    pub(super) rows: Vec<f32>,
    /// `[tile][head_dim][rows of the tile]`
    pub(super) tiles: Vec<f32>,
}

impl Rows {
    fn gather(&mut self, task: &Task<'_>, from: Mat<'_>) {
        let (head_dim, stride) = (task.shape.head_dim, value_stride(task.shape.head_dim));
        resize(&mut self.rows, task.rows() * stride);
        for (row, padded) in self.rows.chunks_exact_mut(stride).enumerate() {
            padded[..head_dim].copy_from_slice(task.row(from, row));
        }
        resize(&mut self.tiles, task.rows() * head_dim);
        let tiles = self.tiles.chunks_mut(TILE_ROWS * head_dim);
        for (rows, tile) in self.rows.chunks(TILE_ROWS * stride).zip(tiles) {
            let count = tile.len() / head_dim;
            transpose(rows, stride, tile, count, count, head_dim);
        }
    }
}

/// Gives `values` a length without touching what it holds.
fn resize(values: &mut Vec<f32>, len: usize) {
    values.resize(len, 0.0);
}

impl Scratch {
    pub(super) fn gather(
        &mut self,
        level: SimdLevel,
        task: &Task<'_>,
        d_out: Mat<'_>,
        saved: &AttentionSaved<'_>,
    ) {
        let (rows, keys) = (task.rows(), task.blocks() * KEY_BLOCK);
        let (head_dim, stride) = (task.shape.head_dim, value_stride(task.shape.head_dim));
        resize(&mut self.keys, keys * stride);
        for (key, padded) in task.segment.keys.clone().zip(self.keys.chunks_exact_mut(stride)) {
            padded[..head_dim].copy_from_slice(head_of(saved.k, key, task.kv_head, head_dim));
        }
        columns(task, saved.k, &mut self.key_columns);
        columns(task, saved.v, &mut self.value_columns);
        self.q.gather(task, saved.q);
        self.d_out.gather(task, d_out);
        let place = |row| row_place(task.shape, task.segment, task.kv_head, row);
        self.lse.clear();
        self.lse.extend((0..rows).map(place).map(|(t, h)| saved.lse_th[t * task.shape.q_heads + h]));
        self.delta.clear();
        self.delta.extend((0..rows).map(|row| dot_at(level, task.row(d_out, row), task.row(saved.out, row))));
        for (sums, len) in [(&mut self.d_q, rows), (&mut self.d_k, keys), (&mut self.d_v, keys)] {
            sums.clear();
            sums.resize(len * stride, 0.0);
        }
        self.probabilities.resize(CHUNK_ROWS, [0.0; KEY_BLOCK]);
        self.gradients.resize(CHUNK_ROWS, [0.0; KEY_BLOCK]);
    }
}

/// The segment's keys or values as transposed blocks.
fn columns(task: &Task<'_>, from: Mat<'_>, to: &mut Vec<f32>) {
    let head_dim = task.shape.head_dim;
    resize(to, task.blocks() * head_dim * KEY_BLOCK);
    for (block, to) in to.chunks_exact_mut(head_dim * KEY_BLOCK).enumerate() {
        let first = task.segment.keys.start + block * KEY_BLOCK;
        let count = KEY_BLOCK.min(task.segment.keys.end - first);
        let from_first = &from.data[first * from.row_stride + task.kv_head * head_dim..];
        transpose(from_first, from.row_stride, to, KEY_BLOCK, count, head_dim);
    }
}

simd_dispatch!(fn dot_at(a: &[f32], b: &[f32]) -> f32 = dot_lanes);
