//! Reading checkpoints, of whatever plan: [`SavedSteps`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sixfold_artifact::{Manifest, StoreError};
use sixfold_cluster::task::HeldState;
use sixfold_model::{Geometry, ModelSlice, UnitBuffer};
use sixfold_parallel::{RankSlice, StateParts};
use sixfold_wire::codec;
use sixfold_wire::id::{ArtifactId, ContentHash};

use super::reading::Reading;
use super::units::{self, PartBuffer, RankState};
use super::{CheckpointError, EVALUATIONS_FILE, HISTORY_FILE, Header, LOSSES_FILE, SavedStep, UNITS_FILE};
use crate::evaluations::{Evaluation, Evaluations};
use crate::history::History;
use crate::host::BlockingHost;
use crate::options::TrainOptions;

/// A state that is complete for this rank.
pub(crate) struct Loaded {
    pub(crate) state: RankState,
    /// The loss of every step so far; as many as steps were done.
    pub(crate) losses: Vec<f32>,
    /// The curves of as many steps.
    pub(crate) history: History,
    /// Steps done.
    pub(crate) step: u64,
    /// The held-out losses so far.
    pub(crate) evaluations: Vec<Evaluation>,
    /// The newest durable state that is as old or older.
    pub(crate) durable: Option<SavedStep>,
    /// The states after which the held-out loss was least, where they are kept.
    pub(crate) best: Option<SavedStep>,
}

/// Where a state can be read: what is in memory comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// In nodes' memory; an index into the list of these.
    Held(usize),
    /// In nodes' stores.
    Durable(ArtifactId),
}

/// A state whose manifest was read.
struct Opened<'a> {
    manifest: Cow<'a, Manifest>,
    header: Header,
    held: Option<&'a HeldState>,
}

/// The steps that a rank may go on from: those that it was told, and those that their checkpoints
/// name as earlier ones.
pub(crate) struct SavedSteps<'a> {
    host: &'a BlockingHost,
    geometry: &'a Geometry,
    slice: &'a RankSlice,
    parts: &'a StateParts,
    fingerprint: &'a str,
    options: &'a TrainOptions,
    held: &'a [HeldState],
    sources: BTreeMap<u64, BTreeSet<Source>>,
    /// Which artefact to look into first: under the same plan it holds what the rank saved.
    likely: Option<ArtifactId>,
}

impl<'a> SavedSteps<'a> {
    /// The steps that nodes hold, and those of the task's `resume`, which has one state for each rank of the
    /// plan that saved it.
    pub(crate) fn new(
        host: &'a BlockingHost,
        geometry: &'a Geometry,
        slice: &'a RankSlice,
        parts: &'a StateParts,
        (fingerprint, options): (&'a str, &'a TrainOptions),
        held: &'a [HeldState],
    ) -> Self {
        let spec = &host.context().spec;
        let mut sources: BTreeMap<u64, BTreeSet<Source>> = BTreeMap::new();
        for (index, state) in held.iter().enumerate() {
            sources.entry(state.step).or_default().insert(Source::Held(index));
        }
        for state in &spec.resume {
            sources.entry(state.step).or_default().insert(Source::Durable(state.artifact));
        }
        let likely = spec.resume.get(spec.id.index as usize).map(|state| state.artifact);
        Self { host, geometry, slice, parts, fingerprint, options, held, sources, likely }
    }

    /// The newest step up to `newest` that can be read; the log says why newer ones cannot.
    pub(crate) fn load(&mut self, newest: u64) -> Option<Loaded> {
        let mut bound = newest;
        // At step 0 nothing was saved, and a range must not end before it begins.
        while bound > 0 {
            let step = *self.sources.range(1..=bound).next_back()?.0;
            match self.load_step(step) {
                Ok(loaded) => return Some(loaded),
                Err(error) => self.host.log(format!("the checkpoint of step {step} is not used: {error}")),
            }
            bound = step - 1;
        }
        None
    }

    fn load_step(&mut self, step: u64) -> Result<Loaded, CheckpointError> {
        let mut reading = Reading::new(RankState::zeros(self.geometry, self.slice, self.parts).quantities);
        let mut losses = Err(CheckpointError::Losses { step, found: 0 });
        let mut evaluations = Err(CheckpointError::Evaluations { step });
        let (mut problem, mut history, mut best) = (None, None, None);
        for source in self.in_order(step) {
            // What stores have may have to be fetched first.
            let complete = reading.is_complete() && losses.is_ok() && evaluations.is_ok();
            if matches!(source, Source::Durable(_)) && complete {
                break;
            }
            let read = self.open(source, step).and_then(|opened| {
                read_units(self.host, self.geometry, &opened, &mut reading)?;
                SavedStep::merge(&mut best, opened.header.best.as_ref());
                if losses.is_err() {
                    losses = read_losses(self.host, &opened, step);
                }
                if evaluations.is_err() {
                    evaluations =
                        read_evaluations(self.host, &opened, Evaluations::due_by(self.options, step));
                }
                if history.is_none() {
                    history = read_history(self.host, &opened, step);
                }
                Ok(())
            });
            match read {
                Ok(()) => {}
                Err(error @ CheckpointError::Differs(_)) => return Err(error),
                // A damaged file matters only if its numbers or the losses are in no other.
                Err(error) => drop(problem.get_or_insert(error)),
            }
        }
        let quantities = reading.finish().map_err(|missing| problem.unwrap_or(missing))?;
        let losses = losses?;
        let evaluations = evaluations?;
        let mut history = history.unwrap_or_else(|| History::of_losses(&losses));
        history.set_evaluations(&evaluations);
        let (state, durable) = (RankState { quantities }, self.durable(step));
        Ok(Loaded { state, losses, history, step, evaluations, durable, best })
    }

    /// The newest durable states up to `step`.
    fn durable(&self, step: u64) -> Option<SavedStep> {
        self.sources.range(..=step).rev().find_map(|(&step, sources)| {
            let artifact = |source: &Source| match source {
                Source::Durable(id) => Some(*id),
                Source::Held(_) => None,
            };
            let artifacts: Vec<ArtifactId> = sources.iter().filter_map(artifact).collect();
            (!artifacts.is_empty()).then_some(SavedStep { step, artifacts })
        })
    }

    /// Those of a step: the likely ones first, of the held ones and then of the durable ones.
    fn in_order(&self, step: u64) -> Vec<Source> {
        let mut sources: Vec<Source> = self.sources.get(&step).into_iter().flatten().copied().collect();
        sources.sort_by_key(|source| match source {
            Source::Held(index) => {
                let header = self.held.get(*index).and_then(|held| Header::read(&held.manifest).ok());
                (false, header.is_none_or(|header| header.slice() != *self.slice))
            }
            Source::Durable(id) => (true, Some(*id) != self.likely),
        });
        sources
    }

    /// Reads the manifest of a state, from a store after fetching it, and notes the earlier states that it names.
    fn open(&mut self, source: Source, step: u64) -> Result<Opened<'a>, CheckpointError> {
        let held = match source {
            Source::Held(index) => self.held.get(index),
            Source::Durable(_) => None,
        };
        let manifest = match (source, held) {
            (Source::Durable(id), _) => Cow::Owned(self.host.fetch(id)?),
            (Source::Held(_), Some(held)) => Cow::Borrowed(&held.manifest),
            (Source::Held(_), None) => return Err(CheckpointError::NoHeader),
        };
        let header = Header::read(&manifest)?;
        if let Some(earlier) = header.earlier.as_ref().filter(|earlier| earlier.step < step) {
            let artifacts = earlier.artifacts.iter().map(|id| Source::Durable(*id));
            self.sources.entry(earlier.step).or_default().extend(artifacts);
        }
        if header.fingerprint != self.fingerprint {
            return Err(CheckpointError::OtherJob);
        }
        if header.step != step {
            return Err(CheckpointError::Step { expected: step, found: header.step });
        }
        Ok(Opened { manifest, header, held })
    }
}

fn read_losses(host: &BlockingHost, opened: &Opened<'_>, step: u64) -> Result<Vec<f32>, CheckpointError> {
    let bytes = opened.read_file(host, LOSSES_FILE)?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    if numbers.len() as u64 != step || !rest.is_empty() {
        return Err(CheckpointError::Losses { step, found: bytes.len() });
    }
    Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// The held-out losses, of which there are so many.
fn read_evaluations(
    host: &BlockingHost,
    opened: &Opened<'_>,
    count: usize,
) -> Result<Vec<Evaluation>, CheckpointError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let evaluations = Evaluations::decode(&opened.read_file(host, EVALUATIONS_FILE)?);
    let wrong = || CheckpointError::Evaluations { step: opened.header.step };
    evaluations.filter(|evaluations| evaluations.len() == count).ok_or_else(wrong)
}

/// Curves are worth no step: where they are missing or damaged, the losses stand for them.
fn read_history(host: &BlockingHost, opened: &Opened<'_>, step: u64) -> Option<History> {
    let bytes = opened.read_file(host, HISTORY_FILE).ok()?;
    codec::decode(&bytes).ok().filter(|history: &History| history.is_of(step))
}

impl Opened<'_> {
    /// Reads a file whole and compares it with its hash.
    fn read_file(&self, host: &BlockingHost, name: &str) -> Result<Bytes, CheckpointError> {
        let Some(entry) = self.manifest.file(name) else {
            return Err(CheckpointError::Header(format!("there is no file {name}")));
        };
        let Some(held) = self.held else { return Ok(host.store().read_entry(entry)?.into()) };
        let content = host.read_held(held, entry)?;
        let found = ContentHash::of(&content);
        if found == entry.hash {
            Ok(content)
        } else {
            Err(StoreError::Damaged { expected: entry.hash, found }.into())
        }
    }
}

/// Reads the units of a state, where they are needed.
fn read_units<const N: usize>(
    host: &BlockingHost,
    geometry: &Geometry,
    opened: &Opened<'_>,
    reading: &mut Reading<N>,
) -> Result<(), CheckpointError> {
    let slice = opened.header.slice();
    let fits = |chunk: &ModelSlice| {
        chunk.shards.end <= geometry.sharding.logical()
            && chunk.layers.end <= geometry.config.num_hidden_layers
    };
    if !slice.chunks().iter().all(fits) {
        return Err(CheckpointError::OtherJob);
    }
    if !reading.needs(geometry, &slice) {
        return Ok(());
    }
    let file = opened.read_file(host, UNITS_FILE)?;
    reading.take(&units::pieces(&file, geometry, &slice)?)
}

/// The parameters of the whole model, from the checkpoints of one step.
pub(crate) fn read_parameters_of(
    host: &BlockingHost,
    geometry: &Geometry,
    checkpoints: &[ArtifactId],
) -> Result<UnitBuffer, CheckpointError> {
    let mut reading = Reading::new([PartBuffer::of_slice(geometry, &RankSlice::whole(geometry))]);
    for id in checkpoints {
        let manifest = host.fetch(*id)?;
        let header = Header::read(&manifest)?;
        let opened = Opened { manifest: Cow::Owned(manifest), header, held: None };
        read_units(host, geometry, &opened, &mut reading)?;
    }
    let [parameters] = reading.finish()?;
    Ok(parameters.values)
}

/// The artefacts with the parameters of step `step`, as the final states of all ranks know of them.
pub(crate) fn best_of(
    host: &BlockingHost,
    states: &[ArtifactId],
    step: u64,
) -> Result<Vec<ArtifactId>, CheckpointError> {
    let mut best = None;
    for id in states {
        SavedStep::merge(&mut best, Header::read(&host.fetch(*id)?)?.best.as_ref());
    }
    let found = best.filter(|best| best.step == step).ok_or(CheckpointError::NoBest { step })?;
    Ok(found.artifacts)
}
