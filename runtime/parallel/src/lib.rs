//! Tensor, pipeline and data parallelism, applied to a model from outside.
//!
//! A rank computes its units of the model ([`slice_of`]) on its data groups, runs the 1F1B
//! schedule, and adds partial results with other ranks along the job's fixed tree. So loss and
//! weights have the same bits on every plan.
//!
//! This crate opens no links, reads no files and knows no tokens' meaning: whoever runs a rank
//! brings [`RankLinks`] and batches. Read [`Trainer`] first.

mod error;
mod group;
mod health;
mod links;
mod partition;
mod passes;
mod share;
mod state;
mod trainer;
pub mod verify;

pub use error::{PlaceError, StepError};
pub use health::{NotFinite, Origin, RankTime, StepHealth};
pub use links::RankLinks;
pub use share::ParameterShare;
pub use state::{StateParts, UnitParts};
pub use trainer::{Execution, StepBatch, StepReport, Trainer, TrainingJob, slice_of};
