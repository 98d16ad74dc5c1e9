//! Nodes come, fall silent, are probed, evicted, and leave.

use sixfold_cluster::protocol::{Hello, NodeAddress, NodeCommand, NodeReply, RunningTask};
use sixfold_wire::id::{Epoch, NodeName, TaskId};

use super::lease::Probe;
use super::outbox::Key;
use super::{Coordinator, Ticket};
use crate::event::{NodeEvent, UnitEvent, UnitId};
use crate::state::node::NodeStatus;
use crate::state::unit::Standing;

/// The coordinator itself did not run if its ticks are so many times further apart than they should be.
const PAUSE_TICKS: u64 = 10;

impl Coordinator {
    /// Grants a lease and settles what the node has against what it should have.
    pub(super) fn welcome(&mut self, node: &NodeName, hello: Hello, ticket: Ticket) {
        let lease = self.links.grant(node, self.now_ms);
        let (epoch, lease_ms) = (self.state.epoch, self.options.evict_ms);
        self.reply_node(ticket, NodeReply::Welcome { epoch, lease, lease_ms });
        self.note_joined(node, &hello);
        self.note_holdings(node, &hello);
        for (task, epoch, result) in hello.finished {
            self.adopt(node, task, epoch);
            // A superseded result is as good as none: the node forgets it either way.
            let _ = self.finish(node, task, epoch, result);
        }
        for running in &hello.running {
            self.adopt(node, running.task, running.epoch);
            self.take_running(node, running);
        }
        self.miss_tasks(node, &hello.running);
        self.send_view(node);
        self.resend_to(node);
        self.copying.doubt_all(&self.state.catalogue);
    }

    fn note_joined(&mut self, node: &NodeName, hello: &Hello) {
        let known = self.state.nodes.get(node).is_some_and(|known| {
            known.status != NodeStatus::Gone
                && known.address == hello.address
                && known.http == hello.http
                && known.capabilities == hello.capabilities
        });
        if !known {
            let (address, http) = (hello.address, hello.http);
            let capabilities = hello.capabilities.clone();
            self.record_node(node, NodeEvent::Joined { address, http, capabilities });
        }
    }

    fn note_holdings(&mut self, node: &NodeName, hello: &Hello) {
        let catalogue = &self.state.catalogue;
        let known = hello.artifacts.iter().filter(|id| catalogue.get(**id).is_some());
        let mut held: Vec<_> = known.copied().collect();
        held.sort_unstable();
        held.dedup();
        if held != catalogue.held_by(node) {
            self.record_node(node, NodeEvent::Holds(held));
        }
    }

    /// A node that was thought dead came back with a task that has not been placed anew. A gang is
    /// never taken back, since its other ranks have stopped; nor is a service, which nobody asks
    /// any more.
    fn adopt(&mut self, node: &NodeName, task: TaskId, epoch: Epoch) {
        let Some((id, _)) = self.locate(task) else { return };
        let Some(phase) = self.state.phase(id.job, id.phase) else { return };
        let adoptable = !phase.is_gang()
            && !phase.is_service()
            && self.state.unit(id).is_some_and(|unit| {
                let attempt = unit.attempt.as_ref();
                matches!(unit.standing, Standing::Waiting { .. })
                    && unit.node_of(0) == Some(node)
                    && attempt.is_some_and(|attempt| attempt.lost && attempt.epoch == epoch)
            });
        if adoptable {
            self.record_unit(id, UnitEvent::Adopted);
        }
    }

    fn take_running(&mut self, node: &NodeName, running: &RunningTask) {
        let (task, epoch) = (running.task, running.epoch);
        if self.current(node, task, epoch).is_none() {
            return self.send(node, Key::Stop(task), NodeCommand::Stop { task, epoch, drain: false });
        }
        self.outbox.remove(node, Key::Start(task));
        self.note_started(node, task, epoch);
        if let Some(address) = running.address {
            self.take_address(node, task, epoch, address);
        }
    }

    /// Whatever should run on the node and does not was lost with the daemon that it ran under,
    /// unless it is still on its way there.
    fn miss_tasks(&mut self, node: &NodeName, running: &[RunningTask]) {
        for (id, member) in self.members_on(node) {
            let Some((task, epoch)) = self.placed_member(id, member) else { continue };
            let runs = running.iter().any(|running| running.task == task && running.epoch == epoch);
            if !runs && !self.outbox.is_starting(node, task, epoch) {
                self.lose(id, member, node, format!("node {node} no longer has the task"), 0);
            }
        }
    }

    /// Members that should run on the node.
    pub(super) fn members_on(&self, node: &NodeName) -> Vec<(UnitId, u32)> {
        let mut found = Vec::new();
        for (id, _, unit) in self.state.active_units() {
            for (member, record) in (0..).zip(&unit.members) {
                if record.result.is_none() && unit.node_of(member) == Some(node) {
                    found.push((id, member));
                }
            }
        }
        found
    }

    /// The task and attempt of a member that is placed now.
    fn placed_member(&self, id: UnitId, member: u32) -> Option<(TaskId, Epoch)> {
        let phase = self.state.phase(id.job, id.phase)?;
        let attempt = self.state.unit(id)?.current()?;
        let index = phase.task_index(id.unit, member);
        Some((TaskId { job: id.job, phase: id.phase, index }, attempt.epoch))
    }

    /// Looks at the silence of every node. Called at each tick.
    pub(super) fn watch_nodes(&mut self) {
        let passed_ms = self.now_ms.saturating_sub(self.ticked_ms);
        self.ticked_ms = self.now_ms;
        if passed_ms > PAUSE_TICKS * self.options.tick_ms {
            // A suspended coordinator heard nobody; that says nothing about the nodes.
            let pause_ms = passed_ms - self.options.tick_ms;
            self.links.forgive(pause_ms);
            self.started_ms += pause_ms;
        }
        self.await_nodes();
        let names: Vec<NodeName> = self.links.iter().map(|(name, _)| name.clone()).collect();
        for name in names {
            self.watch_node(&name);
        }
    }

    /// Nodes that the log knows get some time to come back after the coordinator's start.
    fn await_nodes(&mut self) {
        let waited_ms = self.now_ms.saturating_sub(self.started_ms);
        if waited_ms < self.options.grace_ms {
            return;
        }
        let members = self.state.nodes.keys().filter(|name| self.state.is_member(name));
        let missing: Vec<NodeName> = members.filter(|name| !self.links.contains(name)).cloned().collect();
        for name in missing {
            self.evict(&name, waited_ms, "it did not come back after the coordinator's start".to_owned());
        }
    }

    fn watch_node(&mut self, name: &NodeName) {
        let options = &self.options;
        let (now_ms, suspect_ms, evict_ms) = (self.now_ms, options.suspect_ms, options.evict_ms);
        let (probe_ms, unreachable_ms) = (options.probe_ms, options.unreachable_ms);
        let Some(link) = self.links.get(name) else { return };
        let (silent_ms, probe) = (link.silent_ms(now_ms), link.probe);
        if silent_ms < suspect_ms && !link.broken {
            return;
        }
        let verdict = match probe {
            _ if silent_ms >= unreachable_ms => Some("it said nothing for too long"),
            Probe::Unreachable => Some("another node cannot reach it either"),
            Probe::Asked { at_ms } if now_ms < at_ms + probe_ms => None,
            Probe::Reachable => None,
            Probe::NotAsked | Probe::Asked { .. } if self.ask_to_probe(name) => None,
            Probe::NotAsked | Probe::Asked { .. } => Some("no other node can be asked"),
        };
        if let Some(reason) = verdict.filter(|_| silent_ms >= evict_ms) {
            self.evict(name, silent_ms, reason.to_owned());
        }
    }

    /// Asks a node that is not under suspicion itself and was not asked yet.
    fn ask_to_probe(&mut self, suspect: &NodeName) -> bool {
        let Some(link) = self.links.get(suspect) else { return false };
        let trusted = self.links.iter().find(|(name, other)| {
            *name != suspect
                && !other.broken
                && other.silent_ms(self.now_ms) < self.options.suspect_ms
                && !link.asked.contains(*name)
        });
        let Some(witness) = trusted.map(|(name, _)| name.clone()) else { return false };
        let Some(address) = self.state.nodes.get(suspect).map(|node| node.address) else { return false };
        if let Some(link) = self.links.get_mut(suspect) {
            link.asked.insert(witness.clone());
            link.probe = Probe::Asked { at_ms: self.now_ms };
        }
        let probe = NodeCommand::Probe(NodeAddress { node: suspect.clone(), address });
        self.send(&witness, Key::Probe(suspect.clone()), probe);
        true
    }

    /// Takes what another node found out.
    pub(super) fn take_probe(&mut self, suspect: &NodeName, reachable: bool) {
        if let Some(link) = self.links.get_mut(suspect)
            && matches!(link.probe, Probe::Asked { .. })
        {
            link.probe = if reachable { Probe::Reachable } else { Probe::Unreachable };
        }
        self.watch_node(suspect);
    }

    fn evict(&mut self, node: &NodeName, silent_ms: u64, reason: String) {
        let members = self.members_on(node);
        self.links.revoke(node);
        self.outbox.clear(node);
        self.copying.forget(node);
        let message = format!("node {node} is gone: {reason}");
        self.record_node(node, NodeEvent::Evicted { silent_ms, reason });
        for (id, member) in members {
            self.lose(id, member, node, message.clone(), silent_ms);
        }
        self.copying.doubt_all(&self.state.catalogue);
    }

    /// A node wants to leave: its tasks go elsewhere, and so do artefacts that too few others have.
    pub(super) fn drain(&mut self, node: &NodeName) -> NodeReply {
        if self.state.nodes.get(node).is_some_and(|record| record.status == NodeStatus::Member) {
            self.record_node(node, NodeEvent::Draining);
            for (id, member) in self.members_on(node) {
                self.move_away(id, member, node);
            }
            self.copying.doubt_all(&self.state.catalogue);
        }
        match self.sole_artifacts(node) {
            0 => {
                self.record_node(node, NodeEvent::Left);
                self.links.revoke(node);
                self.outbox.clear(node);
                self.copying.forget(node);
                NodeReply::Accepted
            }
            count => NodeReply::Draining(format!("{count} artefacts are being copied to other nodes")),
        }
    }

    /// Artefacts that would be on too few nodes without this one.
    fn sole_artifacts(&self, node: &NodeName) -> usize {
        let held = self.state.catalogue.held_by(node);
        held.into_iter().filter(|id| self.is_short_of_copies(*id)).count()
    }
}
