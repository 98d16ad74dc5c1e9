//! The evaluator role: how good a trained model is on text that it has not seen.
//!
//! It measures held-out [`perplexity`] and the [`diversity`] of what a model writes. The forward
//! pass is the trainer's and the replica's, to the bit.
//!
//! Read [`perplexity::score`] first.

pub mod diversity;
mod error;
mod options;
pub mod perplexity;

pub use error::EvaluateError;
pub use options::EvaluateOptions;
