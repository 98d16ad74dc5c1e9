//! Instruction data: rows of dialogues in the usual forms, as token shards in which only answers are learned.
//!
//! A [`record`] says what was said. [`rows`] reads files of them and counts what is broken. [`Encoder`] renders a dialogue by
//! the model's chat template, finds its answers and tokenizes it.

mod base;
mod encode;
pub mod record;
pub mod rows;

pub use base::{BaseTokenizer, MODEL, load as load_base};
pub use encode::{Encoded, Encoder, Refused};
