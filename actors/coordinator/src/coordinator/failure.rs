//! What follows from a failure: another attempt after a while, elsewhere, a node in quarantine, or
//! the end of the job.

use sixfold_cluster::protocol::NodeCommand;
use sixfold_cluster::task::{ErrorClass, TaskError};
use sixfold_wire::id::{Epoch, NodeName, TaskId};

use super::Coordinator;
use super::outbox::Key;
use crate::event::{Blame, NodeEvent, UnitEvent, UnitId};
use crate::message::JobState;
use crate::state::node::NodeStatus;

/// Nodes that a unit may lose in a row before it waits for its next attempt.
const PROMPT_LOSSES: u32 = 3;
/// Longest failure message that is kept, in bytes.
const MESSAGE_BYTES_MAX: usize = 4096;

/// How an attempt ended.
struct End {
    blame: Blame,
    message: String,
    silent_ms: u64,
    failures: u32,
    retry_at_ms: u64,
}

impl Coordinator {
    /// A member failed by its own fault or its machine's.
    pub(super) fn fail(&mut self, id: UnitId, member: u32, node: &NodeName, error: TaskError) {
        let message = shortened(error.message);
        if error.class == ErrorClass::Fatal {
            return self.fail_job(id, format!("task {}: {message}", self.task_of(id, member)));
        }
        let failures = self.failures_after(id);
        let retry_at_ms = self.now_ms + self.options.backoff_after(failures);
        let blame = Blame::Task(error.class);
        let end = End { blame, message: message.clone(), silent_ms: 0, failures, retry_at_ms };
        self.end_attempt(id, member, node, end);
        self.strike(id, member, node, error.class);
        if self.is_hopeless(id, failures) {
            let task = self.task_of(id, member);
            let times = if failures == 1 { "once".to_owned() } else { format!("{failures} times in a row") };
            self.fail_job(id, format!("task {task} failed {times}, the last time on {node}: {message}"));
        }
    }

    /// Own failures in a row, with the one that happened now.
    fn failures_after(&self, id: UnitId) -> u32 {
        let Some(unit) = self.state.unit(id) else { return 1 };
        let is_service = self.state.phase(id.job, id.phase).is_some_and(|phase| phase.is_service());
        let ran_ms = unit.attempt.as_ref().map_or(0, |attempt| self.now_ms.saturating_sub(attempt.placed_ms));
        if is_service && ran_ms >= self.options.stable_ms { 1 } else { unit.failures.own + 1 }
    }

    /// Whether there is no sense in another attempt. A service that has ever taken requests is
    /// tried for ever, with long waits.
    fn is_hopeless(&self, id: UnitId, failures: u32) -> bool {
        let Some(unit) = self.state.unit(id) else { return false };
        if unit.failures.has_served {
            return false;
        }
        let mut able = self.state.nodes.iter().filter(|(name, node)| {
            node.status == NodeStatus::Member && !unit.failures.refused_by.contains(*name)
        });
        failures > self.options.restarts_max || able.next().is_none()
    }

    /// A task that has used up its restarts on a node, or that the node cannot do, is evidence
    /// against the node. Enough of it, of different tasks and with no success in between, and the
    /// node gets nothing for a while; but never the last one.
    fn strike(&mut self, id: UnitId, member: u32, node: &NodeName, class: ErrorClass) {
        let Some(unit) = self.state.unit(id) else { return };
        let on_node = unit.failures.by_node.get(node).copied().unwrap_or(0);
        if class != ErrorClass::Escalate && on_node < self.options.restarts_per_node {
            return;
        }
        let task = self.task_of(id, member);
        let Some(record) = self.state.nodes.get(node) else { return };
        if record.strikes.contains(&task) {
            return;
        }
        let others = self.state.nodes.iter().any(|(name, other)| {
            name != node
                && other.status == NodeStatus::Member
                && other.quarantined_until_ms <= self.now_ms
                && self.links.contains(name)
        });
        let enough = record.strikes.len() + 1 >= self.options.strikes_max as usize;
        let until_ms = (enough && others).then(|| self.now_ms + self.options.quarantine_ms);
        self.record_node(node, NodeEvent::Struck { task, quarantined_until_ms: until_ms });
    }

    /// A member went away with its node.
    pub(super) fn lose(&mut self, id: UnitId, member: u32, node: &NodeName, message: String, silent_ms: u64) {
        // Two ranks of a gang may have been on one node; the first took the whole gang along.
        let Some(unit) = self.state.unit(id).filter(|unit| unit.current().is_some()) else { return };
        let failures = unit.failures.node_losses + 1;
        let has_served = unit.failures.has_served;
        let late = failures.saturating_sub(PROMPT_LOSSES);
        let wait_ms = if late == 0 { 0 } else { self.options.backoff_after(late) };
        let retry_at_ms = self.now_ms + wait_ms;
        let end = End { blame: Blame::Node, message: message.clone(), silent_ms, failures, retry_at_ms };
        self.end_attempt(id, member, node, end);
        if failures > self.options.node_losses_max && !has_served {
            let task = self.task_of(id, member);
            self.fail_job(
                id,
                format!("task {task} lost {failures} nodes in a row, the last time: {message}"),
            );
        }
    }

    /// A member's node drains.
    pub(super) fn move_away(&mut self, id: UnitId, member: u32, node: &NodeName) {
        if self.state.unit(id).is_some_and(|unit| unit.current().is_some()) {
            let message = format!("node {node} is leaving");
            let (blame, retry_at_ms) = (Blame::Nobody, self.now_ms);
            self.end_attempt(
                id,
                member,
                node,
                End { blame, message, silent_ms: 0, failures: 0, retry_at_ms },
            );
        }
    }

    fn end_attempt(&mut self, id: UnitId, member: u32, node: &NodeName, end: End) {
        let drain = end.blame == Blame::Nobody;
        let still_runs = self.stops_of(id, |other| other != member || !matches!(end.blame, Blame::Task(_)));
        let End { blame, message, silent_ms, failures, retry_at_ms } = end;
        let node = node.clone();
        let failed = UnitEvent::Failed { member, node, blame, message, silent_ms, failures, retry_at_ms };
        self.record_unit(id, failed);
        self.gangs.forget(id);
        self.send_stops(still_runs, drain);
    }

    /// Members of a unit's attempt that have to be stopped.
    pub(super) fn stops_of(&self, id: UnitId, which: impl Fn(u32) -> bool) -> Vec<(NodeName, TaskId, Epoch)> {
        let Some(attempt) = self.state.unit(id).and_then(|unit| unit.current()) else { return Vec::new() };
        let members = (0..).zip(&attempt.nodes).filter(|(member, _)| which(*member));
        members.map(|(member, node)| (node.clone(), self.task_of(id, member), attempt.epoch)).collect()
    }

    pub(super) fn send_stops(&mut self, stops: Vec<(NodeName, TaskId, Epoch)>, drain: bool) {
        for (node, task, epoch) in stops {
            self.outbox.remove(&node, Key::Start(task));
            self.outbox.remove(&node, Key::Formed(task));
            self.live.drop_figures(task);
            self.send(&node, Key::Stop(task), NodeCommand::Stop { task, epoch, drain });
        }
    }

    pub(super) fn task_of(&self, id: UnitId, member: u32) -> TaskId {
        let phase = self.state.phase(id.job, id.phase);
        let index = phase.map_or(0, |phase| phase.task_index(id.unit, member));
        TaskId { job: id.job, phase: id.phase, index }
    }

    fn fail_job(&mut self, id: UnitId, message: String) {
        let stage = self.state.jobs.get(&id.job).map_or("", |job| job.stage_name(id.phase));
        let message = format!("stage `{stage}`: {message}");
        self.end_job(id.job, JobState::Failed, Some(message));
    }

    /// A node would not start a task.
    pub(super) fn take_refused_start(&mut self, node: &NodeName, task: TaskId, epoch: Epoch, reason: String) {
        if let Some((id, member)) = self.current(node, task, epoch) {
            let message = format!("node {node} refused to start it: {reason}");
            self.fail(id, member, node, TaskError { class: ErrorClass::Escalate, message });
        }
    }

    /// A node has taken up a task. A gang works only when it is complete, a service when it serves.
    pub(super) fn note_started(&mut self, node: &NodeName, task: TaskId, epoch: Epoch) {
        let Some((id, _)) = self.current(node, task, epoch) else { return };
        let phase = self.state.phase(id.job, id.phase);
        if phase.is_some_and(|phase| !phase.is_gang() && !phase.is_service()) {
            self.note_resumed(id);
        }
    }

    /// The newest attempt works. Recorded where an earlier one failed, to tell how long that took.
    pub(super) fn note_resumed(&mut self, id: UnitId) {
        let Some(unit) = self.state.unit(id) else { return };
        let resumed = unit.attempt.as_ref().is_none_or(|attempt| attempt.resumed);
        if !resumed && unit.failures.last.is_some() {
            self.record_unit(id, UnitEvent::Resumed { addresses: Vec::new() });
        }
    }
}

fn shortened(mut message: String) -> String {
    let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
    message.truncate(end);
    message
}
