//! Tests of `index`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::TokensError;

/// The version of the format that this module reads and writes.
pub(super) const VERSION: u32 = 1;

/// The number type of a token id, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
}

impl DType {
    /// The type for a vocabulary. The limit of 65500 is Megatron-LM's (`indexed_dataset.py`,
    /// `DType.optimal_dtype`), so that shards can be handed to it.
    pub const fn for_vocabulary(vocabulary: u32) -> Self {
        if vocabulary < 65_500 { Self::U16 } else { Self::U32 }
    }

    /// Bytes of a token id.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    const fn ids(self) -> u64 {
        match self {
            Self::U16 => 1 << 16,
            Self::U32 => 1 << 32,
        }
    }
}

/// One file of token ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name, beside the index.
    pub file: String,
    /// Token ids in it.
    pub tokens: u64,
}

/// What a split consists of: the content of its `.idx.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenIndex {
    /// Version of the format.
    pub version: u32,
    /// Number type of the ids.
    pub dtype: DType,
    /// Entries of the vocabulary; every id is smaller.
    pub vocabulary: u32,
    /// Tokens of the split.
    pub tokens: u64,
    /// Documents of the split.
    pub documents: u64,
    /// The file of `documents + 1` boundaries.
    pub boundaries: String,
    /// The files of token ids, in order.
    pub shards: Vec<ShardEntry>,
    /// The file of a bit for each token, set where a model is to learn to say it; without it, all tokens are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
}

impl TokenIndex {
    /// An index of shards with their token counts.
    pub fn new(split: &str, vocabulary: u32, documents: u64, shards: Vec<ShardEntry>) -> Self {
        Self {
            version: VERSION,
            dtype: DType::for_vocabulary(vocabulary),
            vocabulary,
            tokens: shards.iter().map(|shard| shard.tokens).sum(),
            documents,
            boundaries: boundaries_file(split),
            shards,
            mask: None,
        }
    }

    /// The same index, of a split that has a mask.
    #[must_use]
    pub fn with_mask(self, split: &str) -> Self {
        Self { mask: Some(mask_file(split)), ..self }
    }

    /// Parses and checks an index.
    ///
    /// # Errors
    /// [`TokensError`] where it is not JSON of this form, or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, TokensError> {
        let index: Self = serde_json::from_slice(bytes)?;
        index.check()?;
        Ok(index)
    }

    /// The index as JSON.
    ///
    /// # Errors
    /// [`TokensError::Index`], which numbers and strings do not cause.
    pub fn encode(&self) -> Result<Vec<u8>, TokensError> {
        Ok(serde_json::to_vec_pretty(self)?)
    }

    fn check(&self) -> Result<(), TokensError> {
        if self.version != VERSION {
            return Err(TokensError::Version { found: self.version, expected: VERSION });
        }
        if u64::from(self.vocabulary) > self.dtype.ids() || self.vocabulary == 0 {
            return Err(TokensError::DType { vocabulary: self.vocabulary, dtype: self.dtype });
        }
        let names = self.shards.iter().map(|shard| &shard.file).chain([&self.boundaries]).chain(&self.mask);
        if let Some(name) = names.into_iter().find(|name| !is_plain_file_name(name)) {
            return Err(TokensError::FileName { name: name.clone() });
        }
        let sum = self.shards.iter().try_fold(0_u64, |sum, shard| sum.checked_add(shard.tokens));
        if sum != Some(self.tokens) {
            return Err(TokensError::Inconsistent("the shards' tokens do not add up"));
        }
        if self.tokens.checked_mul(self.dtype.bytes()).is_none() {
            return Err(TokensError::Inconsistent("more tokens than a file can hold"));
        }
        Ok(())
    }
}

fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// The name of a split's index.
pub fn index_file(split: &str) -> String {
    format!("{split}.idx.json")
}

/// The name of a split's boundaries.
pub fn boundaries_file(split: &str) -> String {
    format!("{split}.boundaries.bin")
}

/// The name of a split's mask.
pub fn mask_file(split: &str) -> String {
    format!("{split}.mask.bin")
}

/// The name of a split's shard.
pub fn shard_file(split: &str, number: usize) -> String {
    format!("{split}-{number:05}.bin")
}

/// The part of `range` that lies in a shard whose tokens are `shard`, both counted from the start of the split.
pub(super) fn overlap(range: &Range<u64>, shard: &Range<u64>) -> Range<u64> {
    let start = range.start.clamp(shard.start, shard.end);
    start..range.end.clamp(start, shard.end)
}
