//! Why an evaluation ended without a report.

use sixfold_artifact::StoreError;
use sixfold_artifact::tokens::TokensError;
use sixfold_cluster::task::{ErrorClass, HostError, TaskError};
use sixfold_model::DecodeError;

/// Why an evaluation ended without a report.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The stage's options make no sense.
    #[error("{0}")]
    Options(String),
    /// The stage's inputs are not what it needs.
    #[error("an evaluate stage needs one artefact of kind `{kind}` among its inputs; it has {found}")]
    Inputs {
        /// The kind that is needed.
        kind: &'static str,
        /// How many of them there are.
        found: usize,
    },
    /// The model's files cannot be used.
    #[error("the model cannot be used: {0}")]
    Model(String),
    /// The text was cut into other tokens than the model knows.
    #[error(
        "the model's tokenizer.json is not that of the held-out text: evaluate it on tokens of the tokenizer that it was trained with"
    )]
    OtherTokenizer,
    /// The held-out split cannot be used.
    #[error("the held-out text cannot be used: {0}")]
    Tokens(#[from] TokensError),
    /// There is nothing to score.
    #[error(
        "the held-out split has no document of two tokens or more, or no answer: raise `held_out` in the stage that made it, or give that more text"
    )]
    NothingToScore,
    /// The model computes something that is not a number.
    #[error("the model's probabilities are not numbers: its training has diverged")]
    NotFinite,
    /// The forward pass refused.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Tokens could not be written out as text.
    #[error("the tokenizer cannot decode: {0}")]
    Text(String),
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

impl EvaluateError {
    fn class(&self) -> ErrorClass {
        match self {
            // A file that the artefact does not name will not be there the next time either.
            Self::Store(StoreError::MissingFile { .. })
            | Self::Tokens(TokensError::Store(StoreError::MissingFile { .. })) => ErrorClass::Fatal,
            Self::Store(_)
            | Self::Host(_)
            | Self::Thread(_)
            | Self::Tokens(TokensError::Io { .. } | TokensError::Store(_)) => ErrorClass::Restart,
            _ => ErrorClass::Fatal,
        }
    }
}

impl From<EvaluateError> for TaskError {
    fn from(error: EvaluateError) -> Self {
        Self { class: error.class(), message: error.to_string() }
    }
}
