//! One KV head of one document: five products a block of keys.

use std::cell::Cell;
use std::ops::Range;

use crate::attention::{
    AttentionSaved, AttentionShape, KEY_BLOCK, Segment, head_of, row_place, value_stride,
};
use crate::math::exp;
use crate::order::dot_lanes;
use crate::simd::simd_dispatch;
use crate::tile::{Operands, RowLayout, TILE_ROWS, multiply};
use crate::transpose::transpose;
use crate::{Mat, PANEL_COLUMNS, SimdLevel, Start};

/// Rows taken against one block of keys at once.
const CHUNK_ROWS: usize = 4 * TILE_ROWS;

thread_local! {
    /// Operands and sums of a task, kept because memory that is new in each task costs page faults.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// One KV head of one segment, and where its gradients go.
pub(super) struct Task<'a> {
    shape: &'a AttentionShape,
    segment: &'a Segment,
    kv_head: usize,
    /// For each row (query, head of the group) its head of the gradient.
    pub(super) d_q: Vec<&'a mut [f32]>,
    /// For each key of the segment.
    pub(super) d_k: Vec<&'a mut [f32]>,
    /// For each key of the segment.
    pub(super) d_v: Vec<&'a mut [f32]>,
}

/// One task's operands, gathered from the interleaved tensors, and its sums. Rows have the value stride; what lies beyond the
/// head dim or beyond the segment is anything, and so is what becomes of it.
#[derive(Default)]
struct Scratch {
    /// `[blocks][64][stride]`
    keys: Vec<f32>,
    /// `[blocks][head_dim][64]`
    key_columns: Vec<f32>,
    /// `[blocks][head_dim][64]`
    value_columns: Vec<f32>,
    q: Rows,
    d_out: Rows,
    lse: Vec<f32>,
    /// `sum over d of d_out * out` of each row.
    delta: Vec<f32>,
    /// `[rows][stride]`
    d_q: Vec<f32>,
    /// `[blocks][64][stride]`
    d_k: Vec<f32>,
    /// `[blocks][64][stride]`
    d_v: Vec<f32>,
    /// Of a chunk of rows against one block.
    probabilities: Vec<[f32; KEY_BLOCK]>,
    /// Gradients of its scores.
    gradients: Vec<[f32; KEY_BLOCK]>,
}

/// A task's rows of queries or output gradients, as right and as left operand.
#[derive(Default)]
struct Rows {
    /// `[rows][stride]`
    rows: Vec<f32>,
    /// `[tile][head_dim][rows of the tile]`
    tiles: Vec<f32>,
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

impl<'a> Task<'a> {
    pub(super) fn new(shape: &'a AttentionShape, segment: &'a Segment, kv_head: usize) -> Self {
        let (d_q, d_k) = (Vec::with_capacity(segment.rows(shape)), Vec::with_capacity(segment.keys.len()));
        Self { shape, segment, kv_head, d_q, d_k, d_v: Vec::with_capacity(segment.keys.len()) }
    }

    fn rows(&self) -> usize {
        self.segment.rows(self.shape)
    }

    /// The head of a tensor of queries that belongs to `row`.
    fn row<'b>(&self, from: Mat<'b>, row: usize) -> &'b [f32] {
        let (token, head) = row_place(self.shape, self.segment, self.kv_head, row);
        head_of(from, token, head, self.shape.head_dim)
    }

    pub(super) fn run(&mut self, level: SimdLevel, d_out: Mat<'_>, saved: &AttentionSaved<'_>) {
        let mut scratch = SCRATCH.take();
        scratch.gather(level, self, d_out, saved);
        let block = Block { level, task: self };
        for index in 0..self.blocks() {
            let first_query = (index * KEY_BLOCK).saturating_sub(self.segment.first_position());
            let first_tile = first_query * self.shape.group() / TILE_ROWS;
            for first in (first_tile * TILE_ROWS..self.rows()).step_by(CHUNK_ROWS) {
                let rows = first..self.rows().min(first + CHUNK_ROWS);
                block.score(&mut scratch, index, rows.clone());
                block.accumulate(&mut scratch, index, rows);
            }
        }
        let stride = value_stride(self.shape.head_dim);
        for (to, from) in
            [(&mut self.d_q, &scratch.d_q), (&mut self.d_k, &scratch.d_k), (&mut self.d_v, &scratch.d_v)]
        {
            for (to, from) in to.iter_mut().zip(from.chunks_exact(stride)) {
                to.copy_from_slice(&from[..to.len()]);
            }
        }
        SCRATCH.set(scratch);
    }

    fn blocks(&self) -> usize {
        self.segment.keys.len().div_ceil(KEY_BLOCK)
    }
}

impl Scratch {
    fn gather(&mut self, level: SimdLevel, task: &Task<'_>, d_out: Mat<'_>, saved: &AttentionSaved<'_>) {
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

/// The work of one block of keys with a chunk of rows.
struct Block<'a> {
    level: SimdLevel,
    task: &'a Task<'a>,
}

impl Block<'_> {
    /// Probabilities and score gradients of `rows` against `block`; zero where a row does not see a key.
    fn score(&self, scratch: &mut Scratch, block: usize, rows: Range<usize>) {
        let shape = self.task.shape;
        let columns = block * shape.head_dim * KEY_BLOCK..(block + 1) * shape.head_dim * KEY_BLOCK;
        let (p, ds) = (&mut scratch.probabilities, &mut scratch.gradients);
        for first in rows.clone().step_by(TILE_ROWS) {
            let tile = first..rows.end.min(first + TILE_ROWS);
            let to = first - rows.start;
            let keys = &scratch.key_columns[columns.clone()];
            self.against_block(&scratch.q, tile.clone(), keys, &mut p[to..]);
            let values = &scratch.value_columns[columns.clone()];
            self.against_block(&scratch.d_out, tile, values, &mut ds[to..]);
        }
        for (r, row) in rows.enumerate() {
            let limit = self.task.segment.first_position() + row / shape.group();
            let visible = (limit + 1).saturating_sub(block * KEY_BLOCK).min(KEY_BLOCK);
            let (lse, delta) = (scratch.lse[row], scratch.delta[row]);
            probabilities_at(self.level, &mut p[r], &mut ds[r], visible, shape.scale(), lse, delta);
        }
    }

    /// Products over the head dim of a tile of rows with the 64 columns of a transposed block.
    fn against_block(&self, rows: &Rows, tile: Range<usize>, block: &[f32], out: &mut [[f32; KEY_BLOCK]]) {
        let head_dim = self.task.shape.head_dim;
        for column in (0..KEY_BLOCK).step_by(PANEL_COLUMNS) {
            let operands = Operands {
                depth: head_dim,
                a: &rows.tiles[tile.start * head_dim..],
                a_layout: RowLayout::Packed,
                a_step: tile.len(),
                b: &block[column..],
                b_step: KEY_BLOCK,
                start: Start::Zero,
            };
            multiply(self.level, tile.len(), operands, &mut out.as_flattened_mut()[column..], KEY_BLOCK);
        }
    }

    fn accumulate(&self, scratch: &mut Scratch, block: usize, rows: Range<usize>) {
        let stride = value_stride(self.task.shape.head_dim);
        let (p, ds) = (scratch.probabilities.as_flattened(), scratch.gradients.as_flattened());
        let first_key = block * KEY_BLOCK * stride;
        let count = KEY_BLOCK.min(self.task.segment.keys.len() - block * KEY_BLOCK);
        for column in (0..stride).step_by(PANEL_COLUMNS) {
            let first = rows.start * stride + column;
            for key in (0..count).step_by(TILE_ROWS) {
                let keys = TILE_ROWS.min(count - key);
                let to = first_key + key * stride + column;
                let by_key = |a, b| operands(RowLayout::Packed, rows.len(), a, KEY_BLOCK, b, stride);
                let (d_out, q) = (&scratch.d_out.rows[first..], &scratch.q.rows[first..]);
                multiply(self.level, keys, by_key(&p[key..], d_out), &mut scratch.d_v[to..], stride);
                multiply(self.level, keys, by_key(&ds[key..], q), &mut scratch.d_k[to..], stride);
            }
            for r in (0..rows.len()).step_by(TILE_ROWS) {
                let tile = TILE_ROWS.min(rows.len() - r);
                let keys = &scratch.keys[first_key + column..];
                let by_row = operands(RowLayout::Scores, count, &ds[r * KEY_BLOCK..], 1, keys, stride);
                multiply(self.level, tile, by_row, &mut scratch.d_q[first + r * stride..], stride);
            }
        }
    }
}

fn operands<'a>(
    a_layout: RowLayout,
    depth: usize,
    a: &'a [f32],
    a_step: usize,
    b: &'a [f32],
    b_step: usize,
) -> Operands<'a> {
    Operands { depth, a, a_layout, a_step, b, b_step, start: Start::FromC }
}

simd_dispatch!(fn dot_at(a: &[f32], b: &[f32]) -> f32 = dot_lanes);
simd_dispatch!(
    fn probabilities_at(
        scores: &mut [f32; KEY_BLOCK],
        gradients: &mut [f32; KEY_BLOCK],
        visible: usize,
        scale: f32,
        lse: f32,
        delta: f32,
    ) = probabilities
);

/// Scores become probabilities, gradients of probabilities become gradients of unscaled scores.
#[inline(always)]
fn probabilities(
    scores: &mut [f32; KEY_BLOCK],
    gradients: &mut [f32; KEY_BLOCK],
    visible: usize,
    scale: f32,
    lse: f32,
    delta: f32,
) {
    for key in 0..KEY_BLOCK {
        let p = exp(scores[key] * scale - lse);
        let ds = p * (gradients[key] - delta) * scale;
        scores[key] = if key < visible { p } else { 0.0 };
        gradients[key] = if key < visible { ds } else { 0.0 };
    }
}
