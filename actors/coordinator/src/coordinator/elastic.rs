//! Gangs whose plan follows the nodes that there are: a smaller one where too few are left, the wanted one when they
//! are back.
//!
//! Slots are counted by cores and by gangs alone: tasks that come and go are no reason for another plan. A gang
//! that never had a slot for each rank of the plan that is wanted was meant to be crowded, and stays so.
//!
//! A node that comes and goes causes no more than two changes a minute, with the usual options: a gang gets more
//! ranks only when its last change by itself is as long ago as its stage says, and a node that was evicted twice in a minute
//! is given no rank while there are others.

use std::collections::BTreeMap;

use sixfold_topology::{ParallelPlan, Slots, fit, has_room};
use sixfold_wire::id::NodeName;

use super::Coordinator;
use super::place::{Offer, steady};
use crate::event::{JobEvent, UnitId, Wanted};
use crate::job::{Elastic, PhaseSpec};
use crate::state::job::Phase;
use crate::state::node::NodeStatus;
use crate::state::unit::{Standing, Unit};

/// A gang as its plan is looked at.
struct GangView<'a> {
    phase: &'a Phase,
    unit: &'a Unit,
    plan: ParallelPlan,
    wanted: ParallelPlan,
    elastic: Elastic,
    /// The best plan for the nodes that there are, if there is a slot at all.
    best: Option<ParallelPlan>,
    slots: Vec<(NodeName, Slots)>,
}

impl GangView<'_> {
    fn total(&self) -> usize {
        total(&self.slots)
    }

    /// Whether the plan has its slots. Only the wanted plan may tear a tensor-parallel group apart.
    fn has_room(&self) -> bool {
        let slots: Vec<Slots> = self.slots.iter().map(|(_, slots)| slots.clone()).collect();
        (self.plan == self.wanted && self.plan.world_size() <= self.total()) || has_room(&self.plan, &slots)
    }
}

pub(super) fn total(slots: &[(NodeName, Slots)]) -> usize {
    slots.iter().map(|(_, slots)| slots.ranks).sum()
}

impl Coordinator {
    /// The slots of each node that a gang's unit may be placed on, whatever of it is placed now. A node without
    /// another gang takes one rank at least.
    pub(super) fn slots_for(
        &self,
        id: UnitId,
        spec: &PhaseSpec,
        offers: &[&Offer],
    ) -> Vec<(NodeName, Slots)> {
        let threads = spec.resources.threads.max(1);
        let mut taken: BTreeMap<&NodeName, u32> = BTreeMap::new();
        let others = self.state.active_units().filter(|(other, phase, _)| *other != id && phase.is_gang());
        for (_, phase, unit) in others {
            for (member, record) in (0..).zip(&unit.members) {
                if let Some(node) = unit.node_of(member).filter(|_| record.result.is_none()) {
                    let busy = taken.entry(node).or_default();
                    *busy = busy.saturating_add(phase.spec.resources.threads);
                }
            }
        }
        let slots = |offer: &&Offer| {
            let free = match taken.get(&offer.name) {
                Some(taken) => offer.cores.saturating_sub(*taken) / threads,
                None => (offer.cores / threads).max(1),
            };
            (offer.name.clone(), Slots { host: offer.host.clone(), ranks: free as usize })
        };
        steady(spec.resources, offers).iter().map(slots).collect()
    }

    /// Whether there is a slot for each rank of a gang that is about to be placed.
    pub(super) fn has_slots(&self, id: UnitId, offers: &[Offer]) -> bool {
        let Some(phase) = self.state.phase(id.job, id.phase) else { return false };
        let (Some(plan), Some(unit)) = (phase.spec.plan(), self.state.unit(id)) else { return false };
        plan.world_size() <= total(&self.slots_for(id, &phase.spec, &self.able(unit, offers)))
    }

    fn look_at(&self, id: UnitId, offers: &[Offer]) -> Option<GangView<'_>> {
        let phase = self.state.phase(id.job, id.phase)?;
        let unit = phase.units.get(id.unit as usize)?;
        let rules = phase.spec.rules.as_ref()?;
        let (plan, elastic) = (phase.spec.plan()?, rules.elastic?);
        let wanted = self.state.jobs.get(&id.job)?.wanted(id.phase)?.plan()?;
        let slots = self.slots_for(id, &phase.spec, &self.able(unit, offers));
        let counts: Vec<Slots> = slots.iter().map(|(_, slots)| slots.clone()).collect();
        let best = fit(&wanted, &rules.shape, &counts);
        Some(GangView { phase, unit, plan, wanted, elastic, best, slots })
    }

    /// Gives a waiting gang a plan that fits the nodes, if its own does not and they have been waited for. Returns what
    /// it waits for, if it does.
    pub(super) fn refit(&mut self, id: UnitId, offers: &[Offer]) -> Option<String> {
        let gang = self.look_at(id, offers)?;
        // Without any node there is nothing that a plan could fit.
        if !gang.phase.fitted || gang.slots.is_empty() || gang.has_room() {
            return None;
        }
        let Standing::Waiting { not_before_ms } = gang.unit.standing else { return None };
        let nodes = gang.slots.iter().filter_map(|(name, _)| self.state.nodes.get(name));
        let first_joined_ms = nodes.map(|node| node.joined_ms).min().unwrap_or(0);
        let (plan, ranks, slots) = (gang.plan, gang.plan.world_size(), gang.total());
        let short = format!("{plan} has {ranks} ranks, and the nodes that are up take {slots}");
        if self.awaits_nodes() {
            return Some(format!("{short}; nodes have some time to come back after the coordinator's start"));
        }
        // After an outage of all nodes they come back one by one.
        let since_ms = not_before_ms.max(first_joined_ms);
        let due_ms = since_ms.saturating_add(gang.elastic.shrink_after_ms);
        if self.now_ms < due_ms {
            let seconds = (due_ms - self.now_ms).div_ceil(1000);
            return Some(format!(
                "{short}; a smaller plan is taken if no node comes back within {seconds} s"
            ));
        }
        // Where other gangs fill all nodes, one rank is crowded in rather than that the job stands still.
        let best = gang.best.unwrap_or(ParallelPlan::SERIAL);
        if best != plan {
            self.change_plan(id, best, None, short);
        }
        None
    }

    /// Whether nodes that the log knows have not come back since the coordinator's start.
    fn awaits_nodes(&self) -> bool {
        let mut members = self.state.nodes.iter().filter(|(_, node)| node.status == NodeStatus::Member);
        members.any(|(name, _)| !self.links.contains(name))
    }

    /// Gives gangs that work under a smaller plan than the wanted one more ranks, where there are nodes for it.
    pub(super) fn widen_gangs(&mut self) {
        let due = self.gangs_to_widen();
        if due.is_empty() {
            return;
        }
        let offers = self.offers();
        for id in due {
            let Some(gang) = self.look_at(id, &offers) else { continue };
            let Some(best) = gang.best.filter(|best| best.world_size() > gang.plan.world_size()) else {
                continue;
            };
            let slots = gang.total();
            self.change_plan(id, best, None, format!("the nodes that are up take {slots} ranks"));
        }
    }

    /// Gangs that could have more ranks, whose last change and whose newest node are long enough ago.
    fn gangs_to_widen(&self) -> Vec<UnitId> {
        let members = self.state.nodes.values().filter(|node| node.status == NodeStatus::Member);
        let newest_ms = members.map(|node| node.joined_ms).max().unwrap_or(0);
        let is_due = |(id, phase, unit): &(UnitId, &Phase, &Unit)| {
            let Some(elastic) = phase.spec.rules.as_ref().and_then(|rules| rules.elastic) else {
                return false;
            };
            let job = self.state.jobs.get(&id.job);
            let wanted = job.and_then(|job| job.wanted(id.phase)?.plan());
            let works = unit.current().is_some_and(|attempt| attempt.resumed);
            let since_ms = phase.resized_ms.unwrap_or(0).saturating_add(elastic.widen_after_ms);
            phase.spec.plan() != wanted
                && works
                && unit.members.iter().all(|member| member.result.is_none())
                && self.now_ms >= since_ms.max(newest_ms.saturating_add(elastic.shrink_after_ms))
        };
        self.state.active_units().filter(is_due).map(|(id, ..)| id).collect()
    }

    /// Ends what is placed of a gang, which then waits for a place under another plan. What nodes hold of its states
    /// is what the next attempt goes on from.
    pub(super) fn change_plan(
        &mut self,
        id: UnitId,
        plan: ParallelPlan,
        wanted: Option<Wanted>,
        why: String,
    ) {
        let stops = self.stops_of(id, |_| true);
        self.record_job(id.job, JobEvent::Replanned { phase: id.phase, plan, wanted, why });
        self.gangs.forget(id);
        self.waits.remove(&id);
        self.send_stops(stops, true);
    }
}
