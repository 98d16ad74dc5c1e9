//! Writing states beside the computation: a [`Writer`] on the thread of a [`Saver`].

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use sixfold_artifact::{FileEntry, Manifest};
use sixfold_cluster::task::{Commit, SavedState};
use sixfold_parallel::{RankSlice, Trainer, UnitParts};
use sixfold_wire::codec;
use sixfold_wire::id::ContentHash;

use super::{
    EVALUATIONS_FILE, FORMAT, HEADER_KEY, HISTORY_FILE, Header, KIND, LOSSES_FILE, SavedStep, UNITS_FILE,
    units,
};
use crate::error::TrainError;
use crate::evaluations::Evaluations;
use crate::history::History;
use crate::host::BlockingHost;

/// Snapshots that wait while one is being written. More would only take memory: when the store is
/// slower than the interval, training waits.
const WAITING_MAX: usize = 1;

/// A rank's state after a step, ready to be written. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) step: u64,
    pub(super) units: Bytes,
    pub(super) losses: Bytes,
    /// Of the first rank, which every plan's first rank reads from.
    pub(super) history: Option<Bytes>,
    /// Of a job that evaluates.
    pub(super) evaluations: Option<Bytes>,
    pub(super) best: Option<SavedStep>,
}

/// What a state has beside the numbers of the model.
pub(crate) struct Told<'a> {
    pub(crate) losses: &'a [f32],
    pub(crate) history: Option<&'a History>,
    pub(crate) evaluations: Option<&'a Evaluations>,
    pub(crate) best: Option<&'a SavedStep>,
}

impl Snapshot {
    /// Copies the part `saved` of the state of `trainer`, which has done as many steps as there are `losses`.
    ///
    /// # Errors
    /// [`TrainError::State`] if the trainer does not have that part.
    pub(crate) fn take(trainer: &Trainer, saved: &UnitParts, told: &Told<'_>) -> Result<Self, TrainError> {
        let Told { losses, history, evaluations, best } = *told;
        let step = losses.len() as u64;
        let losses: Vec<u8> = losses.iter().flat_map(|loss| loss.to_le_bytes()).collect();
        let encoded = history.map(codec::encode).transpose();
        let history = encoded.map_err(|error| TrainError::State(error.to_string()))?.map(Bytes::from);
        let evaluations = evaluations.map(|evaluations| evaluations.encode().into());
        let (units, losses) = (units::encode(trainer, saved)?, losses.into());
        Ok(Self { step, units, losses, history, evaluations, best: best.cloned() })
    }

    fn files(&self) -> impl Iterator<Item = (&'static str, &Bytes)> {
        let history = self.history.as_ref().map(|history| (HISTORY_FILE, history));
        let evaluations = self.evaluations.as_ref().map(|evaluations| (EVALUATIONS_FILE, evaluations));
        [(UNITS_FILE, &self.units), (LOSSES_FILE, &self.losses)].into_iter().chain(history).chain(evaluations)
    }
}

/// What turns a snapshot into an artefact, durable or held in memory.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) host: BlockingHost,
    pub(crate) fingerprint: String,
    pub(crate) slice: RankSlice,
    /// The rank's data-parallel coordinate.
    pub(crate) replica: usize,
    pub(crate) batch_sequences: u64,
    /// The states of the last step that was saved durably.
    pub(crate) earlier: Option<SavedStep>,
}

impl Writer {
    /// Makes a snapshot durable, and records it as a state to go on from.
    pub(crate) fn save(&mut self, snapshot: &Snapshot) -> Result<SavedState, TrainError> {
        let step = snapshot.step;
        let mut manifest = self.manifest(snapshot)?;
        for (name, content) in snapshot.files() {
            manifest.files.push(self.host.store().put(name, content)?);
        }
        let artifact = self.host.publish(manifest)?;
        self.host.save_state(artifact, step)?;
        self.earlier = Some(SavedStep { step, artifacts: vec![artifact] });
        Ok(SavedState { artifact, step })
    }

    /// Publishes the parameters of a snapshot, which may become the model, and no state to go on from.
    pub(crate) fn keep(&self, snapshot: &Snapshot) -> Result<SavedStep, TrainError> {
        let mut manifest = self.manifest(snapshot)?;
        manifest.files.push(self.host.store().put(UNITS_FILE, &snapshot.units)?);
        Ok(SavedStep { step: snapshot.step, artifacts: vec![self.host.publish(manifest)?] })
    }

    /// Has a snapshot held in memory. `complete` is the newest step that all ranks are known to have held.
    pub(crate) fn commit(&self, snapshot: &Snapshot, complete: u64) -> Result<(), TrainError> {
        let mut manifest = self.manifest(snapshot)?;
        manifest.files.extend(snapshot.files().map(|(name, content)| entry(name, content)));
        let files = snapshot.files().map(|(_, content)| content.clone()).collect();
        Ok(self.host.commit(Commit { step: snapshot.step, complete, manifest, files })?)
    }

    fn manifest(&self, snapshot: &Snapshot) -> Result<Manifest, TrainError> {
        let chunks = self.slice.chunks();
        let mut layers = chunks.iter().map(|chunk| chunk.layers.clone());
        let header = Header {
            format: FORMAT,
            step: snapshot.step,
            sequences: snapshot.step * self.batch_sequences,
            fingerprint: self.fingerprint.clone(),
            layers: layers.next().unwrap_or_default(),
            more_layers: layers.collect(),
            input: chunks.iter().any(|chunk| chunk.input),
            output: chunks.iter().any(|chunk| chunk.output),
            shards: chunks.first().map(|chunk| chunk.shards.clone()).unwrap_or_default(),
            replica: self.replica,
            earlier: self.earlier.clone(),
            best: snapshot.best.clone(),
        };
        let header = serde_json::to_value(header).map_err(|error| TrainError::Thread(error.to_string()))?;
        Ok(self.host.context().manifest(KIND).with("step", snapshot.step).with(HEADER_KEY, header))
    }
}

fn entry(name: &str, content: &[u8]) -> FileEntry {
    FileEntry { name: name.to_owned(), hash: ContentHash::of(content), bytes: content.len() as u64 }
}

/// A thread that saves one snapshot after another while the rank computes.
pub(crate) struct Saver<J, R> {
    jobs: Option<SyncSender<J>>,
    done: Receiver<R>,
    thread: Option<JoinHandle<()>>,
    under_way: usize,
}

impl<J: Send + 'static, R: Send + 'static> Saver<J, R> {
    /// Starts the thread.
    pub(crate) fn start(
        name: &str,
        mut save: impl FnMut(J) -> R + Send + 'static,
    ) -> Result<Self, TrainError> {
        let (jobs, incoming) = sync_channel::<J>(WAITING_MAX);
        let (sender, done) = sync_channel(WAITING_MAX + 2);
        let work = move || {
            for job in incoming {
                if sender.send(save(job)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
        let thread = thread.map_err(|error| TrainError::Thread(error.to_string()))?;
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread), under_way: 0 })
    }

    /// Hands over a snapshot. Waits while another one waits.
    pub(crate) fn submit(&mut self, job: J) -> Result<(), TrainError> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        self.under_way += usize::from(sent);
        if sent { Ok(()) } else { Err(TrainError::Thread("the checkpoint thread ended".to_owned())) }
    }

    /// The next result, if there is one already.
    pub(crate) fn poll(&mut self) -> Option<R> {
        let done = self.done.try_recv().ok()?;
        self.under_way -= 1;
        Some(done)
    }

    /// Waits for everything under way and returns the last result.
    pub(crate) fn wait(&mut self) -> Option<R> {
        let mut last = None;
        while self.under_way > 0 {
            last = Some(self.done.recv().ok()?);
            self.under_way -= 1;
        }
        last
    }
}

impl<J, R> Drop for Saver<J, R> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // Its results fit the channel's bound even if nobody takes them, so it comes to an end.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
