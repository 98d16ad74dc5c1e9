//! The durable state: what the log says. A pure fold over [`Event`]s; whatever is not here (leases,
//! last signs of life, progress figures, log lines) is gone after a restart and learnt again from
//! the nodes.

pub(crate) mod access;
pub(crate) mod catalogue;
pub(crate) mod job;
pub(crate) mod node;
pub(crate) mod unit;

use std::collections::BTreeMap;

use sixfold_wire::id::{Epoch, JobId, NodeName};

use crate::event::{ArtifactEvent, Entry, Event, NodeEvent, UnitEvent, UnitId};
use crate::message::{JobState, RequestId};

use access::Access;
use catalogue::Catalogue;
use job::{Job, Phase};
use node::{Node, NodeStatus};
use unit::Unit;

/// What the log says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Epoch of the newest coordinator.
    pub(crate) epoch: Epoch,
    /// Epoch of the newest attempt of anything.
    pub(crate) attempts: Epoch,
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) requests: BTreeMap<RequestId, JobId>,
    pub(crate) catalogue: Catalogue,
    pub(crate) access: Access,
}

impl State {
    /// The state after these entries.
    pub fn replay(entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut state = Self::default();
        for entry in entries {
            state.apply(&entry);
        }
        state
    }

    /// Adds one entry. An entry about something unknown changes nothing.
    pub fn apply(&mut self, entry: &Entry) {
        let at_ms = entry.at_ms;
        match &entry.event {
            Event::Started(epoch) => self.epoch = *epoch,
            Event::Node(name, event) => self.apply_node(at_ms, name, event),
            Event::Job(id, event) => {
                if let Some((request, job)) = Job::submitted(at_ms, event) {
                    self.requests.insert(request, *id);
                    self.jobs.insert(*id, job);
                } else if let Some(job) = self.jobs.get_mut(id) {
                    job.apply(at_ms, event);
                }
            }
            Event::Unit(id, event) => self.apply_unit(at_ms, *id, event),
            Event::Artifact(ArtifactEvent::Stored { summary, nodes }) => {
                self.catalogue.store(summary, nodes);
            }
            Event::Artifact(ArtifactEvent::Discarded(ids)) => self.catalogue.discard(ids),
            Event::Access(event) => self.access.apply(at_ms, event),
        }
    }

    fn apply_node(&mut self, at_ms: u64, name: &NodeName, event: &NodeEvent) {
        match event {
            NodeEvent::Joined { address, http, capabilities } => {
                let node = self.nodes.entry(name.clone()).or_insert_with(|| Node::new(*address));
                node.join(at_ms, *address, *http, capabilities.clone());
            }
            NodeEvent::Holds(artifacts) => self.catalogue.set_holdings(name, artifacts),
            NodeEvent::Left | NodeEvent::Evicted { .. } => self.catalogue.set_holdings(name, &[]),
            NodeEvent::Draining | NodeEvent::Struck { .. } => {}
        }
        if let Some(node) = self.nodes.get_mut(name) {
            node.apply(at_ms, event);
        }
    }

    fn apply_unit(&mut self, at_ms: u64, id: UnitId, event: &UnitEvent) {
        if let UnitEvent::Placed { epoch, .. } = event {
            self.attempts = self.attempts.max(*epoch);
        }
        if let UnitEvent::Succeeded { member, .. } = event {
            let node = self.unit(id).and_then(|unit| unit.node_of(*member)).cloned();
            if let Some(node) = node.and_then(|name| self.nodes.get_mut(&name)) {
                node.strikes.clear();
            }
        }
        if let Some(job) = self.jobs.get_mut(&id.job) {
            job.apply_unit(at_ms, id, event);
        }
    }

    pub(crate) fn phase(&self, job: JobId, phase: u32) -> Option<&Phase> {
        self.jobs.get(&job)?.phases.get(phase as usize)
    }

    pub(crate) fn unit(&self, id: UnitId) -> Option<&Unit> {
        self.phase(id.job, id.phase)?.units.get(id.unit as usize)
    }

    /// Jobs that may still change.
    pub(crate) fn open_jobs(&self) -> impl Iterator<Item = (JobId, &Job)> {
        self.jobs.iter().filter(|(_, job)| !job.state.has_ended()).map(|(id, job)| (*id, job))
    }

    /// Every unit whose newest attempt is placed on some node, with that attempt.
    pub(crate) fn active_units(&self) -> impl Iterator<Item = (UnitId, &Phase, &Unit)> {
        self.open_jobs().flat_map(|(job, record)| record.active_units(job))
    }

    pub(crate) fn is_member(&self, name: &NodeName) -> bool {
        self.nodes.get(name).is_some_and(|node| node.status != NodeStatus::Gone)
    }

    pub(crate) fn job_state(&self, job: JobId) -> Option<JobState> {
        self.jobs.get(&job).map(|job| job.state)
    }
}
