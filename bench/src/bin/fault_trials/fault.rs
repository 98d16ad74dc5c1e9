//! What is done to a cluster in a trial: [`Fault`].

use clap::ValueEnum;

/// One kind of trial: a row of the table. Ids are those of the table of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// X-F1: a rank's process is killed with `kill -9`.
    Worker,
    /// X-F2: a node daemon is killed with all its workers, and its data folder is deleted.
    Node,
    /// X-F3: all processes of a node stand still for half a second. Nobody may be evicted.
    ShortFreeze,
    /// X-F3: all processes of a node stand still for five seconds. It is evicted, and refused when it is back.
    LongFreeze,
    /// X-F4: the coordinator is killed with `kill -9`.
    Coordinator,
    /// X-F6: two faults at once, of: a worker, a node, the coordinator, a change of plan that is under way.
    TwoAtOnce,
    /// X-F6: another fault while the job recovers from the first.
    InRecovery,
    /// The plan is changed while the job runs, with `sixfold replan --set`.
    Replan,
    /// A node is lost and no other has a core to spare: the plan shrinks, and widens when a new node joins.
    Elastic,
    /// X-S1: the disk of a node that trains is full for some checkpoints, and in half of the trials a worker dies then.
    FullDisk,
    /// X-S4: the newest checkpoint is damaged in all its copies (a bit, its end, or swapped with another); then a worker
    /// dies, while no node holds a state in memory.
    DamagedCheckpoint,
}

impl Fault {
    /// Id in the table of faults; none for what is no fault.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Worker => "X-F1",
            Self::Node => "X-F2",
            Self::ShortFreeze | Self::LongFreeze => "X-F3",
            Self::Coordinator => "X-F4",
            Self::TwoAtOnce | Self::InRecovery => "X-F6",
            Self::Replan | Self::Elastic => "Plan:",
            Self::FullDisk => "X-S1",
            Self::DamagedCheckpoint => "X-S4",
        }
    }

    /// The row's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Worker => "a worker killed",
            Self::Node => "a node killed, its folder deleted",
            Self::ShortFreeze => "a node frozen for .5 s",
            Self::LongFreeze => "a node frozen for 5 s",
            Self::Coordinator => "the coordinator killed",
            Self::TwoAtOnce => "two faults at once",
            Self::InRecovery => "a fault during recovery",
            Self::Replan => "the plan changed by hand",
            Self::Elastic => "a node lost for good, another joins",
            Self::FullDisk => "a node's disk full",
            Self::DamagedCheckpoint => "the newest checkpoint damaged",
        }
    }

    /// Steps of the training: enough that it is under way until all was done to it.
    pub(crate) fn steps(self) -> u64 {
        match self {
            Self::LongFreeze => 600,
            Self::Elastic | Self::TwoAtOnce | Self::InRecovery => 300,
            _ => 150,
        }
    }
}
