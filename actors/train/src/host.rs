//! The cluster as the trainer's thread sees it: the calls of a `TaskHost`, made blocking.

use bytes::Bytes;
use sixfold_artifact::{FileEntry, Manifest, Store};
use sixfold_cluster::task::{Commit, HeldState, HeldStates, HostError, Metrics, TaskContext};
use sixfold_wire::id::ArtifactId;
use tokio::runtime::Handle;

/// A task's host for threads that compute. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BlockingHost {
    context: TaskContext,
    runtime: Handle,
}

impl BlockingHost {
    /// Calls of `context`'s host run on `runtime`; never use it from one of that runtime's threads.
    pub(crate) fn new(context: TaskContext, runtime: Handle) -> Self {
        Self { context, runtime }
    }

    pub(crate) fn context(&self) -> &TaskContext {
        &self.context
    }

    pub(crate) fn store(&self) -> &Store {
        &self.context.store
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Waits for other ranks, but not once the task is told to stop.
    pub(crate) fn wait_unless_stopped<F: Future>(&self, future: F) -> Option<F::Output> {
        let stopped = self.context.cancel.cancelled();
        self.block_on(async {
            tokio::select! { done = future => Some(done), () = stopped => None }
        })
    }

    pub(crate) fn fetch(&self, id: ArtifactId) -> Result<Manifest, HostError> {
        self.block_on(self.context.host.fetch(id))
    }

    pub(crate) fn publish(&self, manifest: Manifest) -> Result<ArtifactId, HostError> {
        self.block_on(self.context.host.publish(manifest))
    }

    pub(crate) fn save_state(&self, state: ArtifactId, step: u64) -> Result<(), HostError> {
        self.block_on(self.context.host.save_state(state, step))
    }

    pub(crate) fn commit(&self, commit: Commit) -> Result<(), HostError> {
        self.block_on(self.context.host.commit(commit))
    }

    pub(crate) fn held(&self) -> Result<HeldStates, HostError> {
        self.block_on(self.context.host.held())
    }

    pub(crate) fn read_held(&self, state: &HeldState, file: &FileEntry) -> Result<Bytes, HostError> {
        self.block_on(self.context.host.read_held(state, file))
    }

    /// Tells the coordinator, which may be away, without waiting for it.
    pub(crate) fn went_on(&self, step: u64, redone: u64) {
        let host = self.context.host.clone();
        // A task that was placed anew hears of it when it saves.
        self.runtime.spawn(async move { host.went_on(step, redone).await });
    }

    pub(crate) fn reached(&self, step: u64) {
        self.context.host.reached(step);
    }

    pub(crate) fn progress(&self, figures: Metrics) {
        self.context.host.progress(figures);
    }

    pub(crate) fn log(&self, line: impl Into<String>) {
        self.context.host.log(line.into());
    }
}
