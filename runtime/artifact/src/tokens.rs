//! Token shards: the token ids of a corpus as memory-mapped arrays, with the documents' boundaries.
//!
//! A split (`train`, `held-out`) is one long sequence of tokens. It lies in one or more shards of
//! little-endian `u16` or `u32`, an index in JSON that names them, and a file of `u64` boundaries:
//! document `i` is `boundaries[i]..boundaries[i + 1]`, its end-of-text token included. A range of
//! tokens may span shards; readers copy, they do not see shards. A split of dialogues also has a mask:
//! a bit for each token, token `i` at bit `i % 8` of byte `i / 8`, set where a model is to learn to say it.
//!
//! It does not know a tokenizer; ids are checked against the vocabulary's size and nothing else.
//!
//! Read [`TokenShards`] first.

mod error;
mod index;
mod mask;
mod reader;
mod writer;

pub use error::TokensError;
pub use index::{DType, ShardEntry, TokenIndex, boundaries_file, index_file, mask_file, shard_file};
pub use mask::MaskBits;
pub use reader::TokenShards;
pub use writer::{TokenWriter, encode_boundaries};
