//! One KV head of one document: five products a block of keys.

use std::cell::Cell;
use std::ops::Range;

use super::scratch::{Rows, Scratch};
use crate::cpu::attention::{
    AttentionSaved, AttentionShape, KEY_BLOCK, Segment, Visible, head_of, row_place, value_stride,
};
use crate::cpu::simd::simd_dispatch;
use crate::cpu::tile::{HALF_COLUMNS, Operands, RowLayout, TILE_ROWS, multiply};
use crate::cpu::{Mat, PANEL_COLUMNS, SimdLevel, Start};
use crate::math::exp;

/// Rows taken against one block of keys at once.
pub(super) const CHUNK_ROWS: usize = 4 * TILE_ROWS;

thread_local! {
    /// Operands and sums of a task, kept because memory that is new in each task costs page faults.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// One KV head of one segment, and where its gradients go.
pub(super) struct Task<'a> {
    pub(super) shape: &'a AttentionShape,
    pub(super) segment: &'a Segment,
    pub(super) kv_head: usize,
    /// For each row (query, head of the group) its head of the gradient.
    pub(super) d_q: Vec<&'a mut [f32]>,
    /// For each key of the segment.
    pub(super) d_k: Vec<&'a mut [f32]>,
    /// For each key of the segment.
    pub(super) d_v: Vec<&'a mut [f32]>,
}

impl<'a> Task<'a> {
    pub(super) fn new(shape: &'a AttentionShape, segment: &'a Segment, kv_head: usize) -> Self {
        let (d_q, d_k) = (Vec::with_capacity(segment.rows(shape)), Vec::with_capacity(segment.keys.len()));
        Self { shape, segment, kv_head, d_q, d_k, d_v: Vec::with_capacity(segment.keys.len()) }
    }

    pub(super) fn rows(&self) -> usize {
        self.segment.rows(self.shape)
    }

    /// The head of a tensor of queries that belongs to `row`.
    pub(super) fn row<'b>(&self, from: Mat<'b>, row: usize) -> &'b [f32] {
        let (token, head) = row_place(self.shape, self.segment, self.kv_head, row);
        head_of(from, token, head, self.shape.head_dim)
    }

    pub(super) fn run(&mut self, level: SimdLevel, d_out: Mat<'_>, saved: &AttentionSaved<'_>) {
        let mut scratch = SCRATCH.take();
        scratch.gather(level, self, d_out, saved);
        let block = Block { level, task: self };
        for index in 0..self.blocks() {
            let keys = index * KEY_BLOCK..self.segment.keys.len().min((index + 1) * KEY_BLOCK);
            let rows = self.segment.rows_that_see(self.shape, keys);
            // Tiles are cut from the first row on.
            for first in (rows.start / TILE_ROWS * TILE_ROWS..rows.end).step_by(CHUNK_ROWS) {
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

    pub(super) fn blocks(&self) -> usize {
        self.segment.keys.len().div_ceil(KEY_BLOCK)
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
        for tile in tiles(rows.clone()) {
            let any = self.any(block, tile.clone());
            let to = tile.start - rows.start;
            let keys = &scratch.key_columns[columns.clone()];
            self.against_block(&scratch.q, tile.clone(), keys, any, &mut p[to..]);
            let values = &scratch.value_columns[columns.clone()];
            self.against_block(&scratch.d_out, tile, values, any, &mut ds[to..]);
        }
        for (r, row) in rows.enumerate() {
            let visible = self.task.segment.visible(shape, row, block);
            let (lse, delta) = (scratch.lse[row], scratch.delta[row]);
            probabilities_at(self.level, &mut p[r], &mut ds[r], visible, shape.scale(), lse, delta);
        }
    }

    /// The keys of `block` that any row of the tile sees.
    fn any(&self, block: usize, tile: Range<usize>) -> Visible {
        let visible = |row| self.task.segment.visible(self.task.shape, row, block);
        Visible::any(&[visible(tile.start), visible(tile.end - 1)])
    }

    /// Products over the head dim of a tile of rows with those panels of a transposed block that it sees.
    fn against_block(
        &self,
        rows: &Rows,
        tile: Range<usize>,
        block: &[f32],
        any: Visible,
        out: &mut [[f32; KEY_BLOCK]],
    ) {
        let head_dim = self.task.shape.head_dim;
        for column in (0..KEY_BLOCK).step_by(PANEL_COLUMNS).filter(|&column| any.meets_panel(column)) {
            let operands = Operands {
                depth: head_dim,
                a: &rows.tiles[tile.start * head_dim..],
                a_layout: RowLayout::Packed,
                a_step: tile.len(),
                b: &block[column..],
                b_step: KEY_BLOCK,
                b_half: HALF_COLUMNS,
                start: Start::Zero,
            };
            multiply(self.level, tile.len(), operands, &mut out.as_flattened_mut()[column..], KEY_BLOCK);
        }
    }

    /// Adds to the gradients of the block's keys and values and of the rows' queries. A sum leaves out the terms before the
    /// first and after the last that any element of its tile sees; those between that an element does not see are zero.
    fn accumulate(&self, scratch: &mut Scratch, block: usize, rows: Range<usize>) {
        let (shape, segment) = (self.task.shape, self.task.segment);
        let stride = value_stride(shape.head_dim);
        let (p, ds) = (scratch.probabilities.as_flattened(), scratch.gradients.as_flattened());
        let first_key = block * KEY_BLOCK;
        let count = KEY_BLOCK.min(segment.keys.len() - first_key);
        for column in (0..stride).step_by(PANEL_COLUMNS) {
            for keys in tiles(0..count) {
                let seen = segment.rows_that_see(shape, first_key + keys.start..first_key + keys.end);
                let seen = seen.start.max(rows.start)..seen.end.min(rows.end);
                if seen.is_empty() {
                    continue;
                }
                let (from, to) = (seen.start * stride + column, (first_key + keys.start) * stride + column);
                let a = (seen.start - rows.start) * KEY_BLOCK + keys.start;
                let by_key = |a, b| operands(RowLayout::Packed, seen.len(), a, KEY_BLOCK, b, stride);
                let (d_out, q) = (&scratch.d_out.rows[from..], &scratch.q.rows[from..]);
                multiply(self.level, keys.len(), by_key(&p[a..], d_out), &mut scratch.d_v[to..], stride);
                multiply(self.level, keys.len(), by_key(&ds[a..], q), &mut scratch.d_k[to..], stride);
            }
            for tile in tiles(rows.clone()) {
                let any = self.any(block, tile.clone());
                if any.is_empty() {
                    continue;
                }
                let keys = &scratch.keys[(first_key + any.start) * stride + column..];
                let a = &ds[(tile.start - rows.start) * KEY_BLOCK + any.start..];
                let by_row = operands(RowLayout::Scores, any.end - any.start, a, 1, keys, stride);
                let to = tile.start * stride + column;
                multiply(self.level, tile.len(), by_row, &mut scratch.d_q[to..], stride);
            }
        }
    }
}

/// `range` in tiles, the last of which may be shorter.
fn tiles(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(TILE_ROWS).map(move |first| first..end.min(first + TILE_ROWS))
}

fn operands<'a>(
    a_layout: RowLayout,
    depth: usize,
    a: &'a [f32],
    a_step: usize,
    b: &'a [f32],
    b_step: usize,
) -> Operands<'a> {
    Operands { depth, a, a_layout, a_step, b, b_step, b_half: HALF_COLUMNS, start: Start::FromC }
}

simd_dispatch!(
    fn probabilities_at(
        scores: &mut [f32; KEY_BLOCK],
        gradients: &mut [f32; KEY_BLOCK],
        visible: Visible,
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
    visible: Visible,
    scale: f32,
    lse: f32,
    delta: f32,
) {
    let chunks = scores.as_chunks_mut::<16>().0.iter_mut().zip(gradients.as_chunks_mut::<16>().0);
    for (index, (scores, gradients)) in chunks.enumerate() {
        let first = index * 16;
        if visible.is_empty() || first >= visible.end || first + 16 <= visible.start {
            (*scores, *gradients) = ([0.0; 16], [0.0; 16]);
            continue;
        }
        for lane in 0..16 {
            let is_visible = visible.start <= first + lane && first + lane < visible.end;
            let p = exp(scores[lane] * scale - lse);
            let ds = p * (gradients[lane] - delta) * scale;
            scores[lane] = if is_visible { p } else { 0.0 };
            gradients[lane] = if is_visible { ds } else { 0.0 };
        }
    }
}
