//! What can go wrong on a rank.

use sixfold_collective::CollectiveError;
use sixfold_model::{BatchError, GroupError};
use sixfold_topology::{LayoutError, Rank};
use sixfold_transport::link::LinkError;

/// A rank cannot take its place in the plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// A link that the plan asks for is missing.
    #[error("{rank} has no link to {peer}")]
    Link {
        /// The rank.
        rank: Rank,
        /// The other end of the missing link.
        peer: Rank,
    },
    /// There is no balanced tree of sums over so many ranks.
    #[error("a group of {members} ranks: the number must be a power of two")]
    Degree {
        /// Ranks of the group.
        members: usize,
    },
    /// The layers cannot be laid out over the plan's stages.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// A step failed on this rank.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A micro-batch does not fit the model.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The groups are not a power of two with as many micro-batches each.
    #[error("{groups} data groups: there must be a power of two of them, with as many micro-batches each")]
    Groups {
        /// Groups given.
        groups: usize,
    },
    /// Every document of the step has but one token, so nothing is predicted.
    #[error("no target of the step counts in the loss")]
    NoTargets,
    /// The step's count of targets cannot be right.
    #[error("{own} targets count on this rank, but {global} in the whole step")]
    Targets {
        /// Counted targets of the rank's micro-batches.
        own: u64,
        /// Counted targets of the step, as the rank was told.
        global: u64,
    },
    /// A neighbouring pipeline stage is gone.
    #[error("a pipeline link failed: {0}")]
    Pipeline(#[from] LinkError),
    /// A rank of the tensor-parallel group is gone.
    #[error(transparent)]
    Tensor(#[from] GroupError),
    /// A rank of the data-parallel group is gone.
    #[error("the data-parallel group failed: {0}")]
    Data(#[from] CollectiveError),
}
