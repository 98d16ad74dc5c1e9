//! Why a monitor cannot watch, and why it refuses what it is told.

use sixfold_artifact::StoreError;
use sixfold_artifact::tokens::TokensError;
use sixfold_cluster::task::{HostError, TaskError};

/// Why a monitor cannot watch.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// The stage's options make no sense.
    #[error("{0}")]
    Options(String),
    /// The stage's inputs are not what it needs.
    #[error("a drift stage needs one artefact of kind `tokens` among its inputs; it has {0}")]
    Inputs(usize),
    /// The training split cannot be used.
    #[error("the training text cannot be used: {0}")]
    Tokens(#[from] TokensError),
    /// There is too little to compare with.
    #[error(
        "the training split has {found} tokens, too few for samples of {min_tokens}: lower `min_tokens` or train on more text"
    )]
    TooLittle {
        /// Tokens of the reference.
        found: u64,
        /// The smallest sample that is to get a verdict.
        min_tokens: u64,
    },
    /// The process has no endpoint.
    #[error("a drift monitor must be reachable, and this process has no endpoint")]
    NoNetwork,
    /// The endpoint's address is not known.
    #[error("the endpoint does not say where it listens: {0}")]
    Address(#[from] std::io::Error),
    /// The cluster did not answer.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Reading the training split panicked.
    #[error("reading the training text failed: {0}")]
    Panicked(String),
}

impl From<DriftError> for TaskError {
    fn from(error: DriftError) -> Self {
        match error {
            // A file that the artefact does not name will not be there the next time either.
            DriftError::Tokens(TokensError::Store(StoreError::MissingFile { .. })) => Self::fatal(error),
            DriftError::Tokens(TokensError::Io { .. } | TokensError::Store(_))
            | DriftError::Address(_)
            | DriftError::Host(_)
            | DriftError::Panicked(_) => Self::restart(error),
            _ => Self::fatal(error),
        }
    }
}

/// Why an observation is refused. The window has not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObserveError {
    /// It is about another model.
    #[error("this monitor watches `{0}`")]
    OtherModel(String),
    /// It has more entries or tokens than one message may.
    #[error("an observation has at most {entries} entries and {tokens} tokens")]
    TooLarge {
        /// Most entries.
        entries: usize,
        /// Most tokens.
        tokens: u64,
    },
    /// A token that the model does not have.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Entries of the vocabulary.
        vocabulary: u32,
    },
}
