//! How a product is cut into blocks that fit the caches: [`Product`].
//!
//! Blocking (register tile, L1/L2 blocks, packed panels) follows Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use super::left::{Elements, PackedRows, RowMemory};
use super::tree::Leaves;
use crate::cpu::elementwise::add_assign_at;
use crate::cpu::panels::Line;
use crate::cpu::simd::Instructions;
#[cfg(target_arch = "x86_64")]
use crate::cpu::tile::amx;
use crate::cpu::tile::{PAIR_BLOCK, PanelTerms, TILE_ROWS, multiply_tiles, tile_rows};
use crate::cpu::{Dtype, Mat, MatMut, PANEL_COLUMNS, Panels, SimdLevel, Start, threads};

/// Up to this many rows, threads split the columns: each panel is read once.
const NARROW_ROWS: usize = 48;
/// Terms of one leaf that packed rows hold, whole blocks of a sum in bfloat16; the rows of the next terms come when all columns are done.
const PACKED_TERMS: usize = 16 * PAIR_BLOCK;

thread_local! {
    /// Kept because allocating it for each product costs page faults.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a thread needs memory for.
#[derive(Default)]
struct Scratch {
    /// Packed rows of `A`.
    rows: RowMemory,
    work: WorkMemory,
}

/// What a product of packed rows needs memory for.
#[derive(Default)]
struct WorkMemory {
    /// Sums of leaves.
    sums: Vec<f32>,
    /// Terms of panels that do not begin with a pair, or end within a block.
    terms: Vec<Line>,
}

/// How the sum over `k` is done.
#[derive(Clone, Copy)]
pub(super) enum Sum<'a> {
    /// One accumulator over these runs of `k`, in their order.
    Leaf(&'a [Range<usize>], Start),
    /// One accumulator a leaf, and the leaves in the tree; its root may be added to other leaves' sum. At least one leaf has
    /// terms.
    Tree(&'a Leaves, Start),
}

impl<'a> Sum<'a> {
    /// The terms that are added without a pause.
    fn runs(self, dtype: Dtype) -> Cow<'a, [Range<usize>]> {
        match self {
            Self::Leaf(runs, _) => Cow::Borrowed(runs),
            Self::Tree(leaves, _) => Cow::Owned(leaves.runs(dtype).concat()),
        }
    }

    fn start(self) -> Start {
        match self {
            Self::Leaf(_, start) | Self::Tree(_, start) => start,
        }
    }
}

/// The sizes of blocks: a tile of `A` stays in the first cache while panels go by, and these stay in the second while
/// tiles do.
#[derive(Clone, Copy)]
struct Blocking {
    /// Rows of `A` that are packed together.
    rows: usize,
    /// Panels that they are multiplied by before the next panels come.
    panels: usize,
}

impl Blocking {
    /// For packed rows of `depth` terms, of which no more than `terms` go into one accumulator.
    fn new(level: SimdLevel, dtype: Dtype, depth: usize, terms: usize) -> Self {
        // Elements of packed rows, and of panels: two fifths of the second cache of machines that have the level, and more of the
        // larger one; an eighth of it where AMX wants the sums of leaves beside them.
        let (tile, in_rows, in_panels) = match level.instructions() {
            #[cfg(target_arch = "x86_64")]
            _ if level.has_amx() && dtype == Dtype::Bf16 => (2 * amx::ROWS, 1 << 18, 128 << 10),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => (tile_rows(level), 1 << 17, 192 << 10),
            _ => (tile_rows(level), 1 << 17, 48 << 10),
        };
        let rows = (in_rows / depth / tile * tile).max(NARROW_ROWS);
        Self { rows, panels: (in_panels / (terms.min(PACKED_TERMS) * PANEL_COLUMNS)).max(1) }
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
        let mut memory = SCRATCH.with_borrow_mut(|scratch| std::mem::take(&mut scratch.rows));
        let runs = self.sum.runs(self.b.dtype());
        let a_rows = memory.pack(self.level, self.b.dtype(), a, 0, &runs);
        let len = PANEL_COLUMNS * rows;
        let mut outputs = vec![0.0f32; self.b.count() * len];
        if self.sum.start() == Start::FromC {
            exchange(c, &mut outputs, |c_row, output| output.copy_from_slice(c_row));
        }
        let cost = rows * a.cols * c.cols;
        let panels_a_task = self.b.count().div_ceil(threads::parts(cost));
        threads::for_each_chunk(&mut outputs, panels_a_task * len, cost, |task, outputs| {
            let mut work = SCRATCH.with_borrow_mut(|scratch| std::mem::take(&mut scratch.work));
            for (offset, output) in outputs.chunks_exact_mut(len).enumerate() {
                let mut out = Out { data: output, stride: PANEL_COLUMNS };
                let panel = task * panels_a_task + offset;
                self.panels(a_rows, panel..panel + 1, &mut out, &mut work);
            }
            SCRATCH.with_borrow_mut(|scratch| scratch.work = work);
        });
        exchange(c, &mut outputs, |c_row, output| c_row.copy_from_slice(output));
        SCRATCH.with_borrow_mut(|scratch| scratch.rows = memory);
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
        let Sum::Leaf(runs, mut start) = self.sum else { return self.terms(a, 0..a.cols, c) };
        for terms in runs.iter().flat_map(|run| parts(run.clone(), PACKED_TERMS)) {
            let run = 0..terms.len();
            Product { sum: Sum::Leaf(std::slice::from_ref(&run), start), ..*self }.terms(a, terms, c);
            start = Start::FromC;
        }
    }

    /// The given terms of all rows and columns.
    fn terms(&self, a: Mat<'_>, terms: Range<usize>, c: &mut MatMut<'_>) {
        let Scratch { mut rows, mut work } = SCRATCH.take();
        let whole_panels = c.cols / PANEL_COLUMNS;
        let runs = self.sum.runs(self.b.dtype());
        let longest = runs.iter().map(Range::len).max().unwrap_or(0);
        let Blocking { rows: rows_a_block, panels: panels_a_block } =
            Blocking::new(self.level, self.b.dtype(), terms.len(), longest);
        for first in (0..a.rows).step_by(rows_a_block) {
            let block = first..a.rows.min(first + rows_a_block);
            let a = a.columns(terms.clone()).row_range(block);
            let a_rows = rows.pack(self.level, self.b.dtype(), a, terms.start, &runs);
            for first_panel in (0..whole_panels).step_by(panels_a_block) {
                let panels = first_panel..whole_panels.min(first_panel + panels_a_block);
                let stride = c.row_stride;
                let data = &mut c.data[first * stride + first_panel * PANEL_COLUMNS..];
                self.panels(a_rows, panels, &mut Out { data, stride }, &mut work);
            }
            if self.b.count() > whole_panels {
                self.last_columns(a_rows, first, c, &mut work);
            }
        }
        SCRATCH.set(Scratch { rows, work });
    }

    /// The columns of a panel that is not whole, for packed rows of which the first is row `row` of `c`. They go through a
    /// buffer, so that the instructions are the same.
    fn last_columns(&self, a: PackedRows<'_>, row: usize, c: &mut MatMut<'_>, work: &mut WorkMemory) {
        let panel = c.cols / PANEL_COLUMNS;
        let (column, columns) = (panel * PANEL_COLUMNS, c.cols % PANEL_COLUMNS);
        let mut buffer = vec![0.0f32; a.rows * PANEL_COLUMNS];
        for (r, buffered) in buffer.chunks_exact_mut(PANEL_COLUMNS).enumerate() {
            buffered[..columns].copy_from_slice(&c.row_mut(row + r)[column..]);
        }
        self.panels(a, panel..panel + 1, &mut Out { data: &mut buffer, stride: PANEL_COLUMNS }, work);
        for (r, buffered) in buffer.chunks_exact(PANEL_COLUMNS).enumerate() {
            c.row_mut(row + r)[column..].copy_from_slice(&buffered[..columns]);
        }
    }

    fn panels(&self, a: PackedRows<'_>, panels: Range<usize>, out: &mut Out<'_>, work: &mut WorkMemory) {
        let product = PanelProduct { level: self.level, a, b: self.b, panels };
        match self.sum {
            Sum::Leaf(runs, start) => product.leaf(runs, start, out, &mut work.terms),
            Sum::Tree(leaves, start) => {
                let wanted = (leaves.levels() + 1) * product.elements();
                if work.sums.len() < wanted {
                    work.sums.resize(wanted, 0.0);
                }
                let leaves = leaves.runs(self.b.dtype());
                match start {
                    Start::Zero => product.subtree(leaves, out, &mut work.sums, &mut work.terms),
                    Start::FromC => product.add_subtree(leaves, out, &mut work.sums, &mut work.terms),
                };
            }
        }
    }
}

/// `range` cut evenly into the fewest parts of at most `len`, whole blocks of a sum in bfloat16; the cuts part no such block.
fn parts(range: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    let count = range.len().div_ceil(len);
    let at = move |index| match index {
        0 => range.start,
        _ if index == count => range.end,
        _ => range.start + (range.len() * index / count).next_multiple_of(PAIR_BLOCK),
    };
    (0..count).map(move |index| at(index)..at(index + 1))
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

    /// The sum over `runs`, part by part: each continues from what the one before it stored.
    fn leaf(&self, runs: &[Range<usize>], mut start: Start, out: &mut Out<'_>, memory: &mut Vec<Line>) {
        for part in runs.iter().flat_map(|run| parts(run.clone(), PACKED_TERMS)) {
            self.multiply(part, start, out, memory);
            start = Start::FromC;
        }
    }

    /// The sum over a part of a run, counted from the first packed term.
    fn multiply(&self, part: Range<usize>, start: Start, out: &mut Out<'_>, memory: &mut Vec<Line>) {
        let terms = self.a.first_term + part.start..self.a.first_term + part.end;
        let begins_pair = self.b.dtype() == Dtype::F32 || terms.start.is_multiple_of(2);
        let ends_block = match self.a.elements {
            Elements::Wide(_) => true,
            // All terms of a block are read.
            #[cfg(target_arch = "x86_64")]
            Elements::Blocks(..) => terms.len().is_multiple_of(PAIR_BLOCK),
        };
        if begins_pair && ends_block {
            let panels = self.panels.clone().map(|panel| self.b.panel(panel, terms.start));
            return self.multiply_by(part, panels, start, out);
        }
        // Two halves, and two terms a line.
        let lines = terms.len().next_multiple_of(PAIR_BLOCK);
        memory.resize(self.panels.len() * lines, Line::default());
        for (panel, lines) in self.panels.clone().zip(memory.chunks_exact_mut(lines)) {
            self.b.copy_terms(panel, terms.clone(), lines);
        }
        self.multiply_by(part, memory.chunks_exact(lines).map(PanelTerms::of_pairs), start, out);
    }

    /// The sum over a part of a run, by panels that begin with it.
    fn multiply_by<'b>(
        &self,
        part: Range<usize>,
        panels: impl Iterator<Item = PanelTerms<'b>> + Clone,
        start: Start,
        out: &mut Out<'_>,
    ) {
        match self.a.elements {
            Elements::Wide(tiles) => {
                multiply_tiles(self.level, tiles, part, panels, start, out.data, out.stride);
            }
            #[cfg(target_arch = "x86_64")]
            Elements::Blocks(rows) => amx::multiply(rows, &part, panels, start, out.data, out.stride),
        }
    }

    /// The sum of an aligned run of leaves; false where all of them are empty, then `out` is left as it was.
    fn subtree(
        &self,
        leaves: &[Vec<Range<usize>>],
        out: &mut Out<'_>,
        spare: &mut [f32],
        memory: &mut Vec<Line>,
    ) -> bool {
        if let [runs] = leaves {
            self.leaf(runs, Start::Zero, out, memory);
            return !runs.is_empty();
        }
        let (left, right) = leaves.split_at(leaves.len() / 2);
        if !self.subtree(left, out, spare, memory) {
            return self.subtree(right, out, spare, memory);
        }
        self.add_subtree(right, out, spare, memory);
        true
    }

    /// Adds such a sum to `out`.
    fn add_subtree(
        &self,
        leaves: &[Vec<Range<usize>>],
        out: &mut Out<'_>,
        spare: &mut [f32],
        memory: &mut Vec<Line>,
    ) -> bool {
        let columns = self.columns();
        let (other, spare) = spare.split_at_mut(self.elements());
        let any = self.subtree(leaves, &mut Out { data: other, stride: columns }, spare, memory);
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
