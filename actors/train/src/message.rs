//! What the trainer shard's mailbox takes.

use sixfold_cluster::task::TaskOutput;

use crate::error::TrainError;

/// Messages of the [`TrainerShard`](crate::TrainerShard) actor. At most one of each is on its way;
/// tensors and figures go other ways.
#[derive(Debug)]
pub enum TrainerMessage {
    /// Start the thread that computes. Sent once, by the actor to itself.
    Begin,
    /// The thread ended.
    Ended(Result<TaskOutput, TrainError>),
    /// The thread panicked, with this message.
    Panicked(String),
}
