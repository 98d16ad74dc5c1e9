//! The sums of a step's gradients on a rank: [`ChunkSums`].
//!
//! A rank has one buffer for its finished gradients, in which chunks of layers lie one after another. What the first
//! data group adds up to is summed there; later groups need memory of their own, of one chunk at a time, until they
//! are added. So a rank with several chunks holds no more than one with as many layers in one. A group that goes through
//! the model at once and is the right one of a pair needs none: its gradients are added to the left one's as they come.

use std::ops::Range;
use std::sync::Arc;

use sixfold_model::{DeviceUnits, GroupSum, GroupTree, Onto, UnitIndex};
use sixfold_tensor::Stream;

/// Adds the data groups of one chunk of layers, given in order, in a balanced binary tree.
pub(crate) struct ChunkSums {
    stream: Stream,
    /// Where the chunk's gradients lie in those of the rank.
    place: Range<usize>,
    /// Adds those groups that make up the next right branch.
    branch: GroupTree,
    /// Groups that are in the rank's gradients.
    groups: usize,
    /// Groups that are in the branch.
    waiting: usize,
    open: Option<Open>,
    /// Of the groups that are in the rank's gradients.
    loss: f32,
}

/// The group under way.
struct Open {
    /// Where it is summed; nothing for the rank's gradients.
    sum: Option<GroupSum>,
    /// How many groups are summed there once it is whole: it alone, or it and the left one of its pair.
    size: usize,
    /// Its own.
    loss: f32,
}

/// Where the gradients and the loss of a pass go.
pub(crate) struct Target<'a> {
    pub(crate) gradients: &'a mut DeviceUnits,
    pub(crate) onto: Onto,
    pub(crate) loss: &'a mut f32,
}

impl ChunkSums {
    /// Sums laid out by `index`, which lie at `place` in the rank's gradients.
    pub(crate) fn new(stream: &Stream, place: Range<usize>, index: UnitIndex) -> Self {
        let branch = GroupTree::new(stream.clone(), Arc::new(index));
        Self { stream: stream.clone(), place, branch, groups: 0, waiting: 0, open: None, loss: 0.0 }
    }

    /// Where the next pass of the group under way goes, which is all of it if it is `whole`. (A pass that holds several
    /// groups, summed, is one here.)
    pub(crate) fn target<'a>(&'a mut self, gradients: &'a mut DeviceUnits, whole: bool) -> Target<'a> {
        let continued = self.open.is_some();
        let Self { open, branch, groups, waiting, .. } = self;
        let Open { sum, size, loss } = open.get_or_insert_with(|| match (*groups, *waiting) {
            (0, _) => Open { sum: None, size: 1, loss: 0.0 },
            (1, 0) if whole => Open { sum: None, size: 2, loss: 0.0 },
            _ => {
                let left = if whole { branch.take_left() } else { None };
                let size = if left.is_some() { 2 } else { 1 };
                Open { sum: Some(left.unwrap_or_else(|| branch.take())), size, loss: 0.0 }
            }
        });
        let onto = match *size {
            _ if continued => Onto::Group,
            1 => Onto::Nothing,
            _ => Onto::Branch,
        };
        let gradients = sum.as_mut().map_or(gradients, |sum| &mut sum.gradients);
        Target { gradients, onto, loss }
    }

    /// The group under way is whole.
    pub(crate) fn end_group(&mut self, gradients: &mut DeviceUnits) {
        let Some(Open { sum, size, loss }) = self.open.take() else { return };
        let Some(mut sum) = sum else {
            self.loss += loss;
            self.groups = size;
            return;
        };
        sum.loss += loss;
        self.branch.push(size, sum);
        self.waiting += 1;
        if self.waiting == self.groups {
            self.add_branch(gradients);
        }
    }

    /// All groups are whole. Returns the sum of their losses; the next group is the first of another step.
    pub(crate) fn finish(&mut self, gradients: &mut DeviceUnits) -> f32 {
        self.add_branch(gradients);
        self.groups = 0;
        std::mem::take(&mut self.loss)
    }

    fn add_branch(&mut self, gradients: &mut DeviceUnits) {
        if let Some(sum) = self.branch.finish() {
            self.stream.add_assign(gradients.slice_mut(self.place.clone()), sum.gradients.view());
            self.loss += sum.loss;
            self.groups += std::mem::take(&mut self.waiting);
            self.branch.give_back(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use sixfold_model::UnitId;
    use sixfold_tensor::Device;

    use super::*;

    /// How many buffers beside the rank's gradients the sums of `count` groups take.
    fn buffers(count: usize, whole: bool) -> usize {
        const NUMBERS: usize = 1024;
        let stream = Device::cpu().stream();
        let index = UnitIndex::new([(UnitId::head(0), NUMBERS)]);
        let mut gradients = DeviceUnits::zeros(&stream, Arc::new(index.clone()));
        let mut sums = ChunkSums::new(&stream, 0..NUMBERS, index);
        for _ in 0..count {
            sums.target(&mut gradients, whole);
            sums.end_group(&mut gradients);
        }
        sums.finish(&mut gradients);
        stream.device().memory_use().used_bytes_max / (NUMBERS * size_of::<f32>()) - 1
    }

    #[test]
    fn a_group_that_comes_at_once_and_is_the_right_one_of_a_pair_takes_no_buffer() {
        for (count, parted, whole) in [(1, 0, 0), (2, 1, 0), (4, 2, 1), (8, 3, 2), (16, 4, 3)] {
            assert_eq!((buffers(count, false), buffers(count, true)), (parted, whole), "{count} groups");
        }
    }

    #[test]
    fn groups_are_added_in_the_tree_beside_other_chunks() {
        let stream = &Device::strict_cpu().stream();
        let groups: Vec<f32> =
            (0..16).map(|group| 1.0 + f32::powi(0.37, group) + f32::powi(2.0, -23)).collect();
        // Gradients of two units, of which the second is the chunk.
        let all = Arc::new(UnitIndex::new([(UnitId::embedding(0), 2), (UnitId::head(0), 1)]));
        for (count, whole) in [1, 2, 4, 8, 16].into_iter().flat_map(|count| [(count, false), (count, true)]) {
            let index = UnitIndex::new([(UnitId::head(0), 1)]);
            let mut tree = GroupTree::new(stream.clone(), Arc::new(index.clone()));
            let mut sums = ChunkSums::new(stream, 2..3, index);
            let mut gradients = DeviceUnits::zeros(stream, all.clone());
            for step in 0..2 {
                stream.fill(gradients.slice_mut(0..2), 7.0);
                for &group in &groups[..count] {
                    let mut expected = tree.take();
                    stream.fill(expected.gradients.view_mut(), group);
                    tree.push(1, GroupSum { loss: group, ..expected });
                    let target = sums.target(&mut gradients, whole);
                    let to = target.gradients.unit_mut(UnitId::head(0));
                    match target.onto {
                        Onto::Nothing => stream.fill(to, group),
                        Onto::Branch if whole => stream.add_assign(to, stream.filled(1, group).view()),
                        onto => panic!("{onto:?} of a group in one pass"),
                    }
                    *target.loss += group;
                    if !whole {
                        assert_eq!(sums.target(&mut gradients, whole).onto, Onto::Group);
                    }
                    sums.end_group(&mut gradients);
                }
                let expected = tree.finish().unwrap();
                let loss = sums.finish(&mut gradients);
                let (all, of_tree) =
                    (stream.to_vec(gradients.view()), stream.to_vec(expected.gradients.view()));
                assert_eq!((loss, all[2]), (expected.loss, of_tree[0]), "{step}");
                assert_eq!(all[..2], [7.0, 7.0]);
                tree.give_back(expected);
            }
        }
    }
}
