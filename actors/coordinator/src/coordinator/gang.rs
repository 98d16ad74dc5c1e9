//! Gangs on their way: who listens where, and which ranks saved which step. Neither is in the log.
//! A member's address comes back with its node's Hello. A step that not all ranks have saved is of
//! no use to a later attempt, so that losing it costs at most one step.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use sixfold_cluster::protocol::{NodeCommand, NodeReply};
use sixfold_cluster::task::{Gang, SavedState, TaskAddress};
use sixfold_wire::id::{ArtifactId, Epoch, JobId, NodeName, TaskId};

use super::Coordinator;
use super::outbox::Key;
use crate::event::{UnitEvent, UnitId};

/// Steps of a gang that are incomplete at a time; the oldest gives way.
const PARTIAL_STEPS_MAX: usize = 16;

/// What is known of the newest attempt of each gang.
#[derive(Default)]
pub(super) struct GangProgress {
    attempts: BTreeMap<UnitId, GangAttempt>,
}

struct GangAttempt {
    epoch: Epoch,
    addresses: Vec<Option<SocketAddr>>,
    /// All members were told about each other by this coordinator.
    told: bool,
    steps: BTreeMap<u64, Vec<Option<ArtifactId>>>,
}

impl GangProgress {
    fn attempt(&mut self, id: UnitId, epoch: Epoch, members: usize) -> &mut GangAttempt {
        let new =
            || GangAttempt { epoch, addresses: vec![None; members], told: false, steps: BTreeMap::new() };
        let attempt = self.attempts.entry(id).or_insert_with(new);
        if attempt.epoch != epoch {
            *attempt = new();
        }
        attempt
    }

    /// Takes a member's state; returns all states of the step once every member has saved it.
    pub(super) fn save(
        &mut self,
        id: UnitId,
        epoch: Epoch,
        members: usize,
        member: u32,
        state: SavedState,
    ) -> Option<Vec<ArtifactId>> {
        let attempt = self.attempt(id, epoch, members);
        let step = attempt.steps.entry(state.step).or_insert_with(|| vec![None; members]);
        *step.get_mut(member as usize)? = Some(state.artifact);
        let complete: Option<Vec<ArtifactId>> = step.iter().copied().collect();
        if complete.is_some() {
            attempt.steps.remove(&state.step);
        } else if attempt.steps.len() > PARTIAL_STEPS_MAX {
            attempt.steps.pop_first();
        }
        complete
    }

    /// Takes a member's address; once every member listens, returns all addresses, and whether
    /// that is news.
    fn listen(
        &mut self,
        id: UnitId,
        epoch: Epoch,
        members: usize,
        member: u32,
        address: SocketAddr,
    ) -> Option<(Vec<SocketAddr>, bool)> {
        let attempt = self.attempt(id, epoch, members);
        *attempt.addresses.get_mut(member as usize)? = Some(address);
        let all: Option<Vec<SocketAddr>> = attempt.addresses.iter().copied().collect();
        Some((all?, !std::mem::replace(&mut attempt.told, true)))
    }

    pub(super) fn forget(&mut self, id: UnitId) {
        self.attempts.remove(&id);
    }

    pub(super) fn forget_job(&mut self, job: JobId) {
        self.attempts.retain(|id, _| id.job != job);
    }
}

impl Coordinator {
    /// A member listens. When all do, each is told about the others; one that asks again is told again.
    pub(super) fn take_address(
        &mut self,
        node: &NodeName,
        task: TaskId,
        epoch: Epoch,
        address: SocketAddr,
    ) -> NodeReply {
        let Some((id, member)) = self.current(node, task, epoch) else { return NodeReply::Superseded };
        let Some(phase) = self.state.phase(id.job, id.phase) else { return NodeReply::Superseded };
        if phase.is_service() {
            return NodeReply::Accepted;
        }
        let members = phase.units.get(id.unit as usize).map_or(0, |unit| unit.members.len());
        if let Some((addresses, is_news)) = self.gangs.listen(id, epoch, members, member, address) {
            self.form(id, &addresses, |rank| is_news || rank == member);
        } else if self.state.unit(id).is_some_and(|unit| unit.members.iter().any(|one| one.result.is_some()))
        {
            // A rank that has ended does not say its address again to a restarted coordinator.
            let message = "a rank waits for a gang whose other ranks have ended".to_owned();
            self.move_away(id, member, node, message);
            return NodeReply::Superseded;
        }
        NodeReply::Accepted
    }

    fn form(&mut self, id: UnitId, addresses: &[SocketAddr], is_told: impl Fn(u32) -> bool) {
        let Some(attempt) = self.state.unit(id).and_then(|unit| unit.current()) else { return };
        let Some(phase) = self.state.phase(id.job, id.phase) else { return };
        let (epoch, formed, nodes) = (attempt.epoch, attempt.resumed, attempt.nodes.clone());
        let tasks = (0..).map(|member| phase.task_index(id.unit, member));
        let tasks = tasks.map(|index| TaskId { job: id.job, phase: id.phase, index });
        let members: Vec<TaskAddress> = tasks
            .zip(nodes.iter().zip(addresses))
            .map(|(task, (node, address))| TaskAddress { task, node: node.clone(), address: *address })
            .collect();
        if !formed {
            self.record_unit(id, UnitEvent::Resumed);
        }
        let gang = Gang { epoch, members };
        for (member, at) in (0..).zip(gang.members.clone()) {
            if is_told(member) {
                let formed = NodeCommand::GangFormed { task: at.task, gang: gang.clone() };
                self.send(&at.node, Key::Formed(at.task), formed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sixfold_wire::id::ContentHash;

    use super::*;

    fn state(step: u64, content: &[u8]) -> SavedState {
        SavedState { artifact: ArtifactId(ContentHash::of(content)), step }
    }

    #[test]
    fn a_step_counts_when_every_rank_of_one_attempt_has_saved_it() {
        let mut gangs = GangProgress::default();
        let id = UnitId { job: JobId(1), phase: 0, unit: 0 };
        let (old, new) = (Epoch(1), Epoch(2));
        assert_eq!(gangs.save(id, old, 2, 0, state(7, b"a")), None);
        assert_eq!(gangs.save(id, new, 2, 1, state(7, b"b")), None, "ranks of two attempts are no state");
        assert_eq!(gangs.save(id, new, 2, 1, state(8, b"c")), None);
        let complete = gangs.save(id, new, 2, 0, state(7, b"a"));
        assert_eq!(complete, Some(vec![state(7, b"a").artifact, state(7, b"b").artifact]));
        assert_eq!(gangs.save(id, new, 2, 9, state(8, b"d")), None, "no such rank");
    }
}
