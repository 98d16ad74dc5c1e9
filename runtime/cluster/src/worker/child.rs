//! The worker's side: reads its assignment, connects to its daemon, and runs one task under a
//! supervisor of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ractor::Actor;
use sixfold_artifact::{FileEntry, Manifest, Store, StoreError};
use sixfold_transport::identity::{Expected, Identity, IdentityError, Peer, PeerNameError};
use sixfold_transport::{
    BindError, CallError, ChannelOptions, ConnectError, Endpoint, EndpointOptions, OpenError, RemoteRef,
};
use sixfold_wire::id::{ArtifactId, Epoch, NodeName, TaskId};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Assignment, STOP_LINE, WORKERS_ACTOR, WorkerReply, WorkerRequest, states};
use crate::role::Roles;
use crate::supervisor::{EndSink, Supervisor, SupervisorMessage};
use crate::task::{
    Commit, Gang, HeldState, HeldStates, HostError, Metrics, Network, TaskContext, TaskHost, TaskResult,
    TaskSpec,
};

/// How long the daemon may take for anything but a rendezvous: copying an artefact can be slow.
const CALL_DEADLINE: Duration = Duration::from_secs(600);
/// How long a gang may take to gather: another member's node may be restarting.
const RENDEZVOUS_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// Progress and log lines that wait; more are dropped.
const NOTES_MAX: usize = 1024;

/// Why a worker ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Standard input did not hold an assignment.
    #[error("no assignment on standard input: {0}")]
    Assignment(String),
    /// The node's store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The daemon's name is none.
    #[error(transparent)]
    Name(#[from] PeerNameError),
    /// No endpoint could be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The daemon cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The daemon does not serve workers.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The binary has no such role.
    #[error("there is no role `{0}` in this binary")]
    Role(String),
    /// The supervisor did not start, or the daemon did not take the result.
    #[error("{0}")]
    Lost(String),
}

/// Runs the task whose assignment stands on standard input, and returns when its result is delivered.
/// `begin` is told what the process is for before anything else happens.
///
/// # Errors
/// [`WorkerError`] where the worker cannot begin or loses its daemon.
pub async fn run_worker(
    roles: &Roles,
    begin: impl FnOnce(&TaskSpec, &NodeName) + Send,
) -> Result<(), WorkerError> {
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    let line = input.next_line().await.map_err(|error| WorkerError::Assignment(error.to_string()))?;
    let assignment: Assignment = serde_json::from_str(&line.unwrap_or_default())
        .map_err(|error| WorkerError::Assignment(error.to_string()))?;
    begin(&assignment.spec, &assignment.node);
    let role = roles.get(&assignment.spec.role).ok_or(WorkerError::Role(assignment.spec.role.clone()))?;

    let identity = Identity::from_pem(&assignment.identity_pem)?;
    let listen = SocketAddr::new(assignment.daemon.ip(), 0);
    let endpoint = Endpoint::bind(identity, &EndpointOptions::new(listen))?;
    let daemon = Expected::Peer(Peer::node(assignment.node.as_str())?);
    let connection = endpoint.connect(assignment.daemon, daemon).await?;
    let remote = connection.actor(WORKERS_ACTOR, ChannelOptions::default()).await?;

    let host = Arc::new(RemoteHost::new(remote.clone(), assignment.scratch.clone()));
    let store = Store::open(&assignment.store)?;
    let Assignment { spec, epoch, node, scratch, links, .. } = assignment;
    let (context, result) = TaskContext::new(spec, epoch, node, store, scratch, host);
    let context = context.with_network(Network { endpoint: endpoint.clone(), links });
    tokio::spawn(obey(input, context.cancel.clone()));

    let (sender, ended) = oneshot::channel();
    let sink: Arc<dyn EndSink> = Arc::new(OneEnd(Mutex::new(Some(sender))));
    let (supervisor, _task) =
        Actor::spawn(None, Supervisor, sink).await.map_err(|error| WorkerError::Lost(error.to_string()))?;
    supervisor
        .cast(SupervisorMessage::Start(role.clone(), Box::new(context), result))
        .map_err(|error| WorkerError::Lost(error.to_string()))?;
    let result = ended.await.map_err(|_| WorkerError::Lost("the supervisor stopped".to_owned()))?;
    let delivered = remote.call(WorkerRequest::Finished(result), CALL_DEADLINE).await;
    endpoint.shutdown("the task has ended").await;
    delivered.map(drop).map_err(|error| WorkerError::Lost(error.to_string()))
}

/// Follows the daemon's orders; without a daemon there is nothing left to do for anybody.
async fn obey(mut input: Lines<BufReader<Stdin>>, cancel: CancellationToken) {
    while let Ok(Some(line)) = input.next_line().await {
        if line == STOP_LINE {
            cancel.cancel();
        }
    }
    tracing::error!("the daemon has gone");
    std::process::exit(1);
}

/// Hands the one task's result on.
struct OneEnd(Mutex<Option<oneshot::Sender<TaskResult>>>);

impl EndSink for OneEnd {
    fn ended(&self, _task: TaskId, _epoch: Epoch, result: TaskResult) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The receiver waits in `run_worker` for as long as the process lives.
        let _ = sender.map(|sender| sender.send(result));
    }
}

/// The task's host, in the daemon.
struct RemoteHost {
    daemon: RemoteRef<WorkerRequest>,
    notes: mpsc::Sender<WorkerRequest>,
    scratch: PathBuf,
}

impl RemoteHost {
    fn new(daemon: RemoteRef<WorkerRequest>, scratch: PathBuf) -> Self {
        let (notes, mut waiting) = mpsc::channel(NOTES_MAX);
        let out = daemon.clone();
        tokio::spawn(async move {
            while let Some(note) = waiting.recv().await {
                if out.cast(note).await.is_err() {
                    return;
                }
            }
        });
        Self { daemon, notes, scratch }
    }

    async fn call(&self, request: WorkerRequest, deadline: Duration) -> Result<WorkerReply, HostError> {
        match self.daemon.call(request, deadline).await {
            Ok(WorkerReply::Failed(failure)) => Err(failure.into()),
            Ok(reply) => Ok(reply),
            Err(error) => Err(lost(&error)),
        }
    }
}

fn lost(error: &CallError) -> HostError {
    HostError::Unreachable(error.to_string())
}

fn unexpected<T>(reply: &WorkerReply) -> Result<T, HostError> {
    Err(HostError::Unreachable(format!("unexpected answer {reply:?}")))
}

#[async_trait]
impl TaskHost for RemoteHost {
    async fn fetch(&self, id: ArtifactId) -> Result<Manifest, HostError> {
        match self.call(WorkerRequest::Fetch(id), CALL_DEADLINE).await? {
            WorkerReply::Manifest(json) => Manifest::decode(&json)
                .map_err(|source| HostError::Store(StoreError::Manifest { id, source })),
            other => unexpected(&other),
        }
    }

    async fn publish(&self, manifest: Manifest) -> Result<ArtifactId, HostError> {
        match self.call(WorkerRequest::Publish(manifest.encode()), CALL_DEADLINE).await? {
            WorkerReply::Artifact(id) => Ok(id),
            other => unexpected(&other),
        }
    }

    async fn save_state(&self, state: ArtifactId, step: u64) -> Result<(), HostError> {
        self.call(WorkerRequest::Save { state, step }, CALL_DEADLINE).await.map(drop)
    }

    async fn rendezvous(&self, address: SocketAddr) -> Result<Gang, HostError> {
        match self.call(WorkerRequest::Rendezvous(address), RENDEZVOUS_DEADLINE).await? {
            WorkerReply::Gang(gang) => Ok(gang),
            other => unexpected(&other),
        }
    }

    async fn serve(&self, address: SocketAddr, about: Metrics) -> Result<(), HostError> {
        self.call(WorkerRequest::Serve { address, about }, CALL_DEADLINE).await.map(drop)
    }

    async fn commit(&self, commit: Commit) -> Result<(), HostError> {
        let Commit { step, complete, manifest, files } = commit;
        states::put_commit(&self.scratch, files).await?;
        let request = WorkerRequest::Commit { step, complete, manifest: manifest.encode() };
        self.call(request, CALL_DEADLINE).await.map(drop)
    }

    async fn held(&self) -> Result<HeldStates, HostError> {
        match self.call(WorkerRequest::Held, CALL_DEADLINE).await? {
            WorkerReply::Held { states, furthest } => states::decode_held(states, furthest),
            other => unexpected(&other),
        }
    }

    async fn read_held(&self, state: &HeldState, file: &FileEntry) -> Result<Bytes, HostError> {
        let index = state.manifest.files.iter().position(|other| other == file).unwrap_or_default();
        let request = WorkerRequest::ReadHeld {
            manifest: state.manifest.encode(),
            nodes: state.nodes.clone(),
            file: index as u32,
        };
        self.call(request, CALL_DEADLINE).await?;
        states::take_held(&self.scratch, index as u32).await
    }

    async fn went_on(&self, step: u64, redone: u64) -> Result<(), HostError> {
        self.call(WorkerRequest::WentOn { step, redone }, CALL_DEADLINE).await.map(drop)
    }

    fn reached(&self, step: u64) {
        // Full: the daemon is slow, and newer steps follow.
        let _ = self.notes.try_send(WorkerRequest::Reached(step));
    }

    fn progress(&self, figures: Metrics) {
        // Full: the daemon is slow, and newer figures follow.
        let _ = self.notes.try_send(WorkerRequest::Progress(figures));
    }

    fn log(&self, line: String) {
        let _ = self.notes.try_send(WorkerRequest::Log(line));
    }
}
