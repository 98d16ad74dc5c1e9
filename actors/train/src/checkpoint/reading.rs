//! Numbers being put together from the pieces of several files: [`Reading`].

use std::ops::Range;

use sixfold_model::{Geometry, UnitId};
use sixfold_parallel::{RankSlice, UnitParts};

use super::CheckpointError;
use super::units::{PartBuffer, Piece, QUANTITIES};

/// The first `N` quantities of a state, each number of which must be found. A number that is in several files, as
/// those of norms are, must have the same bits in all that are read.
pub(super) struct Reading<const N: usize> {
    into: [PartBuffer; N],
    /// What is in none of the files so far, in rising order.
    missing: [Vec<(UnitId, Vec<Range<usize>>)>; N],
}

impl<const N: usize> Reading<N> {
    pub(super) fn new(into: [PartBuffer; N]) -> Self {
        let some =
            |(unit, part): (&UnitId, &Range<usize>)| (!part.is_empty()).then(|| (*unit, vec![part.clone()]));
        let all = |parts: &UnitParts| parts.iter().filter_map(some).collect();
        let missing = std::array::from_fn(|quantity| all(&into[quantity].parts));
        Self { into, missing }
    }

    /// Whether it waits for numbers that the owner of `slice` may have saved.
    pub(super) fn needs(&self, geometry: &Geometry, slice: &RankSlice) -> bool {
        let units = slice.units(geometry);
        self.missing.iter().flatten().any(|(unit, _)| units.binary_search(unit).is_ok())
    }

    pub(super) fn is_complete(&self) -> bool {
        self.missing.iter().all(Vec::is_empty)
    }

    /// Takes what it waits for, and compares what it has.
    ///
    /// # Errors
    /// [`CheckpointError::Differs`] if two files have other numbers for the same place. None of them can be trusted
    /// then.
    pub(super) fn take(&mut self, pieces: &[Piece<'_>]) -> Result<(), CheckpointError> {
        pieces.iter().filter(|piece| piece.quantity < N).try_for_each(|piece| self.take_piece(piece))
    }

    fn take_piece(&mut self, piece: &Piece<'_>) -> Result<(), CheckpointError> {
        let (into, missing) = (&mut self.into[piece.quantity], &mut self.missing[piece.quantity]);
        let Some(wanted) = into.parts.get(&piece.unit) else { return Ok(()) };
        let common = overlap(wanted, &piece.part);
        if common.is_empty() {
            return Ok(());
        }
        let values =
            &mut into.values.unit_mut(piece.unit)[common.start - wanted.start..common.end - wanted.start];
        let first = common.start - piece.part.start;
        let (numbers, _) = piece.bytes[first * 4..(first + common.len()) * 4].as_chunks::<4>();
        let at = missing.binary_search_by_key(&piece.unit, |(unit, _)| *unit);
        let gaps = at.map(|at| missing[at].1.as_slice()).unwrap_or_default();
        let place = |range: Range<usize>| range.start - common.start..range.end - common.start;
        for known in without(&common, gaps).map(place) {
            let same = |(value, bytes): (&f32, &[u8; 4])| value.to_le_bytes() == *bytes;
            if !values[known.clone()].iter().zip(&numbers[known]).all(same) {
                return Err(CheckpointError::Differs(piece.name()));
            }
        }
        for new in gaps.iter().map(|gap| overlap(gap, &common)).filter(|new| !new.is_empty()).map(place) {
            let pairs = values[new.clone()].iter_mut().zip(&numbers[new]);
            pairs.for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
        }
        if let Ok(at) = at {
            let left = |gap: &Range<usize>| without(gap, std::slice::from_ref(&common)).collect::<Vec<_>>();
            missing[at].1 = missing[at].1.iter().flat_map(left).collect();
            if missing[at].1.is_empty() {
                missing.remove(at);
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`CheckpointError::Missing`] if some numbers were in none of the files.
    pub(super) fn finish(self) -> Result<[PartBuffer; N], CheckpointError> {
        let gaps = || self.missing.iter().flatten().flat_map(|(_, gaps)| gaps);
        let first = QUANTITIES.iter().zip(&self.missing).find_map(|(quantity, missing)| {
            let (unit, gaps) = missing.first()?;
            Some(format!("{unit}/{quantity} from {} on", gaps.first()?.start))
        });
        match first {
            None => Ok(self.into),
            Some(first) => Err(CheckpointError::Missing { count: gaps().map(Range::len).sum(), first }),
        }
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// What of `range` lies in none of `holes`, which rise.
fn without(range: &Range<usize>, holes: &[Range<usize>]) -> impl Iterator<Item = Range<usize>> {
    let inside: Vec<Range<usize>> =
        holes.iter().map(|hole| overlap(hole, range)).filter(|hole| !hole.is_empty()).collect();
    let starts = std::iter::once(range.start).chain(inside.iter().map(|hole| hole.end)).collect::<Vec<_>>();
    let ends = inside.iter().map(|hole| hole.start).chain(std::iter::once(range.end)).collect::<Vec<_>>();
    starts.into_iter().zip(ends).map(|(start, end)| start..end).filter(|left| !left.is_empty())
}
