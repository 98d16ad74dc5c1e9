//! The best plan for what is left of a cluster: [`fit`], a pure function.
//!
//! A plan that is fitted splits nothing more ways than the wanted one, so that whoever chose the degrees
//! (for memory, for links, for the shape of the model) is not surprised by others.

use std::collections::BTreeMap;

use crate::plan::{JobShape, ParallelPlan};

/// How many ranks a node takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Nodes with the same host share a machine.
    pub host: String,
    /// Ranks that have a place of their own there.
    pub ranks: usize,
}

/// The best plan for a job on these nodes: `wanted` itself where there is a slot for each of its ranks. Else the one
/// with the most ranks, whose tensor-parallel groups stay on one host each; among equals the one that leaves the least
/// of the model to a rank, that is, data-parallel replicas are given up first, then pipeline stages. None where
/// there is no slot at all, or `wanted` does not fit the job.
///
/// More slots never give a plan of fewer ranks.
pub fn fit(wanted: &ParallelPlan, job: &JobShape, slots: &[Slots]) -> Option<ParallelPlan> {
    wanted.validate(job).ok()?;
    if total(slots) >= wanted.world_size() {
        return Some(*wanted);
    }
    let fits = |plan: &ParallelPlan| plan.validate(job).is_ok() && has_room(plan, slots);
    let rank = |plan: &ParallelPlan| {
        let share = plan.tensor_parallel * plan.pipeline_parallel;
        (plan.world_size(), share, plan.tensor_parallel)
    };
    within(wanted).filter(fits).max_by_key(rank)
}

/// Whether each rank of a plan has a slot, with each tensor-parallel group on one host.
pub fn has_room(plan: &ParallelPlan, slots: &[Slots]) -> bool {
    let mut hosts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in slots {
        let host = hosts.entry(&node.host).or_default();
        *host = host.saturating_add(node.ranks);
    }
    let groups = hosts.values().map(|ranks| ranks / plan.tensor_parallel.max(1));
    groups.fold(0, usize::saturating_add) >= plan.data_parallel * plan.pipeline_parallel
}

fn total(slots: &[Slots]) -> usize {
    slots.iter().fold(0, |sum, node| sum.saturating_add(node.ranks))
}

/// All plans with no degree above that of `wanted`.
fn within(wanted: &ParallelPlan) -> impl Iterator<Item = ParallelPlan> {
    let (data, tensor, pipeline) = (wanted.data_parallel, wanted.tensor_parallel, wanted.pipeline_parallel);
    (1..=data).flat_map(move |data| {
        (1..=tensor).flat_map(move |tensor| {
            (1..=pipeline).map(move |pipeline| ParallelPlan {
                data_parallel: data,
                tensor_parallel: tensor,
                pipeline_parallel: pipeline,
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::placement::{NodeResources, RankNeeds, place};

    const JOB: JobShape = JobShape { layers: 6, tensor_shards: 4, data_groups: 8 };

    fn slots(hosts: &[(&str, usize)]) -> Vec<Slots> {
        hosts.iter().map(|(host, ranks)| Slots { host: (*host).to_owned(), ranks: *ranks }).collect()
    }

    fn fitted(wanted: &str, hosts: &[(&str, usize)]) -> Option<String> {
        fit(&wanted.parse().unwrap(), &JOB, &slots(hosts)).map(|plan| plan.to_string())
    }

    #[test]
    fn replicas_are_given_up_before_the_model_is_split_less() {
        for (wanted, hosts, expected) in [
            ("dp2·tp2·pp2", &[("a", 4), ("b", 4)][..], "dp2·tp2·pp2"),
            ("dp2·tp2·pp2", &[("a", 4), ("b", 3)], "dp1·tp2·pp2"),
            ("dp2·tp2·pp2", &[("a", 3)], "dp1·tp2·pp1"),
            ("dp4", &[("a", 1), ("b", 1), ("c", 1)], "dp2·tp1·pp1"),
            ("pp4", &[("a", 1), ("b", 1), ("c", 1)], "dp1·tp1·pp3"),
            ("tp4", &[("a", 1)], "dp1·tp1·pp1"),
        ] {
            assert_eq!(fitted(wanted, hosts).as_deref(), Some(expected), "{wanted} on {hosts:?}");
        }
    }

    #[test]
    fn a_tensor_group_is_not_torn_apart_for_more_ranks() {
        assert_eq!(fitted("dp2·tp4", &[("a", 2), ("b", 2), ("c", 2)]).as_deref(), Some("dp2·tp2·pp1"));
        assert_eq!(fitted("tp2·pp2", &[("a", 1), ("b", 1)]).as_deref(), Some("dp1·tp1·pp2"));
        // Whoever wants it so, and has a slot for each rank, gets it.
        assert_eq!(fitted("tp2", &[("a", 1), ("b", 1)]).as_deref(), Some("dp1·tp2·pp1"));
    }

    #[test]
    fn nodes_of_one_host_are_one_machine() {
        assert_eq!(fitted("dp2·tp2", &[("a", 1), ("a", 1), ("b", 1)]).as_deref(), Some("dp1·tp2·pp1"));
    }

    #[test]
    fn there_is_no_plan_without_a_slot_or_for_another_job() {
        assert_eq!(fitted("dp2", &[]), None);
        assert_eq!(fitted("dp2", &[("a", 0)]), None);
        assert_eq!(fitted("tp8", &[("a", 8)]), None);
    }

    fn clusters() -> impl Strategy<Value = Vec<Slots>> {
        let node =
            (0_usize..4, 0_usize..6).prop_map(|(host, ranks)| Slots { host: format!("h{host}"), ranks });
        prop::collection::vec(node, 0..6)
    }

    fn wanted() -> impl Strategy<Value = ParallelPlan> {
        (0_u32..4, 0_u32..3, 1_usize..7).prop_map(|(data, tensor, pipeline)| ParallelPlan {
            data_parallel: 1 << data,
            tensor_parallel: 1 << tensor,
            pipeline_parallel: pipeline,
        })
    }

    proptest! {
        #[test]
        fn is_valid_has_a_slot_for_each_rank_and_keeps_groups_together(wanted in wanted(), cluster in clusters()) {
            let plan = fit(&wanted, &JOB, &cluster);
            prop_assert_eq!(plan.is_none(), total(&cluster) == 0);
            if let Some(plan) = plan {
                prop_assert_eq!(plan.validate(&JOB), Ok(()));
                prop_assert!(plan.world_size() <= total(&cluster));
                prop_assert!(plan == wanted || has_room(&plan, &cluster));
                prop_assert!(plan.data_parallel <= wanted.data_parallel);
                prop_assert!(plan.tensor_parallel <= wanted.tensor_parallel);
                prop_assert!(plan.pipeline_parallel <= wanted.pipeline_parallel);
            }
        }

        #[test]
        fn more_slots_never_give_fewer_ranks(
            wanted in wanted(), cluster in clusters(), more in clusters(), grown in 0_usize..6,
        ) {
            let ranks = |cluster: &[Slots]| fit(&wanted, &JOB, cluster).map_or(0, |plan| plan.world_size());
            let mut larger = cluster.clone();
            if let Some(node) = larger.get_mut(grown) {
                node.ranks += 1;
            }
            larger.extend(more);
            prop_assert!(ranks(&larger) >= ranks(&cluster), "{:?} but {:?}", cluster, larger);
        }

        #[test]
        fn the_plan_is_placed_without_crowding_a_node(
            wanted in wanted(), cluster in clusters(), threads in 1_u32..4,
        ) {
            let node = |(index, node): (usize, &Slots)| NodeResources {
                name: format!("n{index}"),
                host: node.host.clone(),
                failure_domain: format!("n{index}"),
                cores: node.ranks as u32 * threads,
                memory_bytes: 0,
                running: 0,
            };
            let up: Vec<&Slots> = cluster.iter().filter(|node| node.ranks > 0).collect();
            let nodes: Vec<NodeResources> = up.iter().copied().enumerate().map(node).collect();
            if let Some(plan) = fit(&wanted, &JOB, &cluster).filter(|plan| *plan != wanted) {
                let placement = place(&plan, RankNeeds { memory_bytes: 0, threads }, &nodes).unwrap();
                for (index, node) in up.iter().enumerate() {
                    let ranks = placement.nodes.iter().filter(|placed| **placed == index).count();
                    prop_assert!(ranks <= node.ranks, "{plan} on {cluster:?}: {:?}", placement.nodes);
                }
                for group in placement.nodes.chunks(plan.tensor_parallel) {
                    prop_assert!(group.iter().all(|node| nodes[*node].host == nodes[group[0]].host));
                }
            }
        }
    }
}
