//! What happened, as the log keeps it. An event records a decision with everything that the
//! decision rested on, so that [`State::apply`](crate::state) is a plain fold: no event is refused,
//! nothing is decided there, and a replay gives the same state.
//!
//! Events are stored as JSON. Fields may be added with a default, variants at the end.

mod exact;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use sixfold_cluster::protocol::{ArtifactSummary, Capabilities};
use sixfold_cluster::task::{ErrorClass, Metrics};
use sixfold_topology::ParallelPlan;
use sixfold_wire::id::{ArtifactId, Epoch, JobId, NodeName, TaskId};

use crate::job::{JobSpec, PhaseSpec};
use crate::message::{JobState, RequestId, TokenRole};

/// An event and when it was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A coordinator started; older epochs have no authority any more.
    Started(Epoch),
    /// To a node.
    Node(NodeName, NodeEvent),
    /// To a job.
    Job(JobId, JobEvent),
    /// To what is placed together.
    Unit(UnitId, UnitEvent),
    /// To the catalogue of artefacts.
    Artifact(ArtifactEvent),
    /// To tokens and keys.
    Access(AccessEvent),
}

/// What is placed, and fails, together: one task, or all ranks of a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnitId {
    /// The job.
    pub job: JobId,
    /// The phase.
    pub phase: u32,
    /// Counted within the phase; 0 for a gang.
    pub unit: u32,
}

/// What happened to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum NodeEvent {
    /// It joined, or came back changed.
    Joined {
        /// Its transport endpoint.
        address: SocketAddr,
        /// Its gateway.
        http: Option<SocketAddr>,
        /// Its machine.
        capabilities: Capabilities,
    },
    /// Of the artefacts in the catalogue it has these and no others.
    Holds(Vec<ArtifactId>),
    /// It takes nothing new.
    Draining,
    /// It left with nothing on it.
    Left,
    /// It was declared dead.
    Evicted {
        /// Time since its last sign of life.
        silent_ms: u64,
        /// What convinced the coordinator.
        reason: String,
    },
    /// A task gave up on it; `quarantined_until_ms` where it was one too many.
    Struck {
        /// The task.
        task: TaskId,
        /// No task is placed there before that time.
        quarantined_until_ms: Option<u64>,
    },
}

/// What happened to a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobEvent {
    /// It was accepted.
    Submitted {
        /// The client's request, so that a repeated one is recognised.
        request: RequestId,
        /// The job.
        spec: JobSpec,
    },
    /// A phase has all of its inputs and was cut into tasks.
    PhaseStarted {
        /// The phase.
        phase: u32,
        /// Its inputs.
        inputs: Vec<ArtifactId>,
    },
    /// All replicas of a phase are ready; later stages see its inputs as its outputs.
    PhaseServing {
        /// The phase.
        phase: u32,
    },
    /// All tasks of a phase are done.
    PhaseDone {
        /// The phase.
        phase: u32,
        /// Its outputs.
        outputs: Vec<ArtifactId>,
    },
    /// The job changed its state.
    Became {
        /// The new state.
        state: JobState,
        /// Why, for people.
        message: Option<String>,
    },
    /// A gang has another plan, or other options; what was placed of it has ended, for nobody's fault.
    Replanned {
        /// The phase.
        phase: u32,
        /// Its plan from now on.
        plan: ParallelPlan,
        /// What a person asked for; none where the plan follows the nodes that there are.
        wanted: Option<Wanted>,
        /// Why, for people.
        why: String,
    },
}

/// What a person wants of a gang from now on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// The stage's options.
    pub options_json: String,
    /// The gang's phase.
    pub phase: PhaseSpec,
}

/// What happened to a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum UnitEvent {
    /// A new attempt was placed.
    Placed {
        /// The attempt.
        epoch: Epoch,
        /// Where, one a member.
        nodes: Vec<NodeName>,
        /// The saved step from which it goes on.
        step: Option<u64>,
        /// Why there, for people.
        why: String,
        /// Whether each rank of a gang has a slot of its own.
        #[serde(default)]
        fits: bool,
    },
    /// The newest attempt, thought lost, still runs.
    Adopted,
    /// The newest attempt works: a gang is complete, a task was taken up.
    Resumed {
        /// Where a gang's members listen, by rank; empty for a single task.
        addresses: Vec<SocketAddr>,
    },
    /// A member takes requests.
    Serving {
        /// The member.
        member: u32,
        /// Where it listens.
        address: SocketAddr,
        /// What it serves.
        #[serde(with = "exact")]
        about: Metrics,
    },
    /// All members have saved the state of a step.
    Saved {
        /// The step.
        step: u64,
        /// The states, one a member.
        artifacts: Vec<ArtifactId>,
    },
    /// A member is done.
    Succeeded {
        /// The member.
        member: u32,
        /// Its outputs.
        artifacts: Vec<ArtifactId>,
        /// Its figures.
        #[serde(with = "exact")]
        metrics: Metrics,
    },
    /// The newest attempt ended without a result.
    Failed {
        /// The member that failed first.
        member: u32,
        /// Where it was.
        node: NodeName,
        /// Whose fault it was.
        blame: Blame,
        /// What it said, or what was found out about its node.
        message: String,
        /// Time since its last sign of life, where it was found missing.
        silent_ms: u64,
        /// Failures in a row without progress, this one included.
        failures: u32,
        /// When it may be placed again.
        retry_at_ms: u64,
    },
    /// All ranks of a gang have agreed on where to go on.
    WentOn {
        /// The step after which they go on.
        step: u64,
        /// Steps that were done before and are done again.
        redone: u64,
    },
}

/// What an attempt's end is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Blame {
    /// The task: it counts against its restart budget.
    Task(ErrorClass),
    /// The node went away.
    Node,
    /// Nobody: the task was moved.
    Nobody,
}

/// What happened to artefacts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ArtifactEvent {
    /// An artefact is complete on these nodes.
    Stored {
        /// The artefact.
        summary: ArtifactSummary,
        /// Nodes that it is now known to be on, added to those known before.
        nodes: Vec<NodeName>,
    },
    /// Nothing needs these any more.
    Discarded(Vec<ArtifactId>),
}

/// What happened to join tokens and HTTP keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AccessEvent {
    /// A token was made.
    TokenCreated {
        /// BLAKE3 of the token.
        hash: [u8; 32],
        /// What it lets its holder become.
        role: TokenRole,
        /// When it expires.
        expires_ms: u64,
        /// How often it may be used.
        uses: u32,
    },
    /// A token was used.
    TokenUsed {
        /// BLAKE3 of the token.
        hash: [u8; 32],
        /// By which request.
        request: RequestId,
    },
    /// An HTTP key was made.
    KeyCreated {
        /// Its name.
        name: String,
        /// BLAKE3 of the key.
        hash: [u8; 32],
    },
    /// An HTTP key was revoked.
    KeyRevoked {
        /// Its name.
        name: String,
    },
}
