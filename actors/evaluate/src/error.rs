//! Why an evaluation ended without a report.

use sixfold_artifact::StoreError;
use sixfold_artifact::tokens::TokensError;
use sixfold_cluster::task::{ErrorClass, HostError, TaskError};
use sixfold_model::DecodeError;

/// Why an evaluation ended without a report.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The stage's inputs are not what it needs.
    #[error("an evaluate stage needs an artefact of kind `{0}` among its inputs")]
    MissingInput(&'static str),
    /// The model's files cannot be used.
    #[error("the model cannot be used: {0}")]
    Model(String),
    /// The held-out split cannot be used.
    #[error("the held-out text cannot be used: {0}")]
    Tokens(#[from] TokensError),
    /// There is nothing to score.
    #[error(
        "the held-out split has no document of two tokens or more: raise `held_out` in the tokenize stage"
    )]
    NothingToScore,
    /// The forward pass refused.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The report's picture could not be drawn.
    #[error("cannot draw the loss curve: {0}")]
    Plot(String),
    /// The node's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster did not answer.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The task was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The thread that computes could not start or died.
    #[error("the evaluator's thread: {0}")]
    Thread(String),
}

impl From<EvaluateError> for TaskError {
    fn from(error: EvaluateError) -> Self {
        let class = match &error {
            EvaluateError::Store(_) | EvaluateError::Host(_) | EvaluateError::Thread(_) => {
                ErrorClass::Restart
            }
            _ => ErrorClass::Fatal,
        };
        Self { class, message: error.to_string() }
    }
}
