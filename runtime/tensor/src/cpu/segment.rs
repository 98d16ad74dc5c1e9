//! Runs of rows whose parts of a parameter's gradient are summed apart: [`Segment`].

use std::ops::Range;

/// A run of rows, which ends before row `end`, whose part of a weight's gradient belongs to leaf `leaf` of a sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// One past the last row; the first is where the segment before ended, or 0.
    pub end: usize,
    /// The leaf.
    pub leaf: usize,
}

/// For each of `leaves` leaves what `part` makes of its runs of rows, in ascending order: leaves may be summed side by
/// side.
///
/// # Panics
/// A segment has a leaf that does not exist.
pub(crate) fn by_leaf<T>(
    segments: &[Segment],
    leaves: usize,
    mut part: impl FnMut(Range<usize>) -> T,
) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = (0..leaves).map(|_| Vec::new()).collect();
    let mut start = 0;
    for &Segment { end, leaf } in segments {
        parts[leaf].push(part(start..end));
        start = end;
    }
    parts
}

/// The rows of each leaf with their part of `rows` (`[rows][width]`).
///
/// # Panics
/// As [`by_leaf`], or the segments do not cover the rows.
pub(super) fn rows_by_leaf<'a>(
    segments: &[Segment],
    leaves: usize,
    width: usize,
    rows: &'a mut [f32],
) -> Vec<Vec<(Range<usize>, &'a mut [f32])>> {
    let last = segments.last().map_or(0, |last| last.end);
    assert_eq!(last * width, rows.len(), "rows of the segments of a sum");
    let mut rest = rows;
    by_leaf(segments, leaves, |rows| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(rows.len() * width);
        rest = after;
        (rows, part)
    })
}
