//! Gradients of a step, from the sums of one micro-batch after another to one number a parameter.
//!
//! The order of additions is fixed by the job, not by the plan: micro-batches of a data group in
//! order into one buffer; groups in a balanced tree ([`GroupTree`], then the data-parallel
//! ranks); and last, in [`finish`], sequence blocks of norms and biases, logical shards of norms of heads, copies of
//! key-value heads, and the head with the embedding where they are tied.

use std::ops::Range;
use std::sync::Arc;

use sixfold_tensor::{Buffer, Stream, View};

use crate::tensor_group::{GroupError, NOTHING, TensorGroup, sum_shards};
use crate::unit::{Geometry, ModelSlice, Place, Tensor, UnitId, UnitIndex};
use crate::unit_buffer::DeviceUnits;

/// How gradients lie in a buffer while they are summed: as the parameters, but norms and biases once for each
/// sequence block, norms of heads once for each logical shard, of which there are as many, and the head apart from the embedding even where they are tied. A slice at the end
/// of a pipeline has the head alone.
pub fn gradient_index(geometry: &Geometry, slice: &ModelSlice) -> UnitIndex {
    let blocks = geometry.sharding.logical();
    let mut units: Vec<(UnitId, usize)> = slice
        .units(geometry)
        .into_iter()
        .filter(|unit| slice.input || unit.tensor != Tensor::Embedding)
        .map(|unit| (unit, geometry.region(unit).len() * if unit.tensor.is_vector() { blocks } else { 1 }))
        .collect();
    if slice.output && geometry.trains_tied_head() {
        let heads = slice.shards.clone().map(UnitId::head);
        units.extend(heads.map(|unit| (unit, geometry.region(unit).len())).filter(|(_, len)| *len > 0));
    }
    UnitIndex::new(units)
}

/// What the micro-batches of one or more data groups add up to.
#[derive(Debug)]
pub struct GroupSum {
    /// Gradients, laid out by [`gradient_index`].
    pub gradients: DeviceUnits,
    /// Losses of the tokens; zero where the slice has no head.
    pub loss: f32,
}

impl GroupSum {
    fn add(&mut self, stream: &Stream, right: &Self) {
        stream.add_assign(self.gradients.view_mut(), right.gradients.view());
        self.loss += right.loss;
    }
}

/// Adds the sums of data groups, given in order, in a balanced binary tree, holding at most
/// `log2(groups) + 1` of them; it keeps their memory for the next step.
#[derive(Debug)]
pub struct GroupTree {
    stream: Stream,
    index: Arc<UnitIndex>,
    /// Sums not yet merged, each with the number of groups that it holds; sizes fall.
    waiting: Vec<(usize, GroupSum)>,
    free: Vec<GroupSum>,
}

impl GroupTree {
    /// No groups yet, of sums laid out by `index`.
    pub fn new(stream: Stream, index: Arc<UnitIndex>) -> Self {
        Self { stream, index, waiting: Vec::new(), free: Vec::new() }
    }

    /// How the sums are laid out.
    pub fn index(&self) -> &UnitIndex {
        &self.index
    }

    /// Memory for the next group: no loss, and gradients that hold anything.
    pub fn take(&mut self) -> GroupSum {
        match self.free.pop() {
            Some(free) => GroupSum { loss: 0.0, ..free },
            None => GroupSum { gradients: DeviceUnits::zeros(&self.stream, self.index.clone()), loss: 0.0 },
        }
    }

    /// Takes back memory that is no longer needed.
    pub fn give_back(&mut self, sum: GroupSum) {
        self.free.push(sum);
    }

    /// Takes out the group that was given last, if it is the left one of a pair, for the right one to be added to it.
    pub fn take_left(&mut self) -> Option<GroupSum> {
        self.waiting.pop_if(|(size, _)| *size == 1).map(|(_, left)| left)
    }

    /// Adds the next `size` groups, which are summed: one, or a [left](Self::take_left) and a right one.
    pub fn push(&mut self, size: usize, groups: GroupSum) {
        let (mut size, mut sum) = (size, groups);
        while let Some((_, mut left)) = self.waiting.pop_if(|(waiting, _)| *waiting == size) {
            left.add(&self.stream, &sum);
            self.free.push(sum);
            (size, sum) = (2 * size, left);
        }
        self.waiting.push((size, sum));
    }

    /// The sum, or nothing if no group was given; the tree is empty afterwards.
    pub fn finish(&mut self) -> Option<GroupSum> {
        let (_, mut sum) = self.waiting.pop()?;
        while let Some((_, mut left)) = self.waiting.pop() {
            left.add(&self.stream, &sum);
            self.free.push(sum);
            sum = left;
        }
        Some(sum)
    }
}

/// Adds what belongs to one parameter but was summed apart, in place. Takes a buffer laid out by
/// [`gradient_index`], already summed over all data groups; afterwards each parameter's gradient is
/// where [`of_parameter`] finds it. `sequence_parallel` says whether the ranks of `group` have had rows of their own
/// ([`Network::sequence_parallel`](crate::Network::sequence_parallel)).
///
/// # Errors
/// [`GroupError`] if the tensor-parallel group, asked for copies of key-value heads or for sequence blocks, fails.
pub fn finish(
    stream: &Stream,
    geometry: &Geometry,
    slice: &ModelSlice,
    sums: &mut DeviceUnits,
    group: &mut dyn TensorGroup,
    sequence_parallel: bool,
) -> Result<(), GroupError> {
    let is_alone = slice.shards.len() == geometry.sharding.logical();
    // Heads are other ranks' in any case, rows only if the ranks share them.
    let is_shared = |unit: &UnitId| match unit.tensor {
        _ if is_alone => false,
        tensor => tensor.is_head_norm() || (sequence_parallel && tensor.is_whole()),
    };
    let vectors = slice.units(geometry).into_iter().filter(|unit| unit.tensor.is_vector());
    let (shared, own): (Vec<_>, Vec<_>) = vectors.partition(is_shared);
    for unit in own {
        // Sequence blocks or shards, in the tree, into the first of them.
        stream.tree_sum(sums.unit_mut(unit), geometry.region(unit).len());
    }
    if !shared.is_empty() {
        sum_shared_blocks(stream, geometry, slice, &shared, sums, group)?;
    }
    if geometry.trains_tied_head() && slice.input && slice.output {
        for shard in slice.shards.clone() {
            if let Some([embedding, head]) = sums.two_mut(UnitId::embedding(shard), UnitId::head(shard)) {
                stream.add_assign(embedding, head.as_view());
            }
        }
    }
    if geometry.sharding.has_kv_copies() {
        for layer in slice.layers.clone() {
            let tensors = geometry.trained_layer_tensors();
            for tensor in tensors.into_iter().filter(|tensor| tensor.is_key_value()) {
                sum_copies(stream, geometry, slice, (layer, tensor), sums, group)?;
            }
        }
    }
    Ok(())
}

/// Sums the sequence blocks of norms and whole biases, or the logical shards of norms of heads, where each rank has filled in
/// its own: those with the numbers of its shards.
fn sum_shared_blocks(
    stream: &Stream,
    geometry: &Geometry,
    slice: &ModelSlice,
    units: &[UnitId],
    sums: &mut DeviceUnits,
    group: &mut dyn TensorGroup,
) -> Result<(), GroupError> {
    let len = |unit: &UnitId| geometry.region(*unit).len();
    let mut all = stream.uninit(units.iter().map(len).sum());
    let mut rest = all.view_mut();
    for unit in units {
        let len = len(unit);
        let mut blocks = sums.unit_mut(*unit).slice(slice.shards.start * len..slice.shards.end * len);
        stream.tree_sum(blocks.reborrow(), len);
        let (of_unit, after) = rest.split_at(len);
        stream.copy(blocks.as_view().slice(0..len), of_unit);
        rest = after;
    }
    group.sum(stream, all.view_mut())?;
    let mut first = 0;
    for unit in units {
        let last = first + len(unit);
        stream.copy(all.slice(first..last), sums.unit_mut(*unit).slice(0..last - first));
        first = last;
    }
    Ok(())
}

/// Whether [`finish`] leaves the sums of `unit` as they are, one number a parameter, so that they may be summed
/// and updated in parts.
pub fn is_finished_by_sum(geometry: &Geometry, unit: UnitId) -> bool {
    match unit.tensor {
        Tensor::Embedding | Tensor::Head => !geometry.config.tie_word_embeddings,
        tensor if tensor.is_vector() => false,
        tensor => !(tensor.is_key_value() && geometry.sharding.has_kv_copies()),
    }
}

/// The gradient of one parameter, once [`finish`] has summed it. `unit` is one of the slice's.
pub fn of_parameter<'a>(geometry: &Geometry, sums: &'a DeviceUnits, unit: UnitId) -> View<'a> {
    of_unit(sums, unit).slice(0..geometry.region(unit).len())
}

/// The sums that begin with a parameter's gradient. The table of a tied head at the end of a pipeline is
/// a copy of the embedding.
pub(crate) fn of_unit(sums: &DeviceUnits, unit: UnitId) -> View<'_> {
    match sums.get(unit) {
        None if unit.tensor == Tensor::Embedding => sums.unit(UnitId::head(unit.shard as usize)),
        _ => sums.unit(unit),
    }
}

/// Where the sums lie that both ends of a pipeline have to add, where head and embedding are tied: those
/// of the embedding on the first stage, those of the head on the last, of one length.
pub fn tied_sums(slice: &ModelSlice, sums: &UnitIndex) -> Range<usize> {
    let (place, tensor) =
        if slice.input { (Place::Input, Tensor::Embedding) } else { (Place::Output, Tensor::Head) };
    sums.run(place, &[tensor], &slice.shards)
}

/// Gives every copy of a key-value head the sum of the gradients of all its copies.
fn sum_copies(
    stream: &Stream,
    geometry: &Geometry,
    slice: &ModelSlice,
    (layer, tensor): (usize, Tensor),
    gradients: &mut DeviceUnits,
    group: &mut dyn TensorGroup,
) -> Result<(), GroupError> {
    let id = |shard: usize| UnitId { place: Place::Layer(layer as u32), tensor, shard: shard as u32 };
    let holds = |shard: usize, head: usize| geometry.sharding.shard(shard).kv_heads.contains(&head);
    let len = geometry.config.head_dim * geometry.whole(tensor).1;
    let mut all_heads = stream.filled(len * geometry.config.num_key_value_heads, NOTHING);
    let add = |left: &mut Buffer, right: Buffer| stream.add_assign(left.view_mut(), right.view());
    for head in 0..geometry.config.num_key_value_heads {
        let mut leaf =
            |shard| holds(shard, head).then(|| stream.copy_of(gradients.unit(id(shard)).slice(0..len)));
        if let Some(own) = sum_shards(slice.shards.clone(), &mut leaf, &add) {
            stream.copy(own.view(), all_heads.slice_mut(head * len..(head + 1) * len));
        }
    }
    group.sum(stream, all_heads.view_mut())?;
    for head in 0..geometry.config.num_key_value_heads {
        for shard in slice.shards.clone().filter(|shard| holds(*shard, head)) {
            let of_unit = gradients.unit_mut(id(shard)).slice(0..len);
            stream.copy(all_heads.slice(head * len..(head + 1) * len), of_unit);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sixfold_tensor::Device;

    use super::*;

    fn tree() -> GroupTree {
        let stream = Device::cpu().stream();
        GroupTree::new(stream, Arc::new(UnitIndex::new([(UnitId::FINAL_NORM, 1)])))
    }

    fn push(tree: &mut GroupTree, value: f32) {
        let mut group = tree.take();
        assert_eq!(group.loss, 0.0);
        tree.stream.fill(group.gradients.view_mut(), value);
        tree.push(1, GroupSum { loss: value, ..group });
    }

    #[test]
    fn groups_are_added_in_a_balanced_tree_and_memory_is_used_again() {
        let small = 2.0_f32.powi(-24);
        let mut tree = tree();
        for _ in 0..2 {
            [1.0, small, small, small].into_iter().for_each(|group| push(&mut tree, group));
            let sum = tree.finish().unwrap();
            let gradient = tree.stream.to_vec(sum.gradients.view())[0];
            assert_eq!((sum.loss, gradient), (1.0 + 2.0 * small, 1.0 + 2.0 * small));
            tree.give_back(sum);
            assert_eq!((tree.waiting.len(), tree.free.len()), (0, 3));
        }
        assert!(tree.finish().is_none());
    }
}
