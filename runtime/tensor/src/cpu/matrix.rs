//! Borrowed matrices with strides, the operands of [`matmul`](crate::cpu::matmul()).

use std::ops::Range;

use crate::cpu::threads;

/// How an output element's accumulator begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// At zero: the output's former content is overwritten unread.
    Zero,
    /// At the output's former content, which the sum over `k` continues.
    FromC,
}

/// A read-only matrix over a slice: element `(row, column)` is `data[row * row_stride + column * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    /// The elements, from the matrix' first one on.
    pub data: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A matrix whose rows lie one after the other.
    ///
    /// # Panics
    /// `data` is shorter than `rows * cols`.
    pub fn row_major(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::with_strides(data, rows, cols, cols, 1)
    }

    /// A matrix with any strides.
    ///
    /// # Panics
    /// The last element lies beyond `data`.
    pub fn with_strides(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        let end = span(rows, cols, row_stride, col_stride);
        assert!(
            end <= data.len(),
            "a {rows}x{cols} matrix needs {end} elements, the slice has {}",
            data.len()
        );
        Self { data, rows, cols, row_stride, col_stride }
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
        Self { data: &self.data[offset..], cols: range.len(), ..self }
    }

    /// The given rows.
    ///
    /// # Panics
    /// The range ends beyond the rows.
    pub fn row_range(self, range: Range<usize>) -> Self {
        self.transposed().columns(range).transposed()
    }

    /// The element at `(row, column)`.
    ///
    /// # Panics
    /// The position lies outside of the matrix.
    pub fn at(&self, row: usize, column: usize) -> f32 {
        assert!(row < self.rows && column < self.cols, "({row}, {column}) of {}x{}", self.rows, self.cols);
        self.data[row * self.row_stride + column * self.col_stride]
    }
}

/// A matrix to write to; the columns of a row lie side by side.
#[derive(Debug)]
pub struct MatMut<'a> {
    /// The elements, from the matrix' first one on.
    pub data: &'a mut [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next, at least `cols`.
    pub row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A matrix whose rows lie one after the other.
    ///
    /// # Panics
    /// `data` is shorter than `rows * cols`.
    pub fn row_major(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::with_stride(data, rows, cols, cols)
    }

    /// A matrix whose rows begin `row_stride` elements apart.
    ///
    /// # Panics
    /// The rows overlap or the last element lies beyond `data`.
    pub fn with_stride(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let end = span(rows, cols, row_stride, 1);
        assert!(row_stride >= cols, "rows of {cols} elements overlap at stride {row_stride}");
        assert!(
            end <= data.len(),
            "a {rows}x{cols} matrix needs {end} elements, the slice has {}",
            data.len()
        );
        Self { data, rows, cols, row_stride }
    }

    /// The given columns of all rows, to fill one shard's part of a wider matrix.
    ///
    /// # Panics
    /// The range ends beyond the columns.
    pub fn columns(&mut self, range: Range<usize>) -> MatMut<'_> {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let offset = range.start.min(self.data.len());
        MatMut {
            data: &mut self.data[offset..],
            rows: self.rows,
            cols: range.len(),
            row_stride: self.row_stride,
        }
    }

    /// One row.
    ///
    /// # Panics
    /// There is no such row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &mut self.data[row * self.row_stride..][..self.cols]
    }
}

/// Rows to write to, each a slice of its own, so that several column ranges of one matrix can be written at once.
#[derive(Debug, Default)]
pub struct RowsMut<'a>(Vec<&'a mut [f32]>);

impl<'a> RowsMut<'a> {
    /// The rows of a matrix of `cols` columns, one after the other.
    ///
    /// # Panics
    /// `data` is not a whole number of rows.
    pub fn row_major(data: &'a mut [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} elements in rows of {cols}", data.len());
        Self(data.chunks_exact_mut(cols).collect())
    }

    /// The given column ranges, ascending and disjoint, of every row of a matrix of `cols` columns.
    ///
    /// # Panics
    /// The ranges overlap, descend or end beyond the columns, or `data` is not a whole number of rows.
    pub fn of_columns<const N: usize>(
        data: &'a mut [f32],
        cols: usize,
        ranges: [Range<usize>; N],
    ) -> [Self; N] {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} elements in rows of {cols}", data.len());
        let mut parts = std::array::from_fn(|_| Self(Vec::with_capacity(data.len() / cols)));
        for mut row in data.chunks_exact_mut(cols) {
            let mut first = 0;
            for (part, range) in parts.iter_mut().zip(&ranges) {
                assert!(first <= range.start, "columns {range:?} after column {first}");
                let (columns, rest) = row[range.start - first..].split_at_mut(range.len());
                part.0.push(columns);
                (row, first) = (rest, range.end);
            }
        }
        parts
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.0.len()
    }

    /// Number of columns; 0 without rows.
    pub fn cols(&self) -> usize {
        self.0.first().map_or(0, |row| row.len())
    }

    /// The rows, in order.
    pub fn into_rows(self) -> impl Iterator<Item = &'a mut [f32]> {
        self.0.into_iter()
    }
}

/// Copies a matrix whose columns lie side by side to another of its shape.
///
/// # Panics
/// The shapes differ, or columns of `from` do not lie side by side.
pub fn copy_matrix(from: Mat<'_>, to: &mut MatMut<'_>) {
    for_each_row(from, to, <[f32]>::copy_from_slice);
}

/// Adds a matrix whose columns lie side by side to another of its shape.
///
/// # Panics
/// As for [`copy_matrix`].
pub fn add_matrix(sum: &mut MatMut<'_>, term: Mat<'_>) {
    for_each_row(term, sum, crate::cpu::add_assign);
}

fn for_each_row(from: Mat<'_>, to: &mut MatMut<'_>, with: impl Fn(&mut [f32], &[f32]) + Sync) {
    assert_eq!((from.rows, from.cols), (to.rows, to.cols), "shapes of two matrices");
    assert!(from.col_stride == 1 || from.cols < 2, "columns of a matrix lie side by side");
    let (rows, cols, stride) = (to.rows, to.cols, to.row_stride);
    if rows == 0 || cols == 0 {
        return;
    }
    let rows_a_task = rows.div_ceil(threads::parts(rows * cols));
    let to = &mut to.data[..span(rows, cols, stride, 1)];
    threads::for_each_chunk(to, rows_a_task * stride, rows * cols, |task, to| {
        for (row, to) in (task * rows_a_task..).zip(to.chunks_mut(stride)) {
            with(&mut to[..cols], &from.data[row * from.row_stride..][..cols]);
        }
    });
}

/// Elements from the first to the last one, both included.
fn span(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_transposed_matrix_are_rows() {
        let data: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let mat = Mat::row_major(&data, 3, 4);
        let part = mat.transposed().columns(1..3);
        assert_eq!((part.rows, part.cols), (4, 2));
        assert_eq!(part.at(2, 0), mat.at(1, 2));
        assert_eq!(mat.row_range(2..3).at(0, 3), 11.0);
    }

    #[test]
    fn a_column_range_writes_only_its_columns() {
        let mut data = vec![0.0; 8];
        let mut mat = MatMut::row_major(&mut data, 2, 4);
        mat.columns(1..3).row_mut(1).fill(5.0);
        assert_eq!(data, [0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 5.0, 0.0]);
    }

    #[test]
    fn column_ranges_of_all_rows_are_written_at_once() {
        let mut data = vec![0.0; 12];
        let [left, right] = RowsMut::of_columns(&mut data, 6, [1..3, 4..6]);
        assert_eq!((left.rows(), left.cols(), right.cols()), (2, 2, 2));
        for (row, (left, right)) in left.into_rows().zip(right.into_rows()).enumerate() {
            left.fill(1.0 + row as f32);
            right.fill(5.0);
        }
        assert_eq!(data, [0.0, 1.0, 1.0, 0.0, 5.0, 5.0, 0.0, 2.0, 2.0, 0.0, 5.0, 5.0]);
    }

    #[test]
    fn threads_copy_and_add_the_rows_of_a_large_matrix_and_nothing_beside_them() {
        let (rows, cols, stride) = (701, 500, 503);
        let from: Vec<f32> = (0..rows * cols).map(|index| index as f32).collect();
        let from = Mat::row_major(&from, rows, cols);
        let mut to = vec![-1.0; rows * stride];
        crate::cpu::set_threads(3).unwrap();
        let mut whole = MatMut::row_major(&mut to, rows, stride);
        copy_matrix(from, &mut whole.columns(2..2 + cols));
        add_matrix(&mut whole.columns(2..2 + cols), from);
        crate::cpu::set_threads(1).unwrap();
        for (row, to) in to.chunks_exact(stride).enumerate() {
            assert!([to[0], to[1], to[stride - 1]].iter().all(|&beside| beside == -1.0), "beside row {row}");
            let right = to[2..].iter().take(cols).enumerate().all(|(col, &to)| to == 2.0 * from.at(row, col));
            assert!(right, "row {row}");
        }
    }

    #[test]
    #[should_panic(expected = "columns 2..4 after column 3")]
    fn overlapping_column_ranges_are_refused() {
        RowsMut::of_columns(&mut [0.0; 12], 6, [1..3, 2..4]);
    }

    #[test]
    #[should_panic(expected = "needs 12 elements")]
    fn a_short_slice_is_refused() {
        Mat::row_major(&[0.0; 11], 3, 4);
    }
}
