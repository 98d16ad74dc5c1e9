//! Gangs on their way: which ranks listen already, and which saved which step. Neither is in the
//! log before all ranks do. A member's address comes back with its node's Hello; a step that not all
//! ranks have saved is of no use to a later attempt, so that losing it costs at most one step.

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
    steps: BTreeMap<u64, Vec<Option<ArtifactId>>>,
}

impl GangProgress {
    fn attempt(&mut self, id: UnitId, epoch: Epoch, members: usize) -> &mut GangAttempt {
        let new = || GangAttempt { epoch, addresses: vec![None; members], steps: BTreeMap::new() };
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

    /// Takes a member's address; returns all addresses once every member listens.
    fn listen(
        &mut self,
        id: UnitId,
        epoch: Epoch,
        members: usize,
        member: u32,
        address: SocketAddr,
    ) -> Option<Vec<SocketAddr>> {
        let attempt = self.attempt(id, epoch, members);
        *attempt.addresses.get_mut(member as usize)? = Some(address);
        attempt.addresses.iter().copied().collect()
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
        let Some(unit) = phase.units.get(id.unit as usize) else { return NodeReply::Superseded };
        if !phase.is_gang() {
            return NodeReply::Accepted;
        }
        let members = unit.members.len();
        if unit.attempt.as_ref().is_some_and(|attempt| attempt.resumed) {
            self.tell_gang(id, |rank| rank == member);
        } else if let Some(addresses) = self.gangs.listen(id, epoch, members, member, address) {
            self.record_unit(id, UnitEvent::Resumed { addresses });
            self.tell_gang(id, |_| true);
        }
        NodeReply::Accepted
    }

    /// Tells members of a complete gang about each other.
    fn tell_gang(&mut self, id: UnitId, is_told: impl Fn(u32) -> bool) {
        let Some(attempt) = self.state.unit(id).and_then(|unit| unit.current()) else { return };
        let at = |(rank, (node, address)): (u32, (&NodeName, &SocketAddr))| TaskAddress {
            task: self.task_of(id, rank),
            node: node.clone(),
            address: *address,
        };
        let members = (0..).zip(attempt.nodes.iter().zip(&attempt.addresses)).map(at);
        let gang = Gang { epoch: attempt.epoch, members: members.collect() };
        for (rank, member) in (0..).zip(gang.members.clone()) {
            if is_told(rank) {
                let formed = NodeCommand::GangFormed { task: member.task, gang: gang.clone() };
                self.send(&member.node, Key::Formed(member.task), formed);
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
