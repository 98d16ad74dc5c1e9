//! The evaluator role: how good a trained model is on text that it has not seen.
//!
//! It measures held-out [`perplexity`] and the [`diversity`] of what a model writes, and publishes
//! them as a report for people and for programs. The forward pass is the trainer's and the
//! replica's, to the bit, and so is the choice of tokens.
//!
//! [`Evaluator`] is the role that a node hosts. Read [`perplexity::score`] first.

mod actor;
pub mod diversity;
mod error;
mod inputs;
mod model;
mod options;
pub mod perplexity;
mod progress;
mod report;
pub mod samples;
mod task;

pub use actor::Evaluator;
pub use error::EvaluateError;
pub use options::EvaluateOptions;

/// Name of the role in a job.
pub const ROLE: &str = "evaluate";
/// Kind of the artefact that an evaluation publishes.
pub const REPORT: &str = "report";
