//! Tests of `error`.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::DType;
use crate::StoreError;

/// Why token shards cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// A file cannot be opened, mapped or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The artefact lacks a file, or its store does.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index is not the JSON that it should be.
    #[error("the index of the token shards is damaged: {0}")]
    Index(#[from] serde_json::Error),
    /// The index is larger than any honest one.
    #[error("an index of {bytes} bytes is larger than the limit of {limit}")]
    IndexTooLarge {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Written by a later version.
    #[error("token shards of version {found}; this program reads version {expected}")]
    Version {
        /// The file's version.
        found: u32,
        /// The version that is read.
        expected: u32,
    },
    /// A name in the index that is not a plain file name.
    #[error("the index names a file {name:?}, which is not a plain file name")]
    FileName {
        /// The name.
        name: String,
    },
    /// A file's length does not fit the index.
    #[error("{file} has {found} bytes where the index promises {expected}")]
    Length {
        /// The file.
        file: String,
        /// Its length.
        found: u64,
        /// The length by the index.
        expected: u64,
    },
    /// The index contradicts itself.
    #[error("the index of the token shards is inconsistent: {0}")]
    Inconsistent(&'static str),
    /// The vocabulary does not fit the number type.
    #[error("a vocabulary of {vocabulary} does not fit {dtype:?} token ids")]
    DType {
        /// Entries of the vocabulary.
        vocabulary: u32,
        /// The number type.
        dtype: DType,
    },
    /// A token id that the vocabulary does not have.
    #[error("token {token} at position {position} is outside the vocabulary of {vocabulary}")]
    OutOfVocabulary {
        /// The id.
        token: u32,
        /// Where it is in the split.
        position: u64,
        /// Entries of the vocabulary.
        vocabulary: u32,
    },
    /// A range that is not within the split.
    #[error("tokens {range:?} of a split of {tokens}")]
    OutOfRange {
        /// What was asked for.
        range: Range<u64>,
        /// Tokens of the split.
        tokens: u64,
    },
}
