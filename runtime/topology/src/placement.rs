//! Which node holds which rank, and why: [`place`], a pure function.
//!
//! Tensor-parallel groups exchange several sums a layer, so a group is kept on one host while a
//! host has room for it. Otherwise ranks go where the most cores are idle, and among equals where
//! the job has the fewest ranks, first by failure domain, then by node.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plan::ParallelPlan;
use crate::rank::Rank;

/// What a node offers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeResources {
    /// The node's name, unique.
    pub name: String,
    /// Nodes with the same host share a machine.
    pub host: String,
    /// Nodes with the same domain fail together.
    pub failure_domain: String,
    /// CPU cores; zero counts as one.
    pub cores: u32,
    /// Memory that is free, in bytes.
    pub memory_bytes: u64,
    /// Threads of what already runs there.
    pub running: u32,
}

/// What one rank needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankNeeds {
    /// Memory of the largest rank, in bytes; zero where it is not known.
    pub memory_bytes: u64,
    /// Threads that a rank keeps busy; zero counts as one.
    pub threads: u32,
}

/// A node for every rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Index into the nodes given to [`place`], by rank.
    pub nodes: Vec<usize>,
    /// One sentence for a person, by rank.
    pub reasons: Vec<String>,
}

/// The ranks cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// There are no nodes at all.
    #[error("there is no node to place {ranks} ranks on")]
    NoNodes {
        /// Ranks of the plan.
        ranks: usize,
    },
    /// No node has the memory.
    #[error("no node has {needed_bytes} bytes of memory left for {rank}; the most is {most_bytes}")]
    NoRoom {
        /// The rank that found no place.
        rank: Rank,
        /// Memory that it needs.
        needed_bytes: u64,
        /// The most memory that a node has left.
        most_bytes: u64,
    },
}

/// Places the ranks of `plan` on `nodes`. The result depends on the arguments alone, and not on
/// the order of the nodes beyond the indices.
///
/// # Errors
/// [`PlacementError`] where there are no nodes, or too little memory.
pub fn place(
    plan: &ParallelPlan,
    needs: RankNeeds,
    nodes: &[NodeResources],
) -> Result<Placement, PlacementError> {
    let ranks = plan.world_size();
    if nodes.is_empty() {
        return Err(PlacementError::NoNodes { ranks });
    }
    let mut board = Board { needs, nodes, placed: vec![0; nodes.len()] };
    let mut placement = Placement { nodes: Vec::with_capacity(ranks), reasons: Vec::with_capacity(ranks) };
    for first in (0..ranks as u32).step_by(plan.tensor_parallel).map(Rank) {
        let group = plan.tensor_group(first);
        let host = board.best_host(group.len() as u64);
        for rank in group {
            let Some(node) = board.best_node(host) else {
                let most_bytes = (0..nodes.len()).map(|node| board.free_bytes(node)).max().unwrap_or(0);
                return Err(PlacementError::NoRoom { rank, needed_bytes: needs.memory_bytes, most_bytes });
            };
            placement.reasons.push(board.explain(plan, rank, node, host));
            placement.nodes.push(node);
            board.placed[node] += 1;
        }
    }
    Ok(placement)
}

/// The nodes while ranks are being placed on them.
struct Board<'a> {
    needs: RankNeeds,
    nodes: &'a [NodeResources],
    /// Ranks of this job already placed, by node.
    placed: Vec<u32>,
}

impl<'a> Board<'a> {
    fn free_bytes(&self, node: usize) -> u64 {
        let taken = self.needs.memory_bytes.saturating_mul(u64::from(self.placed[node]));
        self.nodes[node].memory_bytes.saturating_sub(taken)
    }

    /// How many more ranks fit.
    fn room(&self, node: usize) -> u64 {
        self.free_bytes(node).checked_div(self.needs.memory_bytes).unwrap_or(u64::MAX)
    }

    fn cores(&self, node: usize) -> u64 {
        u64::from(self.nodes[node].cores.max(1))
    }

    /// Threads of a rank.
    fn threads(&self) -> u64 {
        u64::from(self.needs.threads.max(1))
    }

    /// Threads that are busy.
    fn busy(&self, node: usize) -> u64 {
        u64::from(self.nodes[node].running) + u64::from(self.placed[node]) * self.threads()
    }

    fn members(&self, host: &'a str) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(move |node| self.nodes[*node].host == host)
    }

    /// The host with the most idle cores among those that have room for a whole group.
    fn best_host(&self, group: u64) -> Option<&'a str> {
        let mut loads: BTreeMap<&str, Load> = BTreeMap::new();
        for (node, about) in self.nodes.iter().enumerate() {
            let load = loads.entry(&about.host).or_default();
            load.busy += self.busy(node);
            load.cores += self.cores(node);
            load.room = load.room.saturating_add(self.room(node));
            load.of_job += u64::from(self.placed[node]);
        }
        let fits = loads.into_iter().filter(|(_, load)| load.room >= group);
        let more = group * self.threads();
        fits.min_by(|a, b| a.1.compare(&b.1, more).then(a.1.of_job.cmp(&b.1.of_job))).map(|(host, _)| host)
    }

    /// The node with the most idle cores, on `host` if there is one that fits the whole group.
    fn best_node(&self, host: Option<&'a str>) -> Option<usize> {
        let inside = |node: &usize| host.is_none_or(|host| self.nodes[*node].host == host);
        let in_domain = |node: usize| -> u32 {
            let same = |other: &usize| self.nodes[*other].failure_domain == self.nodes[node].failure_domain;
            (0..self.nodes.len()).filter(same).map(|other| self.placed[other]).sum()
        };
        (0..self.nodes.len()).filter(inside).filter(|node| self.room(*node) >= 1).min_by(|a, b| {
            let load =
                |node: usize| Load { busy: self.busy(node), cores: self.cores(node), ..Load::default() };
            (load(*a).compare(&load(*b), self.threads()))
                .then_with(|| in_domain(*a).cmp(&in_domain(*b)))
                .then_with(|| self.placed[*a].cmp(&self.placed[*b]))
                .then_with(|| self.nodes[*a].name.cmp(&self.nodes[*b].name))
        })
    }

    fn explain(&self, plan: &ParallelPlan, rank: Rank, node: usize, host: Option<&'a str>) -> String {
        let about = &self.nodes[node];
        let choices = match host {
            Some(host) => self.members(host).count(),
            None => self.nodes.len(),
        };
        let group = match (plan.tensor_parallel, host) {
            (1, _) => "it needs no tensor-parallel peers near".to_owned(),
            (size, Some(host)) => format!("its tensor-parallel group of {size} is together on host {host}"),
            (size, None) => format!("no host has memory for its tensor-parallel group of {size}"),
        };
        format!(
            "{rank} ({}) on {}: {group}; of {choices} node(s) to choose from it had the lightest load, \
             {} of {} core(s) busy",
            plan.coordinates(rank),
            about.name,
            self.busy(node),
            self.cores(node),
        )
    }
}

/// Work and capacity of a host or node.
#[derive(Default)]
struct Load {
    busy: u64,
    cores: u64,
    room: u64,
    of_job: u64,
}

impl Load {
    /// Compares busy threads a core after `more` have come, as fractions without division.
    fn compare(&self, other: &Self, more: u64) -> Ordering {
        let left = u128::from(self.busy + more) * u128::from(other.cores);
        left.cmp(&(u128::from(other.busy + more) * u128::from(self.cores)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn node(name: &str, host: &str, cores: u32, running: u32) -> NodeResources {
        NodeResources {
            name: name.into(),
            host: host.into(),
            failure_domain: name.into(),
            cores,
            memory_bytes: 8 * GIB,
            running,
        }
    }

    fn needs(memory_bytes: u64) -> RankNeeds {
        RankNeeds { memory_bytes, ..RankNeeds::default() }
    }

    fn placed(plan: &str, memory_bytes: u64, nodes: &[NodeResources]) -> Vec<usize> {
        place(&plan.parse().unwrap(), needs(memory_bytes), nodes).unwrap().nodes
    }

    #[test]
    fn four_equal_nodes_of_one_host_get_a_rank_each() {
        let nodes = ["a", "b", "c", "d"].map(|name| node(name, "h", 2, 0));
        let mut all = placed("tp2·pp2", GIB, &nodes);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
    }

    #[test]
    fn a_tensor_group_stays_on_one_host() {
        let nodes = [node("a", "h1", 4, 0), node("b", "h2", 4, 0)];
        assert_eq!(placed("tp2·pp2", GIB, &nodes), [0, 0, 1, 1]);
    }

    #[test]
    fn a_tensor_group_is_split_only_where_no_host_has_room() {
        let nodes = [node("a", "h1", 4, 0), node("b", "h2", 4, 0)];
        assert_eq!(placed("tp2", 5 * GIB, &nodes), [0, 1]);
        let plan: ParallelPlan = "tp2".parse().unwrap();
        let placement = place(&plan, needs(5 * GIB), &nodes).unwrap();
        assert!(placement.reasons[0].contains("no host has memory"), "{}", placement.reasons[0]);
    }

    #[test]
    fn busy_nodes_get_fewer_ranks() {
        let nodes = [node("a", "h1", 2, 2), node("b", "h2", 2, 0), node("c", "h3", 4, 0)];
        assert_eq!(placed("dp4", 0, &nodes), [2, 1, 2, 2]);
    }

    #[test]
    fn ranks_of_many_threads_fill_nodes_up_before_they_crowd_one() {
        let nodes = [node("a", "h1", 4, 3), node("b", "h2", 6, 0)];
        let needs = RankNeeds { memory_bytes: 0, threads: 3 };
        let placement = place(&"pp2".parse().unwrap(), needs, &nodes).unwrap();
        assert_eq!(placement.nodes, [1, 1]);
    }

    #[test]
    fn says_that_memory_is_short() {
        let error = place(&ParallelPlan::SERIAL, needs(9 * GIB), &[node("a", "h", 1, 0)]).unwrap_err();
        assert_eq!(
            error,
            PlacementError::NoRoom { rank: Rank(0), needed_bytes: 9 * GIB, most_bytes: 8 * GIB }
        );
        let none = place(&ParallelPlan::SERIAL, RankNeeds::default(), &[]);
        assert_eq!(none, Err(PlacementError::NoNodes { ranks: 1 }));
    }

    #[test]
    fn explains_every_rank() {
        let nodes = [node("a", "h1", 4, 0), node("b", "h1", 4, 1)];
        let placement = place(&"tp2".parse().unwrap(), RankNeeds::default(), &nodes).unwrap();
        assert_eq!(
            placement.reasons[0],
            "rank 0 (data 0, pipeline stage 0, tensor 0) on a: its tensor-parallel group of 2 is together on host h1; \
             of 2 node(s) to choose from it had the lightest load, 0 of 4 core(s) busy"
        );
    }

    proptest! {
        #[test]
        fn result_does_not_depend_on_the_order_of_nodes_and_is_even(
            count in 1_usize..7, hosts in 1_usize..4, data in 0_u32..3, tensor in 0_u32..3, turn in 0_usize..7,
        ) {
            let plan = ParallelPlan { data_parallel: 1 << data, tensor_parallel: 1 << tensor, pipeline_parallel: 2 };
            let nodes: Vec<_> =
                (0..count).map(|index| node(&format!("n{index}"), &format!("h{}", index % hosts), 2, 0)).collect();
            let mut turned = nodes.clone();
            turned.rotate_left(turn % count);
            let names = |nodes: &[NodeResources]| -> Vec<String> {
                let placement = place(&plan, RankNeeds::default(), nodes).unwrap();
                placement.nodes.iter().map(|node| nodes[*node].name.clone()).collect()
            };
            prop_assert_eq!(names(&nodes), names(&turned));
            let placement = place(&plan, RankNeeds::default(), &nodes).unwrap();
            prop_assert_eq!(placement.nodes.len(), plan.world_size());
            for first in (0..plan.world_size()).step_by(plan.tensor_parallel) {
                let group = &placement.nodes[first..first + plan.tensor_parallel];
                prop_assert!(group.iter().all(|node| nodes[*node].host == nodes[group[0]].host));
            }
            if hosts == 1 {
                let mut held = vec![0; count];
                placement.nodes.iter().for_each(|node| held[*node] += 1);
                prop_assert!(held.iter().max().unwrap() - held.iter().min().unwrap() <= 1);
            }
        }
    }
}
