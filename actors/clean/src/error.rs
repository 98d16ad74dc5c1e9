//! How a stage of this crate fails.

use std::io;
use std::path::PathBuf;

use sixfold_artifact::StoreError;
use sixfold_artifact::tokens::TokensError;
use sixfold_cluster::task::{HostError, TaskError};

/// Why an import, a cleaning or a tokenisation failed.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// The options contradict each other.
    #[error("{0}")]
    Options(String),
    /// A file that the options name cannot be read.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An input artefact cannot be used.
    #[error("input {artifact}: {reason}")]
    Input {
        /// The artefact.
        artifact: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An output cannot be written.
    #[error("cannot write {what}: {reason}")]
    Output {
        /// What was being written.
        what: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// No document is left to go on with.
    #[error("{0}")]
    Empty(&'static str),
    /// Training or using the tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Token shards cannot be written.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// The node's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster could not fetch or publish an artefact.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The task was told to stop.
    #[error("the task was told to stop")]
    Cancelled,
}

impl CleanError {
    /// An output that cannot be written.
    pub(crate) fn output(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::Output { what, reason: error.to_string() }
    }
}

impl From<CleanError> for TaskError {
    fn from(error: CleanError) -> Self {
        match error {
            CleanError::Store(_)
            | CleanError::Output { .. }
            | CleanError::Host(_)
            | CleanError::Cancelled => Self::restart(error),
            CleanError::Tokens(TokensError::Io { .. } | TokensError::Store(_)) => Self::restart(error),
            _ => Self::fatal(error),
        }
    }
}
