//! Which tasks a node runs, and how those that ended did: a pure table under epochs.
//!
//! Invariants: at most one attempt of a task runs here; an attempt older than one that was seen
//! never starts; a result stays until the coordinator has taken it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use sixfold_wire::id::{Epoch, TaskId};

use crate::protocol::RunningTask;
use crate::task::TaskResult;

/// What to do about an order to start an attempt.
#[derive(Debug, PartialEq)]
pub(crate) enum Start {
    /// Start it; stop this older attempt first.
    Run {
        /// The attempt that it replaces.
        replaces: Option<Epoch>,
    },
    /// It runs or has ended here: nothing to do.
    Known,
    /// A newer attempt was seen here.
    Stale,
}

/// The table; see the module.
#[derive(Debug, Default)]
pub(crate) struct TaskTable {
    running: BTreeMap<TaskId, (Epoch, Option<SocketAddr>)>,
    ended: BTreeMap<TaskId, (Epoch, TaskResult)>,
    newest: BTreeMap<TaskId, Epoch>,
}

impl TaskTable {
    /// An order to start an attempt.
    pub(crate) fn start(&mut self, task: TaskId, epoch: Epoch) -> Start {
        let newest = self.newest.get(&task).copied();
        if newest == Some(epoch) {
            return Start::Known;
        }
        if newest.is_some_and(|newest| newest > epoch) {
            return Start::Stale;
        }
        self.newest.insert(task, epoch);
        self.ended.remove(&task);
        let replaces = self.running.insert(task, (epoch, None)).map(|(older, _)| older);
        Start::Run { replaces }
    }

    /// The attempt listens at `address`.
    pub(crate) fn listens(&mut self, task: TaskId, epoch: Epoch, address: SocketAddr) {
        if let Some((running, known)) = self.running.get_mut(&task)
            && *running == epoch
        {
            *known = Some(address);
        }
    }

    /// An order to stop an attempt and all older ones; returns the one that runs, if it is among them.
    pub(crate) fn stop(&mut self, task: TaskId, epoch: Epoch) -> Option<Epoch> {
        let newest = self.newest.entry(task).or_insert(epoch);
        *newest = epoch.max(*newest);
        self.ended.retain(|&id, (ended, _)| id != task || *ended > epoch);
        self.running.get(&task).map(|&(running, _)| running).filter(|&running| running <= epoch)
    }

    /// An attempt ended. Returns whether its result counts: one that was replaced does not.
    pub(crate) fn ended(&mut self, task: TaskId, epoch: Epoch, result: TaskResult) -> bool {
        let current = self.running.get(&task).is_some_and(|&(running, _)| running == epoch);
        if current {
            self.running.remove(&task);
            self.ended.insert(task, (epoch, result));
        }
        current
    }

    /// The coordinator has the result.
    pub(crate) fn acknowledge(&mut self, task: TaskId, epoch: Epoch) {
        self.ended.retain(|&id, (ended, _)| id != task || *ended != epoch);
    }

    /// What runs here.
    pub(crate) fn running(&self) -> Vec<RunningTask> {
        let running = |(&task, &(epoch, address)): (&TaskId, &(Epoch, Option<SocketAddr>))| RunningTask {
            task,
            epoch,
            address,
        };
        self.running.iter().map(running).collect()
    }

    /// Results that the coordinator has not taken.
    pub(crate) fn unacknowledged(&self) -> Vec<(TaskId, Epoch, TaskResult)> {
        self.ended.iter().map(|(&task, (epoch, result))| (task, *epoch, result.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::TaskOutput;
    use sixfold_wire::id::JobId;

    const TASK: TaskId = TaskId { job: JobId(1), phase: 0, index: 0 };

    #[test]
    fn starts_an_attempt_once() {
        let mut table = TaskTable::default();
        assert_eq!(table.start(TASK, Epoch(1)), Start::Run { replaces: None });
        assert_eq!(table.start(TASK, Epoch(1)), Start::Known);
        assert!(table.ended(TASK, Epoch(1), Ok(TaskOutput::default())));
        assert_eq!(table.start(TASK, Epoch(1)), Start::Known, "it has ended here");
    }

    #[test]
    fn a_newer_attempt_replaces_and_an_older_one_is_stale() {
        let mut table = TaskTable::default();
        table.start(TASK, Epoch(2));
        assert_eq!(table.start(TASK, Epoch(1)), Start::Stale);
        assert_eq!(table.start(TASK, Epoch(3)), Start::Run { replaces: Some(Epoch(2)) });
        assert!(!table.ended(TASK, Epoch(2), Ok(TaskOutput::default())), "it was replaced");
        assert_eq!(table.running().len(), 1);
    }

    #[test]
    fn a_stopped_attempt_never_starts_again() {
        let mut table = TaskTable::default();
        table.start(TASK, Epoch(1));
        assert_eq!(table.stop(TASK, Epoch(2)), Some(Epoch(1)));
        assert_eq!(table.start(TASK, Epoch(1)), Start::Stale);
        assert_eq!(table.start(TASK, Epoch(3)), Start::Run { replaces: Some(Epoch(1)) });
        assert_eq!(table.stop(TASK, Epoch(2)), None, "a newer attempt goes on");
    }

    #[test]
    fn keeps_a_result_until_it_is_taken() {
        let mut table = TaskTable::default();
        table.start(TASK, Epoch(1));
        table.ended(TASK, Epoch(1), Ok(TaskOutput::default()));
        assert_eq!(table.unacknowledged().len(), 1);
        table.acknowledge(TASK, Epoch(1));
        assert!(table.unacknowledged().is_empty());
    }
}
