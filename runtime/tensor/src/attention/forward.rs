//! Forward: tiles of up to twelve rows (queries x heads of a KV group) against one block of keys after the other.

use super::{AttentionShape, KEY_BLOCK, KeyValueBlocks, Segment, row_index, value_stride};
use crate::math::{exp, ln};
use crate::order::fold_lanes;
use crate::simd::simd_dispatch;
use crate::tile::{Operands, RowLayout, TILE_ROWS, multiply};
use crate::{PANEL_COLUMNS, SimdLevel, Start, threads};

/// Rows of one task.
const TASK_ROWS: usize = 16 * TILE_ROWS;

/// Rows of one KV head in one segment, and their results.
struct Task<'a, B> {
    segment: &'a Segment,
    blocks: &'a B,
    kv_head: usize,
    rows: std::ops::Range<usize>,
    /// `[rows][head_dim]`
    out: Vec<f32>,
    lse: Vec<f32>,
}

pub(super) fn run<B: KeyValueBlocks>(
    level: SimdLevel,
    q_thd: &[f32],
    work: &[(Segment, &B)],
    shape: &AttentionShape,
    out_thd: &mut [f32],
    lse_th: &mut [f32],
) {
    let mut tasks = Vec::new();
    for (segment, blocks) in work {
        let rows = segment.rows(shape);
        for kv_head in 0..shape.kv_heads {
            tasks.extend((0..rows).step_by(TASK_ROWS).map(|first| Task {
                segment,
                blocks: *blocks,
                kv_head,
                rows: first..rows.min(first + TASK_ROWS),
                out: Vec::new(),
                lse: Vec::new(),
            }));
        }
    }
    threads::for_each(&mut tasks, |task| task.run(level, q_thd, shape));
    for task in &tasks {
        let results = task.out.chunks_exact(shape.head_dim).zip(&task.lse);
        for (row, (out, &lse)) in task.rows.clone().zip(results) {
            let index = row_index(shape, task.segment, task.kv_head, row);
            out_thd[index * shape.head_dim..][..shape.head_dim].copy_from_slice(out);
            lse_th[index] = lse;
        }
    }
}

impl<B: KeyValueBlocks> Task<'_, B> {
    fn run(&mut self, level: SimdLevel, q_thd: &[f32], shape: &AttentionShape) {
        let mut tile = Tile::new(shape.head_dim);
        for first in self.rows.clone().step_by(TILE_ROWS) {
            let rows = first..self.rows.end.min(first + TILE_ROWS);
            tile.begin(rows.len());
            for (r, row) in rows.clone().enumerate() {
                let index = row_index(shape, self.segment, self.kv_head, row);
                tile.set_query(r, &q_thd[index * shape.head_dim..][..shape.head_dim]);
            }
            let limit = |row: usize| self.segment.first_position() + row / shape.group();
            for block in 0..=limit(rows.end - 1) / KEY_BLOCK {
                let mut visible = [0; TILE_ROWS];
                for (visible, row) in visible.iter_mut().zip(rows.clone()) {
                    *visible = (limit(row) + 1).saturating_sub(block * KEY_BLOCK).min(KEY_BLOCK);
                }
                let (keys, values) =
                    (self.blocks.keys(self.kv_head, block), self.blocks.values(self.kv_head, block));
                tile.attend(level, keys, values, &visible, shape.scale());
            }
            tile.finish(&mut self.out, &mut self.lse);
        }
    }
}

/// The running state of up to twelve rows.
struct Tile {
    rows: usize,
    head_dim: usize,
    /// `[head_dim][rows]`
    queries: Vec<f32>,
    scores: [[f32; KEY_BLOCK]; TILE_ROWS],
    maxima: [f32; TILE_ROWS],
    sums: [f32; TILE_ROWS],
    /// `[rows][value stride]`
    outputs: Vec<f32>,
}

impl Tile {
    fn new(head_dim: usize) -> Self {
        Self {
            rows: 0,
            head_dim,
            queries: vec![0.0; head_dim * TILE_ROWS],
            scores: [[0.0; KEY_BLOCK]; TILE_ROWS],
            maxima: [f32::NEG_INFINITY; TILE_ROWS],
            sums: [0.0; TILE_ROWS],
            outputs: vec![0.0; value_stride(head_dim) * TILE_ROWS],
        }
    }

    fn begin(&mut self, rows: usize) {
        self.rows = rows;
        self.maxima.fill(f32::NEG_INFINITY);
        self.sums.fill(0.0);
        self.outputs.fill(0.0);
    }

    fn set_query(&mut self, r: usize, query: &[f32]) {
        self.queries[r..]
            .iter_mut()
            .step_by(self.rows)
            .zip(query)
            .for_each(|(packed, &element)| *packed = element);
    }

    /// Adds one block of keys, of which row `r` sees the first `visible[r]`.
    fn attend(
        &mut self,
        level: SimdLevel,
        keys: &[f32],
        values: &[f32],
        visible: &[usize; TILE_ROWS],
        scale: f32,
    ) {
        let rows = self.rows;
        for column in (0..KEY_BLOCK).step_by(PANEL_COLUMNS) {
            let operands = Operands {
                depth: self.head_dim,
                a: &self.queries,
                a_layout: RowLayout::Packed,
                a_step: rows,
                b: &keys[column..],
                b_step: KEY_BLOCK,
                start: Start::Zero,
            };
            multiply(level, rows, operands, &mut self.scores.as_flattened_mut()[column..], KEY_BLOCK);
        }
        let outputs = &mut self.outputs;
        softmax_at(
            level,
            &mut self.scores[..rows],
            visible,
            scale,
            &mut self.maxima,
            &mut self.sums,
            outputs,
        );
        // Keys that every row sees go through the tile, the few beyond through single rows: a key that a row does
        // not see must not touch it, not even with a factor of zero.
        let common = visible[..rows].iter().copied().min().unwrap_or(0);
        self.add_values(level, values, 0..rows, 0..common);
        for (r, &visible) in visible[..rows].iter().enumerate() {
            self.add_values(level, values, r..r + 1, common..visible);
        }
    }

    fn add_values(
        &mut self,
        level: SimdLevel,
        values: &[f32],
        rows: std::ops::Range<usize>,
        keys: std::ops::Range<usize>,
    ) {
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

    fn finish(&self, out: &mut Vec<f32>, lse: &mut Vec<f32>) {
        for (r, output) in self.outputs.chunks_exact(value_stride(self.head_dim)).take(self.rows).enumerate()
        {
            out.extend(output[..self.head_dim].iter().map(|element| element / self.sums[r]));
            lse.push(self.maxima[r] + ln(self.sums[r]));
        }
    }
}

simd_dispatch!(
    fn softmax_at(
        scores: &mut [[f32; KEY_BLOCK]],
        visible: &[usize; TILE_ROWS],
        scale: f32,
        maxima: &mut [f32; TILE_ROWS],
        sums: &mut [f32; TILE_ROWS],
        outputs: &mut [f32],
    ) = softmax
);

/// One block's step of the online softmax: scores become probabilities relative to the new maximum, and what was summed
/// so far is scaled to it.
#[inline(always)]
fn softmax(
    scores: &mut [[f32; KEY_BLOCK]],
    visible: &[usize; TILE_ROWS],
    scale: f32,
    maxima: &mut [f32; TILE_ROWS],
    sums: &mut [f32; TILE_ROWS],
    outputs: &mut [f32],
) {
    let stride = outputs.len() / TILE_ROWS;
    for (r, row) in scores.iter_mut().enumerate() {
        if visible[r] == 0 {
            continue;
        }
        let maximum = larger(maxima[r], scale_and_mask(row, scale, visible[r]));
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
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}
