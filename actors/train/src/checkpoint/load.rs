//! Reading checkpoints, of whatever plan: [`SavedSteps`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sixfold_artifact::Manifest;
use sixfold_cluster::task::SavedState;
use sixfold_model::{Geometry, ModelSlice, UnitBuffer, UnitId, UnitIndex};
use sixfold_wire::id::ArtifactId;

use super::{CheckpointError, Header, LOSSES_FILE, RankState, SavedStep, UNITS_FILE, units};
use crate::host::BlockingHost;

/// A state that is complete for this rank.
pub(crate) struct Loaded {
    pub(crate) state: RankState,
    /// The loss of every step so far; as many as steps were done.
    pub(crate) losses: Vec<f32>,
    /// Where it came from.
    pub(crate) step: SavedStep,
}

/// The steps that a rank may go on from: those that it was told, and those that their checkpoints
/// name as earlier ones.
pub(crate) struct SavedSteps<'a> {
    host: &'a BlockingHost,
    geometry: &'a Geometry,
    slice: &'a ModelSlice,
    fingerprint: &'a str,
    artifacts: BTreeMap<u64, BTreeSet<ArtifactId>>,
    /// Which artefact to look into first: under the same plan it holds all of the rank's units.
    likely: Option<ArtifactId>,
}

impl<'a> SavedSteps<'a> {
    /// The steps of `resume`, which has one state for each rank of the plan that saved it.
    pub(crate) fn new(
        host: &'a BlockingHost,
        geometry: &'a Geometry,
        slice: &'a ModelSlice,
        fingerprint: &'a str,
        resume: &[SavedState],
    ) -> Self {
        let mut artifacts: BTreeMap<u64, BTreeSet<ArtifactId>> = BTreeMap::new();
        for state in resume {
            artifacts.entry(state.step).or_default().insert(state.artifact);
        }
        let rank = host.context().spec.id.index as usize;
        let likely = resume.get(rank).map(|state| state.artifact);
        Self { host, geometry, slice, fingerprint, artifacts, likely }
    }

    /// The newest step up to `newest` that can be read; the log says why newer ones cannot.
    pub(crate) fn load(&mut self, newest: u64) -> Option<Loaded> {
        let mut bound = newest;
        loop {
            let step = *self.artifacts.range(1..=bound).next_back()?.0;
            match self.load_step(step) {
                Ok(loaded) => return Some(loaded),
                Err(error) => self.host.log(format!("the checkpoint of step {step} is not used: {error}")),
            }
            bound = step - 1;
        }
    }

    fn load_step(&mut self, step: u64) -> Result<Loaded, CheckpointError> {
        let mut reading =
            Reading::new(self.geometry, self.slice, RankState::zeros(self.geometry, self.slice));
        let mut losses = Err(CheckpointError::Losses { step, found: 0 });
        let mut problem = None;
        for id in self.in_order(step) {
            let read = self.open(id, step).and_then(|(manifest, header)| {
                reading.read(self.host, &manifest, &header)?;
                if losses.is_err() {
                    losses = read_losses(self.host, &manifest, step);
                }
                Ok(())
            });
            if let Err(error) = read {
                problem.get_or_insert(error);
            }
        }
        // A damaged file matters only if its units or the losses are in no other.
        let state = reading.finish().map_err(|missing| problem.unwrap_or(missing))?;
        let artifacts = self.artifacts.get(&step).into_iter().flatten().copied();
        Ok(Loaded { state, losses: losses?, step: super::saver::saved_step(step, artifacts) })
    }

    fn in_order(&self, step: u64) -> Vec<ArtifactId> {
        let mut ids: Vec<ArtifactId> = self.artifacts.get(&step).into_iter().flatten().copied().collect();
        ids.sort_by_key(|id| Some(*id) != self.likely);
        ids
    }

    /// Fetches an artefact and notes the earlier states that it names.
    fn open(&mut self, id: ArtifactId, step: u64) -> Result<(Manifest, Header), CheckpointError> {
        let manifest = self.host.fetch(id)?;
        let header = Header::read(&manifest)?;
        if let Some(earlier) = header.earlier.as_ref().filter(|earlier| earlier.step < step) {
            self.artifacts.entry(earlier.step).or_default().extend(&earlier.artifacts);
        }
        if header.fingerprint != self.fingerprint {
            return Err(CheckpointError::OtherJob);
        }
        if header.step != step {
            return Err(CheckpointError::Step { expected: step, found: header.step });
        }
        Ok((manifest, header))
    }
}

fn read_losses(host: &BlockingHost, manifest: &Manifest, step: u64) -> Result<Vec<f32>, CheckpointError> {
    let bytes = read_file(host, manifest, LOSSES_FILE)?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    if numbers.len() as u64 != step || !rest.is_empty() {
        return Err(CheckpointError::Losses { step, found: bytes.len() });
    }
    Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// Reads a file whole and compares it with its hash.
fn read_file(host: &BlockingHost, manifest: &Manifest, name: &str) -> Result<Vec<u8>, CheckpointError> {
    match manifest.file(name) {
        Some(entry) => Ok(host.store().read_entry(entry)?),
        None => Err(CheckpointError::Header(format!("there is no file {name}"))),
    }
}

/// Units being put together from several files.
struct Reading<'a, B> {
    geometry: &'a Geometry,
    wanted: BTreeSet<UnitId>,
    into: B,
}

/// What units can be read into.
trait Buffers {
    fn buffers(&mut self) -> &mut [UnitBuffer];
}

impl Buffers for RankState {
    fn buffers(&mut self) -> &mut [UnitBuffer] {
        &mut self.buffers
    }
}

impl Buffers for UnitBuffer {
    fn buffers(&mut self) -> &mut [UnitBuffer] {
        std::slice::from_mut(self)
    }
}

impl<'a, B: Buffers> Reading<'a, B> {
    fn new(geometry: &'a Geometry, slice: &ModelSlice, into: B) -> Self {
        Self { geometry, wanted: slice.units(geometry).into_iter().collect(), into }
    }

    /// Takes the wanted units of a checkpoint; does not open it if it has none.
    fn read(
        &mut self,
        host: &BlockingHost,
        manifest: &Manifest,
        header: &Header,
    ) -> Result<(), CheckpointError> {
        let slice = header.slice();
        let fits = slice.shards.end <= self.geometry.sharding.logical()
            && slice.layers.end <= self.geometry.config.num_hidden_layers;
        if !fits {
            return Err(CheckpointError::OtherJob);
        }
        if !slice.units(self.geometry).iter().any(|unit| self.wanted.contains(unit)) {
            return Ok(());
        }
        units::read(&read_file(host, manifest, UNITS_FILE)?, &mut self.wanted, self.into.buffers())
    }

    fn finish(self) -> Result<B, CheckpointError> {
        match self.wanted.first() {
            None => Ok(self.into),
            Some(first) => {
                Err(CheckpointError::Missing { count: self.wanted.len(), first: first.to_string() })
            }
        }
    }
}

/// The parameters of the whole model, from the checkpoints of one step.
pub(crate) fn read_parameters_of(
    host: &BlockingHost,
    geometry: &Geometry,
    checkpoints: &[ArtifactId],
) -> Result<UnitBuffer, CheckpointError> {
    let whole = ModelSlice::whole(geometry);
    let index = Arc::new(UnitIndex::of_parameters(geometry, &whole));
    let mut reading = Reading::new(geometry, &whole, UnitBuffer::zeros(index));
    for id in checkpoints {
        let manifest = host.fetch(*id)?;
        reading.read(host, &manifest, &Header::read(&manifest)?)?;
    }
    reading.finish()
}
