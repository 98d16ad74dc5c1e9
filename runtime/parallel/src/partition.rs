//! How the replicas of a rank's units share the moments and the update among them: [`Partition`].

use std::collections::BTreeMap;
use std::ops::Range;

use sixfold_model::{DeviceUnits, Geometry, UnitId, UnitIndex, gradient_of, is_finished_by_sum, square_sums};
use sixfold_tensor::{Buffer, NORM_BLOCK, Stream, View};

/// A cut of one rank's units into a piece for each member of its data-parallel group (stage 1 of Rajbhandari et
/// al. 2020, "ZeRO: memory optimizations toward training trillion parameter models").
///
/// Units whose gradients are finished by the sum over the group are shared: cut, between blocks of the gradient
/// norm, so that pieces have about as many numbers each. The others (norms, tied tables, key-value heads with
/// copies) belong to all members. Each list of cuts is for another buffer and has one cut more than members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Cuts of the sums of gradients.
    pub(crate) sums: Vec<usize>,
    /// Cuts of the parameters.
    pub(crate) parameters: Vec<usize>,
    /// Cuts of the sums that belong to all members, one unit after another.
    pub(crate) common: Vec<usize>,
    /// Cuts of the square sums of the shared units' blocks.
    pub(crate) blocks: Vec<usize>,
    /// Where the sums that belong to all members lie.
    common_sums: Vec<Range<usize>>,
    /// Shared units: the first of each one's blocks.
    first_blocks: BTreeMap<UnitId, usize>,
    /// The numbers of each unit that this member updates.
    parts: BTreeMap<UnitId, Range<usize>>,
}

impl Partition {
    /// The cut for `members`, of which this one has `piece`.
    pub(crate) fn new(
        geometry: &Geometry,
        parameters: &UnitIndex,
        sums: &UnitIndex,
        members: usize,
        piece: usize,
    ) -> Self {
        let shared = |unit: UnitId| is_finished_by_sum(geometry, unit);
        let total: usize =
            parameters.iter().filter(|(unit, _)| shared(*unit)).map(|(_, range)| range.len()).sum();
        let mut cut = Self {
            sums: vec![0],
            parameters: vec![0],
            common: vec![0],
            blocks: vec![0],
            common_sums: Vec::new(),
            first_blocks: BTreeMap::new(),
            parts: BTreeMap::new(),
        };
        let (mut before, mut common, mut blocks) = (0, 0, 0);
        let mut in_order: Vec<_> = sums.iter().collect();
        in_order.sort_by_key(|(_, range)| range.start);
        for (unit, at) in in_order {
            if !shared(unit) {
                common += at.len();
                cut.common_sums.push(at);
                continue;
            }
            let Some(parameter) = parameters.range(unit) else { continue };
            cut.first_blocks.insert(unit, blocks);
            let mut part_from = 0;
            for block in 0..at.len().div_ceil(NORM_BLOCK) {
                let offset = block * NORM_BLOCK;
                let middle = before + offset + NORM_BLOCK.min(at.len() - offset) / 2;
                // A block belongs to the piece in which its middle lies.
                while cut.sums.len() < members && middle * members >= cut.sums.len() * total {
                    cut.own(unit, part_from..offset, piece);
                    part_from = offset;
                    cut.sums.push(at.start + offset);
                    cut.parameters.push(parameter.start + offset);
                    cut.common.push(common);
                    cut.blocks.push(blocks + block);
                }
            }
            cut.own(unit, part_from..at.len(), piece);
            before += at.len();
            blocks += at.len().div_ceil(NORM_BLOCK);
        }
        let ends =
            [(&mut cut.sums, sums.len()), (&mut cut.parameters, parameters.len()), (&mut cut.common, common)];
        for (cuts, end) in ends.into_iter().chain([(&mut cut.blocks, blocks)]) {
            cuts.resize(members + 1, end);
        }
        let all = parameters.iter().filter(|(unit, _)| !shared(*unit));
        cut.parts.extend(all.map(|(unit, range)| (unit, 0..range.len())));
        cut
    }

    /// Notes numbers of the piece that is being cut, if it is this member's.
    fn own(&mut self, unit: UnitId, part: Range<usize>, piece: usize) {
        if self.sums.len() == piece + 1 && !part.is_empty() {
            self.parts.insert(unit, part);
        }
    }

    /// The numbers of each unit that this member updates.
    pub(crate) fn parts(&self) -> &BTreeMap<UnitId, Range<usize>> {
        &self.parts
    }

    /// The sums that belong to all members, one unit after another; this member's piece of them is finished.
    pub(crate) fn take_common(&self, stream: &Stream, sums: &DeviceUnits) -> Buffer {
        let mut common = stream.uninit(self.common_sums.iter().map(Range::len).sum());
        let mut rest = common.view_mut();
        for range in &self.common_sums {
            let (own, after) = rest.split_at(range.len());
            stream.copy(sums.slice(range.clone()), own);
            rest = after;
        }
        common
    }

    /// Puts them back where they lie.
    pub(crate) fn put_common(&self, stream: &Stream, sums: &mut DeviceUnits, common: View<'_>) {
        let mut first = 0;
        for range in &self.common_sums {
            stream.copy(common.slice(first..first + range.len()), sums.slice_mut(range.clone()));
            first += range.len();
        }
    }

    /// The square sums of the blocks of all shared units, of which this member fills in its own.
    pub(crate) fn squares(&self, stream: &Stream, geometry: &Geometry, sums: &DeviceUnits) -> Vec<f32> {
        let mut squares = vec![0.0; self.blocks.last().copied().unwrap_or(0)];
        let own = || {
            let units = self.first_blocks.iter();
            units.filter_map(|(unit, first)| Some((*unit, *first, self.parts.get(unit)?)))
        };
        let gradients = own().map(|(unit, _, part)| gradient_of(geometry, sums, unit).slice(part.clone()));
        for ((_, first, part), own) in own().zip(square_sums(stream, gradients)) {
            squares[first + part.start / NORM_BLOCK..][..own.len()].copy_from_slice(&own);
        }
        squares
    }

    /// The square sums of one unit's blocks, once those of the shared units come from all members.
    pub(crate) fn squares_of(
        &self,
        stream: &Stream,
        geometry: &Geometry,
        sums: &DeviceUnits,
        squares: &[f32],
        unit: UnitId,
    ) -> Vec<f32> {
        match self.first_blocks.get(&unit) {
            Some(&first) => squares[first..][..geometry.region(unit).len().div_ceil(NORM_BLOCK)].to_vec(),
            None => {
                let gradient = gradient_of(geometry, sums, unit);
                square_sums(stream, std::iter::once(gradient)).pop().unwrap_or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sixfold_model::{ModelConfig, ModelSlice, gradient_index};

    use super::*;
    use crate::verify::small::config;

    fn cut(config: ModelConfig, members: usize) -> (UnitIndex, Vec<Partition>) {
        let geometry = Geometry::new(config, 4).unwrap();
        let slice = ModelSlice::whole(&geometry);
        let parameters = UnitIndex::of_parameters(&geometry, &slice);
        let sums = Arc::new(gradient_index(&geometry, &slice));
        let of = |piece| Partition::new(&geometry, &parameters, &sums, members, piece);
        let pieces = (0..members).map(of).collect();
        (parameters, pieces)
    }

    #[test]
    fn pieces_make_up_the_units_and_are_cut_between_blocks() {
        for (vocab_size, tied) in [(41, false), (41, true), (9000, false)] {
            let config = ModelConfig { vocab_size, tie_word_embeddings: tied, ..config() };
            for members in [1, 2, 4, 8] {
                let (parameters, pieces) = cut(config.clone(), members);
                let mut inside = 0;
                for (unit, range) in parameters.iter() {
                    let mut parts: Vec<_> =
                        pieces.iter().filter_map(|piece| piece.parts().get(&unit)).cloned().collect();
                    if unit.tensor.is_vector() || (tied && unit == UnitId::embedding(unit.shard as usize)) {
                        assert_eq!(parts, vec![0..range.len(); members], "{unit}");
                        continue;
                    }
                    parts.sort_by_key(|part| part.start);
                    assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, range.len()), "{unit}");
                    for pair in parts.windows(2) {
                        assert_eq!((pair[0].end, pair[1].start % NORM_BLOCK), (pair[1].start, 0), "{unit}");
                        inside += 1;
                    }
                }
                // Half of the numbers end among the small units between both tables.
                assert_eq!(inside > 0, vocab_size == 9000 && members > 2, "{members} of {vocab_size}");
                let cuts = |cuts: &[usize]| cuts.len() == members + 1 && cuts.is_sorted();
                let first = &pieces[0];
                assert!(cuts(&first.sums) && cuts(&first.parameters), "{members}");
                assert!(cuts(&first.common) && cuts(&first.blocks), "{members}");
            }
        }
    }
}
