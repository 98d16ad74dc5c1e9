//! What the evaluator's mailbox takes.

use sixfold_cluster::task::TaskOutput;

use crate::error::EvaluateError;

/// Messages of an [`Evaluator`](crate::Evaluator). At most one of each is on its way.
#[derive(Debug)]
pub enum EvaluateMessage {
    /// Start working. Sent once, by the actor to itself.
    Begin,
    /// The evaluation ended.
    Ended(Result<TaskOutput, EvaluateError>),
    /// The computing thread panicked, with this message.
    Panicked(String),
    /// Stop before the next window or token; nothing is published.
    Cancel,
}
