//! Gradients of a step, from the sums of one micro-batch after another to one number a parameter.
//!
//! The order of additions is fixed by the job, not by the plan: micro-batches of a data group in
//! order into one buffer; groups in a balanced tree ([`GroupTree`], then the data-parallel
//! ranks); and last, in [`finish`], sequence blocks of norms, copies of key-value heads, and the
//! head with the embedding where they are tied.

use std::sync::Arc;

use sixfold_tensor::{add_assign, tree_sum};

use crate::tensor_group::{GroupError, NOTHING, TensorGroup, sum_shards};
use crate::unit::{Geometry, ModelSlice, Place, Tensor, UnitBuffer, UnitId, UnitIndex};

/// How gradients lie in a buffer while they are summed: as the parameters, but norms once for each
/// sequence block, and the head apart from the embedding even where they are tied.
pub fn gradient_index(geometry: &Geometry, slice: &ModelSlice) -> UnitIndex {
    let blocks = geometry.sharding.logical();
    let mut units: Vec<(UnitId, usize)> = slice
        .units(geometry)
        .into_iter()
        .map(|unit| (unit, geometry.region(unit).len() * if unit.tensor.is_norm() { blocks } else { 1 }))
        .collect();
    if slice.output && geometry.config.tie_word_embeddings {
        let heads = slice.shards.clone().map(UnitId::head);
        units.extend(heads.map(|unit| (unit, geometry.region(unit).len())).filter(|(_, len)| *len > 0));
    }
    UnitIndex::new(units)
}

/// What the micro-batches of one or more data groups add up to.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupSum {
    /// Gradients, laid out by [`gradient_index`].
    pub gradients: UnitBuffer,
    /// Losses of the tokens; zero where the slice has no head.
    pub loss: f32,
}

impl GroupSum {
    /// Nothing yet.
    pub fn zeros(index: Arc<UnitIndex>) -> Self {
        Self { gradients: UnitBuffer::zeros(index), loss: 0.0 }
    }

    fn add(&mut self, right: &Self) {
        add_assign(self.gradients.values_mut(), right.gradients.values());
        self.loss += right.loss;
    }
}

/// Adds the sums of data groups, given in order, in a balanced binary tree, holding at most
/// `log2(groups) + 1` of them.
#[derive(Debug, Default)]
pub struct GroupTree {
    /// Sums not yet merged, each with the number of groups that it holds; sizes fall.
    waiting: Vec<(usize, GroupSum)>,
}

impl GroupTree {
    /// Adds the next group.
    pub fn push(&mut self, group: GroupSum) {
        let (mut size, mut sum) = (1, group);
        while let Some((_, mut left)) = self.waiting.pop_if(|(waiting, _)| *waiting == size) {
            left.add(&sum);
            (size, sum) = (2 * size, left);
        }
        self.waiting.push((size, sum));
    }

    /// The sum, or nothing if no group was given.
    pub fn finish(mut self) -> Option<GroupSum> {
        let (_, mut sum) = self.waiting.pop()?;
        while let Some((_, mut left)) = self.waiting.pop() {
            left.add(&sum);
            sum = left;
        }
        Some(sum)
    }
}

/// Adds what belongs to one parameter but was summed apart. Takes a buffer laid out by
/// [`gradient_index`], already summed over all data groups; returns one laid out as `parameters`.
///
/// # Errors
/// [`GroupError`] if the tensor-parallel group, asked for copies of key-value heads, fails.
pub fn finish(
    geometry: &Geometry,
    slice: &ModelSlice,
    parameters: Arc<UnitIndex>,
    sums: &UnitBuffer,
    group: &mut dyn TensorGroup,
) -> Result<UnitBuffer, GroupError> {
    let mut gradients = UnitBuffer::zeros(parameters);
    for (unit, sum) in sums.iter() {
        match unit.tensor {
            _ if unit.tensor.is_norm() => sum_blocks(sum, gradients.unit_mut(unit)),
            Tensor::Head if geometry.config.tie_word_embeddings => {}
            _ => gradients.unit_mut(unit).copy_from_slice(sum),
        }
    }
    if geometry.config.tie_word_embeddings && slice.input && slice.output {
        for shard in slice.shards.clone() {
            if let Some(head) = sums.get(UnitId::head(shard)) {
                add_assign(gradients.unit_mut(UnitId::embedding(shard)), head);
            }
        }
    }
    if geometry.sharding.has_kv_copies() {
        for layer in slice.layers.clone() {
            for tensor in [Tensor::Key, Tensor::Value] {
                sum_copies(geometry, slice, layer, tensor, &mut gradients, group)?;
            }
        }
    }
    Ok(gradients)
}

/// Adds the sequence blocks of a norm in the tree.
fn sum_blocks(blocks: &[f32], sum: &mut [f32]) {
    let mut blocks = blocks.to_vec();
    let mut leaves: Vec<&mut [f32]> = blocks.chunks_exact_mut(sum.len()).collect();
    tree_sum(&mut leaves);
    sum.copy_from_slice(leaves[0]);
}

/// Gives every copy of a key-value head the sum of the gradients of all its copies.
fn sum_copies(
    geometry: &Geometry,
    slice: &ModelSlice,
    layer: usize,
    tensor: Tensor,
    gradients: &mut UnitBuffer,
    group: &mut dyn TensorGroup,
) -> Result<(), GroupError> {
    let id = |shard: usize| UnitId { place: Place::Layer(layer as u32), tensor, shard: shard as u32 };
    let holds = |shard: usize, head: usize| geometry.sharding.shard(shard).kv_heads.contains(&head);
    let len = geometry.config.head_dim * geometry.config.hidden_size;
    let mut all_heads = Vec::with_capacity(len * geometry.config.num_key_value_heads);
    for head in 0..geometry.config.num_key_value_heads {
        let own = sum_shards(slice.shards.clone(), &mut |shard| {
            Ok::<_, GroupError>(holds(shard, head).then(|| gradients.unit(id(shard)).to_vec()))
        })?;
        all_heads.extend(own.unwrap_or_else(|| vec![NOTHING; len]));
    }
    group.sum(&mut all_heads)?;
    for (head, sum) in all_heads.chunks_exact(len).enumerate() {
        for shard in slice.shards.clone().filter(|shard| holds(*shard, head)) {
            gradients.unit_mut(id(shard)).copy_from_slice(sum);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(value: f32) -> GroupSum {
        let index = UnitIndex::new([(UnitId::FINAL_NORM, 1)]);
        let mut group = GroupSum::zeros(Arc::new(index));
        group.gradients.values_mut()[0] = value;
        GroupSum { loss: value, ..group }
    }

    #[test]
    fn groups_are_added_in_a_balanced_tree() {
        let small = 2.0_f32.powi(-24);
        let mut tree = GroupTree::default();
        [1.0, small, small, small].map(group).into_iter().for_each(|group| tree.push(group));
        assert_eq!(tree.finish(), Some(group(1.0 + 2.0 * small)));
        assert_eq!(GroupTree::default().finish(), None);
    }

    #[test]
    fn blocks_of_a_norm_are_added_in_a_balanced_tree() {
        let small = 2.0_f32.powi(-24);
        let mut sum = [0.0];
        sum_blocks(&[1.0, small, small, small], &mut sum);
        assert_eq!(sum, [1.0 + 2.0 * small]);
    }
}
