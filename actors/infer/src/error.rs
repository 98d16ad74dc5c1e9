//! Errors of loading a model for serving and of turning requests into tokens.

use sixfold_artifact::StoreError;
use sixfold_cluster::task::TaskError;

/// Why text could not become tokens, or tokens text.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The tokenizer refused the text.
    #[error("the prompt cannot be tokenized: {0}")]
    Encode(String),
    /// The tokenizer refused tokens.
    #[error("tokens cannot be decoded: {0}")]
    Decode(String),
    /// The chat template is broken, or refuses the conversation.
    #[error("the chat template failed: {0}")]
    Template(String),
}

/// Why a model artefact cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The task's inputs hold no model.
    #[error("a serving stage needs one `model` artefact among its inputs; it has {found}")]
    Input {
        /// Models among the inputs.
        found: usize,
    },
    /// A file of it is missing or damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tokenizer is not one.
    #[error("tokenizer.json is not readable: {0}")]
    Tokenizer(String),
    /// The chat template does not parse.
    #[error(transparent)]
    Template(#[from] TextError),
    /// The weights or their configuration are not usable.
    #[error("the model is not readable: {0}")]
    Model(String),
}

impl From<LoadError> for TaskError {
    /// What a store lost may be on another node; what is broken is broken everywhere.
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Store(error) => Self::from(error),
            error => Self::fatal(error),
        }
    }
}
