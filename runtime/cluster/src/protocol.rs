//! The messages between a node daemon and the coordinator.
//!
//! A daemon dials the coordinator and keeps one connection. On it, the daemon calls the
//! coordinator's `reports` actor with [`Fenced`] [`NodeReport`]s, and the coordinator calls the
//! daemon's `commands` actor with [`NodeCommand`]s. Both kinds are idempotent: a command names the
//! task and its epoch, a report its fence. Enums grow only at their end.

// The fields of the variants are named for what they are; their types say the rest.
#![allow(missing_docs)]

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use sixfold_artifact::Manifest;
use sixfold_wire::id::{ArtifactId, Epoch, Fence, LeaseId, NodeName, TaskId};
use sixfold_wire::message::Message;

use crate::task::{Gang, GangId, Metrics, SavedState, TaskAddress, TaskError, TaskOutput, TaskSpec};

/// Name of the coordinator's actor that takes [`NodeReport`]s.
pub const REPORTS_ACTOR: &str = "reports";
/// Name of a daemon's actor that takes [`NodeCommand`]s.
pub const COMMANDS_ACTOR: &str = "commands";

/// What a machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Logical CPU cores that the daemon may use.
    pub cores: u32,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    /// Best kernel level: `plain`, `avx2`, `avx512` or `amx`.
    pub simd: String,
    /// Names and memory of the GPUs.
    pub gpus: Vec<Gpu>,
    /// Nodes with the same host name share a machine: tensor-parallel groups prefer that.
    pub host: String,
    /// Nodes with the same label fail together; the node's own name by default.
    pub failure_domain: String,
}

/// A GPU of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// The driver's name for it.
    pub name: String,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
}

/// A daemon introduces itself, at its start and after each lost connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Where other nodes reach this one.
    pub address: SocketAddr,
    /// Where its HTTP gateway listens, if it has one.
    pub http: Option<SocketAddr>,
    /// What the machine has.
    pub capabilities: Capabilities,
    /// Tasks that still run here, from before the connection was lost.
    pub running: Vec<RunningTask>,
    /// Results that finished here while the coordinator was away and that it has not acknowledged.
    pub finished: Vec<(TaskId, Epoch, Result<TaskOutput, TaskError>)>,
    /// Artefacts in this node's store.
    pub artifacts: Vec<ArtifactId>,
}

/// A task that runs on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// The task.
    pub task: TaskId,
    /// Its attempt.
    pub epoch: Epoch,
    /// Where it listens, once it has said so.
    pub address: Option<SocketAddr>,
}

/// A message with the fence that lets its receiver refuse a stale sender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fenced<T> {
    /// Who says it, under which authority.
    pub fence: Fence,
    /// What is said.
    pub body: T,
}

/// Daemon to coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum NodeReport {
    /// Asks for a lease. The only report whose fence may be stale.
    Hello(Hello),
    /// Renews the lease.
    Heartbeat,
    /// A gang member listens and waits for its gang.
    Started { task: TaskId, epoch: Epoch, address: SocketAddr },
    /// A service (a replica, a monitor) is ready for requests.
    Serving { task: TaskId, epoch: Epoch, address: SocketAddr, about: Metrics },
    /// Figures for progress bars; not durable.
    Progress { task: TaskId, epoch: Epoch, figures: Metrics },
    /// A state from which the task may go on.
    Saved { task: TaskId, epoch: Epoch, state: SavedState },
    /// The task ended.
    Finished { task: TaskId, epoch: Epoch, result: Result<TaskOutput, TaskError> },
    /// An artefact is complete in these nodes' stores.
    Stored { artifact: ArtifactSummary, nodes: Vec<NodeName> },
    /// Where an artefact can be fetched.
    Locate { artifact: ArtifactId },
    /// Lines for a job's log; not durable beyond a bound.
    Log { task: TaskId, lines: Vec<String> },
    /// The node drains: it takes nothing new and leaves when its tasks have been moved.
    Leave,
    /// A gang goes on after that step, and does so many steps again.
    WentOn { task: TaskId, epoch: Epoch, step: u64, redone: u64 },
}

/// What the coordinator's catalogue keeps of an artefact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactSummary {
    /// The artefact.
    pub id: ArtifactId,
    /// Its kind.
    pub kind: String,
    /// The task that made it.
    pub task: TaskId,
    /// The stage that made it.
    pub stage: String,
    /// Length of its files.
    pub bytes: u64,
    /// What it was made from.
    pub parents: Vec<ArtifactId>,
    /// Without which it cannot be read.
    #[serde(default)]
    pub needs: Vec<ArtifactId>,
}

impl ArtifactSummary {
    /// The summary of a manifest; `task` made it.
    pub fn of(manifest: &Manifest, task: TaskId) -> Self {
        Self {
            id: manifest.id(),
            kind: manifest.kind.clone(),
            task,
            stage: manifest.stage.clone(),
            bytes: manifest.bytes(),
            parents: manifest.parents.clone(),
            needs: manifest.needs.clone(),
        }
    }
}

/// Coordinator's answer to a [`NodeReport`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum NodeReply {
    /// The lease asked for, and how long it holds without a heartbeat.
    Welcome { epoch: Epoch, lease: LeaseId, lease_ms: u64 },
    /// Done.
    Accepted,
    /// The sender's epoch or lease is stale: it must say Hello before anything else counts.
    Stale,
    /// The report makes no sense here.
    Refused(String),
    /// Nodes that hold the artefact.
    Locations(Vec<NodeAddress>),
    /// The lease is fine, but the attempt was placed anew or cancelled: stop that attempt.
    Superseded,
    /// Answer to Leave while tasks or the only copies of artefacts are still here: ask again.
    Draining(String),
}

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// The node.
    pub node: NodeName,
    /// Its transport endpoint.
    pub address: SocketAddr,
}

/// Coordinator to daemon. The fence holds the coordinator's epoch; a daemon refuses an older one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum NodeCommand {
    /// Start a task; a no-op if this attempt runs or has finished here.
    Start { spec: TaskSpec, epoch: Epoch },
    /// All members of the task's gang listen.
    GangFormed { task: TaskId, gang: Gang },
    /// Stop a task's attempt and all older ones.
    Stop { task: TaskId, epoch: Epoch, drain: bool },
    /// Fetch an artefact from one of these nodes and keep it.
    Replicate { artifact: ArtifactId, from: Vec<NodeAddress> },
    /// The cluster as it is now.
    View(ClusterView),
    /// Try to reach a suspected node over a fresh connection.
    Probe(NodeAddress),
    /// Forget these artefacts: no job needs them any more (old saved states).
    Discard { artifacts: Vec<ArtifactId> },
}

/// What every daemon knows about the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Grows with each change.
    pub version: u64,
    /// Nodes with a valid lease.
    pub nodes: Vec<NodeAddress>,
    /// Services that are ready, for gateways.
    pub services: Vec<Service>,
    /// HTTP keys, for gateways.
    pub keys: Vec<KeyRecord>,
    /// Copies of each artefact that the cluster keeps.
    pub copies: u32,
    /// The failure domain of each node of `nodes`, in their order.
    pub domains: Vec<String>,
    /// Gangs whose work is not done: nodes hold states in memory for these.
    pub gangs: Vec<GangId>,
}

/// A running service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its role, for example `infer`.
    pub role: String,
    /// Where it is.
    pub at: TaskAddress,
    /// Its attempt.
    pub epoch: Epoch,
    /// What it serves: model name, artefact.
    pub about: Metrics,
}

/// An HTTP key. The key itself is shown once, to the person who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its name, for people and for revoking it.
    pub name: String,
    /// BLAKE3 of the key.
    pub hash: [u8; 32],
}

/// Daemon's answer to a [`NodeCommand`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandReply {
    /// Done, or begun.
    Accepted,
    /// The coordinator's epoch is older than one that this daemon has seen.
    Stale,
    /// It cannot be done here.
    Refused(String),
    /// Answer to a probe.
    Reachable(bool),
}

impl Message for Fenced<NodeReport> {
    type Reply = NodeReply;
    const PROTOCOL: &'static str = "node-report";
}

impl Message for Fenced<NodeCommand> {
    type Reply = CommandReply;
    const PROTOCOL: &'static str = "node-command";
}
