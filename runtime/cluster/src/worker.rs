//! Worker processes: the same binary, one heavy task each.
//!
//! A daemon starts a worker with its `Assignment` on standard input and keeps that pipe open. The
//! worker takes `stop` on it as the order to stop, and ends at once when it closes, so that it never
//! outlives its daemon. Everything else goes over QUIC, with a certificate that the daemon signed.

mod child;
mod process;
mod states;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sixfold_wire::id::{ArtifactId, Epoch, NodeName};
use sixfold_wire::message::Message;

use crate::task::{Gang, HostError, LinkChoice, Metrics, TaskResult, TaskSpec};

pub use child::{WorkerError, run_worker};
pub(crate) use process::WorkerProcess;
pub(crate) use states::{answer_commit, answer_held, answer_read_held};

/// Name of the daemon's actor that its workers call.
pub(crate) const WORKERS_ACTOR: &str = "workers";
/// What the daemon writes to ask a worker to stop.
const STOP_LINE: &str = "stop";

/// What a worker is told at its start; one line of JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Assignment {
    pub(crate) spec: TaskSpec,
    pub(crate) epoch: Epoch,
    pub(crate) node: NodeName,
    /// The daemon's endpoint.
    pub(crate) daemon: SocketAddr,
    /// The worker's key and certificates.
    pub(crate) identity_pem: String,
    pub(crate) store: PathBuf,
    pub(crate) scratch: PathBuf,
    pub(crate) links: LinkChoice,
}

/// Worker to daemon: what its task asks of its host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum WorkerRequest {
    Fetch(ArtifactId),
    /// A manifest, as its JSON.
    Publish(Vec<u8>),
    Save {
        state: ArtifactId,
        step: u64,
    },
    Rendezvous(SocketAddr),
    Serve {
        address: SocketAddr,
        about: Metrics,
    },
    Progress(Metrics),
    Log(String),
    Finished(TaskResult),
    /// A state to hold; its files lie in the task's scratch folder.
    Commit {
        step: u64,
        complete: u64,
        /// A manifest, as its JSON.
        manifest: Vec<u8>,
    },
    /// What nodes hold of the gang.
    Held,
    /// A file of a held state, to be put into the scratch folder.
    ReadHeld {
        /// Of the state.
        manifest: Vec<u8>,
        nodes: Vec<NodeName>,
        /// Index of the file in the manifest.
        file: u32,
    },
    WentOn {
        step: u64,
        redone: u64,
    },
    Reached(u64),
}

/// Daemon to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum WorkerReply {
    Done,
    /// A manifest, as its JSON.
    Manifest(Vec<u8>),
    Artifact(ArtifactId),
    Gang(Gang),
    Failed(HostFailure),
    /// Steps, manifests as their JSON, and who holds them; and the newest step that was done.
    Held {
        states: Vec<(u64, Vec<u8>, Vec<NodeName>)>,
        furthest: u64,
    },
}

/// A [`HostError`] on its way to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum HostFailure {
    Unavailable(ArtifactId),
    Superseded,
    Other(String),
    NotHeld(String),
}

impl From<HostError> for HostFailure {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Unavailable(id) => Self::Unavailable(id),
            HostError::Superseded => Self::Superseded,
            HostError::NotHeld(why) => Self::NotHeld(why),
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<HostFailure> for HostError {
    fn from(failure: HostFailure) -> Self {
        match failure {
            HostFailure::Unavailable(id) => Self::Unavailable(id),
            HostFailure::Superseded => Self::Superseded,
            HostFailure::NotHeld(why) => Self::NotHeld(why),
            HostFailure::Other(message) => Self::Unreachable(message),
        }
    }
}

impl Message for WorkerRequest {
    type Reply = WorkerReply;
    const PROTOCOL: &'static str = "worker";
}
