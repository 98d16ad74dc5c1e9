//! Roles and tasks, membership, leases, supervision, worker processes: what a node daemon is made of.
//!
//! It knows no stage of a model's life: a stage crate supplies an actor that does one task at a
//! time, and this crate places that actor under supervision and connects it to the cluster.
//!
//! Read [`task::TaskContext`] first: it is all that a role sees of the cluster.

pub mod daemon;
mod holder;
mod host;
mod neighbours;
pub mod protocol;
pub mod role;
mod session;
mod states;
mod supervisor;
pub mod task;
mod task_table;
mod transfer;
pub mod work;
pub mod worker;

pub use transfer::{
    STREAM_KIND as ARTIFACT_STREAM, TransferError, TransferRequest, receive as receive_artifact,
};
