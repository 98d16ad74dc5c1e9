//! The trainer-shard role: one rank of a training job, in a process of its own.
//!
//! A rank reads its part of each step's batch from the token shards, computes the units of the
//! model that the plan gives it, and exchanges partial sums and activations with its neighbours in
//! the plan. Its state is held in other nodes' memory after each step and made durable every few, so that a gang
//! that loses a member goes on from the newest complete step, under the same plan or another, with the same bits. After the last
//! step the first rank writes the `model` artefact.
//!
//! The arithmetic and the plans are those of `sixfold-model` and `sixfold-parallel`; this crate
//! adds data order, checkpoints and the life of the task. Links come from a [`LinkFactory`]: the
//! task's network, or a test's.
//!
//! Read [`TrainOptions`] first, then `shard.rs`. [`TrainerShard`] is what a node hosts.

mod account;
mod actor;
mod agreement;
mod base;
mod batches;
mod checkpoint;
mod commit;
mod error;
mod evaluations;
mod history;
mod host;
mod import;
mod links;
mod measure;
mod model_artifact;
mod network;
mod options;
mod order;
mod packing;
mod peak;
mod prefetch;
mod progress;
mod sequences;
mod shard;
mod straggler;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod verify;

pub use account::{CollectiveTimes, RankAccount, RankTimes};
pub use actor::TrainerShard;
pub use base::{FIXED_BY_BASE, options_of_base, options_of_trained_base};
pub use error::TrainError;
pub use evaluations::Evaluation;
pub use history::{HISTORY_POINTS_MAX, History, HistoryPoint, NamedStraggler};
pub use import::{ModelImporter, ModelOptions};
pub use links::{LinkFactory, LinkPurpose, Links};
pub use measure::{Course, Measured, MeasuredRank, measure};
pub use options::{BaseFormat, OptionsError, TrainOptions};
pub use order::DataOrder;
pub use sixfold_model::{Family, Recompute};
pub use sixfold_parallel::verify::{Difference, Found, Verified, VerifiedRank, VerifyError};
pub use verify::{VerifyPlanError, verify_plan};
