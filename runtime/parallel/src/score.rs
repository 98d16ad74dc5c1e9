//! What a model says of given tokens, computed by the ranks of a plan: [`score`].
//!
//! It is the forward pass of a training's held-out evaluation, without dropout, so that the numbers have the bits of a training's
//! losses, and of what a [`Decoder`](sixfold_model::Decoder) computes with as many logical shards.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sixfold_model::{
    BatchError, DeviceUnits, Geometry, HostUnits, MicroBatch, Recompute, StepSeed, UnitBuffer, UnitIndex,
    Work,
};
use sixfold_tensor::{IGNORED_TARGET, Stream};
use sixfold_topology::{JobShape, ParallelPlan, PipelineLayout, PlanError, Rank};

use crate::error::{PlaceError, StepError};
use crate::gang::{Links, RankError, connect, lost_a_peer, run_gang};
use crate::job::Execution;
use crate::links::RankLinks;
use crate::pipeline::{Passes, Pipeline};
use crate::slice::{RankSlice, balanced_layout};

/// Nothing goes back, so nothing is kept that a backward pass could compute again.
const FORWARD: Execution = Execution { recompute: Recompute::Full, pass_tokens: 1, sequence_parallel: true };
/// How long a rank may say nothing, be the model as large as it likes.
const SILENCE: Duration = Duration::from_mins(10);

/// What a model says of a sequence of tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The natural logarithm of the probability of each token but the first, after those before it.
    pub logprobs: Vec<f32>,
    /// The likeliest token after the last, the one of the lowest id among equals.
    pub next: u32,
}

/// Sequences could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// The plan does not fit the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The plan has data-parallel replicas.
    #[error("data_parallel is {degree}; sequences are not shared out among replicas, it must be 1")]
    Replicas {
        /// How many.
        degree: usize,
    },
    /// A sequence does not fit the model.
    #[error(transparent)]
    Sequence(#[from] BatchError),
    /// A rank cannot take its place in the plan.
    #[error("{rank}: {source}")]
    Place {
        /// The rank.
        rank: Rank,
        /// Why.
        source: PlaceError,
    },
    /// A rank failed on its way through the model.
    #[error("{rank}: {source}")]
    Pass {
        /// The rank.
        rank: Rank,
        /// What failed.
        source: StepError,
    },
    /// A rank's thread panicked.
    #[error("{rank} panicked: {message}")]
    Panicked {
        /// The rank.
        rank: Rank,
        /// What it said.
        message: String,
    },
    /// A thread could not be started.
    #[error("no thread for a rank: {0}")]
    Thread(#[from] io::Error),
}

impl RankError for ScoreError {
    fn panicked(rank: Rank, message: String) -> Self {
        Self::Panicked { rank, message }
    }

    fn is_of_a_peer(&self) -> bool {
        matches!(self, Self::Pass { source, .. } if lost_a_peer(source))
    }
}

/// What the model of `parameters` (whole) says of each sequence, which has one token at least. The ranks of `plan` are threads of
/// this process over links within it, which compute on the device of `stream`; each holds its own units.
/// The bits are the same under any plan.
///
/// # Errors
/// [`ScoreError`] if the plan or a sequence does not fit the model, or a rank fails.
///
/// # Panics
/// If `parameters` lacks units of the model, or the model has adapters, which are not known here.
pub fn score(
    stream: &Stream,
    geometry: &Geometry,
    parameters: &HostUnits<'_>,
    plan: &ParallelPlan,
    sequences: &[&[u32]],
) -> Result<Vec<Score>, ScoreError> {
    assert!(geometry.lora.is_none(), "adapters are merged before a model is scored");
    let (layers, tensor_shards) = (geometry.config.num_hidden_layers, geometry.sharding.logical());
    if plan.data_parallel > 1 {
        return Err(ScoreError::Replicas { degree: plan.data_parallel });
    }
    plan.validate(&JobShape { layers, tensor_shards, data_groups: 1 })?;
    let batches = sequences.iter().map(|tokens| batch(geometry, tokens)).collect::<Result<Vec<_>, _>>()?;
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    let layout = balanced_layout(geometry, plan, 1)
        .map_err(|error| ScoreError::Place { rank: Rank(0), source: error.into() })?;
    let geometry = Arc::new(geometry.clone());
    let of_ranks = run_gang(plan, connect(plan, SILENCE), |rank, links| {
        let scorer = Scorer::new(stream, &geometry, (plan, &layout, rank), links, parameters);
        let scores = scorer.map_err(|source| ScoreError::Place { rank, source })?.score(&batches);
        scores.map_err(|source| ScoreError::Pass { rank, source })
    })?;
    // Those of the last pipeline stage, whose ranks have the same.
    Ok(of_ranks.into_iter().find(|scores| !scores.is_empty()).unwrap_or_default())
}

/// A sequence as one document, each of whose tokens is the target of the one before.
fn batch(geometry: &Geometry, tokens: &[u32]) -> Result<MicroBatch, BatchError> {
    let mut targets: Vec<u32> = tokens.iter().skip(1).copied().collect();
    targets.extend(tokens.last().map(|_| IGNORED_TARGET));
    let batch = MicroBatch::of_documents(tokens.to_vec(), targets, tokens.len());
    batch.validate(geometry.config.vocab_size, geometry.config.max_position_embeddings)?;
    Ok(batch)
}

/// One rank: its part of the model, and its links to other ranks. It has no gradients and no moments.
struct Scorer {
    pipeline: Pipeline,
    parameters: DeviceUnits,
    gradients: DeviceUnits,
    links: RankLinks,
}

impl Scorer {
    fn new(
        stream: &Stream,
        geometry: &Arc<Geometry>,
        (plan, layout, rank): (&ParallelPlan, &PipelineLayout, Rank),
        links: Links,
        whole: &HostUnits<'_>,
    ) -> Result<Self, PlaceError> {
        let slice = RankSlice::new(geometry, plan, layout, rank);
        let mut own = UnitBuffer::zeros(Arc::new(slice.parameter_index(geometry)));
        for unit in slice.units(geometry) {
            own.unit_mut(unit).copy_from_slice(whole.unit(unit));
        }
        let at = (plan.pipeline_parallel, plan.coordinates(rank).pipeline);
        let mut pipeline = Pipeline::new(stream, geometry, &slice, at, (own.index(), None));
        pipeline.set_execution(FORWARD);
        Ok(Self {
            pipeline,
            parameters: DeviceUnits::upload(stream, &own),
            gradients: DeviceUnits::zeros(stream, Arc::new(UnitIndex::new([]))),
            links: RankLinks::new(plan, rank, links)?,
        })
    }

    /// What the model says of each sequence, on the ranks of the last pipeline stage; nothing on others.
    fn score(&mut self, sequences: &[MicroBatch]) -> Result<Vec<Score>, StepError> {
        self.pipeline.score(Passes {
            micro_batches: sequences,
            per_sum: 1,
            seed: StepSeed { seed: 0, step: 0, dropout: 0.0, adapter_dropout: 0.0 },
            scale: 0.0,
            parameters: (&self.parameters).into(),
            adapters: None,
            gradients: &mut self.gradients,
            links: &mut self.links,
            work: &mut Work::default(),
        })
    }
}
