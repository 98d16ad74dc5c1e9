//! What nodes say. Every report is checked against the sender's lease and, where it is about a
//! task, against that task's newest attempt; each may come twice or late.

use std::net::SocketAddr;

use sixfold_cluster::protocol::{ArtifactSummary, Fenced, NodeAddress, NodeReply, NodeReport};
use sixfold_cluster::task::{ErrorClass, Metrics, SavedState, TaskError, TaskOutput, TaskResult};
use sixfold_wire::id::{ArtifactId, Epoch, Fence, NodeName, TaskId};

use super::lease::Seen;
use super::{Coordinator, Ticket};
use crate::event::{ArtifactEvent, UnitEvent, UnitId};
use crate::state::unit::Standing;

/// Artefacts that the catalogue holds at most.
const ARTIFACTS_MAX: usize = 1 << 18;

impl Coordinator {
    pub(super) fn take_report(&mut self, node: &NodeName, report: Fenced<NodeReport>, ticket: Ticket) {
        let Fenced { fence, body } = report;
        if fence.cluster != self.cluster {
            let message = format!("this is cluster {}, not {}", self.cluster, fence.cluster);
            return self.reply_node(ticket, NodeReply::Refused(message));
        }
        if let NodeReport::Hello(hello) = body {
            return self.welcome(node, hello, ticket);
        }
        let reply = match self.admit(node, &fence) {
            Seen::TooOld => NodeReply::Stale,
            Seen::New => self.take_body(node, body, true),
            Seen::Repeated => self.take_body(node, body, false),
        };
        self.reply_node(ticket, reply);
    }

    /// Checks the fence. A message under no valid lease is as stale as one from long ago.
    fn admit(&mut self, node: &NodeName, fence: &Fence) -> Seen {
        let (epoch, now_ms) = (self.state.epoch, self.now_ms);
        let link = self.links.get_mut(node).filter(|link| fence.epoch == epoch && fence.lease == link.lease);
        let Some(link) = link else { return Seen::TooOld };
        let seen = link.observe(fence.sequence);
        if seen == Seen::New {
            link.touch(now_ms);
        }
        seen
    }

    /// `first` is false for a report that came before: it is answered again, and counts once.
    fn take_body(&mut self, node: &NodeName, body: NodeReport, first: bool) -> NodeReply {
        match body {
            NodeReport::Hello(_) | NodeReport::Heartbeat => NodeReply::Accepted,
            NodeReport::Started { task, epoch, address } => self.take_address(node, task, epoch, address),
            NodeReport::Serving { task, epoch, address, about } => {
                self.take_service(node, task, epoch, address, about)
            }
            NodeReport::Progress { task, epoch, figures } => {
                self.take_progress(node, task, epoch, figures, first)
            }
            NodeReport::Saved { task, epoch, state } => self.take_saved(node, task, epoch, state),
            NodeReport::Finished { task, epoch, result } => self.finish(node, task, epoch, result),
            NodeReport::Stored { artifact, nodes } => self.take_stored(artifact, &nodes),
            NodeReport::Locate { artifact } => NodeReply::Locations(self.locations(artifact, node)),
            NodeReport::Log { task, lines } => {
                if first {
                    self.take_lines(task, &lines);
                }
                NodeReply::Accepted
            }
            NodeReport::Leave => self.drain(node),
            NodeReport::WentOn { task, epoch, step, redone } => {
                let Some((id, _)) = self.current(node, task, epoch) else { return NodeReply::Superseded };
                if first {
                    self.record_unit(id, UnitEvent::WentOn { step, redone });
                }
                NodeReply::Accepted
            }
        }
    }

    /// The unit and member that a task is.
    pub(super) fn locate(&self, task: TaskId) -> Option<(UnitId, u32)> {
        let (unit, member) = self.state.phase(task.job, task.phase)?.locate(task.index)?;
        Some((UnitId { job: task.job, phase: task.phase, unit }, member))
    }

    /// The unit and member, if this attempt is the one that counts and is placed on that node.
    pub(super) fn current(&self, node: &NodeName, task: TaskId, epoch: Epoch) -> Option<(UnitId, u32)> {
        let (id, member) = self.locate(task)?;
        let ended = self.state.job_state(id.job)?.has_ended();
        let attempt = self.state.unit(id)?.current()?;
        let counts = !ended && attempt.epoch == epoch && attempt.nodes.get(member as usize) == Some(node);
        counts.then_some((id, member))
    }

    fn take_service(
        &mut self,
        node: &NodeName,
        task: TaskId,
        epoch: Epoch,
        address: SocketAddr,
        about: Metrics,
    ) -> NodeReply {
        let Some((id, member)) = self.current(node, task, epoch) else { return NodeReply::Superseded };
        let Some(unit) = self.state.unit(id) else { return NodeReply::Superseded };
        let known = unit.members.get(member as usize).and_then(|member| member.service.as_ref());
        if known.is_none_or(|service| service.address != address || service.about != about) {
            self.record_unit(id, UnitEvent::Serving { member, address, about });
            self.note_resumed(id);
        }
        NodeReply::Accepted
    }

    fn take_progress(
        &mut self,
        node: &NodeName,
        task: TaskId,
        epoch: Epoch,
        figures: Metrics,
        first: bool,
    ) -> NodeReply {
        if self.current(node, task, epoch).is_none() {
            return NodeReply::Superseded;
        }
        if first {
            // Of a gang, people see what the first rank tells.
            let is_gang = self.state.phase(task.job, task.phase).is_some_and(|phase| phase.is_gang());
            self.live.set_figures(task, figures, !is_gang || task.index == 0);
        }
        NodeReply::Accepted
    }

    fn take_lines(&mut self, task: TaskId, lines: &[String]) {
        let Some(job) = self.state.jobs.get(&task.job) else { return };
        let source = format!("{}[{}]", job.stage_name(task.phase), task.index);
        self.live.add_lines(task.job, &source, lines);
    }

    fn take_saved(&mut self, node: &NodeName, task: TaskId, epoch: Epoch, state: SavedState) -> NodeReply {
        let Some((id, member)) = self.current(node, task, epoch) else { return NodeReply::Superseded };
        let Some(unit) = self.state.unit(id) else { return NodeReply::Superseded };
        let known = unit.states.iter().any(|saved| {
            saved.step == state.step && saved.artifacts.get(member as usize) == Some(&state.artifact)
        });
        let members = unit.members.len();
        if !known && let Some(artifacts) = self.gangs.save(id, epoch, members, member, state) {
            self.record_unit(id, UnitEvent::Saved { step: state.step, artifacts });
            self.discard_old_states(id);
        }
        NodeReply::Accepted
    }

    /// A task ended. Only its newest attempt, where it was placed, can say so, and only once.
    pub(super) fn finish(
        &mut self,
        node: &NodeName,
        task: TaskId,
        epoch: Epoch,
        result: TaskResult,
    ) -> NodeReply {
        let Some((id, member)) = self.current(node, task, epoch) else {
            let repeated = result.is_ok() && self.has_result(node, task, epoch);
            return if repeated { NodeReply::Accepted } else { NodeReply::Superseded };
        };
        let done = self.state.unit(id).and_then(|unit| unit.members.get(member as usize));
        if done.is_some_and(|member| member.result.is_some()) {
            return NodeReply::Accepted;
        }
        let is_service = self.state.phase(id.job, id.phase).is_some_and(|phase| phase.is_service());
        match result {
            Ok(_) if is_service => {
                let message = "the service ended by itself".to_owned();
                self.fail(id, member, node, TaskError { class: ErrorClass::Restart, message });
            }
            Ok(output) => self.succeed(id, member, task, output),
            Err(error) => self.fail(id, member, node, error),
        }
        NodeReply::Accepted
    }

    fn succeed(&mut self, id: UnitId, member: u32, task: TaskId, output: TaskOutput) {
        let TaskOutput { artifacts, metrics } = output;
        if let Some(node) = self.state.unit(id).and_then(|unit| unit.node_of(member)).cloned() {
            self.outbox.remove(&node, super::outbox::Key::Start(task));
        }
        self.note_resumed(id);
        self.record_unit(id, UnitEvent::Succeeded { member, artifacts, metrics });
        self.live.drop_figures(task);
        if self.state.unit(id).is_some_and(|unit| unit.standing == Standing::Done) {
            self.gangs.forget(id);
        }
    }

    /// Whether this attempt succeeded before.
    fn has_result(&self, node: &NodeName, task: TaskId, epoch: Epoch) -> bool {
        let Some((id, member)) = self.locate(task) else { return false };
        self.state.unit(id).is_some_and(|unit| {
            unit.attempt.as_ref().is_some_and(|attempt| attempt.epoch == epoch)
                && unit.node_of(member) == Some(node)
                && unit.members.get(member as usize).is_some_and(|member| member.result.is_some())
        })
    }

    fn take_stored(&mut self, summary: ArtifactSummary, nodes: &[NodeName]) -> NodeReply {
        let id = summary.id;
        let record = self.state.catalogue.get(id);
        if record.is_none() && self.state.catalogue.len() >= ARTIFACTS_MAX {
            return NodeReply::Refused(format!("the catalogue holds {ARTIFACTS_MAX} artefacts, its limit"));
        }
        let is_new = |node: &&NodeName| !record.is_some_and(|record| record.holders.contains(*node));
        let new = nodes.iter().filter(|node| self.state.is_member(node)).filter(is_new);
        let new: Vec<NodeName> = new.cloned().collect();
        if record.is_none() || !new.is_empty() {
            new.iter().for_each(|node| self.copying.arrived(id, node));
            self.record_artifact(ArtifactEvent::Stored { summary, nodes: new });
            self.copying.doubt(id);
        }
        NodeReply::Accepted
    }

    /// Other nodes that have the artefact, those with a lease first.
    pub(super) fn locations(&self, id: ArtifactId, except: &NodeName) -> Vec<NodeAddress> {
        let others = self.state.catalogue.holders(id).filter(|name| *name != except);
        let mut names: Vec<&NodeName> = others.filter(|name| self.state.is_member(name)).collect();
        names.sort_by_key(|name| !self.links.contains(name));
        let address = |name: &NodeName| self.state.nodes.get(name).map(|node| node.address);
        names
            .into_iter()
            .filter_map(|name| Some(NodeAddress { node: name.clone(), address: address(name)? }))
            .collect()
    }
}
