//! Checkpoints: the whole state of a rank after a step, readable under any other plan.
//!
//! A `checkpoint` artefact holds what one rank saves: its part of what its (pipeline stage, tensor coordinate) owns
//! ([`StateParts`](sixfold_parallel::StateParts)).
//!
//! ```text
//! units.safetensors   for each unit U: U/parameter, U/first_moment, U/second_moment, all f32;
//!                     U/parameter@N and so on where it has a part of the unit, whose first number is the unit's Nth
//! losses.bin          the loss of every step so far, little-endian f32
//! evaluations.bin     the held-out losses so far, each a step (u64) and a loss (f32), little-endian; only of a job that
//!                     evaluates
//! history.bin         the curves so far ([`History`](crate::History)), in the codec of messages; of the first
//!                     rank only, and not needed
//! ```
//! Its manifest's metadata has a [`Header`] under `checkpoint`. A unit is (tensor, layer, logical
//! shard), so the artefacts of one step, taken together, hold every number whatever plan wrote them,
//! and a rank of another plan reads its numbers from whichever of them have them: all must be found, within the units'
//! lengths, once a file, and alike wherever two files have them. Random numbers and the order of the data follow from
//! seed and step, so nothing else needs to be kept. Format 1 had whole units only.
//!
//! Every artefact names the states of the step before it that was saved, so that a reader who finds
//! one damaged goes on to older ones.
//!
//! [`Saver`] writes beside the computation, [`SavedSteps`] reads.

mod load;
mod reading;
mod saver;
#[cfg(test)]
mod tests;
mod units;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use sixfold_artifact::{Manifest, StoreError};
use sixfold_cluster::task::HostError;
use sixfold_model::ModelSlice;
use sixfold_parallel::RankSlice;
use sixfold_wire::id::ArtifactId;

pub(crate) use load::{Loaded, SavedSteps, best_of, read_parameters_of};
pub(crate) use saver::{Saver, Snapshot, Told, Writer};

/// Kind of the artefact.
pub(crate) const KIND: &str = "checkpoint";
/// Key of the [`Header`] in the manifest's metadata.
const HEADER_KEY: &str = "checkpoint";
/// Version of the format that is written.
const FORMAT: u32 = 2;
/// The oldest version that is read.
const FORMAT_MIN: u32 = 1;
const UNITS_FILE: &str = "units.safetensors";
const LOSSES_FILE: &str = "losses.bin";
const HISTORY_FILE: &str = "history.bin";
const EVALUATIONS_FILE: &str = "evaluations.bin";

/// What a checkpoint's manifest says about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    /// Version of the format.
    format: u32,
    /// Steps done.
    pub(crate) step: u64,
    /// Training sequences consumed: the data cursor.
    sequences: u64,
    /// Hash of everything that the job's numbers follow from.
    fingerprint: String,
    /// Decoder layers, of the first chunk where there are several.
    layers: Range<usize>,
    /// Decoder layers of the further chunks that an interleaved pipeline stage has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more_layers: Vec<Range<usize>>,
    /// Whether the embedding is part of it.
    input: bool,
    /// Whether the final norm and the head are part of it.
    output: bool,
    /// Logical shards.
    shards: Range<usize>,
    /// Which of the data-parallel ranks that own the same wrote it.
    #[serde(default)]
    replica: usize,
    /// The states of the step saved before.
    earlier: Option<SavedStep>,
    /// Those of the step after which the held-out loss was least, as far as the writer knows of them, where they are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    best: Option<SavedStep>,
}

impl SavedStep {
    /// Takes in what another knows of the states of a step, if it is the same step or a later one.
    fn merge(known: &mut Option<Self>, other: Option<&Self>) {
        match (known.as_mut(), other) {
            (Some(known), Some(other)) if known.step == other.step => {
                known.artifacts.extend(&other.artifacts);
                known.artifacts.sort_unstable();
                known.artifacts.dedup();
            }
            (Some(known), Some(other)) if known.step < other.step => *known = other.clone(),
            (None, Some(other)) => *known = Some(other.clone()),
            _ => {}
        }
    }
}

/// The states of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedStep {
    /// Steps done.
    pub(crate) step: u64,
    /// Artefacts of some or all of its ranks.
    pub(crate) artifacts: Vec<ArtifactId>,
}

impl Header {
    fn slice(&self) -> RankSlice {
        let last = self.more_layers.len();
        let chunk = |(index, layers): (usize, &Range<usize>)| ModelSlice {
            layers: layers.clone(),
            input: self.input && index == 0,
            output: self.output && index == last,
            shards: self.shards.clone(),
        };
        [&self.layers].into_iter().chain(&self.more_layers).enumerate().map(chunk).collect()
    }

    fn read(manifest: &Manifest) -> Result<Self, CheckpointError> {
        if manifest.kind != KIND {
            return Err(CheckpointError::Kind(manifest.kind.clone()));
        }
        let value = manifest.metadata.get(HEADER_KEY).ok_or(CheckpointError::NoHeader)?;
        let header = Self::deserialize(value).map_err(|error| CheckpointError::Header(error.to_string()))?;
        match header.format {
            FORMAT_MIN..=FORMAT => Ok(header),
            other => Err(CheckpointError::Format(other)),
        }
    }
}

/// Why a saved state cannot be used. The next older one may be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("an artefact of kind `{0}` is not a checkpoint")]
    Kind(String),
    #[error("its manifest has no checkpoint header")]
    NoHeader,
    #[error("its header is damaged: {0}")]
    Header(String),
    #[error("it has format {0}; this program reads {FORMAT_MIN} to {FORMAT}")]
    Format(u32),
    #[error("it belongs to step {found}, not to step {expected}")]
    Step { expected: u64, found: u64 },
    #[error("it was written by a job with other options, tokens or vocabulary")]
    OtherJob,
    #[error("its units are not readable: {0}")]
    Units(#[from] safetensors::SafeTensorError),
    #[error("it has `{0}`, which is no part of what it says that it holds")]
    Name(String),
    #[error("{name} is {dtype:?} {shape:?}; the unit has {most} f32 numbers there")]
    Tensor { name: String, dtype: safetensors::Dtype, shape: Vec<usize>, most: usize },
    #[error("it has the numbers of {0} twice")]
    Twice(String),
    #[error("two files have other numbers for {0}")]
    Differs(String),
    #[error("it has the losses of {found} bytes for {step} steps")]
    Losses { step: u64, found: usize },
    #[error("it has no held-out losses, or not those of {step} steps")]
    Evaluations { step: u64 },
    #[error("it does not say where the weights of step {step} are")]
    NoBest { step: u64 },
    #[error("{count} numbers are in none of the step's files, {first} among them")]
    Missing { count: usize, first: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Host(#[from] HostError),
}
