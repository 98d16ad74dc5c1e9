//! Matrices over views of buffers, with strides: the operands of products, attention and rotary embedding.

use std::ops::Range;

use crate::{View, ViewMut, cpu, cuda};

/// A matrix to read: element `(row, column)` is `data[row * row_stride + column * col_stride]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: View<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A matrix whose rows lie one after the other.
    ///
    /// # Panics
    /// `data` is shorter than `rows * cols`.
    pub fn row_major(data: View<'a>, rows: usize, cols: usize) -> Self {
        Self { data: data.slice(0..rows * cols), rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The same elements with rows and columns swapped; nothing is copied.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// The given columns of all rows.
    ///
    /// # Panics
    /// The range ends beyond the columns.
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let offset = (range.start * self.col_stride).min(self.data.len());
        Self { data: self.data.slice(offset..self.data.len()), cols: range.len(), ..self }
    }

    /// The matrix, on the CPU.
    pub(crate) fn on_cpu(self) -> cpu::Mat<'a> {
        cpu::Mat::with_strides(self.data.on_cpu(), self.rows, self.cols, self.row_stride, self.col_stride)
    }

    /// The matrix, on a GPU.
    pub(crate) fn on_cuda(self) -> cuda::Matrix {
        let shape = [self.rows, self.cols];
        cuda::Matrix::new(self.data.on_cuda(), shape, self.row_stride, self.col_stride)
    }
}

/// A matrix to write; the columns of a row lie side by side.
pub struct MatMut<'a> {
    data: ViewMut<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A matrix whose rows lie one after the other.
    ///
    /// # Panics
    /// `data` is shorter than `rows * cols`.
    pub fn row_major(data: ViewMut<'a>, rows: usize, cols: usize) -> Self {
        Self { data: data.slice(0..rows * cols), rows, cols, row_stride: cols }
    }

    /// The given columns of all rows.
    ///
    /// # Panics
    /// The range ends beyond the columns.
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let len = self.data.len();
        Self { data: self.data.slice(range.start.min(len)..len), cols: range.len(), ..self }
    }

    /// The matrix, on the CPU.
    pub(crate) fn on_cpu(self) -> cpu::MatMut<'a> {
        cpu::MatMut::with_stride(self.data.on_cpu(), self.rows, self.cols, self.row_stride)
    }

    /// The matrix, on a GPU.
    pub(crate) fn on_cuda(self) -> cuda::Matrix {
        cuda::Matrix::new(self.data.on_cuda(), [self.rows, self.cols], self.row_stride, 1)
    }

    /// Writes to some columns of each row, which are disjoint and ascend, on the CPU.
    pub(crate) fn columns_on_cpu<const N: usize>(self, ranges: [Range<usize>; N]) -> [cpu::RowsMut<'a>; N] {
        cpu::RowsMut::of_columns(self.data.on_cpu(), self.cols, ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn columns_and_transposes_name_the_same_elements_as_those_of_slices() {
        let stream = Device::cpu().stream();
        let host: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let buffer = stream.upload(&host);
        let mat = Mat::row_major(buffer.view(), 3, 4).columns(1..3).transposed().on_cpu();
        let expected = cpu::Mat::row_major(&host, 3, 4).columns(1..3).transposed();
        assert_eq!((mat.rows, mat.cols), (2, 3));
        for (row, column) in [(0, 0), (1, 0), (0, 2), (1, 2)] {
            assert_eq!(mat.at(row, column), expected.at(row, column));
        }
    }

    #[test]
    #[should_panic(expected = "columns 3..5 of 4")]
    fn columns_beyond_the_matrix_are_refused() {
        let stream = Device::cpu().stream();
        let _ = Mat::row_major(stream.zeros(12).view(), 3, 4).columns(3..5);
    }
}
