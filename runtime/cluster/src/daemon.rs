//! The node daemon: takes the coordinator's commands, hosts light roles, starts workers for heavy
//! ones, and reports how each task ended.
//!
//! Commands are idempotent and checked against the newest epoch that was seen; the rules are in
//! `task_table.rs`. Nothing here decides where or whether a task runs again.

mod hosting;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use ractor::{Actor, ActorRef, SpawnErr};
use sixfold_artifact::Store;
use sixfold_transport::identity::{Role as PeerRole, Roles as PeerRoles};
use sixfold_transport::{ActorGone, Delivery, Endpoint, Registration};
use sixfold_wire::id::{Epoch, TaskId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::host::{Reports, Shared, fetch};
use crate::neighbours::{QuicNeighbours, probe, serve_artifacts};
use crate::protocol::{
    ArtifactSummary, COMMANDS_ACTOR, Capabilities, ClusterView, CommandReply, Fenced, Hello, NodeCommand,
    NodeReply, NodeReport,
};
use crate::role::Roles;
use crate::session::Session;
use crate::states::{SharedHolder, StateLinks, serve_states};
use crate::supervisor::{EndSink, Supervisor, SupervisorMessage};
use crate::task::{Gang, LinkChoice, Metrics, TaskResult};
use crate::task_table::{Start, TaskTable};
use crate::worker::WORKERS_ACTOR;

use hosting::{Hosting, WorkerHost};

/// What a daemon needs to start.
pub struct DaemonOptions {
    /// The coordinator's address.
    pub coordinator: SocketAddr,
    /// Where the store, the tasks' scratch folders and the workers' logs go.
    pub dir: PathBuf,
    /// What the machine has.
    pub capabilities: Capabilities,
    /// Where this node's HTTP gateway listens.
    pub http: Option<SocketAddr>,
    /// Tensor links between workers.
    pub links: LinkChoice,
    /// Program and arguments of a worker process.
    pub worker: (PathBuf, Vec<String>),
    /// What this binary can do.
    pub roles: Roles,
    /// Bytes of gangs' states that this node holds in memory at most.
    pub hold_bytes_max: u64,
}

/// Why a daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its store cannot be used.
    #[error(transparent)]
    Store(#[from] sixfold_artifact::StoreError),
    /// Its endpoint has no address.
    #[error("the endpoint has no address: {0}")]
    Address(#[from] std::io::Error),
    /// Its supervisor did not start.
    #[error("the supervisor did not start: {0}")]
    Supervisor(#[from] SpawnErr),
}

/// What a task told last.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFigures {
    /// The task.
    pub task: TaskId,
    /// The stage's name in the job file.
    pub stage: String,
    /// Its figures.
    pub figures: Metrics,
}

/// A running daemon.
pub struct NodeDaemon {
    core: Arc<Core>,
    end: CancellationToken,
    tasks: TaskTracker,
    _registrations: [Registration; 4],
}

pub(crate) struct Core {
    endpoint: Endpoint,
    address: SocketAddr,
    session: Arc<Session>,
    shared: Arc<Shared>,
    table: Arc<Mutex<TaskTable>>,
    supervisor: ActorRef<SupervisorMessage>,
    options: DaemonOptions,
    /// Where a task's gang is told, by attempt.
    gangs: DashMap<(TaskId, Epoch), watch::Sender<Option<Gang>>>,
    /// Workers, by the names in their certificates.
    workers: DashMap<String, Arc<WorkerHost>>,
    runtime: tokio::runtime::Handle,
}

impl NodeDaemon {
    /// Starts the daemon on its endpoint: serves artefacts, takes commands, and joins in the background.
    ///
    /// # Errors
    /// [`DaemonError`] where its folder or its supervisor cannot be had.
    pub async fn start(endpoint: Endpoint, options: DaemonOptions) -> Result<Self, DaemonError> {
        let store = Store::open(options.dir.join("store"))?;
        store.remove_partial_files()?;
        let table = Arc::new(Mutex::new(TaskTable::default()));
        let address = endpoint.local_address()?;
        let introduce = {
            let (table, store) = (Arc::clone(&table), store.clone());
            let (capabilities, http) = (options.capabilities.clone(), options.http);
            move || {
                let table = table.lock().unwrap_or_else(PoisonError::into_inner);
                Hello {
                    address,
                    http,
                    capabilities: capabilities.clone(),
                    running: table.running(),
                    finished: table.unacknowledged(),
                    artifacts: store.list().unwrap_or_default(),
                }
            }
        };
        let session = Arc::new(Session::new(endpoint.clone(), options.coordinator, introduce));
        let links = Arc::new(StateLinks::new(endpoint.clone(), options.links.into()));
        let shared = Arc::new(Shared {
            node: session.node(),
            store: store.clone(),
            reports: Arc::clone(&session) as Arc<dyn Reports>,
            neighbours: Arc::new(QuicNeighbours::new(endpoint.clone(), store.clone(), Arc::clone(&links))),
            holder: SharedHolder::new(options.hold_bytes_max),
        });
        let ends = Arc::new(Ends::default());
        let (supervisor, _task) =
            Actor::spawn(None, Supervisor, Arc::clone(&ends) as Arc<dyn EndSink>).await?;
        let core = Arc::new(Core {
            endpoint: endpoint.clone(),
            address,
            session,
            shared,
            table,
            supervisor,
            options,
            gangs: DashMap::new(),
            workers: DashMap::new(),
            runtime: tokio::runtime::Handle::current(),
        });
        // The supervisor was given its sink before the core existed, and no task runs before this.
        let _ = ends.0.set(Arc::downgrade(&core));
        let registrations = [
            serve_artifacts(&endpoint, store),
            serve_states(&endpoint, core.shared.holder.clone(), links),
            endpoint.register(COMMANDS_ACTOR, PeerRole::Coordinator, commands(&core)),
            endpoint.register(WORKERS_ACTOR, PeerRoles::from(PeerRole::Worker), hosting::requests(&core)),
        ];
        let (end, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (session, stop) = (Arc::clone(&core.session), end.clone());
        tasks.spawn(async move { session.run(stop).await });
        Ok(Self { core, end, tasks, _registrations: registrations })
    }

    /// Waits until the coordinator has granted a lease.
    pub async fn joined(&self) {
        self.core.session.joined().await;
    }

    /// The cluster as the coordinator last described it.
    pub fn view(&self) -> watch::Receiver<ClusterView> {
        self.core.session.view()
    }

    /// Reads what each worker process of this node told last, by task; nothing once the daemon is gone.
    pub fn figures_reader(&self) -> impl Fn() -> Vec<TaskFigures> + Send + Sync + use<> {
        let core = Arc::downgrade(&self.core);
        move || {
            let Some(core) = core.upgrade() else { return Vec::new() };
            let mut figures: Vec<TaskFigures> = core.workers.iter().map(|worker| worker.figures()).collect();
            figures.sort_by_key(|figures| figures.task);
            figures
        }
    }

    /// Leaves the cluster: asks the coordinator to move what is here, then stops everything.
    pub async fn leave(&self, patience: std::time::Duration) {
        let leaving = async {
            while let Ok(NodeReply::Draining(why)) = self.core.session.report(NodeReport::Leave).await {
                tracing::info!("leaving: {why}");
                tokio::time::sleep(std::time::Duration::from_millis(250)).await;
            }
        };
        if tokio::time::timeout(patience, leaving).await.is_err() {
            tracing::warn!("leaving without the coordinator's consent");
        }
        self.stop().await;
    }

    /// Stops everything at once, as a crash would, but without leaving processes behind.
    pub async fn stop(&self) {
        self.end.cancel();
        self.core.supervisor.stop(None);
        self.core.workers.iter().for_each(|worker| worker.abandon());
        self.tasks.close();
        self.tasks.wait().await;
        self.core.endpoint.shutdown("the node has ended").await;
    }
}

/// Passes the ends of tasks to the daemon.
#[derive(Default)]
struct Ends(std::sync::OnceLock<std::sync::Weak<Core>>);

impl EndSink for Ends {
    fn ended(&self, task: TaskId, epoch: Epoch, result: TaskResult) {
        if let Some(core) = self.0.get().and_then(std::sync::Weak::upgrade) {
            core.ended(task, epoch, result);
        }
    }
}

fn commands(core: &Arc<Core>) -> impl Fn(Delivery<Fenced<NodeCommand>>) -> Result<(), ActorGone> + use<> {
    let core = Arc::downgrade(core);
    move |mut delivery| {
        let core = core.upgrade().ok_or(ActorGone)?;
        let runtime = core.runtime.clone();
        runtime.spawn(async move {
            let reply = core.command(delivery.message).await;
            if let Some(port) = delivery.reply.take() {
                port.send(&reply);
            }
        });
        Ok(())
    }
}

impl Core {
    fn table(&self) -> std::sync::MutexGuard<'_, TaskTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn command(self: Arc<Self>, command: Fenced<NodeCommand>) -> CommandReply {
        let ours = command.fence.cluster == *self.endpoint.identity().cluster();
        if !ours || !self.session.admit(command.fence.epoch) {
            return CommandReply::Stale;
        }
        match command.body {
            NodeCommand::Start { spec, epoch } => {
                let hosting = Hosting::new(Arc::clone(&self), spec, epoch);
                return self.start(hosting);
            }
            NodeCommand::GangFormed { task, gang } => {
                if let Some(waiting) = self.gangs.get(&(task, gang.epoch)) {
                    waiting.send_replace(Some(gang));
                }
            }
            NodeCommand::Stop { task, epoch, drain: _ } => self.stop_attempt(task, epoch),
            NodeCommand::Replicate { artifact, from } => {
                let here = Arc::clone(&self);
                tokio::spawn(async move {
                    let found = || std::future::ready(Ok(from.clone()));
                    let fetched = fetch(&here.shared, artifact, found).await;
                    here.report_copy(artifact, fetched).await;
                });
            }
            NodeCommand::View(view) => self.take_view(view),
            NodeCommand::Probe(node) => return CommandReply::Reachable(probe(&self.endpoint, &node).await),
            NodeCommand::Discard { artifacts } => {
                let store = self.shared.store.clone();
                tokio::task::spawn_blocking(move || {
                    for id in artifacts {
                        if let Err(error) = store.remove(id) {
                            tracing::warn!(%error, "cannot discard an artefact");
                        }
                    }
                });
            }
        }
        CommandReply::Accepted
    }

    fn take_view(&self, view: ClusterView) {
        // A coordinator that has just started may send a view before it has looked at its log.
        let gangs = view.nodes.iter().any(|node| node.node == self.shared.node).then(|| view.gangs.clone());
        if self.session.set_view(view)
            && let Some(gangs) = gangs
        {
            self.shared.holder.lock().set_running(&gangs);
        }
    }

    fn start(&self, hosting: Hosting) -> CommandReply {
        let (task, epoch) = (hosting.task(), hosting.epoch());
        match self.table().start(task, epoch) {
            Start::Known => return CommandReply::Accepted,
            Start::Stale => return CommandReply::Refused("a newer attempt was seen here".to_owned()),
            Start::Run { replaces: None } => {}
            Start::Run { replaces: Some(older) } => self.stop_running(task, older),
        }
        tokio::spawn(hosting.run());
        CommandReply::Accepted
    }

    fn stop_attempt(&self, task: TaskId, epoch: Epoch) {
        if let Some(running) = self.table().stop(task, epoch) {
            self.stop_running(task, running);
        }
    }

    fn stop_running(&self, task: TaskId, epoch: Epoch) {
        // A supervisor that is gone has no actors to stop.
        let _ = self.supervisor.cast(SupervisorMessage::Stop(task, epoch));
        self.workers.iter().filter(|worker| worker.is(task, epoch)).for_each(|worker| worker.stop());
    }

    /// A task ended: its result is kept until the coordinator has it.
    fn ended(self: Arc<Self>, task: TaskId, epoch: Epoch, result: TaskResult) {
        self.gangs.remove(&(task, epoch));
        if let Err(error) = &result {
            tracing::warn!(%task, %epoch, class = ?error.class, "a task failed: {error}");
        }
        if !self.table().ended(task, epoch, result.clone()) {
            return;
        }
        self.runtime.clone().spawn(async move {
            let report = NodeReport::Finished { task, epoch, result };
            if self.session.report(report).await.is_ok() {
                self.table().acknowledge(task, epoch);
            }
        });
    }

    async fn report_copy(
        &self,
        artifact: sixfold_wire::id::ArtifactId,
        fetched: Result<sixfold_artifact::Manifest, crate::task::HostError>,
    ) {
        match fetched {
            Ok(manifest) => {
                let report = NodeReport::Stored {
                    artifact: ArtifactSummary::of(&manifest, TaskId::default()),
                    nodes: vec![self.shared.node.clone()],
                };
                if let Err(error) = self.session.report(report).await {
                    tracing::warn!(%artifact, %error, "a copy was not reported");
                }
            }
            Err(error) => tracing::warn!(%artifact, %error, "cannot copy an artefact here"),
        }
    }
}
