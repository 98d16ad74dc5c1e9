//! Some tiles of rows against one block of keys after the other.

use std::ops::Range;

use crate::cpu::attention::{KEY_BLOCK, Visible, value_stride};
use crate::cpu::order::{fold_lanes, larger, largest_lane};
use crate::cpu::simd::simd_dispatch;
use crate::cpu::tile::{HALF_COLUMNS, Operands, RowLayout, TILE_ROWS, multiply};
use crate::cpu::transpose::transpose;
use crate::cpu::{PANEL_COLUMNS, SimdLevel, Start};
use crate::math::{exp, ln};

/// Rows that share one pass over the keys: a block of keys stays in L1 for four tiles.
pub(super) const CHUNK_ROWS: usize = 4 * TILE_ROWS;

/// The running state of up to [`CHUNK_ROWS`] rows, in tiles.
pub(super) struct Chunk {
    rows: usize,
    head_dim: usize,
    /// `[tile][head_dim][rows of the tile]`
    queries: Vec<f32>,
    /// A tile's queries as they come.
    query_rows: Vec<f32>,
    scores: Vec<[f32; KEY_BLOCK]>,
    maxima: [f32; CHUNK_ROWS],
    sums: [f32; CHUNK_ROWS],
    /// `[rows][value stride]`
    outputs: Vec<f32>,
}

impl Chunk {
    pub(super) fn new(head_dim: usize, rows_max: usize) -> Self {
        Self {
            rows: 0,
            head_dim,
            queries: vec![0.0; head_dim * rows_max],
            query_rows: vec![0.0; head_dim * TILE_ROWS],
            scores: vec![[0.0; KEY_BLOCK]; rows_max],
            maxima: [f32::NEG_INFINITY; CHUNK_ROWS],
            sums: [0.0; CHUNK_ROWS],
            outputs: vec![0.0; value_stride(head_dim) * rows_max],
        }
    }

    pub(super) fn begin(&mut self, rows: usize) {
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

    pub(super) fn set_queries<'a>(&mut self, query: impl Fn(usize) -> &'a [f32]) {
        let head_dim = self.head_dim;
        for rows in self.tiles() {
            for (r, row) in rows.clone().zip(self.query_rows.chunks_exact_mut(head_dim)) {
                row.copy_from_slice(query(r));
            }
            let tile = &mut self.queries[rows.start * head_dim..rows.end * head_dim];
            transpose(&self.query_rows, head_dim, tile, rows.len(), rows.len(), head_dim);
        }
    }

    /// Adds one block of keys, of which row `r` sees `visible[r]`.
    pub(super) fn attend(
        &mut self,
        level: SimdLevel,
        keys: &[f32],
        values: &[f32],
        visible: &[Visible],
        scale: f32,
    ) {
        for rows in self.tiles() {
            self.score(level, keys, rows.clone(), Visible::any(&visible[rows]));
        }
        let state = (&mut self.maxima, &mut self.sums);
        softmax_at(level, &mut self.scores, visible, scale, state.0, state.1, &mut self.outputs);
        // Keys that every row of a tile sees go through the tile, those before and after row by row: a key that a row does
        // not see must not touch it, not even with a factor of zero.
        for rows in self.tiles() {
            let visible = &visible[rows.clone()];
            let (any, all) = (Visible::any(visible), Visible::all(visible));
            if all.is_empty() {
                self.add_edge(level, values, rows, visible, any);
                continue;
            }
            self.add_edge(level, values, rows.clone(), visible, Visible { end: all.start, ..any });
            self.add_values(level, values, rows.clone(), all);
            self.add_edge(level, values, rows, visible, Visible { start: all.end, ..any });
        }
    }

    /// Scores of a tile's rows against the panels of the block that any of them sees.
    fn score(&mut self, level: SimdLevel, keys: &[f32], rows: Range<usize>, any: Visible) {
        for column in (0..KEY_BLOCK).step_by(PANEL_COLUMNS).filter(|&column| any.meets_panel(column)) {
            let operands = Operands {
                depth: self.head_dim,
                a: &self.queries[rows.start * self.head_dim..],
                a_layout: RowLayout::Packed,
                a_step: rows.len(),
                b: &keys[column..],
                b_step: KEY_BLOCK,
                b_half: HALF_COLUMNS,
                start: Start::Zero,
            };
            let scores = &mut self.scores[rows.clone()].as_flattened_mut()[column..];
            multiply(level, rows.len(), operands, scores, KEY_BLOCK);
        }
    }

    /// Adds values of keys that all of the rows see.
    fn add_values(&mut self, level: SimdLevel, values: &[f32], rows: Range<usize>, keys: Visible) {
        let stride = value_stride(self.head_dim);
        for column in (0..stride).step_by(PANEL_COLUMNS) {
            let operands = Operands {
                depth: keys.end - keys.start,
                a: &self.scores.as_flattened()[rows.start * KEY_BLOCK + keys.start..],
                a_layout: RowLayout::Scores,
                a_step: 1,
                b: &values[keys.start * stride + column..],
                b_step: stride,
                b_half: HALF_COLUMNS,
                start: Start::FromC,
            };
            multiply(level, rows.len(), operands, &mut self.outputs[rows.start * stride + column..], stride);
        }
    }

    /// Adds values of `keys` to the rows that see them.
    fn add_edge(
        &mut self,
        level: SimdLevel,
        values: &[f32],
        rows: Range<usize>,
        visible: &[Visible],
        keys: Visible,
    ) {
        if !keys.is_empty() {
            let stride = value_stride(self.head_dim);
            let outputs = &mut self.outputs[rows.start * stride..rows.end * stride];
            edge_at(level, &self.scores[rows], values, visible, keys, outputs);
        }
    }

    pub(super) fn finish<'a>(
        &self,
        level: SimdLevel,
        results: impl Iterator<Item = (&'a mut [f32], &'a mut f32)>,
    ) {
        let outputs = self.outputs.chunks_exact(value_stride(self.head_dim));
        for (r, ((out, lse), output)) in results.zip(outputs).enumerate() {
            let sum = self.sums[r];
            quotient_at(level, output, sum, out);
            *lse = self.maxima[r] + ln(sum);
        }
    }
}

simd_dispatch!(fn quotient_at(dividends: &[f32], divisor: f32, out: &mut [f32]) = quotient);

#[inline(always)]
fn quotient(dividends: &[f32], divisor: f32, out: &mut [f32]) {
    out.iter_mut().zip(dividends).for_each(|(out, dividend)| *out = dividend / divisor);
}

simd_dispatch!(
    fn edge_at(
        scores: &[[f32; KEY_BLOCK]],
        values: &[f32],
        visible: &[Visible],
        keys: Visible,
        outputs: &mut [f32],
    ) = edge
);

/// Continues each row's output over those of `keys` that it sees.
#[inline(always)]
fn edge(
    scores: &[[f32; KEY_BLOCK]],
    values: &[f32],
    visible: &[Visible],
    keys: Visible,
    outputs: &mut [f32],
) {
    let stride = outputs.len() / scores.len();
    for ((row, visible), output) in scores.iter().zip(visible).zip(outputs.chunks_exact_mut(stride)) {
        let keys = visible.start.max(keys.start)..visible.end.min(keys.end);
        let mut first = 0;
        while first + 2 * PANEL_COLUMNS <= stride {
            edge_columns::<{ 2 * PANEL_COLUMNS }>(row, values, stride, keys.clone(), first, output);
            first += 2 * PANEL_COLUMNS;
        }
        if first < stride {
            edge_columns::<PANEL_COLUMNS>(row, values, stride, keys, first, output);
        }
    }
}

/// `N` columns of one row, from `first` on.
#[inline(always)]
fn edge_columns<const N: usize>(
    row: &[f32; KEY_BLOCK],
    values: &[f32],
    stride: usize,
    keys: Range<usize>,
    first: usize,
    output: &mut [f32],
) {
    let Some(output) = output[first..].first_chunk_mut::<N>() else { return };
    let mut sums = *output;
    for key in keys {
        let Some(value) = values[key * stride + first..].first_chunk::<N>() else { return };
        for column in 0..N {
            sums[column] = row[key].mul_add(value[column], sums[column]);
        }
    }
    *output = sums;
}

simd_dispatch!(
    fn softmax_at(
        scores: &mut [[f32; KEY_BLOCK]],
        visible: &[Visible],
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
    visible: &[Visible],
    scale: f32,
    maxima: &mut [f32; CHUNK_ROWS],
    sums: &mut [f32; CHUNK_ROWS],
    outputs: &mut [f32],
) {
    let stride = outputs.len() / scores.len();
    for (r, (row, &visible)) in scores.iter_mut().zip(visible).enumerate() {
        if visible.is_empty() {
            continue;
        }
        // Beyond lie zeros, which would not change the sum either.
        let chunks = &mut row.as_chunks_mut::<16>().0[visible.start / 16..visible.end.div_ceil(16)];
        let maximum = larger(maxima[r], scale_and_mask(chunks, scale, visible));
        let alpha = exp(maxima[r] - maximum);
        let mut lanes = [0.0f32; 16];
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

/// Scales the scores, sets those that are not visible to negative infinity, and gives the maximum. The chunks begin with the
/// one that holds the first visible key.
#[inline(always)]
fn scale_and_mask(chunks: &mut [[f32; 16]], scale: f32, visible: Visible) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let first = visible.start / 16 * 16;
    let (start, end) = ((visible.start - first) as i32, (visible.end - first) as i32);
    for (index, chunk) in chunks.iter_mut().enumerate() {
        for lane in 0..16 {
            let key = (index * 16 + lane) as i32;
            let score = chunk[lane] * scale;
            chunk[lane] = if start <= key && key < end { score } else { f32::NEG_INFINITY };
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    largest_lane(lanes)
}
