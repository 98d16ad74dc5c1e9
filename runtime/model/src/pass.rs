//! What every layer needs while a micro-batch goes through: [`Pass`], and the [`Work`] it counts.

use serde::{Deserialize, Serialize};
use sixfold_tensor::{Buffer, Counter, IndexBuffer, Purpose, RopeTable, Segment, Stream, ViewMut};

use crate::batch::{MicroBatch, StepSeed};
use crate::frozen::Parameters;
use crate::layer::Recompute;
use crate::packed::PackedWeights;
use crate::row_parts::RowParts;
use crate::site::{Part, Site};
use crate::tensor_group::{GroupError, NOTHING, TensorGroup, sum_shards};
use crate::unit::{Geometry, ModelSlice};
use crate::unit_buffer::DeviceUnits;

/// Floating-point operations that a rank has really done, counted at the calls of the kernels.
/// Norms, activations and look-ups are not matrix work and are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Projections of the decoder layers.
    pub projections: u64,
    /// Key and value projections that several logical shards do alike, for copies of a head.
    pub kv_copies: u64,
    /// Attention: scores and weighted values.
    pub attention: u64,
    /// The head.
    pub head: u64,
    /// Adapters.
    pub adapters: u64,
}

impl Work {
    /// All of it.
    pub fn flops(&self) -> u64 {
        self.projections + self.kv_copies + self.attention + self.head + self.adapters
    }
}

/// One micro-batch on its way through a slice of the model.
pub(crate) struct Pass<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) geometry: &'a Geometry,
    pub(crate) slice: &'a ModelSlice,
    /// Of families with rotary positions.
    pub(crate) rope: Option<&'a RopeTable>,
    pub(crate) recompute: Recompute,
    /// Of the model, or of the one beside which adapters lie.
    pub(crate) parameters: Parameters<'a>,
    pub(crate) adapters: Option<&'a DeviceUnits>,
    pub(crate) weights: &'a PackedWeights,
    pub(crate) batch: &'a MicroBatch,
    /// Which of the batch's rows this rank has between products.
    pub(crate) parts: RowParts,
    /// The batch's tokens.
    pub(crate) tokens: IndexBuffer,
    /// The batch's targets.
    pub(crate) targets: IndexBuffer,
    /// The position of each row in its document.
    pub(crate) positions: IndexBuffer,
    pub(crate) seed: StepSeed,
    pub(crate) group: &'a mut dyn TensorGroup,
    pub(crate) work: &'a mut Work,
}

impl Pass<'_> {
    /// Width of the residual stream.
    pub(crate) fn width(&self) -> usize {
        self.geometry.config.hidden_size
    }

    /// Tells the group where in the step the pass is.
    pub(crate) fn enter(&mut self, backward: bool, part: Part) {
        self.group.enter(Site { first_sample: self.batch.first_sample, backward, part });
    }

    /// Products that the backward pass does with each weight: one for what it reads, and one for its own gradient where that
    /// is wanted.
    pub(crate) fn backward_products(&self) -> u64 {
        if self.geometry.lora.is_some() { 1 } else { 2 }
    }

    /// Tokens of the micro-batch.
    pub(crate) fn rows(&self) -> usize {
        self.batch.tokens.len()
    }

    /// Leaves of sums that are kept by data group and sequence block; see [`Self::segments`].
    pub(crate) fn leaves(&self) -> usize {
        self.batch.groups * self.geometry.sharding.logical()
    }

    /// Adds what `leaf` computes for each logical shard: own shards here, the rest of the tree in
    /// the group. `len` is the length of a leaf.
    pub(crate) fn sum(
        &mut self,
        len: usize,
        leaf: impl FnMut(&mut Self, usize) -> Option<Buffer>,
    ) -> Result<Buffer, GroupError> {
        let mut partial = self.partial_sum(len, leaf);
        self.group.sum(self.stream, partial.view_mut())?;
        Ok(partial)
    }

    /// As [`Self::sum`], without the group.
    pub(crate) fn partial_sum(
        &mut self,
        len: usize,
        mut leaf: impl FnMut(&mut Self, usize) -> Option<Buffer>,
    ) -> Buffer {
        let stream = self.stream;
        let add = |left: &mut Buffer, right: Buffer| stream.add_assign(left.view_mut(), right.view());
        let own = sum_shards(self.slice.shards.clone(), &mut |shard| leaf(self, shard), &add);
        own.unwrap_or_else(|| stream.filled(len, NOTHING))
    }

    /// The sum over the group of each rank's `partial` (`[rows, d]`): those rows of it that this rank has.
    pub(crate) fn sum_rows(&mut self, mut partial: Buffer) -> Result<Buffer, GroupError> {
        if self.parts.are_cut() {
            let width = self.width();
            return self.parts.reduce_scatter(self.stream, self.group, partial, width);
        }
        self.group.sum(self.stream, partial.view_mut())?;
        Ok(partial)
    }

    /// The rows that all ranks have, from those that this rank has.
    pub(crate) fn all_rows(&mut self, own: Buffer) -> Result<Buffer, GroupError> {
        if !self.parts.are_cut() {
            return Ok(own);
        }
        let width = self.width();
        self.parts.all_gather(self.stream, self.group, own, width)
    }

    /// Sets elements of the rows `x` that this rank has (`[own rows, d]`) to zero at random and scales the others up.
    /// Calling it on a gradient with the same arguments is the backward pass.
    pub(crate) fn dropout(&self, x: ViewMut<'_>, layer: usize, purpose: Purpose) {
        let first = self.parts.own().start * self.width();
        self.drop_elements(x, first, (layer, purpose), self.seed.dropout);
    }

    /// As [`Self::dropout`], before an adapter, of rows that begin at token `first_token` of each sequence.
    pub(crate) fn adapter_dropout(&self, x: ViewMut<'_>, first_token: usize, layer: usize, purpose: Purpose) {
        self.drop_elements(x, first_token * self.width(), (layer, purpose), self.seed.adapter_dropout);
    }

    /// Drops elements of `x`, as many of each sequence, of which the first has the number `first` in its sequence.
    pub(crate) fn drop_elements(
        &self,
        mut x: ViewMut<'_>,
        first: usize,
        (layer, purpose): (usize, Purpose),
        probability: f32,
    ) {
        if probability == 0.0 {
            return;
        }
        let per_sequence = x.len() / self.batch.sequences();
        for sequence in 0..self.batch.sequences() {
            let sample = self.batch.first_sample + sequence as u64;
            let random = Counter::new(self.seed.seed, self.seed.step, sample, layer as u32, purpose);
            let elements = x.reborrow().slice(sequence * per_sequence..(sequence + 1) * per_sequence);
            self.stream.dropout(elements, &random, first as u64, probability);
        }
    }

    /// The sequence blocks of all rows, with the leaf of a sum over rows to which each belongs. Leaves are data groups,
    /// and within a group sequence blocks.
    pub(crate) fn segments(&self) -> Vec<Segment> {
        self.parts.segments(self.batch.groups, 0..self.geometry.sharding.logical())
    }

    /// As [`Self::segments`], of the rows that this rank has.
    pub(crate) fn own_segments(&self) -> Vec<Segment> {
        self.parts.segments(self.batch.groups, self.parts.own_blocks())
    }
}
