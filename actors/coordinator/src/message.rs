//! What clients ask of the coordinator, and what they see of jobs, nodes and artefacts.
//!
//! All requests but Token and Key are idempotent as they are; Submit and the use of a token carry
//! a [`RequestId`], under which a repeated request has the effect of one.

// The fields of the variants are named for what they are; their types say the rest.
#![allow(missing_docs)]

mod json;

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use sixfold_cluster::protocol::{ArtifactSummary, Capabilities, NodeAddress};
use sixfold_cluster::task::Metrics;
use sixfold_topology::ParallelPlan;
use sixfold_wire::id::{ArtifactId, Epoch, JobId, NodeName, TaskId};
use sixfold_wire::message::Message;

use crate::job::{JobSpec, PhaseSpec};

pub use json::metric_json;

/// Name of the coordinator's actor that takes [`ClientRequest`]s.
pub const CLIENTS_ACTOR: &str = "clients";

/// Names a request, so that the coordinator recognises it when it comes again. Made by the client,
/// at random.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub String);

/// What a join token lets its holder become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    Node,
    User,
}

/// Client to coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ClientRequest {
    Submit {
        request: RequestId,
        spec: JobSpec,
    },
    Jobs,
    Job(JobId),
    /// Where the job's tasks are and why there.
    Why(JobId),
    /// The job's log from a line on.
    Logs {
        job: JobId,
        from: u64,
    },
    Cancel(JobId),
    Nodes,
    /// The catalogue, a page at a time: the artefacts after `after`.
    Artifacts {
        after: Option<ArtifactId>,
    },
    Token(TokenRequest),
    Key(KeyRequest),
    /// Answered when the job has changed since `since`, or after a while.
    Watch {
        job: JobId,
        since: u64,
    },
    /// What was submitted, with what was asked for since.
    Spec(JobId),
    /// Another plan, or other options that leave the result as it is.
    Replan(Box<Replan>),
    /// The curves of its trainings.
    Histories(JobId),
}

/// What is to change of a stage whose gang runs or waits. Asking for what is wanted already changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replan {
    pub job: JobId,
    pub stage: String,
    /// The stage's options when the change was made up.
    pub from_json: String,
    /// The stage's options from now on.
    pub options_json: String,
    /// The gang's phase from now on.
    pub phase: PhaseSpec,
}

impl Message for ClientRequest {
    type Reply = ClientReply;
    const PROTOCOL: &'static str = "sixfold.client";
}

/// About join tokens. The token itself never reaches the coordinator, only its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenRequest {
    Create { hash: [u8; 32], role: TokenRole, expires_ms: u64, uses: u32 },
    Use { hash: [u8; 32], request: RequestId },
}

/// About HTTP keys. The key itself never reaches the coordinator, only its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyRequest {
    Create { name: String, hash: [u8; 32] },
    Revoke { name: String },
    List,
}

/// Coordinator to client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ClientReply {
    Submitted(JobId),
    Jobs(Vec<JobSummary>),
    Job(Box<JobView>),
    Why(Vec<PlacementView>),
    Logs(LogPage),
    Done,
    Nodes(Vec<NodeView>),
    Artifacts(ArtifactPage),
    TokenAccepted(TokenRole),
    Keys(Vec<KeyView>),
    Watched {
        version: u64,
        job: Box<JobView>,
    },
    Refused(Refusal),
    Spec(Box<JobSpec>),
    /// The number of the change, see [`PlanChange`], and whether it interrupts a gang that was started.
    Replanned {
        number: u64,
        interrupts: bool,
    },
    Histories(Vec<StageHistory>),
}

/// Why a request was refused, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("there is no job {0}")]
    NoSuchJob(JobId),
    #[error("the job cannot run: {0}")]
    InvalidJob(String),
    #[error("{0} is no request id: 1 to 64 bytes")]
    InvalidRequestId(String),
    #[error("this token is not known here")]
    UnknownToken,
    #[error("this token expired {seconds} s ago")]
    ExpiredToken { seconds: u64 },
    #[error("this token was already used {uses} times, as often as it may be")]
    UsedToken { uses: u32 },
    #[error("{0}")]
    InvalidToken(String),
    #[error("{0}")]
    InvalidName(String),
    #[error("a key called `{0}` exists already")]
    KeyExists(String),
    #[error("there is no key called `{0}`")]
    NoSuchKey(String),
    #[error("the coordinator holds {held} {what}, its limit")]
    Full { what: String, held: usize },
    #[error("the plan stays as it is: {0}")]
    NotReplanned(String),
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    Running,
    /// Everything with an end has ended, and the services are up.
    Serving,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobState {
    /// Whether nothing of it runs any more.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Serving => "serving",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// How a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageState {
    /// Its inputs are not there yet.
    Waiting,
    Running,
    Serving,
    Succeeded,
    Failed,
    Cancelled,
}

impl fmt::Display for StageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Serving => "serving",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSummary {
    pub job: JobId,
    pub name: String,
    pub state: JobState,
    pub seconds: f64,
    pub message: Option<String>,
}

/// A job in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    pub job: JobId,
    pub name: String,
    pub state: JobState,
    /// Why it failed.
    pub message: Option<String>,
    /// From its submission to its end or to now.
    pub seconds: f64,
    pub stages: Vec<StageView>,
    /// Of the last stage that trained with a plan.
    pub training: Option<TrainingView>,
    /// What went wrong and was mended.
    pub recoveries: Vec<Recovery>,
    /// Plans that were changed while the job ran.
    pub plan_changes: Vec<PlanChange>,
}

/// A stage of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageView {
    pub name: String,
    pub kind: String,
    pub state: StageState,
    pub seconds: f64,
    /// Of its phases; a later phase's figure replaces an earlier one's.
    pub metrics: Metrics,
    pub tasks_done: u64,
    pub tasks_total: u64,
    /// Its outputs, the first thousand.
    pub outputs: Vec<ArtifactId>,
}

/// What a gang computed and how it was spread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingView {
    pub stage: String,
    pub plan: ParallelPlan,
    /// The plan that it goes back to when there are the nodes for it.
    pub wanted_plan: ParallelPlan,
    pub metrics: Metrics,
    pub ranks: Vec<RankView>,
}

/// A rank of a gang.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankView {
    pub rank: u32,
    pub node: Option<NodeName>,
    pub metrics: Metrics,
}

/// The curves of a stage that trains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageHistory {
    pub stage: String,
    /// As the stage's tasks write it.
    pub json: String,
}

/// A fault and how long it took to go on. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// The task, or rank 0 of the gang.
    pub task: TaskId,
    pub stage: String,
    /// Where it was.
    pub node: NodeName,
    /// What happened.
    pub cause: String,
    /// Last sign of life before the fault was detected; the time to detect it counts from here.
    pub last_sign_ms: u64,
    pub detected_ms: u64,
    /// When the next attempt was placed.
    pub placed_ms: Option<u64>,
    /// When the next attempt worked: for a gang that trains, when all ranks had their state.
    pub resumed_ms: Option<u64>,
    /// The step from which it went on.
    pub step: Option<u64>,
    /// Steps of a training that were done before the fault and are done again.
    pub redone: Option<u64>,
}

/// A gang went on under another plan. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanChange {
    /// Counted from 1 within the job.
    pub number: u64,
    pub stage: String,
    pub from: ParallelPlan,
    pub to: ParallelPlan,
    /// Whether the plan followed the nodes that there are; else a person asked for it.
    pub by_itself: bool,
    pub why: String,
    /// When it was decided.
    pub at_ms: u64,
    /// When the gang was placed under the new plan; none where it had not been started.
    pub placed_ms: Option<u64>,
    /// When all ranks worked again: for a gang that trains, when all had their state.
    pub resumed_ms: Option<u64>,
    /// The step after which it went on.
    pub step: Option<u64>,
    /// Steps that were done before and are done again.
    pub redone: Option<u64>,
}

/// Where a task is and why there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementView {
    pub stage: String,
    pub role: String,
    /// First task of what is placed together.
    pub task: TaskId,
    /// Attempt, and the node of each member, if it is placed.
    pub placed: Option<(Epoch, Vec<NodeName>)>,
    /// Why there, or what it waits for.
    pub why: String,
}

/// Some lines of a job's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// Number of the first line here; older ones may have been dropped.
    pub from: u64,
    pub lines: Vec<String>,
    /// Where to go on.
    pub next: u64,
}

/// A node as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    pub node: NodeAddress,
    /// `live`, `suspected`, `awaited`, `draining`, `quarantined`, `left`, `dead`.
    pub state: String,
    /// Where its HTTP gateway listens, if it has one.
    pub http: Option<SocketAddr>,
    pub capabilities: Capabilities,
    pub tasks: Vec<TaskId>,
    pub artifacts: u64,
    /// Time since its last sign of life, if it has a lease.
    pub silent_ms: Option<u64>,
}

/// A page of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactPage {
    pub artifacts: Vec<(ArtifactSummary, Vec<NodeName>)>,
    /// Whether more follow.
    pub more: bool,
}

/// An HTTP key as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    pub name: String,
    pub created_ms: u64,
    pub revoked: bool,
}
