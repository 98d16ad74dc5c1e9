//! The right operand of a product, packed once into column panels that serve many rows, few rows and one row alike.
//!
//! Panel `p` holds the columns `32 p .. 32 p + 32` as `[k][32]`, the last one padded with zeros, each row of a panel
//! aligned to 64 bytes. All products read this layout: [`matmul`](crate::cpu::matmul()) packs first, weights stay packed.

use bytemuck::{Pod, Zeroable};

use crate::cpu::transpose::transpose;
use crate::cpu::{Mat, threads};

/// Columns of one panel.
pub const PANEL_COLUMNS: usize = 32;

/// Sixteen elements in one cache line; two make a panel's row.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A packed matrix of `rows` (the summed dim `k`) by `cols` (output columns).
#[derive(Clone, Default)]
pub struct Panels {
    lines: Vec<Line>,
    rows: usize,
    cols: usize,
}

impl Panels {
    /// Packs `b` (`[k][n]`). For a weight stored `[out][in]` pass its transposed view.
    pub fn pack(b: Mat<'_>) -> Self {
        let mut panels = Self::default();
        panels.pack_from(b);
        panels
    }

    /// Packs another matrix into this one's memory, to save the allocation where shapes repeat.
    pub fn pack_from(&mut self, b: Mat<'_>) {
        (self.rows, self.cols) = (b.rows, b.cols);
        let lines = b.cols.div_ceil(PANEL_COLUMNS) * b.rows * (PANEL_COLUMNS / 16);
        self.lines.resize(lines, Line::zeroed());
        let panel_len = b.rows * PANEL_COLUMNS;
        if panel_len == 0 {
            return;
        }
        let elements: &mut [f32] = bytemuck::cast_slice_mut(&mut self.lines);
        threads::for_each_chunk(elements, panel_len, b.rows * b.cols, |index, panel| {
            let first = index * PANEL_COLUMNS;
            pack_panel(b.columns(first..b.cols.min(first + PANEL_COLUMNS)), panel);
        });
    }

    /// The summed dim `k`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Output columns, without the padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the packed elements, padding included.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// Bytes of packed elements that fit without new memory.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }

    /// Number of panels.
    pub(crate) fn count(&self) -> usize {
        self.cols.div_ceil(PANEL_COLUMNS)
    }

    /// Panel `index` as `[k][32]`.
    pub(crate) fn panel(&self, index: usize) -> &[f32] {
        let elements: &[f32] = bytemuck::cast_slice(&self.lines);
        &elements[index * self.rows * PANEL_COLUMNS..][..self.rows * PANEL_COLUMNS]
    }
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Panels").field("rows", &self.rows).field("cols", &self.cols).finish_non_exhaustive()
    }
}

fn pack_panel(columns: Mat<'_>, panel: &mut [f32]) {
    if columns.cols < PANEL_COLUMNS {
        panel.fill(0.0);
    }
    if columns.col_stride == 1 && columns.cols == PANEL_COLUMNS {
        for (k, row) in panel.as_chunks_mut::<PANEL_COLUMNS>().0.iter_mut().enumerate() {
            if let Some(source) = columns.data[k * columns.row_stride..].first_chunk() {
                *row = *source;
            }
        }
        return;
    }
    if columns.col_stride == 1 {
        for (k, row) in panel.chunks_exact_mut(PANEL_COLUMNS).enumerate() {
            row[..columns.cols].copy_from_slice(&columns.data[k * columns.row_stride..][..columns.cols]);
        }
        return;
    }
    if columns.row_stride == 1 {
        return transpose(columns.data, columns.col_stride, panel, PANEL_COLUMNS, columns.cols, columns.rows);
    }
    for (k, row) in panel.chunks_exact_mut(PANEL_COLUMNS).enumerate() {
        let source = &columns.data[k * columns.row_stride..];
        for (n, element) in row[..columns.cols].iter_mut().enumerate() {
            *element = source[n * columns.col_stride];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_hold_columns_padded_with_zeros() {
        let data: Vec<f32> = (0..3 * 40).map(|value| value as f32 + 1.0).collect();
        let b = Mat::row_major(&data, 3, 40);
        let mut panels = Panels::pack(Mat::row_major(&[9.0; 200], 5, 40));
        panels.pack_from(b);
        assert_eq!((panels.rows(), panels.cols(), panels.count()), (3, 40, 2));
        assert_eq!(panels.panel(0)[32..64], data[40..72]);
        assert_eq!(panels.panel(1)[64..72], data[112..120]);
        assert!(panels.panel(1)[72..96].iter().all(|&padding| padding == 0.0));
    }

    #[test]
    fn a_transposed_view_packs_like_the_copied_transpose() {
        let data: Vec<f32> = (0..7 * 45).map(|value| value as f32).collect();
        let view = Mat::row_major(&data, 45, 7).transposed();
        let copied: Vec<f32> = (0..7).flat_map(|k| (0..45).map(move |n| view.at(k, n))).collect();
        let (from_view, from_copy) = (Panels::pack(view), Panels::pack(Mat::row_major(&copied, 7, 45)));
        assert_eq!(from_view.panel(0), from_copy.panel(0));
        assert_eq!(from_view.panel(1), from_copy.panel(1));
    }
}
