//! Matrix products over packed panels.
//!
//! `C[m][n] = (C[m][n] +) sum over ascending k of A[m][k] * B[k][n]`: one accumulator an element, each term a fused
//! multiply-add. Where the sum is cut into blocks of `k`, a block continues from what the one before it stored, so the
//! cut is invisible in the result; so are tiles and threads. [`matmul_panels`] is the function to read first.
//!
//! Blocking (register tile, L1/L2 blocks, packed panels) follows Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.

mod tree;

use std::cell::RefCell;

use crate::simd::simd_level;
use crate::tile::{Operands, RowLayout, TILE_ROWS, multiply};
use crate::transpose::transpose;
use crate::{Mat, MatMut, PANEL_COLUMNS, Panels, SimdLevel, Start, threads};

pub use tree::{Leaves, matmul_tree};

/// Up to this many rows, panels are the outer loop and threads split the columns: each panel is read once.
const NARROW_ROWS: usize = 48;
/// Terms of one block of `k`: a tile of `A` (12 x 512) fits into L1.
const K_BLOCK: usize = 512;
/// Panels of one block of columns: 12 panels by 512 terms fit into L2.
const PANEL_BLOCK: usize = 12;

thread_local! {
    /// Packed rows of `A`, kept because allocating megabytes for each product costs page faults.
    static PACKED_ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Packed `B` of a product whose right operand is used once.
    static PACKED_PANELS: RefCell<Panels> = RefCell::new(Panels::default());
}

/// `c = (c +) a · b`, for a right operand that is used once; see the module for the order of additions.
///
/// # Panics
/// The dims disagree.
pub fn matmul(a: Mat<'_>, b: Mat<'_>, c: &mut MatMut<'_>, start: Start) {
    matmul_at(simd_level(), a, b, c, start);
}

/// `c = (c +) a · b` for packed weights: the same bits as [`matmul`], for one row or many.
///
/// # Panics
/// The dims disagree.
pub fn matmul_panels(a: Mat<'_>, b: &Panels, c: &mut MatMut<'_>, start: Start) {
    matmul_panels_at(simd_level(), a, b, c, start);
}

pub(crate) fn matmul_at(level: SimdLevel, a: Mat<'_>, b: Mat<'_>, c: &mut MatMut<'_>, start: Start) {
    let mut panels = PACKED_PANELS.take();
    panels.pack_from(b);
    matmul_panels_at(level, a, &panels, c, start);
    PACKED_PANELS.set(panels);
}

pub(crate) fn matmul_panels_at(level: SimdLevel, a: Mat<'_>, b: &Panels, c: &mut MatMut<'_>, start: Start) {
    assert_eq!(
        (a.cols, a.rows, b.cols()),
        (b.rows(), c.rows, c.cols),
        "dims of a product: a k, c rows, c columns"
    );
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    if a.cols == 0 {
        if start == Start::Zero {
            (0..c.rows).for_each(|row| c.row_mut(row).fill(0.0));
        }
    } else if c.rows <= NARROW_ROWS {
        narrow(level, a, b, c, start);
    } else {
        wide(a, c, |a, c| wide_rows(level, a, b, c, start));
    }
}

/// Few rows: each task takes some panels, all rows, all of `k`.
fn narrow(level: SimdLevel, a: Mat<'_>, b: &Panels, c: &mut MatMut<'_>, start: Start) {
    let rows = c.rows;
    let mut packed = PACKED_ROWS.take();
    pack_rows(a, &mut packed);
    let tile = PANEL_COLUMNS * rows;
    let mut outputs = vec![0.0f32; b.count() * tile];
    if start == Start::FromC {
        exchange(c, &mut outputs, |c_row, output| output.copy_from_slice(c_row));
    }
    let cost = rows * a.cols * c.cols;
    let panels_a_task = b.count().div_ceil(threads::parts(cost));
    threads::for_each_chunk(&mut outputs, panels_a_task * tile, cost, |task, outputs| {
        for (offset, output) in outputs.chunks_exact_mut(tile).enumerate() {
            let panel = b.panel(task * panels_a_task + offset);
            for (a_tile, c_tile) in
                packed.chunks(a.cols * TILE_ROWS).zip(output.chunks_mut(TILE_ROWS * PANEL_COLUMNS))
            {
                let tile_rows = c_tile.len() / PANEL_COLUMNS;
                let operands = Operands {
                    depth: a.cols,
                    a: a_tile,
                    a_layout: RowLayout::Packed,
                    a_step: tile_rows,
                    b: panel,
                    b_step: PANEL_COLUMNS,
                    start,
                };
                multiply(level, tile_rows, operands, c_tile, PANEL_COLUMNS);
            }
        }
    });
    PACKED_ROWS.set(packed);
    exchange(c, &mut outputs, |c_row, output| c_row.copy_from_slice(output));
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

/// Many rows: each task takes some rows of `a` and `c`, and all columns.
fn wide(a: Mat<'_>, c: &mut MatMut<'_>, multiply_rows: impl Fn(Mat<'_>, MatMut<'_>) + Sync) {
    let (cols, row_stride) = (c.cols, c.row_stride);
    let cost = c.rows * a.cols * cols;
    let rows_a_task = c.rows.div_ceil(threads::parts(cost)).next_multiple_of(TILE_ROWS);
    let end = (c.rows - 1) * row_stride + cols;
    threads::for_each_chunk(&mut c.data[..end], rows_a_task * row_stride, cost, |task, data| {
        let rows = data.len().div_ceil(row_stride);
        let first = task * rows_a_task;
        let c = MatMut::with_stride(data, rows, cols, row_stride);
        multiply_rows(a.row_range(first..first + rows), c);
    });
}

fn wide_rows(level: SimdLevel, a: Mat<'_>, b: &Panels, mut c: MatMut<'_>, start: Start) {
    let mut packed = PACKED_ROWS.take();
    for first_k in (0..a.cols).step_by(K_BLOCK) {
        let depth = K_BLOCK.min(a.cols - first_k);
        let start = if first_k == 0 { start } else { Start::FromC };
        pack_rows(a.columns(first_k..first_k + depth), &mut packed);
        for first_panel in (0..b.count()).step_by(PANEL_BLOCK) {
            let panels = first_panel..b.count().min(first_panel + PANEL_BLOCK);
            for (tile, a_tile) in packed.chunks(depth * TILE_ROWS).enumerate() {
                for index in panels.clone() {
                    let operands = Operands {
                        depth,
                        a: a_tile,
                        a_layout: RowLayout::Packed,
                        a_step: a_tile.len() / depth,
                        b: &b.panel(index)[first_k * PANEL_COLUMNS..],
                        b_step: PANEL_COLUMNS,
                        start,
                    };
                    multiply_into(level, operands, &mut c, tile * TILE_ROWS, index * PANEL_COLUMNS);
                }
            }
        }
    }
    PACKED_ROWS.set(packed);
}

/// One tile at `(row, column)` of `c`; the last columns go through a buffer, so that the instructions are the same.
fn multiply_into(level: SimdLevel, operands: Operands<'_>, c: &mut MatMut<'_>, row: usize, column: usize) {
    let rows = operands.a_step;
    let columns = PANEL_COLUMNS.min(c.cols - column);
    if columns == PANEL_COLUMNS {
        let row_stride = c.row_stride;
        return multiply(level, rows, operands, &mut c.data[row * row_stride + column..], row_stride);
    }
    let mut buffer = [0.0f32; TILE_ROWS * PANEL_COLUMNS];
    for (r, buffered) in buffer.chunks_exact_mut(PANEL_COLUMNS).take(rows).enumerate() {
        buffered[..columns].copy_from_slice(&c.row_mut(row + r)[column..]);
    }
    multiply(level, rows, operands, &mut buffer, PANEL_COLUMNS);
    for (r, buffered) in buffer.chunks_exact(PANEL_COLUMNS).take(rows).enumerate() {
        c.row_mut(row + r)[column..].copy_from_slice(&buffered[..columns]);
    }
}

/// Packs `a` as `[tile][k][row]`, the last tile with the rows that are left.
fn pack_rows(a: Mat<'_>, packed: &mut Vec<f32>) {
    packed.resize(a.rows * a.cols, 0.0);
    for (tile, output) in packed.chunks_mut(TILE_ROWS * a.cols).enumerate() {
        let rows = output.len() / a.cols;
        let first = tile * TILE_ROWS;
        if a.col_stride == 1 {
            transpose(&a.data[first * a.row_stride..], a.row_stride, output, rows, rows, a.cols);
        } else if a.row_stride == 1 {
            for (k, group) in output.chunks_exact_mut(rows).enumerate() {
                group.copy_from_slice(&a.data[k * a.col_stride + first..][..rows]);
            }
        } else {
            for (k, group) in output.chunks_exact_mut(rows).enumerate() {
                let column = &a.data[k * a.col_stride + first * a.row_stride..];
                group
                    .iter_mut()
                    .zip(column.iter().step_by(a.row_stride))
                    .for_each(|(packed, &value)| *packed = value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
