//! Why a rank ended without a result, and what its supervisor shall do about it.

use std::path::PathBuf;

use sixfold_artifact::StoreError;
use sixfold_artifact::tokens::TokensError;
use sixfold_cluster::task::{ErrorClass, HostError, TaskError};
use sixfold_collective::CollectiveError;
use sixfold_model::{GeometryError, WeightsError};
use sixfold_parallel::{PlaceError, StepError};
use sixfold_topology::Rank;
use sixfold_transport::BindError;
use sixfold_transport::link::LinkError;

use crate::options::OptionsError;

/// Why a rank ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The stage's options are wrong, as the cluster already says.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The stage's options do not fit each other.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The gang has another size than the plan.
    #[error("the plan {plan} has {ranks} ranks, but the gang has {members} members")]
    GangSize {
        /// The plan.
        plan: String,
        /// Its ranks.
        ranks: usize,
        /// Members of the gang.
        members: usize,
    },
    /// The stage has no tokens to train on.
    #[error("a train stage needs an artefact of kind `tokens` among its inputs")]
    NoTokens,
    /// A folder is not a model.
    #[error("{path}: {reason}", path = path.display())]
    Import {
        /// The folder, or a file of it.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The model to start from cannot be used.
    #[error("the model that training starts from: {0}")]
    Base(String),
    /// The options are for a model to start from, and no input is one.
    #[error("the options have a `base`, and no input of the stage is a model")]
    NoBase,
    /// The corpus is shorter than one training sequence.
    #[error(
        "the training split has {tokens} tokens; one sequence of {sequence_length} needs {} \
         (lower sequence_length or context_length)", sequence_length + 1
    )]
    TooFewTokens {
        /// Tokens of the training split.
        tokens: u64,
        /// Tokens of a training sequence.
        sequence_length: usize,
    },
    /// There is nothing to evaluate on.
    #[error(
        "the held-out split has {tokens} tokens, too few to evaluate on; set evaluate_every_steps to 0, or hold out more in the \
         stage that makes the tokens"
    )]
    NoHeldOut {
        /// Its tokens.
        tokens: u64,
    },
    /// The token shards cannot be read.
    #[error("the tokens cannot be read: {0}")]
    Tokens(#[from] TokensError),
    /// The model does not fit the vocabulary.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The rank cannot take its place in the plan.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The links to other ranks cannot be established, or broke outside of a step.
    #[error("{rank} lost a peer: {source}")]
    Link {
        /// This rank.
        rank: Rank,
        /// Which peer, and how.
        source: LinkError,
    },
    /// A step failed.
    #[error("{rank}, step {step}: {source}")]
    Step {
        /// This rank.
        rank: Rank,
        /// The step, counted from 0.
        step: u64,
        /// What failed.
        source: StepError,
    },
    /// The numbers have gone out of bounds.
    #[error(
        "step {step}: {origin}; loss {loss}, gradient norm {gradient_norm}; training cannot go on \
         (try a lower learning_rate, a longer warmup_steps or a smaller clip_norm)"
    )]
    NotFinite {
        /// Which rank computed the first number that is not finite, and where.
        origin: String,
        /// The step, counted from 0.
        step: u64,
        /// The step's loss.
        loss: f32,
        /// The step's gradient norm.
        gradient_norm: f32,
    },
    /// The weights cannot be put in a file.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The rank's state is not laid out as its plan says.
    #[error("the rank's state: {0}")]
    State(String),
    /// The final states, just written, do not make up the model.
    #[error("the final checkpoint cannot be read back: {0}")]
    FinalState(String),
    /// The node's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster did not answer.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No address could be had for the links to other ranks.
    #[error("the links to other ranks: {0}")]
    Bind(#[from] BindError),
    /// A thread could not start or died.
    #[error("a thread of the trainer failed: {0}")]
    Thread(String),
    /// The task was told to stop.
    #[error("stopped before step {step}")]
    Stopped {
        /// The step that would have been next, counted from 0.
        step: u64,
    },
    /// The task was told to stop before its gang had gathered.
    #[error("stopped while waiting for other ranks")]
    StoppedWaiting,
}

impl TrainError {
    /// What to do about it: what depends on options and inputs alone fails everywhere.
    fn class(&self) -> ErrorClass {
        match self {
            Self::Task(error) => error.class,
            Self::Options(_)
            | Self::NoTokens
            | Self::Import { .. }
            | Self::Base(_)
            | Self::NoBase
            | Self::NoHeldOut { .. }
            | Self::TooFewTokens { .. }
            | Self::Geometry(_)
            | Self::NotFinite { .. }
            | Self::Weights(_)
            | Self::Step {
                source:
                    StepError::Batch(_)
                    | StepError::Groups { .. }
                    | StepError::NoTargets
                    | StepError::Targets { .. },
                ..
            } => ErrorClass::Fatal,
            Self::Tokens(error) if !matches!(error, TokensError::Store(_) | TokensError::Io { .. }) => {
                ErrorClass::Fatal
            }
            _ => ErrorClass::Restart,
        }
    }

    /// A link that broke outside of a step.
    pub(crate) fn of_link(rank: Rank) -> impl Fn(LinkError) -> Self {
        move |source| Self::Link { rank, source }
    }

    /// A group that broke outside of a step.
    pub(crate) fn of_group(rank: Rank) -> impl Fn(CollectiveError) -> Self {
        move |error| match error {
            CollectiveError::Link(source) => Self::Link { rank, source },
            error @ CollectiveError::Membership { .. } => Self::Thread(error.to_string()),
        }
    }
}

impl From<TrainError> for TaskError {
    fn from(error: TrainError) -> Self {
        Self { class: error.class(), message: error.to_string() }
    }
}
