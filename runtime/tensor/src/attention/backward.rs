//! Backward: probabilities are recomputed from the scores and the saved log-sum-exp, block by block (Dao et al. 2022).

use std::ops::Range;

use super::{AttentionShape, KEY_BLOCK, Segment, row_index, segments, value_stride};
use crate::math::exp;
use crate::order::dot_lanes;
use crate::simd::{simd_dispatch, simd_level};
use crate::tile::{Operands, RowLayout, TILE_ROWS, multiply};
use crate::transpose::transpose;
use crate::{PANEL_COLUMNS, SimdLevel, Start, threads};

/// Rows taken against one block of keys at once.
const CHUNK_ROWS: usize = 4 * TILE_ROWS;

/// What forward read and wrote.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// Queries, `[tokens][q_heads][head_dim]`.
    pub q_thd: &'a [f32],
    /// Keys, `[keys][kv_heads][head_dim]`.
    pub k_thd: &'a [f32],
    /// Values, `[keys][kv_heads][head_dim]`.
    pub v_thd: &'a [f32],
    /// Forward's output.
    pub out_thd: &'a [f32],
    /// Forward's log-sum-exp.
    pub lse_th: &'a [f32],
}

/// Where backward writes; every element is overwritten, with zero for keys that no query sees.
#[derive(Debug)]
pub struct AttentionGradients<'a> {
    /// Gradient of the queries.
    pub d_q_thd: &'a mut [f32],
    /// Gradient of the keys, from this call's queries alone.
    pub d_k_thd: &'a mut [f32],
    /// Gradient of the values, from this call's queries alone.
    pub d_v_thd: &'a mut [f32],
}

/// The gradients of [`attention`](super::attention()) for the output's gradient `d_out_thd`.
///
/// # Panics
/// The shapes disagree, or the first query lies before the first document.
pub fn attention_backward(
    d_out_thd: &[f32],
    saved: &AttentionSaved<'_>,
    shape: &AttentionShape,
    document_starts: &[usize],
    gradients: AttentionGradients<'_>,
) {
    backward_at(simd_level(), d_out_thd, saved, shape, document_starts, gradients);
}

pub(super) fn backward_at(
    level: SimdLevel,
    d_out_thd: &[f32],
    saved: &AttentionSaved<'_>,
    shape: &AttentionShape,
    document_starts: &[usize],
    gradients: AttentionGradients<'_>,
) {
    shape.check(saved.q_thd, saved.out_thd, saved.lse_th);
    shape.check(d_out_thd, gradients.d_q_thd, saved.lse_th);
    shape.check_keys(saved.k_thd, saved.v_thd);
    shape.check_keys(gradients.d_k_thd, gradients.d_v_thd);
    let segments = segments(shape, document_starts);
    let mut tasks: Vec<Task<'_>> = segments
        .iter()
        .flat_map(|segment| (0..shape.kv_heads).map(move |kv_head| Task::new(shape, segment, kv_head)))
        .collect();
    let cost = segments.iter().map(|segment| segment.cost(shape)).sum();
    threads::for_each(&mut tasks, cost, |task| task.run(level, d_out_thd, saved));
    gradients.d_k_thd.fill(0.0);
    gradients.d_v_thd.fill(0.0);
    for task in &tasks {
        for row in 0..task.rows {
            let index = row_index(shape, task.segment, task.kv_head, row);
            copy_row(&task.d_q, row, shape.head_dim, gradients.d_q_thd, index);
        }
        for (row, key) in task.segment.keys.clone().enumerate() {
            let index = key * shape.kv_heads + task.kv_head;
            copy_row(&task.d_k, row, shape.head_dim, gradients.d_k_thd, index);
            copy_row(&task.d_v, row, shape.head_dim, gradients.d_v_thd, index);
        }
    }
}

/// Copies a padded row to row `index` of an unpadded tensor.
fn copy_row(padded: &[f32], row: usize, head_dim: usize, to: &mut [f32], index: usize) {
    to[index * head_dim..][..head_dim].copy_from_slice(&padded[row * value_stride(head_dim)..][..head_dim]);
}

/// One KV head of one segment. Rows have the value stride, padded with zeros.
struct Task<'a> {
    shape: &'a AttentionShape,
    segment: &'a Segment,
    kv_head: usize,
    rows: usize,
    stride: usize,
    d_q: Vec<f32>,
    d_k: Vec<f32>,
    d_v: Vec<f32>,
}

/// One task's operands, gathered from the interleaved tensors.
struct Gathered {
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
}

/// A task's rows of queries or output gradients, as right and as left operand.
struct Rows {
    /// `[rows][stride]`
    rows: Vec<f32>,
    /// `[tile][head_dim][rows of the tile]`
    tiles: Vec<f32>,
}

impl Rows {
    fn gather(task: &Task<'_>, from_thd: &[f32]) -> Self {
        let head_dim = task.shape.head_dim;
        let mut rows = vec![0.0; task.rows * task.stride];
        for (row, padded) in rows.chunks_exact_mut(task.stride).enumerate() {
            let index = row_index(task.shape, task.segment, task.kv_head, row);
            padded[..head_dim].copy_from_slice(&from_thd[index * head_dim..][..head_dim]);
        }
        let mut tiles = vec![0.0; task.rows * head_dim];
        for (rows, tile) in rows.chunks(TILE_ROWS * task.stride).zip(tiles.chunks_mut(TILE_ROWS * head_dim)) {
            let count = tile.len() / head_dim;
            transpose(rows, task.stride, tile, count, count, head_dim);
        }
        Self { rows, tiles }
    }
}

/// Scores and their gradients of a chunk of rows against one block.
struct Scores {
    probabilities: [[f32; KEY_BLOCK]; CHUNK_ROWS],
    gradients: [[f32; KEY_BLOCK]; CHUNK_ROWS],
}

impl<'a> Task<'a> {
    fn new(shape: &'a AttentionShape, segment: &'a Segment, kv_head: usize) -> Self {
        let (rows, stride) = (segment.rows(shape), value_stride(shape.head_dim));
        Self { shape, segment, kv_head, rows, stride, d_q: Vec::new(), d_k: Vec::new(), d_v: Vec::new() }
    }

    fn run(&mut self, level: SimdLevel, d_out_thd: &[f32], saved: &AttentionSaved<'_>) {
        let gathered = self.gather(level, d_out_thd, saved);
        let blocks = self.blocks();
        self.d_q = vec![0.0; self.rows * self.stride];
        self.d_k = vec![0.0; blocks * KEY_BLOCK * self.stride];
        self.d_v = vec![0.0; blocks * KEY_BLOCK * self.stride];
        let mut scores = Scores {
            probabilities: [[0.0; KEY_BLOCK]; CHUNK_ROWS],
            gradients: [[0.0; KEY_BLOCK]; CHUNK_ROWS],
        };
        for block in 0..blocks {
            let first_query = (block * KEY_BLOCK).saturating_sub(self.segment.first_position());
            let first_tile = first_query * self.shape.group() / TILE_ROWS;
            for first in (first_tile * TILE_ROWS..self.rows).step_by(CHUNK_ROWS) {
                let rows = first..self.rows.min(first + CHUNK_ROWS);
                self.score(level, &gathered, block, rows.clone(), &mut scores);
                self.accumulate(level, &gathered, block, rows, &scores);
            }
        }
    }

    fn gather(&self, level: SimdLevel, d_out_thd: &[f32], saved: &AttentionSaved<'_>) -> Gathered {
        let head_dim = self.shape.head_dim;
        let heads = (0..self.rows).map(|row| row_index(self.shape, self.segment, self.kv_head, row));
        let delta = heads.clone().map(|index| {
            let head = index * head_dim..(index + 1) * head_dim;
            dot_at(level, &d_out_thd[head.clone()], &saved.out_thd[head])
        });
        let first_key = (self.segment.keys.start * self.shape.kv_heads + self.kv_head) * head_dim;
        Gathered {
            keys: self.key_rows(&saved.k_thd[first_key..]),
            key_columns: self.columns(&saved.k_thd[first_key..]),
            value_columns: self.columns(&saved.v_thd[first_key..]),
            q: Rows::gather(self, saved.q_thd),
            d_out: Rows::gather(self, d_out_thd),
            lse: heads.map(|index| saved.lse_th[index]).collect(),
            delta: delta.collect(),
        }
    }

    /// The segment's keys as padded rows, in whole blocks.
    fn key_rows(&self, from: &[f32]) -> Vec<f32> {
        let (head_dim, width) = (self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim);
        let mut rows = vec![0.0; self.blocks() * KEY_BLOCK * self.stride];
        let filled = rows.chunks_exact_mut(self.stride).take(self.segment.keys.len());
        for (padded, row) in filled.zip(from.chunks(width)) {
            padded[..head_dim].copy_from_slice(&row[..head_dim]);
        }
        rows
    }

    /// The segment's keys or values as transposed blocks.
    fn columns(&self, from: &[f32]) -> Vec<f32> {
        let (head_dim, width) = (self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim);
        let mut columns = vec![0.0; self.blocks() * head_dim * KEY_BLOCK];
        for (block, columns) in columns.chunks_exact_mut(head_dim * KEY_BLOCK).enumerate() {
            let first = block * KEY_BLOCK;
            let keys = KEY_BLOCK.min(self.segment.keys.len() - first);
            transpose(&from[first * width..], width, columns, KEY_BLOCK, keys, head_dim);
        }
        columns
    }

    fn blocks(&self) -> usize {
        self.segment.keys.len().div_ceil(KEY_BLOCK)
    }

    /// Probabilities and score gradients of `rows` against `block`; zero where a row does not see a key.
    fn score(
        &self,
        level: SimdLevel,
        gathered: &Gathered,
        block: usize,
        rows: Range<usize>,
        scores: &mut Scores,
    ) {
        let block_len = self.shape.head_dim * KEY_BLOCK;
        let keys = &gathered.key_columns[block * block_len..][..block_len];
        let values = &gathered.value_columns[block * block_len..][..block_len];
        for first in rows.clone().step_by(TILE_ROWS) {
            let tile = first..rows.end.min(first + TILE_ROWS);
            let to = first - rows.start;
            self.against_block(level, &gathered.q, tile.clone(), keys, &mut scores.probabilities[to..]);
            self.against_block(level, &gathered.d_out, tile, values, &mut scores.gradients[to..]);
        }
        for (r, row) in rows.enumerate() {
            let limit = self.segment.first_position() + row / self.shape.group();
            let visible = (limit + 1).saturating_sub(block * KEY_BLOCK).min(KEY_BLOCK);
            let (p, ds) = (&mut scores.probabilities[r], &mut scores.gradients[r]);
            probabilities_at(
                level,
                p,
                ds,
                visible,
                self.shape.scale(),
                gathered.lse[row],
                gathered.delta[row],
            );
        }
    }

    /// Products over the head dim of a tile of rows with the 64 columns of a transposed block.
    fn against_block(
        &self,
        level: SimdLevel,
        rows: &Rows,
        tile: Range<usize>,
        block: &[f32],
        out: &mut [[f32; KEY_BLOCK]],
    ) {
        for column in (0..KEY_BLOCK).step_by(PANEL_COLUMNS) {
            let operands = Operands {
                depth: self.shape.head_dim,
                a: &rows.tiles[tile.start * self.shape.head_dim..],
                a_layout: RowLayout::Packed,
                a_step: tile.len(),
                b: &block[column..],
                b_step: KEY_BLOCK,
                start: Start::Zero,
            };
            multiply(level, tile.len(), operands, &mut out.as_flattened_mut()[column..], KEY_BLOCK);
        }
    }

    fn accumulate(
        &mut self,
        level: SimdLevel,
        gathered: &Gathered,
        block: usize,
        rows: Range<usize>,
        scores: &Scores,
    ) {
        let stride = self.stride;
        let (p, ds) = (scores.probabilities.as_flattened(), scores.gradients.as_flattened());
        let first_key = block * KEY_BLOCK * stride;
        for column in (0..stride).step_by(PANEL_COLUMNS) {
            let first = rows.start * stride + column;
            for key in (0..KEY_BLOCK).step_by(TILE_ROWS) {
                let keys = TILE_ROWS.min(KEY_BLOCK - key);
                let to = first_key + key * stride + column;
                let by_key = |a, b| operands(RowLayout::Packed, rows.len(), a, KEY_BLOCK, b, stride);
                multiply(
                    level,
                    keys,
                    by_key(&p[key..], &gathered.d_out.rows[first..]),
                    &mut self.d_v[to..],
                    stride,
                );
                multiply(
                    level,
                    keys,
                    by_key(&ds[key..], &gathered.q.rows[first..]),
                    &mut self.d_k[to..],
                    stride,
                );
            }
            for r in (0..rows.len()).step_by(TILE_ROWS) {
                let count = TILE_ROWS.min(rows.len() - r);
                let keys = &gathered.keys[first_key + column..];
                let by_row = operands(RowLayout::Scores, KEY_BLOCK, &ds[r * KEY_BLOCK..], 1, keys, stride);
                multiply(level, count, by_row, &mut self.d_q[first + r * stride..], stride);
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
