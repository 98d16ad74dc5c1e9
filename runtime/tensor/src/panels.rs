//! The right operand of a product, packed once into column panels that serve many rows, few rows and one row alike.
//!
//! Panel `p` holds the columns `32 p .. 32 p + 32` as `[half][k][16]`, the last one padded with zeros, each row of a half
//! one cache line, so that what a kernel reads lies in one run, whether it does all columns at a time or a half. All
//! products read this layout: [`matmul`](crate::matmul()) packs first, weights stay packed.

use bytemuck::{Pod, Zeroable};

use crate::tile::HALF_COLUMNS;
use crate::transpose::transpose;
use crate::{Mat, threads};

/// Columns of one panel.
pub const PANEL_COLUMNS: usize = 32;

/// A row of half a panel, in one cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; HALF_COLUMNS]);

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
        let lines = self.count() * b.rows * (PANEL_COLUMNS / HALF_COLUMNS);
        self.lines.resize(lines, Line::zeroed());
        if lines == 0 {
            return;
        }
        threads::for_each_chunk(&mut self.lines, b.rows, b.rows * b.cols, |index, half| {
            let first = b.cols.min(index * HALF_COLUMNS);
            pack_half(b.columns(first..b.cols.min(first + HALF_COLUMNS)), bytemuck::cast_slice_mut(half));
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

    /// Number of panels.
    pub(crate) fn count(&self) -> usize {
        self.cols.div_ceil(PANEL_COLUMNS)
    }

    /// Panel `index` as `[half][k][16]`.
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

fn pack_half(columns: Mat<'_>, half: &mut [f32]) {
    if columns.cols < HALF_COLUMNS {
        half.fill(0.0);
    }
    if columns.cols == 0 {
        return;
    }
    if columns.row_stride == 1 {
        return transpose(columns.data, columns.col_stride, half, HALF_COLUMNS, columns.cols, columns.rows);
    }
    for (k, row) in half.as_chunks_mut::<HALF_COLUMNS>().0.iter_mut().enumerate() {
        let source = &columns.data[k * columns.row_stride..];
        match source.first_chunk() {
            Some(source) if columns.col_stride == 1 && columns.cols == HALF_COLUMNS => *row = *source,
            _ => {
                let source = source.iter().step_by(columns.col_stride);
                row[..columns.cols].iter_mut().zip(source).for_each(|(element, source)| *element = *source);
            }
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
        assert_eq!(panels.panel(0)[16..32], data[40..56]);
        assert_eq!(panels.panel(0)[3 * 16 + 16..][..16], data[56..72]);
        assert_eq!(panels.panel(1)[32..40], data[112..120]);
        assert!(panels.panel(1)[40..].iter().all(|&padding| padding == 0.0));
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
