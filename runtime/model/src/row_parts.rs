//! Which rows of a micro-batch a rank has between products: [`RowParts`].
//!
//! With sequence parallelism (Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", 2022,
//! section 4.2.2) the ranks of a tensor-parallel group share norms, residuals, dropout and biases after sums: each has the
//! rows of some sequence blocks. A sum over the group ends with a reduce-scatter, and an all-gather comes before the
//! next product. Without it every rank has all rows.
//!
//! Shapes: whole activations are `[sequences][length][d]`, those of a rank `[sequences][own tokens][d]`.

use std::ops::Range;

use sixfold_tensor::{Buffer, Mat, MatMut, Segment, Stream};

use crate::batch::MicroBatch;
use crate::sharding::even_part;
use crate::tensor_group::{GroupError, TensorGroup};
use crate::unit::ModelSlice;

/// The cut of a micro-batch's rows over the ranks of a tensor-parallel group.
///
/// There are as many sequence blocks as logical shards, and a rank has those with the numbers of its shards: an aligned
/// subtree of the sums over blocks. Parts are uneven, or empty, where blocks are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowParts {
    sequences: usize,
    /// Tokens of a sequence.
    length: usize,
    /// Sequence blocks.
    blocks: usize,
    /// Ranks that have a part each.
    ranks: usize,
    /// Which of them this is.
    own: usize,
}

impl RowParts {
    /// The cut for `slice`, whose rank has all rows unless they are `shared`.
    pub(crate) fn new(batch: &MicroBatch, slice: &ModelSlice, blocks: usize, shared: bool) -> Self {
        let shards = slice.shards.len().max(1);
        let (ranks, own) = if shared { (blocks / shards, slice.shards.start / shards) } else { (1, 0) };
        Self { sequences: batch.sequences(), length: batch.length, blocks, ranks, own }
    }

    /// Whether other ranks have other rows.
    pub(crate) fn are_cut(&self) -> bool {
        self.ranks > 1
    }

    /// The sequence blocks of this rank.
    pub(crate) fn own_blocks(&self) -> Range<usize> {
        self.blocks_of(self.own)
    }

    /// The tokens of each sequence whose rows this rank has.
    pub(crate) fn own(&self) -> Range<usize> {
        self.tokens(self.own_blocks())
    }

    /// Rows that this rank has.
    pub(crate) fn own_rows(&self) -> usize {
        self.sequences * self.own().len()
    }

    fn blocks_of(&self, rank: usize) -> Range<usize> {
        even_part(self.blocks, self.ranks, rank)
    }

    /// The tokens of neighbouring sequence blocks.
    fn tokens(&self, blocks: Range<usize>) -> Range<usize> {
        let block = |block| even_part(self.length, self.blocks, block);
        block(blocks.start).start..block(blocks.end - 1).end
    }

    /// The rows of this rank of `whole`, of `width` numbers each.
    pub(crate) fn take_own(&self, stream: &Stream, whole: Buffer, width: usize) -> Buffer {
        if !self.are_cut() {
            return whole;
        }
        let (own, numbers) = (self.own(), self.length * width);
        let mut rows = stream.uninit(self.own_rows() * width);
        let from = Mat::row_major(whole.view(), self.sequences, numbers);
        let to = MatMut::row_major(rows.view_mut(), self.sequences, own.len() * width);
        stream.copy_matrix(from.columns(own.start * width..own.end * width), to);
        rows
    }

    /// The segments of rows that `blocks` of each sequence make; see [`Pass::segments`](crate::pass::Pass::segments).
    pub(crate) fn segments(&self, groups: usize, blocks: Range<usize>) -> Vec<Segment> {
        let tokens = self.tokens(blocks.clone());
        let mut segments = Vec::with_capacity(self.sequences * blocks.len());
        for sequence in 0..self.sequences {
            let group = sequence * groups / self.sequences;
            for block in blocks.clone() {
                let end = self.tokens(block..block + 1).end - tokens.start;
                segments
                    .push(Segment { end: sequence * tokens.len() + end, leaf: group * self.blocks + block });
            }
        }
        segments
    }

    /// The rows of this rank in the sum over the group of what each rank has of all rows.
    pub(crate) fn reduce_scatter(
        &self,
        stream: &Stream,
        group: &mut dyn TensorGroup,
        whole: Buffer,
        width: usize,
    ) -> Result<Buffer, GroupError> {
        let pieces = Pieces::of(self, group, width);
        let mut in_pieces = pieces.cut(stream, whole);
        group.reduce_scatter(stream, in_pieces.view_mut(), &pieces.cuts)?;
        Ok(stream.copy_of(in_pieces.slice(pieces.at(group.piece(self.own)))))
    }

    /// All rows, from those of each rank.
    pub(crate) fn all_gather(
        &self,
        stream: &Stream,
        group: &mut dyn TensorGroup,
        own: Buffer,
        width: usize,
    ) -> Result<Buffer, GroupError> {
        let pieces = Pieces::of(self, group, width);
        let mut in_pieces = stream.uninit(self.sequences * self.length * width);
        stream.copy(own.view(), in_pieces.slice_mut(pieces.at(group.piece(self.own))));
        drop(own);
        group.all_gather(stream, in_pieces.view_mut(), &pieces.cuts)?;
        Ok(pieces.join(stream, in_pieces))
    }
}

/// The parts of all ranks as the pieces of one buffer, in the order in which the group wants them.
struct Pieces {
    sequences: usize,
    /// Numbers of a sequence.
    numbers: usize,
    /// Of each piece, where its numbers lie in a sequence.
    columns: Vec<Range<usize>>,
    /// Where pieces begin and end.
    cuts: Vec<usize>,
    /// Whether whole activations lie in pieces as they are.
    are_in_place: bool,
}

impl Pieces {
    fn of(parts: &RowParts, group: &dyn TensorGroup, width: usize) -> Self {
        let mut columns = vec![0..0; parts.ranks];
        for rank in 0..parts.ranks {
            let tokens = parts.tokens(parts.blocks_of(rank));
            columns[group.piece(rank)] = tokens.start * width..tokens.end * width;
        }
        let mut cuts = vec![0];
        for piece in &columns {
            cuts.push(cuts[cuts.len() - 1] + parts.sequences * piece.len());
        }
        let in_order = columns.is_sorted_by_key(|columns| columns.start);
        let are_in_place = parts.sequences == 1 && in_order;
        Self { sequences: parts.sequences, numbers: parts.length * width, columns, cuts, are_in_place }
    }

    /// Where a piece lies.
    fn at(&self, piece: usize) -> Range<usize> {
        self.cuts[piece]..self.cuts[piece + 1]
    }

    /// The pieces of whole activations.
    fn cut(&self, stream: &Stream, whole: Buffer) -> Buffer {
        if self.are_in_place {
            return whole;
        }
        let mut in_pieces = stream.uninit(whole.len());
        let whole = Mat::row_major(whole.view(), self.sequences, self.numbers);
        for (piece, columns) in self.columns.iter().enumerate() {
            let to = in_pieces.slice_mut(self.at(piece));
            let to = MatMut::row_major(to, self.sequences, columns.len());
            stream.copy_matrix(whole.columns(columns.clone()), to);
        }
        in_pieces
    }

    /// Whole activations from their pieces.
    fn join(&self, stream: &Stream, in_pieces: Buffer) -> Buffer {
        if self.are_in_place {
            return in_pieces;
        }
        let mut whole = stream.uninit(in_pieces.len());
        for (piece, columns) in self.columns.iter().enumerate() {
            let from = Mat::row_major(in_pieces.slice(self.at(piece)), self.sequences, columns.len());
            let to = MatMut::row_major(whole.view_mut(), self.sequences, self.numbers);
            stream.copy_matrix(from, to.columns(columns.clone()));
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sixfold_tensor::{Device, ViewMut};

    use super::*;

    /// A group of which nothing is asked but who has which piece.
    struct Order(Vec<usize>);

    impl TensorGroup for Order {
        fn sum(&mut self, _: &Stream, _: ViewMut<'_>) -> Result<(), GroupError> {
            Ok(())
        }

        fn max(&mut self, _: &Stream, _: ViewMut<'_>) -> Result<(), GroupError> {
            Ok(())
        }

        fn reduce_scatter(&mut self, _: &Stream, _: ViewMut<'_>, _: &[usize]) -> Result<(), GroupError> {
            Ok(())
        }

        fn all_gather(&mut self, _: &Stream, _: ViewMut<'_>, _: &[usize]) -> Result<(), GroupError> {
            Ok(())
        }

        fn piece(&self, index: usize) -> usize {
            self.0[index]
        }
    }

    fn parts(sequences: usize, length: usize, blocks: usize, ranks: usize, own: usize) -> RowParts {
        RowParts { sequences, length, blocks, ranks, own }
    }

    #[test]
    fn a_rank_has_the_blocks_with_the_numbers_of_its_shards() {
        let batch = MicroBatch::of_documents(vec![0; 20], vec![0; 20], 10);
        let slice = ModelSlice { layers: 0..1, input: true, output: true, shards: 2..4 };
        assert_eq!(RowParts::new(&batch, &slice, 4, true), parts(2, 10, 4, 2, 1));
        let whole = RowParts::new(&batch, &slice, 4, false);
        assert_eq!((whole.are_cut(), whole.own(), whole.own_blocks()), (false, 0..10, 0..4));
        let cut = parts(2, 10, 4, 2, 1);
        assert_eq!((cut.are_cut(), cut.own(), cut.own_rows(), cut.own_blocks()), (true, 5..10, 10, 2..4));
        let segments = [(2, 2), (5, 3), (7, 6), (10, 7)].map(|(end, leaf)| Segment { end, leaf });
        assert_eq!(cut.segments(2, cut.own_blocks()), segments);
    }

    proptest! {
        /// Also where there are fewer tokens than blocks, so that some ranks have no rows.
        #[test]
        fn parts_of_any_length_make_up_the_rows_and_their_segments(
            sequences in 1_usize..4, length in 1_usize..40, logical in 0_u32..5, ranks in 0_u32..4,
        ) {
            let (blocks, ranks) = (1 << logical.max(ranks), 1 << ranks);
            let all = parts(sequences, length, blocks, ranks, 0).segments(1, 0..blocks);
            let mut of_ranks = vec![0; blocks];
            let mut end = 0;
            for own in 0..ranks {
                let part = parts(sequences, length, blocks, ranks, own);
                prop_assert_eq!(part.own().start, end);
                end = part.own().end;
                let segments = part.segments(1, part.own_blocks());
                prop_assert_eq!(segments.last().map(|last| last.end), Some(part.own_rows()));
                count(&segments, &mut of_ranks);
            }
            prop_assert_eq!(end, length);
            let mut of_all = vec![0; blocks];
            count(&all, &mut of_all);
            prop_assert_eq!(of_ranks, of_all);
        }

        #[test]
        fn pieces_are_the_rows_of_ranks_and_make_up_the_whole(
            sequences in 1_usize..4, length in 1_usize..20, width in 1_usize..4,
            order in Just((0..4_usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let stream = Device::strict_cpu().stream();
            let rows: Vec<f32> = (0..sequences * length * width).map(|at| at as f32).collect();
            let group = Order(order);
            let pieces = Pieces::of(&parts(sequences, length, 8, 4, 0), &group, width);
            let cut = pieces.cut(&stream, stream.upload(&rows));
            for rank in 0..4 {
                let own = parts(sequences, length, 8, 4, rank).own();
                let of_sequence = |sequence: &[f32]| sequence[own.start * width..own.end * width].to_vec();
                let expected: Vec<f32> = rows.chunks(length * width).flat_map(of_sequence).collect();
                prop_assert_eq!(stream.to_vec(cut.slice(pieces.at(group.piece(rank)))), expected);
            }
            prop_assert_eq!(stream.to_vec(pieces.join(&stream, cut).view()), rows);
        }
    }

    /// Counts the rows of each leaf.
    fn count(segments: &[Segment], rows: &mut [usize]) {
        let mut first = 0;
        for Segment { end, leaf } in segments {
            rows[*leaf] += end - first;
            first = *end;
        }
    }
}
