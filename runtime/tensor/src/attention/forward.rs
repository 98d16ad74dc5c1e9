//! Forward: chunks of rows (queries x heads of a KV group) against one block of keys after the other.

use std::ops::Range;

use super::{AttentionShape, KEY_BLOCK, KeyValueBlocks, Segment, head_of, row_place, value_stride};
use crate::math::{exp, ln};
use crate::order::{fold_lanes, larger, largest_lane};
use crate::simd::simd_dispatch;
use crate::tile::{Operands, RowLayout, TILE_ROWS, multiply};
use crate::{Mat, MatMut, PANEL_COLUMNS, SimdLevel, Start, threads};

/// Rows that share one pass over the keys: a block of keys stays in L1 for four tiles.
const CHUNK_ROWS: usize = 4 * TILE_ROWS;
/// Rows of one task.
const TASK_ROWS: usize = 4 * CHUNK_ROWS;

/// Rows of one KV head in one segment, and where their results go.
struct Task<'a, B> {
    segment: &'a Segment,
    blocks: &'a B,
    kv_head: usize,
    rows: Range<usize>,
    /// For each row its head of the output and its log-sum-exp.
    results: Vec<(&'a mut [f32], &'a mut f32)>,
}

pub(super) fn run<B: KeyValueBlocks>(
    level: SimdLevel,
    q: Mat<'_>,
    work: &[(Segment, &B)],
    shape: &AttentionShape,
    out: MatMut<'_>,
    lse_th: &mut [f32],
) {
    let mut tasks = tasks(work, shape, out, lse_th);
    let cost = work.iter().map(|(segment, _)| segment.cost(shape)).sum();
    threads::for_each(&mut tasks, cost, |task| task.run(level, q, shape));
}

/// Cuts the work into tasks and hands each its heads of the output.
fn tasks<'a, B>(
    work: &'a [(Segment, &'a B)],
    shape: &AttentionShape,
    out: MatMut<'a>,
    lse_th: &'a mut [f32],
) -> Vec<Task<'a, B>> {
    let mut tasks = Vec::new();
    let mut out_rows = out.data.chunks_mut(out.row_stride.max(1));
    let mut lse_rows = lse_th.chunks_exact_mut(shape.q_heads);
    for (segment, blocks) in work {
        let (rows, first_task) = (segment.rows(shape), tasks.len());
        for kv_head in 0..shape.kv_heads {
            tasks.extend((0..rows).step_by(TASK_ROWS).map(|first| {
                let rows = first..rows.min(first + TASK_ROWS);
                Task { segment, blocks: *blocks, kv_head, results: Vec::with_capacity(rows.len()), rows }
            }));
        }
        let tasks = &mut tasks[first_task..];
        let tasks_a_head = rows.div_ceil(TASK_ROWS);
        let queries = out_rows.by_ref().zip(lse_rows.by_ref()).take(segment.queries.len());
        for (query, (out, lse)) in queries.enumerate() {
            let heads = out[..out_width(shape)].chunks_exact_mut(shape.head_dim).zip(lse);
            for (head, results) in heads.enumerate() {
                let row = query * shape.group() + head % shape.group();
                tasks[head / shape.group() * tasks_a_head + row / TASK_ROWS].results.push(results);
            }
        }
    }
    tasks
}

fn out_width(shape: &AttentionShape) -> usize {
    shape.q_heads * shape.head_dim
}

impl<B: KeyValueBlocks> Task<'_, B> {
    fn run(&mut self, level: SimdLevel, q: Mat<'_>, shape: &AttentionShape) {
        let mut chunk = Chunk::new(shape.head_dim, self.rows.len().min(CHUNK_ROWS));
        let mut results = std::mem::take(&mut self.results).into_iter();
        for first in self.rows.clone().step_by(CHUNK_ROWS) {
            let rows = first..self.rows.end.min(first + CHUNK_ROWS);
            chunk.begin(rows.len());
            for (r, row) in rows.clone().enumerate() {
                let (token, head) = row_place(shape, self.segment, self.kv_head, row);
                chunk.set_query(r, head_of(q, token, head, shape.head_dim));
            }
            let limit = |row: usize| self.segment.first_position() + row / shape.group();
            for block in 0..=limit(rows.end - 1) / KEY_BLOCK {
                let mut visible = [0; CHUNK_ROWS];
                for (visible, row) in visible.iter_mut().zip(rows.clone()) {
                    *visible = (limit(row) + 1).saturating_sub(block * KEY_BLOCK).min(KEY_BLOCK);
                }
                let (keys, values) =
                    (self.blocks.keys(self.kv_head, block), self.blocks.values(self.kv_head, block));
                chunk.attend(level, keys, values, &visible[..rows.len()], shape.scale());
            }
            chunk.finish(results.by_ref().take(rows.len()));
        }
    }
}

/// The running state of up to [`CHUNK_ROWS`] rows, in tiles.
struct Chunk {
    rows: usize,
    head_dim: usize,
    /// `[tile][head_dim][rows of the tile]`
    queries: Vec<f32>,
    scores: Vec<[f32; KEY_BLOCK]>,
    maxima: [f32; CHUNK_ROWS],
    sums: [f32; CHUNK_ROWS],
    /// `[rows][value stride]`
    outputs: Vec<f32>,
}

impl Chunk {
    fn new(head_dim: usize, rows_max: usize) -> Self {
        Self {
            rows: 0,
            head_dim,
            queries: vec![0.0; head_dim * rows_max],
            scores: vec![[0.0; KEY_BLOCK]; rows_max],
            maxima: [f32::NEG_INFINITY; CHUNK_ROWS],
            sums: [0.0; CHUNK_ROWS],
            outputs: vec![0.0; value_stride(head_dim) * rows_max],
        }
    }

    fn begin(&mut self, rows: usize) {
        self.rows = rows;
        self.maxima.fill(f32::NEG_INFINITY);
        self.sums.fill(0.0);
        self.outputs.fill(0.0);
    }

    /// The tiles' rows.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.rows;
        (0..rows).step_by(TILE_ROWS).map(move |first| first..rows.min(first + TILE_ROWS))
    }

    fn set_query(&mut self, r: usize, query: &[f32]) {
        let first = r - r % TILE_ROWS;
        let tile_rows = TILE_ROWS.min(self.rows - first);
        let tile = &mut self.queries[first * self.head_dim + r % TILE_ROWS..];
        tile.iter_mut().step_by(tile_rows).zip(query).for_each(|(packed, &element)| *packed = element);
    }

    /// Adds one block of keys, of which row `r` sees the first `visible[r]`.
    fn attend(&mut self, level: SimdLevel, keys: &[f32], values: &[f32], visible: &[usize], scale: f32) {
        for rows in self.tiles().filter(|rows| visible[rows.end - 1] > 0) {
            self.score(level, keys, rows);
        }
        let state = (&mut self.maxima, &mut self.sums);
        softmax_at(level, &mut self.scores, visible, scale, state.0, state.1, &mut self.outputs);
        // Keys that every row of a tile sees go through the tile, the few beyond through single rows: a key that a row does not
        // see must not touch it, not even with a factor of zero.
        for rows in self.tiles() {
            let common = visible[rows.start];
            self.add_values(level, values, rows.clone(), 0..common);
            for r in rows {
                self.add_values(level, values, r..r + 1, common..visible[r]);
            }
        }
    }

    fn score(&mut self, level: SimdLevel, keys: &[f32], rows: Range<usize>) {
        for column in (0..KEY_BLOCK).step_by(PANEL_COLUMNS) {
            let operands = Operands {
                depth: self.head_dim,
                a: &self.queries[rows.start * self.head_dim..],
                a_layout: RowLayout::Packed,
                a_step: rows.len(),
                b: &keys[column..],
                b_step: KEY_BLOCK,
                start: Start::Zero,
            };
            let scores = &mut self.scores[rows.clone()].as_flattened_mut()[column..];
            multiply(level, rows.len(), operands, scores, KEY_BLOCK);
        }
    }

    fn add_values(&mut self, level: SimdLevel, values: &[f32], rows: Range<usize>, keys: Range<usize>) {
        if keys.is_empty() {
            return;
        }
        let stride = value_stride(self.head_dim);
        for column in (0..stride).step_by(PANEL_COLUMNS) {
            let operands = Operands {
                depth: keys.len(),
                a: &self.scores.as_flattened()[rows.start * KEY_BLOCK + keys.start..],
                a_layout: RowLayout::Scores,
                a_step: 1,
                b: &values[keys.start * stride + column..],
                b_step: stride,
                start: Start::FromC,
            };
            multiply(level, rows.len(), operands, &mut self.outputs[rows.start * stride + column..], stride);
        }
    }

    fn finish<'a>(&self, results: impl Iterator<Item = (&'a mut [f32], &'a mut f32)>) {
        let outputs = self.outputs.chunks_exact(value_stride(self.head_dim));
        for (r, ((out, lse), output)) in results.zip(outputs).enumerate() {
            let sum = self.sums[r];
            out.iter_mut().zip(output).for_each(|(out, element)| *out = element / sum);
            *lse = self.maxima[r] + ln(sum);
        }
    }
}

simd_dispatch!(
    fn softmax_at(
        scores: &mut [[f32; KEY_BLOCK]],
        visible: &[usize],
        scale: f32,
        maxima: &mut [f32; CHUNK_ROWS],
        sums: &mut [f32; CHUNK_ROWS],
        outputs: &mut [f32],
    ) = softmax
);

/// One block's step of the online softmax: scores become probabilities relative to the new maximum, and what was summed
/// so far is scaled to it.
#[inline(always)]
fn softmax(
    scores: &mut [[f32; KEY_BLOCK]],
    visible: &[usize],
    scale: f32,
    maxima: &mut [f32; CHUNK_ROWS],
    sums: &mut [f32; CHUNK_ROWS],
    outputs: &mut [f32],
) {
    let stride = outputs.len() / scores.len();
    for (r, (row, &visible)) in scores.iter_mut().zip(visible).enumerate() {
        if visible == 0 {
            continue;
        }
        let maximum = larger(maxima[r], scale_and_mask(row, scale, visible));
        let alpha = exp(maxima[r] - maximum);
        let mut lanes = [0.0f32; 16];
        let (chunks, _) = row.as_chunks_mut::<16>();
        for chunk in chunks {
            for lane in 0..16 {
                chunk[lane] = exp(chunk[lane] - maximum);
                lanes[lane] += chunk[lane];
            }
        }
        maxima[r] = maximum;
        sums[r] = sums[r].mul_add(alpha, fold_lanes(lanes));
        for output in &mut outputs[r * stride..][..stride] {
            *output *= alpha;
        }
    }
}

/// Scales the scores, sets those beyond `visible` to negative infinity, and gives the maximum.
#[inline(always)]
fn scale_and_mask(row: &mut [f32; KEY_BLOCK], scale: f32, visible: usize) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, _) = row.as_chunks_mut::<16>();
    for (index, chunk) in chunks.iter_mut().enumerate() {
        for lane in 0..16 {
            let score = chunk[lane] * scale;
            chunk[lane] = if index * 16 + lane < visible { score } else { f32::NEG_INFINITY };
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    largest_lane(lanes)
}
