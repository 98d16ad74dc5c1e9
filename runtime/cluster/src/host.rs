//! What a daemon does for one task: the [`TaskHost`] behind a role's context.
//!
//! Durable steps (a saved state, a started gang member) return once the coordinator has them; a
//! coordinator that is away is waited for. Progress and log lines never wait: the newest figures
//! win, and old lines are dropped beyond a bound.

mod commit;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sixfold_artifact::{FileEntry, Manifest, Store};
use sixfold_wire::id::{ArtifactId, Epoch, NodeName, TaskId};
use tokio::sync::{Notify, watch};

use crate::holder::HoldTag;
use crate::protocol::{ArtifactSummary, ClusterView, NodeAddress, NodeReply, NodeReport};
use crate::states::{Listing, SharedHolder};
use crate::task::{
    Commit, Gang, GangId, HeldState, HeldStates, HostError, Metrics, SavedState, TaskHost, renew_figures,
};
use crate::transfer::TransferError;

/// Time between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Log lines kept while the coordinator is away.
const LINES_MAX: usize = 1000;
/// Times that a node is tried for an artefact before the task is told that it is out of reach.
const FETCH_ROUNDS: u32 = 5;
/// Time between such rounds: a copy may be on its way.
const FETCH_PAUSE: Duration = Duration::from_millis(500);

/// The way to the coordinator. Waits while it is away.
#[async_trait]
pub(crate) trait Reports: Send + Sync {
    /// Delivers a report and returns the answer; delivers again after a lost connection.
    async fn report(&self, report: NodeReport) -> Result<NodeReply, HostError>;

    /// The cluster as the coordinator last described it.
    fn view(&self) -> watch::Receiver<ClusterView>;
}

/// The way to other nodes' stores.
#[async_trait]
pub(crate) trait Neighbours: Send + Sync {
    /// Fetches an artefact from a node into this node's store.
    async fn fetch(&self, from: &NodeAddress, id: ArtifactId) -> Result<Manifest, TransferError>;

    /// Copies an artefact to a node; returns once it is durable there.
    async fn push(&self, to: &NodeAddress, id: ArtifactId) -> Result<(), TransferError>;

    /// Has a node hold a state in memory; returns once it does.
    async fn hold(
        &self,
        to: &NodeAddress,
        tag: &HoldTag,
        manifest: &Manifest,
        files: &[Bytes],
    ) -> Result<(), TransferError>;

    /// What a node holds of a gang; it refuses states of attempts older than this one from now on.
    async fn list_held(
        &self,
        from: &NodeAddress,
        gang: GangId,
        epoch: Epoch,
    ) -> Result<Listing, TransferError>;

    /// A file of a state that a node holds, for an attempt of the gang.
    async fn read_held(
        &self,
        from: &NodeAddress,
        attempt: (GangId, Epoch),
        state: ArtifactId,
        file: &FileEntry,
    ) -> Result<Bytes, TransferError>;
}

/// What all tasks of a daemon share.
pub(crate) struct Shared {
    /// This node.
    pub(crate) node: NodeName,
    /// This node's artefacts.
    pub(crate) store: Store,
    /// The way to the coordinator.
    pub(crate) reports: Arc<dyn Reports>,
    /// The way to other nodes' stores.
    pub(crate) neighbours: Arc<dyn Neighbours>,
    /// The states that this node holds in memory.
    pub(crate) holder: SharedHolder,
}

/// The host of one attempt of a task.
pub(crate) struct DaemonHost {
    shared: Arc<Shared>,
    task: TaskId,
    epoch: Epoch,
    gang: watch::Receiver<Option<Gang>>,
    listening: Box<dyn Fn(SocketAddr) + Send + Sync>,
    outbox: Arc<Outbox>,
    /// The newest figures.
    figures: Mutex<Metrics>,
}

impl DaemonHost {
    /// A host; `gang` yields the task's gang once it has formed, `listening` is told its address.
    pub(crate) fn new(
        shared: Arc<Shared>,
        task: TaskId,
        epoch: Epoch,
        gang: watch::Receiver<Option<Gang>>,
        listening: impl Fn(SocketAddr) + Send + Sync + 'static,
    ) -> Self {
        let outbox = Arc::new(Outbox::default());
        tokio::spawn(Arc::clone(&outbox).deliver(Arc::clone(&shared.reports), task, epoch));
        Self { shared, task, epoch, gang, listening: Box::new(listening), outbox, figures: Mutex::default() }
    }

    /// The task's newest figures.
    pub(crate) fn figures(&self) -> Metrics {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn durable(&self, report: NodeReport) -> Result<(), HostError> {
        match self.shared.reports.report(report).await? {
            NodeReply::Superseded => Err(HostError::Superseded),
            NodeReply::Refused(why) => Err(HostError::Unreachable(why)),
            _ => Ok(()),
        }
    }

    /// Copies to other nodes until there are as many as the cluster keeps, and says who has it.
    async fn copy_out(&self, id: ArtifactId) -> Vec<NodeName> {
        let view = self.shared.reports.view().borrow().clone();
        let mut holders = vec![self.shared.node.clone()];
        // Starting behind this node in the list spreads the copies over the cluster.
        let here = view.nodes.iter().position(|other| other.node == self.shared.node).unwrap_or(0);
        let others = view.nodes.iter().cycle().skip(here + 1).take(view.nodes.len().saturating_sub(1));
        for other in others {
            if holders.len() >= view.copies as usize {
                break;
            }
            match self.shared.neighbours.push(other, id).await {
                Ok(()) => holders.push(other.node.clone()),
                Err(error) => tracing::warn!(node = %other.node, %error, "cannot copy an artefact there"),
            }
        }
        holders
    }

    async fn locate(&self, artifact: ArtifactId) -> Result<Vec<NodeAddress>, HostError> {
        match self.shared.reports.report(NodeReport::Locate { artifact }).await? {
            NodeReply::Locations(nodes) => Ok(nodes),
            _ => Ok(Vec::new()),
        }
    }
}

impl Drop for DaemonHost {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

#[async_trait]
impl TaskHost for DaemonHost {
    async fn fetch(&self, id: ArtifactId) -> Result<Manifest, HostError> {
        let manifest = fetch(&self.shared, id, || self.locate(id)).await?;
        let (mut needed, mut known) = (manifest.needs.clone(), BTreeSet::from([id]));
        while let Some(id) = needed.pop() {
            if known.insert(id) {
                needed.extend(fetch(&self.shared, id, || self.locate(id)).await?.needs);
            }
        }
        Ok(manifest)
    }

    async fn publish(&self, manifest: Manifest) -> Result<ArtifactId, HostError> {
        let store = self.shared.store.clone();
        let summary = ArtifactSummary::of(&manifest, self.task);
        let id = tokio::task::spawn_blocking(move || store.publish(&manifest))
            .await
            .map_err(|error| HostError::Unreachable(error.to_string()))??;
        let nodes = self.copy_out(id).await;
        self.durable(NodeReport::Stored { artifact: summary, nodes }).await?;
        Ok(id)
    }

    async fn save_state(&self, artifact: ArtifactId, step: u64) -> Result<(), HostError> {
        let state = SavedState { artifact, step };
        self.durable(NodeReport::Saved { task: self.task, epoch: self.epoch, state }).await
    }

    async fn rendezvous(&self, address: SocketAddr) -> Result<Gang, HostError> {
        (self.listening)(address);
        self.durable(NodeReport::Started { task: self.task, epoch: self.epoch, address }).await?;
        let mut gang = self.gang.clone();
        let formed = gang.wait_for(Option::is_some).await.map_err(|_| HostError::Superseded)?;
        formed.clone().ok_or(HostError::Superseded)
    }

    async fn serve(&self, address: SocketAddr, about: Metrics) -> Result<(), HostError> {
        (self.listening)(address);
        self.durable(NodeReport::Serving { task: self.task, epoch: self.epoch, address, about }).await
    }

    async fn commit(&self, commit: Commit) -> Result<(), HostError> {
        self.hold(commit).await
    }

    async fn held(&self) -> Result<HeldStates, HostError> {
        Ok(self.list_held().await)
    }

    async fn read_held(&self, state: &HeldState, file: &FileEntry) -> Result<Bytes, HostError> {
        self.read(state, file).await
    }

    async fn went_on(&self, step: u64, redone: u64) -> Result<(), HostError> {
        self.durable(NodeReport::WentOn { task: self.task, epoch: self.epoch, step, redone }).await
    }

    fn reached(&self, step: u64) {
        self.shared.holder.lock().reached(self.task.into(), self.epoch, step);
    }

    fn progress(&self, figures: Metrics) {
        renew_figures(&mut self.figures.lock().unwrap_or_else(PoisonError::into_inner), figures.clone());
        self.outbox.put(|content| renew_figures(content.figures.get_or_insert_default(), figures));
    }

    fn log(&self, line: String) {
        self.outbox.put(|content| {
            if content.lines.len() == LINES_MAX {
                content.lines.pop_front();
            }
            content.lines.push_back(line);
        });
    }
}

/// Makes sure that an artefact is in the node's store, from wherever it can be had; not what it needs, which may be kept elsewhere.
pub(crate) async fn fetch<L, F>(shared: &Shared, id: ArtifactId, locate: L) -> Result<Manifest, HostError>
where
    L: Fn() -> F + Send,
    F: Future<Output = Result<Vec<NodeAddress>, HostError>> + Send,
{
    if let Ok(manifest) = shared.store.manifest(id)
        && manifest.files.iter().all(|file| shared.store.has_blob(&file.hash))
    {
        return Ok(manifest);
    }
    for round in 0..FETCH_ROUNDS {
        if round > 0 {
            tokio::time::sleep(FETCH_PAUSE).await;
        }
        for node in locate().await?.iter().filter(|node| node.node != shared.node) {
            match shared.neighbours.fetch(node, id).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => tracing::warn!(node = %node.node, %error, "cannot fetch an artefact there"),
            }
        }
    }
    Err(HostError::Unavailable(id))
}

#[derive(Default)]
struct Content {
    figures: Option<Metrics>,
    lines: VecDeque<String>,
    closed: bool,
}

/// Progress and log lines on their way out.
#[derive(Default)]
struct Outbox {
    content: Mutex<Content>,
    changed: Notify,
}

impl Outbox {
    fn put(&self, change: impl FnOnce(&mut Content)) {
        change(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    fn close(&self) {
        self.put(|content| content.closed = true);
    }

    async fn deliver(self: Arc<Self>, reports: Arc<dyn Reports>, task: TaskId, epoch: Epoch) {
        loop {
            self.changed.notified().await;
            let Content { figures, lines, closed } =
                self.with_content(|content| Content { closed: content.closed, ..std::mem::take(content) });
            let progress = figures.map(|figures| NodeReport::Progress { task, epoch, figures });
            let log = (!lines.is_empty()).then(|| NodeReport::Log { task, lines: lines.into() });
            for report in [progress, log].into_iter().flatten() {
                if let Err(error) = reports.report(report).await {
                    tracing::debug!(%error, "progress was not delivered");
                }
            }
            if closed {
                return;
            }
            tokio::time::sleep(PROGRESS_INTERVAL).await;
        }
    }

    fn with_content<T>(&self, take: impl FnOnce(&mut Content) -> T) -> T {
        take(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
