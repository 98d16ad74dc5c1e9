//! How a product is cut into blocks that fit the caches: [`Product`].
//!
//! Blocking (register tile, L1/L2 blocks, packed panels) follows Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.

use std::cell::RefCell;
use std::ops::Range;

use super::tree::{LEVELS, Leaves};
use crate::cpu::bf16::round_in_place_at;
use crate::cpu::elementwise::add_assign_at;
use crate::cpu::simd::Instructions;
use crate::cpu::tile::{PanelTerms, TILE_ROWS, Tiles, multiply_tiles};
use crate::cpu::transpose::transpose;
use crate::cpu::{Dtype, Mat, MatMut, PANEL_COLUMNS, Panels, SimdLevel, Start, threads};

/// Up to this many rows, threads split the columns: each panel is read once.
const NARROW_ROWS: usize = 48;
/// Terms of a plain sum that packed rows hold, an even number since some operands come in pairs; the rows of the next terms
/// come when all columns are done.
const PACKED_TERMS: usize = 512;

thread_local! {
    /// Packed rows of `A`, and partial sums: kept because allocating them for each product costs page faults.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// How the sum over `k` is done.
#[derive(Clone, Copy)]
pub(super) enum Sum<'a> {
    /// One accumulator over all of `k`.
    Plain(Start),
    /// One accumulator a leaf, and the leaves in the tree. At least one leaf has terms.
    Tree(&'a Leaves),
}

/// The sizes of blocks, for the caches of the machines that have the level.
struct Blocking {
    /// Terms of one block of `k`.
    terms: usize,
    /// Rows of `A` that are packed together.
    rows: usize,
    /// Rows that a panel is multiplied by before the next panel comes.
    rows_a_panel: usize,
    /// Panels that such rows are multiplied by before the next rows come.
    panels: usize,
}

impl Blocking {
    /// For packed rows of `depth` terms.
    fn new(level: SimdLevel, depth: usize) -> Self {
        match level.instructions() {
            // Half of a panel's block (384 x 16) stays in L1 while the rows go by; these stay in L2.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => {
                let rows = ((96 << 10) / depth / TILE_ROWS * TILE_ROWS).clamp(2 * TILE_ROWS, 15 * TILE_ROWS);
                Self { terms: 384, rows, rows_a_panel: rows, panels: 1 }
            }
            // A tile of `A` (12 x 512) stays in L1 while the panels go by; these stay in L2.
            _ => {
                let panels = ((192 << 10) / (depth * PANEL_COLUMNS)).max(1);
                Self { terms: 512, rows: usize::MAX, rows_a_panel: TILE_ROWS, panels }
            }
        }
    }
}

/// A product with packed weights.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) level: SimdLevel,
    pub(super) b: &'a Panels,
    pub(super) sum: Sum<'a>,
}

impl Product<'_> {
    /// `c = (c +) a · b`. There are rows, columns and terms.
    pub(super) fn run(&self, a: Mat<'_>, c: &mut MatMut<'_>) {
        if c.rows <= NARROW_ROWS { self.few_rows(a, c) } else { self.many_rows(a, c) }
    }

    /// Each task takes some panels, all rows, all of `k`.
    fn few_rows(&self, a: Mat<'_>, c: &mut MatMut<'_>) {
        let rows = c.rows;
        let mut packed = SCRATCH.take();
        self.pack_rows(a, &mut packed.0);
        let a_rows = PackedRows { data: &packed.0, first_term: 0, depth: a.cols, rows };
        let len = PANEL_COLUMNS * rows;
        let mut outputs = vec![0.0f32; self.b.count() * len];
        if matches!(self.sum, Sum::Plain(Start::FromC)) {
            exchange(c, &mut outputs, |c_row, output| output.copy_from_slice(c_row));
        }
        let cost = rows * a.cols * c.cols;
        let panels_a_task = self.b.count().div_ceil(threads::parts(cost));
        threads::for_each_chunk(&mut outputs, panels_a_task * len, cost, |task, outputs| {
            let mut spare = Vec::new();
            for (offset, output) in outputs.chunks_exact_mut(len).enumerate() {
                let mut out = Out { data: output, stride: PANEL_COLUMNS };
                self.panel(a_rows, task * panels_a_task + offset, &mut out, &mut spare);
            }
        });
        exchange(c, &mut outputs, |c_row, output| c_row.copy_from_slice(output));
        SCRATCH.set(packed);
    }

    /// Each task takes some rows of `a` and `c`, and all columns.
    fn many_rows(&self, a: Mat<'_>, c: &mut MatMut<'_>) {
        let (cols, row_stride) = (c.cols, c.row_stride);
        let cost = c.rows * a.cols * cols;
        let rows_a_task = c.rows.div_ceil(threads::parts(cost)).next_multiple_of(TILE_ROWS);
        let end = (c.rows - 1) * row_stride + cols;
        threads::for_each_chunk(&mut c.data[..end], rows_a_task * row_stride, cost, |task, data| {
            let rows = data.len().div_ceil(row_stride);
            let first = task * rows_a_task;
            let mut c = MatMut::with_stride(data, rows, cols, row_stride);
            self.rows(a.row_range(first..first + rows), &mut c);
        });
    }

    fn rows(&self, a: Mat<'_>, c: &mut MatMut<'_>) {
        let Sum::Plain(start) = self.sum else { return self.terms(a, 0..a.cols, c) };
        for (block, terms) in blocks(0..a.cols, PACKED_TERMS).enumerate() {
            let start = if block == 0 { start } else { Start::FromC };
            Product { sum: Sum::Plain(start), ..*self }.terms(a, terms, c);
        }
    }

    /// The given terms of all rows and columns.
    fn terms(&self, a: Mat<'_>, terms: Range<usize>, c: &mut MatMut<'_>) {
        let (mut packed, mut spare) = SCRATCH.take();
        let blocking = Blocking::new(self.level, terms.len());
        for first in (0..a.rows).step_by(blocking.rows.min(a.rows)) {
            let rows = first..a.rows.min(first.saturating_add(blocking.rows));
            self.pack_rows(a.columns(terms.clone()).row_range(rows.clone()), &mut packed);
            let (first_term, depth) = (terms.start, terms.len());
            let a_rows = PackedRows { data: &packed, first_term, depth, rows: rows.len() };
            for first_panel in (0..self.b.count()).step_by(blocking.panels) {
                let panels = first_panel..self.b.count().min(first_panel + blocking.panels);
                for first_row in (0..a_rows.rows).step_by(blocking.rows_a_panel) {
                    let part = a_rows.part(first_row..a_rows.rows.min(first_row + blocking.rows_a_panel));
                    for panel in panels.clone() {
                        self.panel_of(part, rows.start + first_row, panel, c, &mut spare);
                    }
                }
            }
        }
        SCRATCH.set((packed, spare));
    }

    /// The columns of one panel for packed rows, of which the first is row `row` of `c`; the last columns go through a
    /// buffer, so that the instructions are the same.
    fn panel_of(
        &self,
        a: PackedRows<'_>,
        row: usize,
        panel: usize,
        c: &mut MatMut<'_>,
        spare: &mut Vec<f32>,
    ) {
        let column = panel * PANEL_COLUMNS;
        let columns = PANEL_COLUMNS.min(c.cols - column);
        if columns == PANEL_COLUMNS {
            let stride = c.row_stride;
            let mut out = Out { data: &mut c.data[row * stride + column..], stride };
            return self.panel(a, panel, &mut out, spare);
        }
        let mut buffer = vec![0.0f32; a.rows * PANEL_COLUMNS];
        for (r, buffered) in buffer.chunks_exact_mut(PANEL_COLUMNS).enumerate() {
            buffered[..columns].copy_from_slice(&c.row_mut(row + r)[column..]);
        }
        self.panel(a, panel, &mut Out { data: &mut buffer, stride: PANEL_COLUMNS }, spare);
        for (r, buffered) in buffer.chunks_exact(PANEL_COLUMNS).enumerate() {
            c.row_mut(row + r)[column..].copy_from_slice(&buffered[..columns]);
        }
    }

    /// Packs `a`, rounded as the right operand is.
    fn pack_rows(&self, a: Mat<'_>, packed: &mut Vec<f32>) {
        pack_rows(a, packed);
        if self.b.dtype() == Dtype::Bf16 {
            round_in_place_at(self.level, packed);
        }
    }

    fn panel(&self, a: PackedRows<'_>, panel: usize, out: &mut Out<'_>, spare: &mut Vec<f32>) {
        let terms = Blocking::new(self.level, a.depth).terms;
        let product = PanelProduct { level: self.level, a, b: self.b.panel(panel, a.first_term), terms };
        match self.sum {
            Sum::Plain(start) => product.multiply(0..a.depth, start, out),
            Sum::Tree(leaves) => {
                spare.resize(LEVELS * a.rows * PANEL_COLUMNS, 0.0);
                product.subtree(leaves.ranges(), out, spare);
            }
        }
    }
}

/// `range` cut evenly into the fewest parts of at most `len`, which is even; the cuts do not part a pair of terms.
fn blocks(range: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    let count = range.len().div_ceil(len);
    let at = move |index| match index {
        0 => range.start,
        _ if index == count => range.end,
        _ => (range.start + range.len() * index / count).next_multiple_of(2),
    };
    (0..count).map(move |index| at(index)..at(index + 1))
}

/// Rows of `a`, packed as `[tile][k][row]`, the last tile with the rows that are left.
#[derive(Clone, Copy)]
struct PackedRows<'a> {
    data: &'a [f32],
    /// The first `k` of the product that is packed.
    first_term: usize,
    depth: usize,
    rows: usize,
}

impl<'a> PackedRows<'a> {
    /// The rows of a range that begins with a tile.
    fn part(self, rows: Range<usize>) -> Self {
        let data = &self.data[rows.start * self.depth..rows.end * self.depth];
        Self { data, rows: rows.len(), ..self }
    }
}

/// Where a panel's sums go: row `r` begins at `data[r * stride]`.
struct Out<'a> {
    data: &'a mut [f32],
    stride: usize,
}

/// Packed rows, and the panel that they are multiplied by.
struct PanelProduct<'a> {
    level: SimdLevel,
    a: PackedRows<'a>,
    /// From the first packed term on.
    b: PanelTerms<'a>,
    /// Terms of one block of `k`.
    terms: usize,
}

impl PanelProduct<'_> {
    /// The sum over `range`, block by block: each continues from what the one before it stored.
    fn multiply(&self, range: Range<usize>, start: Start, out: &mut Out<'_>) {
        for (block, range) in blocks(range, self.terms).enumerate() {
            let start = if block == 0 { start } else { Start::FromC };
            let tiles = Tiles { data: self.a.data, depth: self.a.depth };
            multiply_tiles(self.level, tiles, range, self.b, start, out.data, out.stride);
        }
    }

    /// The sum of an aligned run of leaves; false where all of them are empty, then `out` is left as it was.
    fn subtree(&self, leaves: &[Vec<Range<usize>>], out: &mut Out<'_>, spare: &mut [f32]) -> bool {
        if let [ranges] = leaves {
            for (number, range) in ranges.iter().enumerate() {
                let start = if number == 0 { Start::Zero } else { Start::FromC };
                self.multiply(range.clone(), start, out);
            }
            return !ranges.is_empty();
        }
        let (left, right) = leaves.split_at(leaves.len() / 2);
        if !self.subtree(left, out, spare) {
            return self.subtree(right, out, spare);
        }
        let (other, spare) = spare.split_at_mut(self.a.rows * PANEL_COLUMNS);
        if self.subtree(right, &mut Out { data: other, stride: PANEL_COLUMNS }, spare) {
            for (sum, other) in out.data.chunks_mut(out.stride).zip(other.chunks_exact(PANEL_COLUMNS)) {
                add_assign_at(self.level, &mut sum[..PANEL_COLUMNS], other);
            }
        }
        true
    }
}

/// Calls `copy(part of a row of c, the same elements in outputs)` for outputs laid out `[panel][row][32]`.
fn exchange(c: &mut MatMut<'_>, outputs: &mut [f32], copy: impl Fn(&mut [f32], &mut [f32])) {
    let rows = c.rows;
    for (panel, output) in outputs.chunks_exact_mut(rows * PANEL_COLUMNS).enumerate() {
        for (row, output_row) in output.chunks_exact_mut(PANEL_COLUMNS).enumerate() {
            let c_row = &mut c.row_mut(row)[panel * PANEL_COLUMNS..];
            let columns = c_row.len().min(PANEL_COLUMNS);
            copy(&mut c_row[..columns], &mut output_row[..columns]);
        }
    }
}

/// Packs `a` as [`PackedRows`].
fn pack_rows(a: Mat<'_>, packed: &mut Vec<f32>) {
    packed.resize(a.rows * a.cols, 0.0);
    if a.row_stride == 1 {
        return pack_columns(a, packed);
    }
    for (tile, output) in packed.chunks_mut(TILE_ROWS * a.cols).enumerate() {
        let rows = output.len() / a.cols;
        let first = tile * TILE_ROWS;
        if a.col_stride == 1 {
            transpose(&a.data[first * a.row_stride..], a.row_stride, output, rows, rows, a.cols);
            continue;
        }
        for (k, group) in output.chunks_exact_mut(rows).enumerate() {
            let column = &a.data[k * a.col_stride + first * a.row_stride..];
            let values = column.iter().step_by(a.row_stride);
            group.iter_mut().zip(values).for_each(|(packed, &value)| *packed = value);
        }
    }
}

/// [`pack_rows`] where a column of `a` lies in one piece.
fn pack_columns(a: Mat<'_>, packed: &mut [f32]) {
    let rows_left = a.rows % TILE_ROWS;
    let (whole, last) = packed.split_at_mut((a.rows - rows_left) * a.cols);
    for k in 0..a.cols {
        let column = &a.data[k * a.col_stride..][..a.rows];
        let (tiles, rest) = column.as_chunks::<TILE_ROWS>();
        let targets = whole.as_chunks_mut::<TILE_ROWS>().0.iter_mut().skip(k).step_by(a.cols);
        targets.zip(tiles).for_each(|(target, tile)| *target = *tile);
        last[k * rows_left..][..rows_left].copy_from_slice(rest);
    }
}
