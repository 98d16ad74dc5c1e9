//! States that nodes hold in memory for gangs, and when a gang commits one: [`CommitSchedule`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sixfold_artifact::Manifest;
use sixfold_wire::id::{JobId, NodeName, TaskId};

/// The tasks of a phase that are placed, and go on, together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GangId {
    /// The job.
    pub job: JobId,
    /// Index of the phase in the job's list of phases.
    pub phase: u32,
}

impl From<TaskId> for GangId {
    fn from(task: TaskId) -> Self {
        Self { job: task.job, phase: task.phase }
    }
}

/// A rank's state for nodes to hold in memory.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Steps done.
    pub step: u64,
    /// The newest step of which every rank's state is known to be held; 0 if none is. Older ones are dropped.
    pub complete: u64,
    /// What it is.
    pub manifest: Manifest,
    /// The contents of the manifest's files, in its order.
    pub files: Vec<Bytes>,
}

/// A state that nodes hold in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldState {
    /// Steps done.
    pub step: u64,
    /// What it is.
    pub manifest: Manifest,
    /// Who holds it.
    pub nodes: Vec<NodeName>,
}

/// What nodes hold of a gang.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeldStates {
    /// The states, oldest step first.
    pub states: Vec<HeldState>,
    /// The newest step that a rank of the newest attempt has done, as far as nodes know.
    pub furthest: u64,
}

/// Which steps a gang commits. Every rank has one, and all decide alike: they are told the same number of ranks
/// whose commit was still under way in the step that was just done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitSchedule {
    every: u64,
    complete: u64,
    under_way: Option<u64>,
}

impl CommitSchedule {
    /// Every `every` steps, none if that is 0, for a gang that goes on from step `complete`.
    pub fn new(every: u64, complete: u64) -> Self {
        Self { every, complete, under_way: None }
    }

    /// The newest step of which every rank's state is known to be held, or was when the gang went on from it.
    pub fn complete(&self) -> u64 {
        self.complete
    }

    /// `step` steps are done, and in the last one `under_way` ranks had a commit under way. Returns the newest
    /// complete step if every rank is to commit this one. While a commit is under way there is no other: training
    /// does not wait for it.
    pub fn after_step(&mut self, step: u64, under_way: u32) -> Option<u64> {
        if under_way == 0
            && let Some(done) = self.under_way.take()
        {
            self.complete = done;
        }
        let due = self.every > 0 && self.under_way.is_none() && step.is_multiple_of(self.every);
        due.then(|| {
            self.under_way = Some(step);
            self.complete
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_takes_longer_than_a_step_delays_the_next() {
        let mut schedule = CommitSchedule::new(1, 7);
        assert_eq!(schedule.after_step(8, 0), Some(7));
        assert_eq!(schedule.after_step(9, 1), None);
        assert_eq!(schedule.after_step(10, 2), None);
        assert_eq!(schedule.complete(), 7);
        assert_eq!(schedule.after_step(11, 0), Some(8));
        assert_eq!(schedule.after_step(12, 0), Some(11));
    }

    #[test]
    fn only_every_so_many_steps_are_committed() {
        let commits = |every| {
            let mut schedule = CommitSchedule::new(every, 0);
            (1..=12).filter(|step| schedule.after_step(*step, 0).is_some()).collect::<Vec<u64>>()
        };
        assert_eq!(commits(5), [5, 10]);
        assert!(commits(0).is_empty());
    }
}
