//! Copying a matrix with rows and columns exchanged, in 4 x 4 blocks that the compiler turns into shuffles.

/// Side of a block.
const BLOCK: usize = 4;
/// Columns done before the next rows: what they write stays in L1, and each line that they read is used whole.
const STRIP: usize = 64;

/// `to[column * to_stride + row] = from[row * from_stride + column]` for `rows` by `columns` elements.
///
/// # Panics
/// A slice is too short.
pub(crate) fn transpose(
    from: &[f32],
    from_stride: usize,
    to: &mut [f32],
    to_stride: usize,
    rows: usize,
    columns: usize,
) {
    for strip in (0..columns).step_by(STRIP) {
        let end = columns.min(strip + STRIP);
        for row in (0..rows).step_by(BLOCK) {
            for column in (strip..end).step_by(BLOCK) {
                let from = &from[row * from_stride + column..];
                let to = &mut to[column * to_stride + row..];
                if row + BLOCK <= rows && column + BLOCK <= end {
                    block(from, from_stride, to, to_stride);
                } else {
                    edge(from, from_stride, to, to_stride, BLOCK.min(rows - row), BLOCK.min(end - column));
                }
            }
        }
    }
}

#[inline(always)]
fn block(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
    let row = |r: usize| {
        let row = &from[r * from_stride..][..BLOCK];
        [row[0], row[1], row[2], row[3]]
    };
    let rows = [row(0), row(1), row(2), row(3)];
    for c in 0..BLOCK {
        to[c * to_stride..][..BLOCK].copy_from_slice(&[rows[0][c], rows[1][c], rows[2][c], rows[3][c]]);
    }
}

fn edge(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize, rows: usize, columns: usize) {
    for r in 0..rows {
        for c in 0..columns {
            to[c * to_stride + r] = from[r * from_stride + c];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_rows_and_columns_of_odd_shapes_and_touches_nothing_else() {
        for (rows, columns) in [(1, 1), (4, 4), (3, 70), (12, 129), (65, 6)] {
            let (from_stride, to_stride) = (columns + 2, rows + 3);
            let from: Vec<f32> = (0..rows * from_stride).map(|index| index as f32).collect();
            let mut to = vec![-1.0; columns * to_stride];
            transpose(&from, from_stride, &mut to, to_stride, rows, columns);
            for c in 0..columns {
                for r in 0..to_stride {
                    let expected = if r < rows { from[r * from_stride + c] } else { -1.0 };
                    assert_eq!(to[c * to_stride + r], expected, "{rows}x{columns} at {r}, {c}");
                }
            }
        }
    }
}
