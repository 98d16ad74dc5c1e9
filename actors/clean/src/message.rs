//! What the mailboxes of this crate's actors take.

use sixfold_cluster::task::TaskOutput;

use crate::error::CleanError;

/// Messages of a [`TextWorker`](crate::TextWorker). At most one of each is on its way.
#[derive(Debug)]
pub enum WorkMessage {
    /// Start working. Sent once, by the actor to itself.
    Begin,
    /// The work ended.
    Ended(Result<TaskOutput, CleanError>),
    /// The working thread panicked, with this message.
    Panicked(String),
    /// Stop at the next look; nothing is published.
    Cancel,
}
