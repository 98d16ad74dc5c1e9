//! Hosting one attempt of a task: its scratch folder, its host, and its actor or worker process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use sixfold_artifact::Manifest;
use sixfold_transport::identity::WORKER_LIFETIME;
use sixfold_transport::{ActorGone, Delivery};
use sixfold_wire::id::{Epoch, TaskId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Core, TaskFigures};
use crate::host::DaemonHost;
use crate::role::{Hosted, Role};
use crate::supervisor::SupervisorMessage;
use crate::task::{ErrorClass, Network, TaskContext, TaskError, TaskHost, TaskResult, TaskSpec};
use crate::worker::{
    Assignment, WorkerProcess, WorkerReply, WorkerRequest, answer_commit, answer_held, answer_read_held,
};

/// An attempt that is to be hosted.
pub(super) struct Hosting {
    core: Arc<Core>,
    spec: TaskSpec,
    epoch: Epoch,
}

/// What a worker process is to its daemon.
pub(crate) struct WorkerHost {
    task: TaskId,
    epoch: Epoch,
    stage: String,
    host: DaemonHost,
    scratch: PathBuf,
    said: Mutex<Option<TaskResult>>,
    stop: Arc<CancellationToken>,
    abandon: CancellationToken,
}

impl WorkerHost {
    pub(super) fn is(&self, task: TaskId, epoch: Epoch) -> bool {
        self.task == task && self.epoch == epoch
    }

    /// What the worker told last.
    pub(super) fn figures(&self) -> TaskFigures {
        TaskFigures { task: self.task, stage: self.stage.clone(), figures: self.host.figures() }
    }

    /// Asks the worker to stop.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// Lets go of the process, which ends it.
    pub(super) fn abandon(&self) {
        self.abandon.cancel();
    }
}

impl Hosting {
    pub(super) fn new(core: Arc<Core>, spec: TaskSpec, epoch: Epoch) -> Self {
        Self { core, spec, epoch }
    }

    pub(super) fn task(&self) -> TaskId {
        self.spec.id
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Hosts the attempt; its end is reported wherever it comes from.
    pub(super) async fn run(self) {
        let (core, task, epoch) = (Arc::clone(&self.core), self.task(), self.epoch);
        let Some(role) = core.options.roles.get(&self.spec.role).cloned() else {
            let message = format!("this node's binary has no role `{}`", self.spec.role);
            return core.ended(task, epoch, Err(TaskError { class: ErrorClass::Escalate, message }));
        };
        let scratch = core.options.dir.join("scratch").join(self.name());
        let fresh = std::fs::remove_dir_all(&scratch).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        if let Err(error) = fresh.and_then(|()| std::fs::create_dir_all(&scratch)) {
            let message = format!("no scratch folder {}: {error}", scratch.display());
            return core.ended(task, epoch, Err(TaskError { class: ErrorClass::Escalate, message }));
        }
        match role.hosted {
            Hosted::Daemon => self.start_actor(role, scratch),
            Hosted::Worker => {
                let result = self.run_worker(scratch.clone()).await;
                remove_scratch(&scratch);
                core.ended(task, epoch, result);
            }
        }
    }

    /// Unique among the attempts of this node, and a DNS label.
    fn name(&self) -> String {
        let TaskId { job, phase, index } = self.task();
        format!("t{}-{phase}-{index}-e{}", job.0, self.epoch.0)
    }

    fn host(&self) -> DaemonHost {
        let gang = watch::Sender::new(None);
        let formed = gang.subscribe();
        self.core.gangs.insert((self.task(), self.epoch), gang);
        let (table, task, epoch) = (Arc::clone(&self.core.table), self.task(), self.epoch);
        let listening = move |address: SocketAddr| {
            table.lock().unwrap_or_else(PoisonError::into_inner).listens(task, epoch, address);
        };
        DaemonHost::new(Arc::clone(&self.core.shared), task, epoch, formed, listening)
    }

    fn start_actor(self, role: Role, scratch: PathBuf) {
        let host = Arc::new(self.host());
        let core = self.core;
        let (node, store) = (core.shared.node.clone(), core.shared.store.clone());
        let (context, result) = TaskContext::new(self.spec, self.epoch, node, store, scratch, host);
        let network = Network { endpoint: core.endpoint.clone(), links: core.options.links };
        let start = SupervisorMessage::Start(role, Box::new(context.with_network(network)), result);
        // The supervisor is gone only when the daemon ends.
        let _ = core.supervisor.cast(start);
    }

    /// Runs a worker process to its end.
    async fn run_worker(&self, scratch: PathBuf) -> TaskResult {
        let core = &self.core;
        let name = self.name();
        let assignment = self.assignment(&name, scratch.clone()).map_err(TaskError::restart)?;
        let worker = Arc::new(WorkerHost {
            task: self.task(),
            epoch: self.epoch,
            stage: self.spec.stage.clone(),
            host: self.host(),
            scratch,
            said: Mutex::new(None),
            stop: Arc::new(CancellationToken::new()),
            abandon: CancellationToken::new(),
        });
        core.workers.insert(name.clone(), Arc::clone(&worker));
        let log = core.options.dir.join("workers.log");
        let ended = match WorkerProcess::start(&core.options.worker, &assignment, &log).await {
            Ok(process) => {
                tracing::info!(task = %self.task(), epoch = %self.epoch, process = process.id(), role = %self.spec.role, "started a worker");
                let watching = process.watch(Arc::clone(&worker.stop));
                tokio::select! {
                    ended = watching => ended.to_string(),
                    () = worker.abandon.cancelled() => "the daemon ends".to_owned(),
                }
            }
            Err(error) => format!("no worker process: {error}"),
        };
        core.workers.remove(&name);
        let said = worker.said.lock().unwrap_or_else(PoisonError::into_inner).take();
        said.unwrap_or_else(|| Err(TaskError::restart(format_args!("role `{}`: {ended}", self.spec.role))))
    }

    fn assignment(
        &self,
        name: &str,
        scratch: PathBuf,
    ) -> Result<Assignment, sixfold_transport::identity::IdentityError> {
        let core = &self.core;
        let authority = core.endpoint.identity().worker_authority()?;
        let identity = authority.issue_identity(name, SystemTime::now(), WORKER_LIFETIME)?;
        Ok(Assignment {
            spec: self.spec.clone(),
            epoch: self.epoch,
            node: core.shared.node.clone(),
            daemon: core.address,
            identity_pem: identity.to_pem(),
            store: core.shared.store.root().to_owned(),
            scratch,
            links: core.options.links,
        })
    }
}

fn remove_scratch(scratch: &std::path::Path) {
    if let Err(error) = std::fs::remove_dir_all(scratch) {
        tracing::debug!(%error, "a scratch folder stays");
    }
}

/// Answers what workers ask of their tasks' hosts.
pub(super) fn requests(
    core: &Arc<Core>,
) -> impl Fn(Delivery<WorkerRequest>) -> Result<(), ActorGone> + use<> {
    let core = Arc::downgrade(core);
    move |mut delivery| {
        let core = core.upgrade().ok_or(ActorGone)?;
        let ours = delivery.from.host() == Some(core.shared.node.as_str());
        let worker =
            core.workers.get(delivery.from.name()).filter(|_| ours).map(|worker| Arc::clone(&worker));
        let worker = worker.ok_or(ActorGone)?;
        core.runtime.spawn(async move {
            let reply = answer(&worker, delivery.message).await;
            if let Some(port) = delivery.reply.take() {
                port.send(&reply);
            }
        });
        Ok(())
    }
}

async fn answer(worker: &WorkerHost, request: WorkerRequest) -> WorkerReply {
    let host = &worker.host;
    let answer = match request {
        WorkerRequest::Fetch(id) => {
            host.fetch(id).await.map(|manifest| WorkerReply::Manifest(manifest.encode()))
        }
        WorkerRequest::Publish(json) => match Manifest::decode(&json) {
            Ok(manifest) => host.publish(manifest).await.map(WorkerReply::Artifact),
            Err(error) => return WorkerReply::Failed(crate::worker::HostFailure::Other(error.to_string())),
        },
        WorkerRequest::Save { state, step } => host.save_state(state, step).await.map(|()| WorkerReply::Done),
        WorkerRequest::Rendezvous(address) => host.rendezvous(address).await.map(WorkerReply::Gang),
        WorkerRequest::Serve { address, about } => {
            host.serve(address, about).await.map(|()| WorkerReply::Done)
        }
        WorkerRequest::Progress(figures) => {
            host.progress(figures);
            Ok(WorkerReply::Done)
        }
        WorkerRequest::Log(line) => {
            host.log(line);
            Ok(WorkerReply::Done)
        }
        WorkerRequest::Commit { step, complete, manifest } => {
            answer_commit(host, &worker.scratch, (step, complete), &manifest).await
        }
        WorkerRequest::Held => answer_held(host).await,
        WorkerRequest::ReadHeld { manifest, nodes, file } => {
            answer_read_held(host, &worker.scratch, (&manifest, nodes), file).await
        }
        WorkerRequest::WentOn { step, redone } => {
            host.went_on(step, redone).await.map(|()| WorkerReply::Done)
        }
        WorkerRequest::Reached(step) => {
            host.reached(step);
            Ok(WorkerReply::Done)
        }
        WorkerRequest::Finished(result) => {
            *worker.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            Ok(WorkerReply::Done)
        }
    };
    answer.unwrap_or_else(|error| WorkerReply::Failed(error.into()))
}
