//! A host whose gang really meets, for ranks with a network: [`MeetingHost`].

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use sixfold_artifact::Manifest;
use sixfold_cluster::task::{Gang, HostError, LocalHost, Metrics, TaskAddress, TaskHost};
use sixfold_wire::id::{ArtifactId, Epoch, TaskId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::gang::NODE;

/// Where the members of a gang leave their addresses.
#[derive(Clone)]
pub(crate) struct Board {
    addresses: Arc<watch::Sender<Vec<Option<SocketAddr>>>>,
    /// Told to stop by the first progress.
    to_stop: Arc<Mutex<Option<CancellationToken>>>,
}

impl Board {
    pub(crate) fn new(members: usize) -> Self {
        Self { addresses: Arc::new(watch::channel(vec![None; members]).0), to_stop: Arc::default() }
    }

    pub(crate) fn stop_after_first_step(&self, member: CancellationToken) {
        *self.to_stop.lock().unwrap() = Some(member);
    }
}

/// A [`LocalHost`] whose rendezvous waits for the whole gang.
pub(crate) struct MeetingHost {
    pub(crate) local: Arc<LocalHost>,
    pub(crate) board: Board,
    pub(crate) task: TaskId,
}

#[async_trait]
impl TaskHost for MeetingHost {
    async fn rendezvous(&self, address: SocketAddr) -> Result<Gang, HostError> {
        let own = self.task.index as usize;
        self.board.addresses.send_modify(|addresses| addresses[own] = Some(address));
        let mut changes = self.board.addresses.subscribe();
        let all = changes.wait_for(|addresses| addresses.iter().all(Option::is_some)).await;
        let addresses = all.map_err(|error| HostError::Unreachable(error.to_string()))?;
        let member = |(index, address): (u32, &Option<SocketAddr>)| {
            let task = TaskId { index, ..self.task };
            address.map(|address| TaskAddress { task, node: NODE.into(), address })
        };
        Ok(Gang { epoch: Epoch(1), members: (0..).zip(addresses.iter()).filter_map(member).collect() })
    }

    async fn fetch(&self, id: ArtifactId) -> Result<Manifest, HostError> {
        self.local.fetch(id).await
    }

    async fn publish(&self, manifest: Manifest) -> Result<ArtifactId, HostError> {
        self.local.publish(manifest).await
    }

    async fn save_state(&self, state: ArtifactId, step: u64) -> Result<(), HostError> {
        self.local.save_state(state, step).await
    }

    async fn serve(&self, address: SocketAddr, about: Metrics) -> Result<(), HostError> {
        self.local.serve(address, about).await
    }

    fn progress(&self, figures: Metrics) {
        self.local.progress(figures);
        if let Some(member) = self.board.to_stop.lock().unwrap().take() {
            member.cancel();
        }
    }

    fn log(&self, line: String) {
        self.local.log(line);
    }
}
