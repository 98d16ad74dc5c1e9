//! Tensor, pipeline and data parallelism, applied to a model from outside.
//!
//! A rank computes its units of the model ([`RankSlice`]) on its data groups, runs the 1F1B
//! schedule, interleaved where it has several chunks of layers, and adds partial results with other ranks along the job's fixed tree. So loss and
//! weights have the same bits on every plan.
//!
//! This crate opens no links, reads no files and knows no tokens' meaning: whoever runs a rank
//! brings [`RankLinks`] and batches. Read [`Trainer`] first.

mod error;
mod gang;
mod group;
mod health;
mod job;
mod links;
mod partition;
mod passes;
mod pipeline;
mod profile;
mod score;
mod share;
mod slice;
mod state;
mod sums;
mod trainer;
pub mod verify;

pub use error::{PlaceError, StepError};
pub use health::{NotFinite, Origin, RankTime, StepHealth};
pub use job::{Execution, StepBatch, StepReport, TrainingJob};
pub use links::RankLinks;
pub use profile::{Collective, Spent, StepProfile};
pub use score::{Score, ScoreError, score};
pub use share::ParameterShare;
pub use slice::{RankSlice, balanced_layout, stage_costs};
pub use state::{StateParts, UnitParts};
pub use trainer::Trainer;
