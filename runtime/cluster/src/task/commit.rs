//! States that nodes hold in memory for gangs.

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
