//! The contract between a role and the cluster.
//!
//! A role is a [`ractor::Actor`] whose `Arguments` are a [`TaskContext`]. It does one task and
//! says how it ended with [`TaskContext::finish`]; then it stops. A panic or a stop without a
//! result is seen by its supervisor and counts as [`ErrorClass::Restart`]. Because a task may be
//! run again after a crash, on this node or another, its outputs must depend on its options and
//! inputs alone.

mod commit;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sixfold_artifact::{FileEntry, Manifest, Store, StoreError};
use sixfold_transport::Endpoint;
use sixfold_transport::tensor::LinkPolicy;
use sixfold_wire::id::{ArtifactId, Epoch, NodeName, TaskId};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use commit::{Commit, CommitSchedule, GangId, HeldState, HeldStates};

/// A named figure of a task or a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Metric {
    /// A count.
    Count(u64),
    /// A measurement; the unit is in the metric's name.
    Number(f64),
    /// A hash, a path, a list in JSON.
    Text(String),
}

impl From<u64> for Metric {
    fn from(value: u64) -> Self {
        Self::Count(value)
    }
}

impl From<f64> for Metric {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

impl From<String> for Metric {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&str> for Metric {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

/// Figures by name, for example `pages_fetched`, `loss`, `tokens_per_second`.
pub type Metrics = BTreeMap<String, Metric>;

/// A figure in which a task accounts for what it held and did, as a JSON object.
pub const ACCOUNT_FIGURE: &str = "rank";
/// A figure with a task's curves, as JSON; it is asked for by itself.
pub const HISTORY_FIGURE: &str = "history";

/// Takes `newer` figures in place of `figures`. Those that are long to say are told less often than others: they stay
/// until they are told again.
pub fn renew_figures(figures: &mut Metrics, newer: Metrics) {
    let older = std::mem::replace(figures, newer);
    let long =
        older.into_iter().filter(|(name, _)| [ACCOUNT_FIGURE, HISTORY_FIGURE].contains(&name.as_str()));
    for (name, figure) in long {
        figures.entry(name).or_insert(figure);
    }
}

/// What a task leaves behind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskOutput {
    /// Published artefacts, in an order that means something to the next phase.
    pub artifacts: Vec<ArtifactId>,
    /// Figures; a phase's metrics add up its tasks' counts and keep the first task's other values.
    pub metrics: Metrics,
}

/// What a supervisor shall do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorClass {
    /// The same actor may try the same thing again: a busy peer, a lost packet.
    Retry,
    /// Start the task anew, here or elsewhere: a crash, a lost gang member.
    Restart,
    /// The node cannot do it: place the task elsewhere and mark the node.
    Escalate,
    /// No node can: bad options, damaged input. The job fails with this message.
    Fatal,
}

/// How a task failed, in words for the person who submitted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct TaskError {
    /// What to do about it.
    pub class: ErrorClass,
    /// What went wrong and what the person can do.
    pub message: String,
}

impl TaskError {
    /// An error that no node can mend.
    pub fn fatal(error: impl std::fmt::Display) -> Self {
        Self { class: ErrorClass::Fatal, message: error.to_string() }
    }

    /// An error after which the task is started anew.
    pub fn restart(error: impl std::fmt::Display) -> Self {
        Self { class: ErrorClass::Restart, message: error.to_string() }
    }
}

impl From<HostError> for TaskError {
    fn from(error: HostError) -> Self {
        Self::restart(error)
    }
}

impl From<StoreError> for TaskError {
    fn from(error: StoreError) -> Self {
        Self::restart(error)
    }
}

/// How a task ended.
pub type TaskResult = Result<TaskOutput, TaskError>;

/// Where a task of a gang, or a service, can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAddress {
    /// The task; its index is the rank.
    pub task: TaskId,
    /// The node that it runs on.
    pub node: NodeName,
    /// Where its transport endpoint listens.
    pub address: SocketAddr,
}

/// A gang whose members have all started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gang {
    /// Grows each time that the gang is placed anew; links of an older epoch are refused.
    pub epoch: Epoch,
    /// Every member, by rank.
    pub members: Vec<TaskAddress>,
}

/// Why the cluster could not do what a task asked for.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The artefact is on no reachable node.
    #[error("artefact {0} is on no reachable node")]
    Unavailable(ArtifactId),
    /// The node's own store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The task was placed elsewhere or cancelled; it must stop.
    #[error("this task's lease has ended")]
    Superseded,
    /// No node takes, or has, the state.
    #[error("{0}")]
    NotHeld(String),
    /// The daemon or the coordinator did not answer.
    #[error("no answer from the cluster: {0}")]
    Unreachable(String),
}

/// What the cluster does for a task. Implemented by the node daemon, by a worker process, and by
/// [`LocalHost`] for tests and single-process use.
#[async_trait]
pub trait TaskHost: Send + Sync {
    /// Makes sure that the artefact and all its files are in this node's store, and with it all that it needs.
    async fn fetch(&self, id: ArtifactId) -> Result<Manifest, HostError>;

    /// Publishes an artefact whose files are in this node's store, and copies it to as many other
    /// nodes as the cluster keeps copies on. Returns when the copies are durable.
    async fn publish(&self, manifest: Manifest) -> Result<ArtifactId, HostError>;

    /// Records an artefact from which the task goes on if it must be started anew. `step` orders
    /// states; a gang's newest step counts that all of its members have saved.
    async fn save_state(&self, state: ArtifactId, step: u64) -> Result<(), HostError>;

    /// Announces where this task listens and waits until its whole gang has started.
    async fn rendezvous(&self, address: SocketAddr) -> Result<Gang, HostError>;

    /// Announces a service, for gateways to find. `about` says what it serves.
    async fn serve(&self, address: SocketAddr, about: Metrics) -> Result<(), HostError>;

    /// Has a rank's state held in memory: by this node, and by one of another failure domain where there is
    /// one. Returns once they hold it. Without a cluster nobody does.
    async fn commit(&self, _commit: Commit) -> Result<(), HostError> {
        Err(HostError::NotHeld("this process has no cluster that could hold a state".to_owned()))
    }

    /// What the nodes that can be reached hold of this task's gang.
    async fn held(&self) -> Result<HeldStates, HostError> {
        Ok(HeldStates::default())
    }

    /// The content of a held state's file, from whichever node has it. Its hash is the caller's to check.
    async fn read_held(&self, _state: &HeldState, file: &FileEntry) -> Result<Bytes, HostError> {
        Err(HostError::NotHeld(format!("no node holds {}", file.name)))
    }

    /// Records that this task's gang goes on after `step`, and does `redone` steps again.
    async fn went_on(&self, _step: u64, _redone: u64) -> Result<(), HostError> {
        Ok(())
    }

    /// Says that this rank has done as many steps. Never waits.
    fn reached(&self, _step: u64) {}

    /// Reports figures for progress bars and dashboards. Never waits; only the latest counts ([`renew_figures`]).
    fn progress(&self, figures: Metrics);

    /// Adds a line to the job's log.
    fn log(&self, line: String);
}

/// A state saved by an earlier attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    /// The artefact.
    pub artifact: ArtifactId,
    /// Its step.
    pub step: u64,
}

/// What a task is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The task.
    pub id: TaskId,
    /// The role that does it, for example `crawl` or `clean-reduce`.
    pub role: String,
    /// The stage's name in the job file.
    pub stage: String,
    /// Tasks in the phase; for a gang, its world size.
    pub count: u32,
    /// The stage's options, as JSON.
    pub options_json: String,
    /// Artefacts to read, in the order of the stage's inputs in the job file.
    pub inputs: Vec<ArtifactId>,
    /// States saved by earlier attempts: one for a single task, one a rank for a gang, and then those of the step before,
    /// for whoever finds the newest ones damaged.
    pub resume: Vec<SavedState>,
}

/// Which tensor links the ranks of a gang use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkChoice {
    /// Shared memory on one host, QUIC between hosts.
    #[default]
    Auto,
    /// Shared memory only.
    SharedMemory,
    /// QUIC only.
    Quic,
}

impl From<LinkChoice> for LinkPolicy {
    fn from(choice: LinkChoice) -> Self {
        match choice {
            LinkChoice::Auto => Self::Auto,
            LinkChoice::SharedMemory => Self::SharedMemory,
            LinkChoice::Quic => Self::Quic,
        }
    }
}

/// How a task reaches other processes.
#[derive(Clone, Debug)]
pub struct Network {
    /// This process's endpoint, with its identity.
    pub endpoint: Endpoint,
    /// Tensor links to use.
    pub links: LinkChoice,
}

/// All that a role sees of the cluster.
#[derive(Clone)]
pub struct TaskContext {
    /// What to do.
    pub spec: TaskSpec,
    /// Which attempt this is; results of older ones are refused.
    pub epoch: Epoch,
    /// The node that this runs on.
    pub node: NodeName,
    /// This node's artefacts.
    pub store: Store,
    /// An empty folder for the task's own use, removed afterwards.
    pub scratch: PathBuf,
    /// What the cluster does for the task.
    pub host: Arc<dyn TaskHost>,
    /// How the task reaches other processes; none in a process without a cluster.
    pub network: Option<Network>,
    /// Set when the task is to stop: a cancelled job, a draining node.
    pub cancel: CancellationToken,
    result: Arc<Mutex<Option<oneshot::Sender<TaskResult>>>>,
}

impl TaskContext {
    /// A context, and the receiver of the task's result.
    pub fn new(
        spec: TaskSpec,
        epoch: Epoch,
        node: NodeName,
        store: Store,
        scratch: PathBuf,
        host: Arc<dyn TaskHost>,
    ) -> (Self, oneshot::Receiver<TaskResult>) {
        let (sender, receiver) = oneshot::channel();
        let result = Arc::new(Mutex::new(Some(sender)));
        let cancel = CancellationToken::new();
        (Self { spec, epoch, node, store, scratch, host, network: None, cancel, result }, receiver)
    }

    /// The same task, with a way to other processes.
    #[must_use]
    pub fn with_network(self, network: Network) -> Self {
        Self { network: Some(network), ..self }
    }

    /// The stage's options.
    ///
    /// # Errors
    /// A fatal [`TaskError`] where the JSON does not fit the type.
    pub fn options<O: DeserializeOwned>(&self) -> Result<O, TaskError> {
        serde_json::from_str(&self.spec.options_json)
            .map_err(|error| TaskError::fatal(format_args!("stage `{}`: {error}", self.spec.stage)))
    }

    /// Fetches all inputs and returns them with their manifests.
    ///
    /// # Errors
    /// [`HostError`] where one is out of reach.
    pub async fn fetch_inputs(&self) -> Result<Vec<(ArtifactId, Manifest)>, HostError> {
        let mut inputs = Vec::with_capacity(self.spec.inputs.len());
        for &id in &self.spec.inputs {
            inputs.push((id, self.host.fetch(id).await?));
        }
        Ok(inputs)
    }

    /// An empty manifest of this stage, with this task's inputs as parents.
    pub fn manifest(&self, kind: &str) -> Manifest {
        Manifest { parents: self.spec.inputs.clone(), ..Manifest::new(kind, &self.spec.stage) }
    }

    /// Whether the task has said how it ended; whoever waits for that may not have heard of it yet.
    pub(crate) fn has_finished(&self) -> bool {
        self.result.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_none()
    }

    /// Says how the task ended. Only the first call counts.
    pub fn finish(&self, result: TaskResult) {
        let sender = self.result.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // A closed receiver means that nobody waits for this attempt any more.
            let _ = sender.send(result);
        }
    }
}

/// A host of one process without a cluster: artefacts stay in one store, a gang is whoever calls
/// [`TaskHost::rendezvous`] alone.
pub struct LocalHost {
    store: Store,
    records: Mutex<Vec<Record>>,
}

/// What a [`LocalHost`] was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A state was saved.
    State(SavedState),
    /// Progress was reported.
    Progress(Metrics),
    /// A line was logged.
    Log(String),
    /// A service was announced.
    Service(SocketAddr, Metrics),
}

impl LocalHost {
    /// A host over `store`.
    pub fn new(store: Store) -> Self {
        Self { store, records: Mutex::new(Vec::new()) }
    }

    /// What it was told so far.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn record(&self, record: Record) {
        self.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(record);
    }
}

#[async_trait]
impl TaskHost for LocalHost {
    async fn fetch(&self, id: ArtifactId) -> Result<Manifest, HostError> {
        let manifest = self.store.manifest(id)?;
        manifest.needs.iter().try_for_each(|needed| self.store.manifest(*needed).map(drop))?;
        Ok(manifest)
    }

    async fn publish(&self, manifest: Manifest) -> Result<ArtifactId, HostError> {
        Ok(self.store.publish(&manifest)?)
    }

    async fn save_state(&self, artifact: ArtifactId, step: u64) -> Result<(), HostError> {
        self.record(Record::State(SavedState { artifact, step }));
        Ok(())
    }

    async fn rendezvous(&self, _address: SocketAddr) -> Result<Gang, HostError> {
        Ok(Gang { epoch: Epoch(1), members: Vec::new() })
    }

    async fn serve(&self, address: SocketAddr, about: Metrics) -> Result<(), HostError> {
        self.record(Record::Service(address, about));
        Ok(())
    }

    fn progress(&self, figures: Metrics) {
        self.record(Record::Progress(figures));
    }

    fn log(&self, line: String) {
        self.record(Record::Log(line));
    }
}
