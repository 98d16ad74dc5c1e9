//! The links of one rank, sorted by what they are for: [`RankLinks`].

use std::collections::HashMap;
use std::time::Duration;

use sixfold_collective::{Kind, PointToPoint, TreeGroup};
use sixfold_tensor::{Stream, View, ViewMut};
use sixfold_topology::{ParallelPlan, Rank};
use sixfold_transport::link::{LinkError, TensorLink};

use crate::error::PlaceError;
use crate::group::ModelGroup;
use crate::profile::Spending;

/// A rank's links to the ranks that it exchanges tensors with.
///
/// Two ranks that differ in one coordinate share at most one group, so there is one link for each
/// peer, and it serves one purpose. A pipeline is a ring: its ends, too, have a link to each other.
pub struct RankLinks {
    /// The ranks that own the other logical shards of the same layers.
    pub(crate) tensor: ModelGroup,
    /// The ranks that own the same units and work on other data groups.
    pub(crate) data: TreeGroup,
    /// The pipeline stage before.
    pub(crate) previous: Option<PointToPoint>,
    /// The pipeline stage after.
    pub(crate) next: Option<PointToPoint>,
    /// At the ends of a pipeline of more than two stages: the other end.
    across: Option<PointToPoint>,
    /// What collectives have taken, but for those of [`ModelGroup`].
    pub(crate) spending: Spending,
}

impl RankLinks {
    /// The ranks that `rank` needs a link to: its partners in the trees of its tensor-parallel and
    /// data-parallel groups, the neighbouring pipeline stages, and at an end the other end.
    pub fn peers(plan: &ParallelPlan, rank: Rank) -> Vec<Rank> {
        let groups = [plan.tensor_group(rank), plan.data_group(rank)];
        let partners = groups.iter().flat_map(|members| partners(members, rank));
        partners.chain(neighbours(plan, rank).into_iter().flatten()).chain(other_end(plan, rank)).collect()
    }

    /// Sorts the links of `rank`, one to each of its [`peers`](Self::peers).
    ///
    /// # Errors
    /// [`PlaceError::Link`] names a peer to which there is no link.
    pub fn new(
        plan: &ParallelPlan,
        rank: Rank,
        mut links: HashMap<Rank, Box<dyn TensorLink>>,
    ) -> Result<Self, PlaceError> {
        let mut take = |peer: Rank| links.remove(&peer).ok_or(PlaceError::Link { rank, peer });
        let mut group = |members: Vec<Rank>| {
            let links = partners(&members, rank).into_iter().map(&mut take).collect::<Result<_, _>>()?;
            let index = members.iter().position(|member| *member == rank).unwrap_or(0);
            TreeGroup::new(index, links).map_err(|_| PlaceError::Degree { members: members.len() })
        };
        let tensor = ModelGroup::new(group(plan.tensor_group(rank))?);
        let data = group(plan.data_group(rank))?;
        let [previous, next] = neighbours(plan, rank);
        let mut stage = |peer: Option<Rank>| peer.map(|peer| take(peer).map(PointToPoint::new)).transpose();
        let (previous, next) = (stage(previous)?, stage(next)?);
        let across = stage(other_end(plan, rank))?;
        Ok(Self { tensor, data, previous, next, across, spending: Spending::default() })
    }

    /// The link between both ends of a pipeline, on either of them.
    pub(crate) fn other_end(&mut self) -> Option<&mut PointToPoint> {
        match (&mut self.across, &mut self.previous, &mut self.next) {
            (Some(across), ..) => Some(across),
            (None, Some(only), None) | (None, None, Some(only)) => Some(only),
            _ => None,
        }
    }

    /// Where activations come from: the stage before, for the first one the last, whose chunk is the one before.
    pub(crate) fn before(&mut self) -> Option<&mut PointToPoint> {
        if self.previous.is_some() { self.previous.as_mut() } else { self.other_end() }
    }

    /// Where activations go: the stage after, for the last one the first, whose chunk is the next one.
    pub(crate) fn after(&mut self) -> Option<&mut PointToPoint> {
        if self.next.is_some() { self.next.as_mut() } else { self.other_end() }
    }

    fn pipeline(&self) -> impl Iterator<Item = &PointToPoint> {
        [&self.previous, &self.next, &self.across].into_iter().flatten()
    }

    /// Bytes that the rank has sent over all of them.
    pub fn bytes_sent(&self) -> u64 {
        let pipeline: u64 = self.pipeline().map(PointToPoint::bytes_sent).sum();
        self.tensor.tree.bytes_sent() + self.data.bytes_sent() + pipeline
    }

    /// How long the rank has waited for others over all of them.
    pub(crate) fn waited(&self) -> Duration {
        self.tensor.tree.waited() + self.data.waited() + self.waited_for_pipeline()
    }

    /// How long the rank has waited for other stages of its pipeline.
    pub(crate) fn waited_for_pipeline(&self) -> Duration {
        self.pipeline().map(PointToPoint::waited).sum()
    }

    /// Bytes that the rank would have sent if its sums had gone around rings.
    pub(crate) fn ring_bytes(&self) -> u64 {
        let pipeline: u64 = self.pipeline().map(PointToPoint::bytes_sent).sum();
        self.tensor.tree.ring_bytes() + self.data.ring_bytes() + pipeline
    }
}

/// Hands numbers of a device over to `link`.
pub(crate) fn send(
    stream: &Stream,
    link: &mut PointToPoint,
    kind: Kind,
    values: View<'_>,
) -> Result<(), LinkError> {
    link.send(kind, stream.to_vec(values))
}

/// Receives numbers for a device.
pub(crate) fn receive(
    stream: &Stream,
    link: &mut PointToPoint,
    kind: Kind,
    values: ViewMut<'_>,
) -> Result<(), LinkError> {
    stream.with_host(values, |values| link.receive(kind, values))
}

/// The members of a group that `rank` needs links to, in the order of the tree's levels.
fn partners(members: &[Rank], rank: Rank) -> Vec<Rank> {
    let index = members.iter().position(|member| *member == rank).unwrap_or(0);
    TreeGroup::partners_of(index, members.len()).filter_map(|member| members.get(member).copied()).collect()
}

/// The ranks before and after `rank` in its pipeline.
fn neighbours(plan: &ParallelPlan, rank: Rank) -> [Option<Rank>; 2] {
    let stages = plan.pipeline_group(rank);
    let stage = plan.coordinates(rank).pipeline;
    [stage.checked_sub(1), Some(stage + 1)].map(|stage| stages.get(stage?).copied())
}

/// The other end of the pipeline of `rank`, where it is an end and the other is not its neighbour.
fn other_end(plan: &ParallelPlan, rank: Rank) -> Option<Rank> {
    let stages = plan.pipeline_group(rank);
    let [first, _, .., last] = stages[..] else { return None };
    match rank {
        _ if stages.len() < 3 => None,
        rank if rank == first => Some(last),
        rank if rank == last => Some(first),
        _ => None,
    }
}
