//! How a product is cut into blocks that fit the caches: [`Product`].
//!
//! Blocking (register tile, L1/L2 blocks, packed panels) follows Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.

use std::cell::RefCell;
use std::ops::Range;

use super::tree::Leaves;
use crate::cpu::bf16::round_in_place_at;
use crate::cpu::elementwise::add_assign_at;
use crate::cpu::simd::Instructions;
use crate::cpu::tile::{HALF_TILE_ROWS, TILE_ROWS, Tiles, multiply_tiles, tile_rows};
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
    /// One accumulator a leaf, and the leaves in the tree; its root may be added to other leaves' sum. At least one leaf has
    /// terms.
    Tree(&'a Leaves, Start),
}

/// Elements of packed rows that a product takes at a time: 512 KiB.
const PACKED_ELEMENTS: usize = 1 << 17;

/// The sizes of blocks: a tile of `A` stays in the first cache while panels go by, and these stay in the second while
/// tiles do.
#[derive(Clone, Copy)]
struct Blocking {
    /// Rows of a tile.
    tile: usize,
    /// Rows of `A` that are packed together.
    rows: usize,
    /// Panels that they are multiplied by before the next panels come.
    panels: usize,
}

impl Blocking {
    /// For packed rows of `depth` terms, of which no more than `terms` go into one accumulator.
    fn new(level: SimdLevel, depth: usize, terms: usize) -> Self {
        let tile = tile_rows(level);
        // Two fifths of the second cache of machines that have the level, and more of the larger one.
        let elements = match level.instructions() {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => 192 << 10,
            _ => 48 << 10,
        };
        let rows = (PACKED_ELEMENTS / depth / tile * tile).max(NARROW_ROWS);
        Self { tile, rows, panels: (elements / (terms.min(PACKED_TERMS) * PANEL_COLUMNS)).max(1) }
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
        let tile = tile_rows(self.level);
        let a_rows =
            PackedRows { data: &packed.0[..rows * a.cols], first_term: 0, depth: a.cols, rows, tile };
        let len = PANEL_COLUMNS * rows;
        let mut outputs = vec![0.0f32; self.b.count() * len];
        if matches!(self.sum, Sum::Plain(Start::FromC) | Sum::Tree(_, Start::FromC)) {
            exchange(c, &mut outputs, |c_row, output| output.copy_from_slice(c_row));
        }
        let cost = rows * a.cols * c.cols;
        let panels_a_task = self.b.count().div_ceil(threads::parts(cost));
        threads::for_each_chunk(&mut outputs, panels_a_task * len, cost, |task, outputs| {
            let mut spare = Vec::new();
            for (offset, output) in outputs.chunks_exact_mut(len).enumerate() {
                let mut out = Out { data: output, stride: PANEL_COLUMNS };
                let panel = task * panels_a_task + offset;
                self.panels(a_rows, panel..panel + 1, &mut out, &mut spare);
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
        let whole_panels = c.cols / PANEL_COLUMNS;
        let longest = match self.sum {
            Sum::Plain(_) => terms.len(),
            Sum::Tree(leaves, _) => leaves.longest(),
        };
        let Blocking { rows: rows_a_block, panels: panels_a_block, tile } =
            Blocking::new(self.level, terms.len(), longest);
        for first in (0..a.rows).step_by(rows_a_block) {
            let rows = first..a.rows.min(first + rows_a_block);
            self.pack_rows(a.columns(terms.clone()).row_range(rows.clone()), &mut packed);
            let (first_term, depth) = (terms.start, terms.len());
            let a_rows =
                PackedRows { data: &packed[..rows.len() * depth], first_term, depth, rows: rows.len(), tile };
            for first_panel in (0..whole_panels).step_by(panels_a_block) {
                let panels = first_panel..whole_panels.min(first_panel + panels_a_block);
                let stride = c.row_stride;
                let data = &mut c.data[first * stride + first_panel * PANEL_COLUMNS..];
                self.panels(a_rows, panels, &mut Out { data, stride }, &mut spare);
            }
            if self.b.count() > whole_panels {
                self.last_columns(a_rows, first, c, &mut spare);
            }
        }
        SCRATCH.set((packed, spare));
    }

    /// The columns of a panel that is not whole, for packed rows of which the first is row `row` of `c`. They go through a
    /// buffer, so that the instructions are the same.
    fn last_columns(&self, a: PackedRows<'_>, row: usize, c: &mut MatMut<'_>, spare: &mut Vec<f32>) {
        let panel = c.cols / PANEL_COLUMNS;
        let (column, columns) = (panel * PANEL_COLUMNS, c.cols % PANEL_COLUMNS);
        let mut buffer = vec![0.0f32; a.rows * PANEL_COLUMNS];
        for (r, buffered) in buffer.chunks_exact_mut(PANEL_COLUMNS).enumerate() {
            buffered[..columns].copy_from_slice(&c.row_mut(row + r)[column..]);
        }
        self.panels(a, panel..panel + 1, &mut Out { data: &mut buffer, stride: PANEL_COLUMNS }, spare);
        for (r, buffered) in buffer.chunks_exact(PANEL_COLUMNS).enumerate() {
            c.row_mut(row + r)[column..].copy_from_slice(&buffered[..columns]);
        }
    }

    /// Packs `a`, rounded as the right operand is, at the begin of `packed`.
    fn pack_rows(&self, a: Mat<'_>, packed: &mut Vec<f32>) {
        match tile_rows(self.level) {
            HALF_TILE_ROWS => pack_rows::<HALF_TILE_ROWS>(a, packed),
            _ => pack_rows::<TILE_ROWS>(a, packed),
        }
        if self.b.dtype() == Dtype::Bf16 {
            round_in_place_at(self.level, &mut packed[..a.rows * a.cols]);
        }
    }

    fn panels(&self, a: PackedRows<'_>, panels: Range<usize>, out: &mut Out<'_>, spare: &mut Vec<f32>) {
        let product = PanelProduct { level: self.level, a, b: self.b, panels };
        match self.sum {
            Sum::Plain(start) => product.multiply(0..a.depth, start, out),
            Sum::Tree(leaves, start) => {
                let wanted = (leaves.levels() + 1) * product.elements();
                if spare.len() < wanted {
                    spare.resize(wanted, 0.0);
                }
                match start {
                    Start::Zero => product.subtree(leaves.ranges(), out, spare),
                    Start::FromC => product.add_subtree(leaves.ranges(), out, spare),
                };
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
    /// Rows of a whole tile.
    tile: usize,
}

/// Where the sums of some panels go: row `r` begins at `data[r * stride]`.
struct Out<'a> {
    data: &'a mut [f32],
    stride: usize,
}

/// Packed rows, and the panels that they are multiplied by.
struct PanelProduct<'a> {
    level: SimdLevel,
    a: PackedRows<'a>,
    b: &'a Panels,
    panels: Range<usize>,
}

impl PanelProduct<'_> {
    fn columns(&self) -> usize {
        self.panels.len() * PANEL_COLUMNS
    }

    /// Of the output.
    fn elements(&self) -> usize {
        self.a.rows * self.columns()
    }

    /// The sum over `range`, block by block: each continues from what the one before it stored.
    fn multiply(&self, range: Range<usize>, start: Start, out: &mut Out<'_>) {
        let tiles = Tiles { data: self.a.data, depth: self.a.depth, rows: self.a.tile };
        let panels = self.panels.clone().map(|panel| self.b.panel(panel, self.a.first_term));
        for (block, range) in blocks(range, PACKED_TERMS).enumerate() {
            let start = if block == 0 { start } else { Start::FromC };
            multiply_tiles(self.level, tiles, range, panels.clone(), start, out.data, out.stride);
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
        self.add_subtree(right, out, spare);
        true
    }

    /// Adds such a sum to `out`.
    fn add_subtree(&self, leaves: &[Vec<Range<usize>>], out: &mut Out<'_>, spare: &mut [f32]) -> bool {
        let columns = self.columns();
        let (other, spare) = spare.split_at_mut(self.elements());
        let any = self.subtree(leaves, &mut Out { data: other, stride: columns }, spare);
        if any {
            for (sum, other) in out.data.chunks_mut(out.stride).zip(other.chunks_exact(columns)) {
                add_assign_at(self.level, &mut sum[..columns], other);
            }
        }
        any
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

/// Packs `a` as [`PackedRows`] with tiles of `ROWS` rows.
fn pack_rows<const ROWS: usize>(a: Mat<'_>, packed: &mut Vec<f32>) {
    if packed.len() < a.rows * a.cols {
        packed.resize(a.rows * a.cols, 0.0);
    }
    let packed = &mut packed[..a.rows * a.cols];
    if a.row_stride == 1 {
        return pack_columns::<ROWS>(a, packed);
    }
    for (tile, output) in packed.chunks_mut(ROWS * a.cols).enumerate() {
        let rows = output.len() / a.cols;
        let first = tile * ROWS;
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
fn pack_columns<const ROWS: usize>(a: Mat<'_>, packed: &mut [f32]) {
    let rows_left = a.rows % ROWS;
    let (whole, last) = packed.split_at_mut((a.rows - rows_left) * a.cols);
    for k in 0..a.cols {
        let column = &a.data[k * a.col_stride..][..a.rows];
        let (tiles, rest) = column.as_chunks::<ROWS>();
        let targets = whole.as_chunks_mut::<ROWS>().0.iter_mut().skip(k).step_by(a.cols);
        targets.zip(tiles).for_each(|(target, tile)| *target = *tile);
        last[k * rows_left..][..rows_left].copy_from_slice(rest);
    }
}
