//! Rows of the left operand, packed as the kernels read them: [`PackedRows`].

use std::ops::Range;

use crate::cpu::bf16::round_operands_at;
#[cfg(target_arch = "x86_64")]
use crate::cpu::panels::Line;
#[cfg(target_arch = "x86_64")]
use crate::cpu::tile::amx;
use crate::cpu::tile::{HALF_TILE_ROWS, TILE_ROWS, Tiles, tile_rows};
use crate::cpu::transpose::transpose;
use crate::cpu::{Dtype, Mat, SimdLevel};

/// Rows of `a` and some of its terms.
#[derive(Clone, Copy)]
pub(super) struct PackedRows<'a> {
    pub(super) elements: Elements<'a>,
    /// The first `k` of the product that is packed.
    pub(super) first_term: usize,
    pub(super) rows: usize,
}

#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    /// As `[tile][k][row]`, the last tile with the rows that are left.
    Wide(Tiles<'a>),
    /// In bfloat16, in blocks that begin with each of the runs.
    #[cfg(target_arch = "x86_64")]
    Blocks(amx::Rows<'a>),
}

/// Memory for packed rows, kept because allocating it for each product costs page faults.
#[derive(Default)]
pub(super) struct RowMemory {
    wide: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    lines: Vec<Line>,
}

impl RowMemory {
    /// Packs `a`, which begins with term `first_term` of the product, rounded to `dtype`. `runs` are the terms that are summed
    /// without a pause, counted from the first packed one.
    pub(super) fn pack<'a>(
        &'a mut self,
        level: SimdLevel,
        dtype: Dtype,
        a: Mat<'_>,
        first_term: usize,
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "AMX's"))]
        runs: &'a [Range<usize>],
    ) -> PackedRows<'a> {
        let rows = a.rows;
        #[cfg(target_arch = "x86_64")]
        if dtype == Dtype::Bf16 && level.has_amx() {
            let elements = Elements::Blocks(amx::Rows::pack(level, a, runs, &mut self.lines));
            return PackedRows { elements, first_term, rows };
        }
        match tile_rows(level) {
            HALF_TILE_ROWS => pack_rows::<HALF_TILE_ROWS>(a, &mut self.wide),
            _ => pack_rows::<TILE_ROWS>(a, &mut self.wide),
        }
        let data = &mut self.wide[..rows * a.cols];
        if dtype == Dtype::Bf16 {
            round_operands_at(level, data);
        }
        let tiles = Tiles { data, depth: a.cols, rows: tile_rows(level) };
        PackedRows { elements: Elements::Wide(tiles), first_term, rows }
    }
}

/// Packs `a` as [`Tiles`] of `ROWS` rows.
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
