//! A host whose gang really meets, for ranks with a network: [`MeetingHost`].

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use sixfold_artifact::{FileEntry, Manifest};
use sixfold_cluster::task::{
    Commit, Gang, HeldState, HeldStates, HostError, LocalHost, Metrics, TaskAddress, TaskHost,
};
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

/// What all hosts of a job hold in memory: every state that was ever committed, and how far the ranks came.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Remembered>>);

#[derive(Default)]
struct Remembered {
    states: Vec<Commit>,
    furthest: u64,
    redone: Vec<(u64, u64)>,
    full: bool,
}

impl Memory {
    /// The committed steps with what each said to be complete, in the order in which they came.
    pub(crate) fn commits(&self) -> Vec<(u64, u64)> {
        self.0.lock().unwrap().states.iter().map(|state| (state.step, state.complete)).collect()
    }

    /// From which steps gangs went on, and how many each did again.
    pub(crate) fn went_on(&self) -> Vec<(u64, u64)> {
        self.0.lock().unwrap().redone.clone()
    }

    /// Forgets states for which that holds.
    pub(crate) fn forget(&self, which: impl Fn(&Commit) -> bool) {
        self.0.lock().unwrap().states.retain(|state| !which(state));
    }

    /// Changes a byte of the units of one state of a step.
    pub(crate) fn damage(&self, step: u64) {
        let mut remembered = self.0.lock().unwrap();
        let state = remembered.states.iter_mut().rfind(|state| state.step == step).unwrap();
        let mut units = state.files[0].to_vec();
        *units.last_mut().unwrap() ^= 1;
        state.files[0] = units.into();
    }

    /// Changes what is held in any way.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Vec<Commit>)) {
        change(&mut self.0.lock().unwrap().states);
    }

    /// Takes nothing more.
    pub(crate) fn fill(&self) {
        self.0.lock().unwrap().full = true;
    }

    /// As if the ranks had done that many steps.
    pub(crate) fn set_furthest(&self, step: u64) {
        self.0.lock().unwrap().furthest = step;
    }
}

/// A [`LocalHost`] whose rendezvous waits for the whole gang.
pub(crate) struct MeetingHost {
    pub(crate) local: Arc<LocalHost>,
    pub(crate) board: Board,
    pub(crate) task: TaskId,
    pub(crate) memory: Memory,
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

    async fn commit(&self, commit: Commit) -> Result<(), HostError> {
        let mut memory = self.memory.0.lock().unwrap();
        if memory.full {
            return Err(HostError::NotHeld("there is no room".to_owned()));
        }
        memory.states.push(commit);
        Ok(())
    }

    async fn held(&self) -> Result<HeldStates, HostError> {
        let memory = self.memory.0.lock().unwrap();
        let held = |commit: &Commit| HeldState {
            step: commit.step,
            manifest: commit.manifest.clone(),
            nodes: vec![NODE.into()],
        };
        Ok(HeldStates { states: memory.states.iter().map(held).collect(), furthest: memory.furthest })
    }

    async fn read_held(&self, state: &HeldState, file: &FileEntry) -> Result<Bytes, HostError> {
        let memory = self.memory.0.lock().unwrap();
        let held = memory.states.iter().find(|held| held.manifest == state.manifest).unwrap();
        let index = held.manifest.files.iter().position(|other| other == file).unwrap();
        let missing = || HostError::NotHeld(format!("{} is not there", file.name));
        held.files.get(index).cloned().ok_or_else(missing)
    }

    async fn went_on(&self, step: u64, redone: u64) -> Result<(), HostError> {
        self.memory.0.lock().unwrap().redone.push((step, redone));
        Ok(())
    }

    fn reached(&self, step: u64) {
        let mut memory = self.memory.0.lock().unwrap();
        memory.furthest = memory.furthest.max(step);
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
