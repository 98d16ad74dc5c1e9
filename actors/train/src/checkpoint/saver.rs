//! Writing checkpoints beside the computation: [`Saver`].

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use sixfold_artifact::{FileEntry, Manifest};
use sixfold_cluster::task::SavedState;
use sixfold_model::ModelSlice;
use sixfold_parallel::Trainer;
use sixfold_wire::id::{ArtifactId, ContentHash};

use super::{FORMAT, HEADER_KEY, Header, KIND, LOSSES_FILE, SavedStep, UNITS_FILE, units};
use crate::error::TrainError;
use crate::host::BlockingHost;

/// Snapshots that wait while one is being written. More would only take memory: when the store is
/// slower than the interval, training waits.
const WAITING_MAX: usize = 1;

/// A rank's state after a step, ready to be written.
pub(crate) struct Snapshot {
    step: u64,
    units: Vec<u8>,
    losses: Vec<u8>,
}

impl Snapshot {
    /// Copies `trainer`'s state, which has done as many steps as there are `losses`.
    pub(crate) fn take(trainer: &Trainer, losses: &[f32]) -> Result<Self, TrainError> {
        let losses_bytes = losses.iter().flat_map(|loss| loss.to_le_bytes()).collect();
        Ok(Self { step: losses.len() as u64, units: units::encode(trainer)?, losses: losses_bytes })
    }
}

/// What turns a snapshot into an artefact and makes it count.
pub(crate) struct Writer {
    pub(crate) host: BlockingHost,
    /// Whether this rank writes the files, or a data-parallel rank with an equal state does.
    pub(crate) writes: bool,
    pub(crate) fingerprint: String,
    pub(crate) slice: ModelSlice,
    pub(crate) batch_sequences: u64,
    /// The states of the last step that was saved.
    pub(crate) earlier: Option<SavedStep>,
}

impl Writer {
    fn save(&mut self, snapshot: &Snapshot) -> Result<SavedState, TrainError> {
        let step = snapshot.step;
        let manifest = self.manifest(snapshot)?;
        let artifact = manifest.id();
        if self.writes {
            self.host.publish(manifest)?;
        }
        self.host.save_state(artifact, step)?;
        self.earlier = Some(SavedStep { step, artifacts: vec![artifact] });
        Ok(SavedState { artifact, step })
    }

    fn manifest(&self, snapshot: &Snapshot) -> Result<Manifest, TrainError> {
        let header = Header {
            format: FORMAT,
            step: snapshot.step,
            sequences: snapshot.step * self.batch_sequences,
            fingerprint: self.fingerprint.clone(),
            layers: self.slice.layers.clone(),
            input: self.slice.input,
            output: self.slice.output,
            shards: self.slice.shards.clone(),
            earlier: self.earlier.clone(),
        };
        let header = serde_json::to_value(header).map_err(|error| TrainError::Thread(error.to_string()))?;
        let mut manifest =
            self.host.context().manifest(KIND).with("step", snapshot.step).with(HEADER_KEY, header);
        for (name, content) in [(UNITS_FILE, &snapshot.units), (LOSSES_FILE, &snapshot.losses)] {
            manifest.files.push(self.file(name, content)?);
        }
        Ok(manifest)
    }

    fn file(&self, name: &str, content: &[u8]) -> Result<FileEntry, TrainError> {
        if self.writes {
            return Ok(self.host.store().put(name, content)?);
        }
        let (hash, bytes) = (ContentHash::of(content), content.len() as u64);
        Ok(FileEntry { name: name.to_owned(), hash, bytes })
    }
}

/// How saving a step ended.
type Saved = (u64, Result<SavedState, TrainError>);

/// A thread that saves one snapshot after another while the rank computes.
pub(crate) struct Saver {
    snapshots: Option<SyncSender<Snapshot>>,
    saved: Receiver<Saved>,
    thread: Option<JoinHandle<()>>,
    under_way: usize,
}

impl Saver {
    /// Starts the thread.
    pub(crate) fn start(mut writer: Writer) -> Result<Self, TrainError> {
        let (snapshots, incoming) = sync_channel::<Snapshot>(WAITING_MAX);
        let (sender, saved) = sync_channel(WAITING_MAX + 2);
        let work = move || {
            for snapshot in incoming {
                let result = writer.save(&snapshot);
                if sender.send((snapshot.step, result)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("checkpoint".to_owned()).spawn(work);
        let thread = thread.map_err(|error| TrainError::Thread(error.to_string()))?;
        Ok(Self { snapshots: Some(snapshots), saved, thread: Some(thread), under_way: 0 })
    }

    /// Hands over a snapshot. Waits while another one waits.
    pub(crate) fn submit(&mut self, snapshot: Snapshot) -> Result<(), TrainError> {
        let sender = self.snapshots.as_ref();
        let sent = sender.is_some_and(|sender| sender.send(snapshot).is_ok());
        self.under_way += usize::from(sent);
        if sent { Ok(()) } else { Err(TrainError::Thread("the checkpoint thread ended".to_owned())) }
    }

    /// The next result, if there is one already.
    pub(crate) fn poll(&mut self) -> Option<Saved> {
        let saved = self.saved.try_recv().ok()?;
        self.under_way -= 1;
        Some(saved)
    }

    /// Waits for everything under way and returns the last result.
    pub(crate) fn wait(&mut self) -> Option<Saved> {
        let mut last = None;
        while self.under_way > 0 {
            last = Some(self.saved.recv().ok()?);
            self.under_way -= 1;
        }
        last
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        drop(self.snapshots.take());
        // Its results fit the channel's bound even if nobody takes them, so it comes to an end.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The states of a step, by ids.
pub(crate) fn saved_step(step: u64, artifacts: impl IntoIterator<Item = ArtifactId>) -> SavedStep {
    let mut artifacts: Vec<_> = artifacts.into_iter().collect();
    artifacts.sort_unstable();
    artifacts.dedup();
    SavedStep { step, artifacts }
}
