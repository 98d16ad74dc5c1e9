//! One rank's part of a training step: [`Trainer`].

mod evaluate;
mod exchange;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use sixfold_model::{
    Compression, DeviceUnits, FrozenUnits, Geometry, HostUnits, Optimizer, Parameters, SquareSums, StepSeed,
    UnitId, Work, finish_gradients, initialize_unit,
};
use sixfold_tensor::{MemoryUse, Stream};
use sixfold_topology::{Coordinates, ParallelPlan, PipelineLayout, Rank, pipeline_bubble};

use crate::error::{PlaceError, StepError};
use crate::health::{StepHealth, Stopwatch, decode, units_of};
use crate::job::{Execution, StepBatch, StepReport, TrainingJob};
use crate::links::RankLinks;
use crate::partition::Partition;
use crate::passes::passes;
use crate::pipeline::{Passes, Pipeline};
use crate::profile::{Collective, StepProfile};
use crate::share::ParameterShare;
use crate::slice::{RankSlice, balanced_layout, stage_costs};

/// One rank of a training job: its units, their moments, and its links to other ranks.
pub struct Trainer {
    stream: Stream,
    geometry: Arc<Geometry>,
    plan: ParallelPlan,
    layout: PipelineLayout,
    rank: Rank,
    place: Coordinates,
    slice: RankSlice,
    /// Those that are trained: the model's, or its adapters'.
    parameters: DeviceUnits,
    /// The weights beside which adapters lie, where there are any, once they are known.
    base: Option<FrozenUnits>,
    base_compression: Option<Compression>,
    /// The step's, of all chunks.
    gradients: DeviceUnits,
    pipeline: Pipeline,
    optimizer: Optimizer,
    seed: u64,
    dropout: f32,
    adapter_dropout: f32,
    execution: Execution,
    /// How many micro-batches the last step took through the pipeline.
    passes: usize,
    links: RankLinks,
    work: Work,
    stopwatch: Stopwatch,
    /// Operations that other ranks know of.
    told_flops: u64,
    /// Units of the whole model.
    units: Vec<UnitId>,
    health: StepHealth,
    profile: StepProfile,
    /// What the rank tells others that its machine can do.
    peak_gflops: f32,
    flag: Arc<AtomicBool>,
    /// How replicas share the moments, where they do.
    partition: Option<Partition>,
}

impl Trainer {
    /// A rank at step 0, with initial parameters, that computes on the device of `stream`; each stage has one chunk of
    /// layers and about as much to do as the others. The caller has validated `plan` against the job.
    ///
    /// # Errors
    /// [`PlaceError`] if the model or the links do not fit the plan.
    pub fn new(
        job: &TrainingJob,
        plan: &ParallelPlan,
        rank: Rank,
        links: RankLinks,
        stream: Stream,
    ) -> Result<Self, PlaceError> {
        let layout = balanced_layout(&job.geometry, plan, 1)?;
        Self::with_layout(job, plan, &layout, rank, links, stream)
    }

    /// As [`Self::new`], where `layout` says which layers each stage holds.
    ///
    /// # Errors
    /// [`PlaceError`] if the model or the links do not fit the plan, or `layout` is one for other stages or layers.
    pub fn with_layout(
        job: &TrainingJob,
        plan: &ParallelPlan,
        layout: &PipelineLayout,
        rank: Rank,
        links: RankLinks,
        stream: Stream,
    ) -> Result<Self, PlaceError> {
        let (stages, layers) = (plan.pipeline_parallel, job.geometry.config.num_hidden_layers);
        PipelineLayout::new(stages, layout.chunks(), layout.stage_layers(), layers)?;
        let slice = RankSlice::new(&job.geometry, plan, layout, rank);
        Ok(Self::of_slice(job, plan, layout, rank, slice, links, stream))
    }

    /// A rank that holds `slice`.
    #[allow(clippy::too_many_arguments, reason = "what a rank is made of")]
    pub(crate) fn of_slice(
        job: &TrainingJob,
        plan: &ParallelPlan,
        layout: &PipelineLayout,
        rank: Rank,
        slice: RankSlice,
        links: RankLinks,
        stream: Stream,
    ) -> Self {
        let geometry = Arc::new(job.geometry.clone());
        let (stages, place) = (plan.pipeline_parallel, plan.coordinates(rank));
        let parameters = DeviceUnits::upload(&stream, &slice.initialize(&geometry, job.seed));
        let base_index = geometry.lora.is_some().then(|| slice.parameter_index(&geometry.base()));
        let lie = match &base_index {
            Some(base) => (base, Some(&**parameters.index())),
            None => (&**parameters.index(), None),
        };
        let sums = Arc::new(slice.gradient_index(&geometry));
        let at = (stages, place.pipeline);
        let mut trainer = Self {
            plan: *plan,
            layout: layout.clone(),
            rank,
            place,
            gradients: DeviceUnits::zeros(&stream, sums),
            pipeline: Pipeline::new(&stream, &geometry, &slice, at, lie),
            optimizer: Optimizer::new(stream.clone(), job.optimizer.clone(), &parameters),
            stream,
            slice,
            parameters,
            base: None,
            base_compression: job.base_compression,
            seed: job.seed,
            dropout: job.dropout,
            adapter_dropout: job.adapter_dropout,
            execution: Execution::default(),
            passes: 0,
            links,
            work: Work::default(),
            stopwatch: Stopwatch::default(),
            told_flops: 0,
            units: units_of(&geometry),
            geometry,
            health: StepHealth::default(),
            profile: StepProfile::default(),
            peak_gflops: 0.0,
            flag: Arc::default(),
            partition: None,
        };
        trainer.set_execution(Execution::default());
        trainer
    }

    /// Chooses how the next steps are computed. All ranks must choose alike.
    pub fn set_execution(&mut self, execution: Execution) {
        self.pipeline.set_execution(execution);
        self.execution = execution;
    }

    /// From now on the ranks of the data-parallel group share the optimizer: each keeps its part of the moments
    /// ([`Optimizer::parts`]) and updates it alone, and parameters are gathered after each update. Changes no bit. All
    /// ranks must do so before the same step; a state is restored before or after it.
    pub fn share_optimizer(&mut self) {
        let (data, sums) = (&self.links.data, self.gradients.index());
        if data.size() > 1 && self.partition.is_none() {
            let parameters = self.parameters.index();
            let partition = Partition::new(&self.geometry, parameters, sums, data.size(), data.piece());
            self.optimizer.keep(partition.parts().clone());
            self.partition = Some(partition);
        }
    }

    /// Bytes of both moments that the rank holds.
    pub fn moment_bytes(&self) -> u64 {
        let Optimizer { first_moment, second_moment, .. } = &self.optimizer;
        ((first_moment.index().len() + second_moment.index().len()) * size_of::<f32>()) as u64
    }

    /// Which part of the model the rank holds.
    pub fn slice(&self) -> &RankSlice {
        &self.slice
    }

    /// The rank's parameters, as the host sees them.
    pub fn parameters(&self) -> HostUnits<'_> {
        self.parameters.host(&self.stream)
    }

    /// The optimizer with the rank's moments.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Parameters, first and second moments, as the host sees them. The moments are those of [`Optimizer::parts`].
    pub fn state(&self) -> [HostUnits<'_>; 3] {
        let Optimizer { first_moment, second_moment, .. } = &self.optimizer;
        [&self.parameters, first_moment, second_moment].map(|units| units.host(&self.stream))
    }

    /// Overwrites the [`state`](Self::state) with another of the same units, such as that of a checkpoint.
    ///
    /// # Panics
    /// If it is of other units.
    pub fn restore(&mut self, state: [&HostUnits<'_>; 3]) {
        let Optimizer { first_moment, second_moment, .. } = &mut self.optimizer;
        for (to, from) in [&mut self.parameters, first_moment, second_moment].into_iter().zip(state) {
            to.overwrite(&self.stream, from);
        }
    }

    /// Says which weights adapters lie beside: the rank's units of [`Geometry::base`]. If nobody does before the first step, they
    /// are those that a training from scratch would begin with.
    ///
    /// # Panics
    /// If the model has no adapters, or these are other units.
    pub fn set_base(&mut self, weights: FrozenUnits) {
        let expected = self.slice.units(&self.geometry.base());
        let given = weights.index().iter().map(|(unit, _)| unit);
        assert!(self.geometry.lora.is_some() && given.eq(expected), "units of the weights beside adapters");
        self.base = Some(weights);
        self.pipeline.outdate();
    }

    fn draw_missing_base(&mut self) {
        if self.geometry.lora.is_none() || self.base.is_some() {
            return;
        }
        let (base, seed, compression) = (self.geometry.base(), self.seed, self.base_compression);
        let frozen =
            FrozenUnits::new(&self.stream, &base, &self.slice.units(&base), compression, |unit, values| {
                initialize_unit(&base, unit, seed, values);
                Ok::<_, Infallible>(())
            });
        self.base = Some(frozen.unwrap_or_else(|never| match never {}));
    }

    /// Bytes of the weights beside which adapters lie.
    pub fn base_bytes(&self) -> usize {
        self.base.as_ref().map_or(0, FrozenUnits::bytes)
    }

    /// Overwrites the parameters alone with those of the same units of another model, which training starts from.
    ///
    /// # Panics
    /// If they are of other units.
    pub fn set_parameters(&mut self, parameters: &HostUnits<'_>) {
        self.parameters.overwrite(&self.stream, parameters);
    }

    /// Where its operations are enqueued.
    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Bytes of parameters that the rank holds, by kind.
    pub fn parameter_share(&self) -> ParameterShare {
        ParameterShare::of(&self.geometry, self.parameters.index())
    }

    /// Operations that the rank has done so far.
    pub fn work(&self) -> Work {
        self.work
    }

    /// What the ranks told each other of the last step.
    pub fn health(&self) -> &StepHealth {
        &self.health
    }

    /// Where the time of the last step went.
    pub fn profile(&self) -> &StepProfile {
        &self.profile
    }

    /// Says how many GFLOP/s of products the rank's machine can do, which other ranks hear with each step.
    pub fn set_peak_gflops(&mut self, gflops: f32) {
        self.peak_gflops = gflops;
    }

    /// The part of the last step's passes in which each pipeline stage has nothing to do by the schedule: its bubble if
    /// all ranks are as fast and what is sent takes no time.
    pub fn scheduled_bubble(&self) -> Vec<f64> {
        pipeline_bubble(&self.layout, &self.layout.costs(stage_costs(&self.geometry)), self.passes)
    }

    /// The same of the rank's own stage.
    pub fn own_scheduled_bubble(&self) -> f64 {
        self.scheduled_bubble().get(self.place.pipeline).copied().unwrap_or(0.0)
    }

    /// Memory of the rank's device.
    pub fn memory_use(&self) -> MemoryUse {
        self.stream.device().memory_use()
    }

    /// Bytes that the rank has sent to other ranks so far.
    pub fn bytes_sent(&self) -> u64 {
        self.links.bytes_sent()
    }

    /// Bytes that the rank would have sent so far if its sums had gone around rings.
    pub fn ring_bytes(&self) -> u64 {
        self.links.ring_bytes()
    }

    /// A flag that any thread may raise. How many ranks have theirs up is summed with each step, so that all
    /// ranks decide alike on it and no message of its own is needed.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }

    /// Does `step` (counted from 0): forward and backward over the rank's micro-batches, the sums
    /// with the other ranks, the update. After an error the rank is of no further use.
    ///
    /// # Errors
    /// [`StepError`] if the batch does not fit or another rank is gone.
    pub fn step(&mut self, step: u64, batch: StepBatch) -> Result<StepReport, StepError> {
        self.step_and_show(step, batch, |_| {})
    }

    /// As [`Self::step`]; `show` is handed the finished gradients, as they lie in the sums ([`gradient_of`]);
    /// where the optimizer is shared, only the rank's part of them is finished.
    ///
    /// [`gradient_of`]: sixfold_model::gradient_of
    pub(crate) fn step_and_show(
        &mut self,
        step: u64,
        batch: StepBatch,
        show: impl FnOnce(&DeviceUnits),
    ) -> Result<StepReport, StepError> {
        self.check(&batch)?;
        self.stopwatch.start(&self.links);
        let since = Instant::now();
        let targets = batch.global_targets as f32;
        let loss = self.accumulate(step, batch, 1.0 / targets)?;
        let not_finite = self.not_finite();
        self.sum_over_replicas()?;
        let (loss, told) = self.share_with_replicas(loss, not_finite)?;

        self.finish_gradients()?;
        show(&self.gradients);
        let mut squares = self.squares()?;
        let (loss, told) = self.share_with_replica(&mut squares, loss, &told)?;
        let gradient_norm = squares.norm(&self.geometry);
        self.health = decode(&told, &self.units);
        if !gradient_norm.is_finite() && self.health.not_finite.is_none() {
            self.health.not_finite = self.not_finite_square(&squares);
        }
        let update = Instant::now();
        let learning_rate = self.optimizer.step(&mut self.parameters, &self.gradients, step, gradient_norm);
        let optimizer = update.elapsed();
        if let Some(partition) = &self.partition {
            let span = self.links.begin();
            let data = &mut self.links.data;
            self.stream.with_host(self.parameters.view_mut(), |parameters| {
                data.all_gather(parameters, &partition.parameters)
            })?;
            self.links.end(Collective::ParameterAllGather, span);
        }
        self.stopwatch.stop(&self.links);
        self.profile = StepProfile::new(since.elapsed(), optimizer, self.links.take_spending());
        Ok(StepReport { loss: loss / targets, gradient_norm, learning_rate, flags: self.health.flags })
    }

    fn check(&self, batch: &StepBatch) -> Result<(), StepError> {
        let config = &self.geometry.config;
        for micro_batch in batch.groups.iter().flatten() {
            micro_batch.validate(config.vocab_size, config.max_position_embeddings)?;
        }
        let even = batch.groups.windows(2).all(|pair| pair[0].len() == pair[1].len());
        let groups = batch.groups.len();
        if !even || !groups.is_power_of_two() || batch.groups[0].is_empty() {
            return Err(StepError::Groups { groups });
        }
        let own = batch.groups.iter().flatten().map(|batch| batch.counted_targets() as u64).sum();
        match batch.global_targets {
            0 => Err(StepError::NoTargets),
            global if own > global => Err(StepError::Targets { own, global }),
            _ => Ok(()),
        }
    }

    /// Runs the pipeline over all micro-batches, which leaves the sums of the rank's groups in its gradients. Returns that
    /// of their losses.
    fn accumulate(&mut self, step: u64, batch: StepBatch, scale: f32) -> Result<f32, StepError> {
        let (micro_batches, per_sum) =
            passes(batch.groups, self.plan.pipeline_parallel, self.execution.pass_tokens);
        self.passes = micro_batches.len();
        self.draw_missing_base();
        let (parameters, adapters) = weights(self.base.as_ref(), &self.parameters);
        self.pipeline.run(Passes {
            micro_batches: &micro_batches,
            per_sum,
            seed: StepSeed {
                seed: self.seed,
                step,
                dropout: self.dropout,
                adapter_dropout: self.adapter_dropout,
            },
            scale,
            parameters,
            adapters,
            gradients: &mut self.gradients,
            links: &mut self.links,
            work: &mut self.work,
        })
    }

    /// Sums gradients over the ranks that work on other data groups: all of them, or where the optimizer is shared
    /// this rank's part and those that every rank updates.
    fn sum_over_replicas(&mut self) -> Result<(), StepError> {
        let (stream, links, sums) = (&self.stream, &mut self.links, &mut self.gradients);
        if links.data.size() == 1 {
            return Ok(());
        }
        let span = links.begin();
        let Some(partition) = &self.partition else {
            stream.with_host(sums.view_mut(), |sums| links.data.sum(sums))?;
            links.end(Collective::GradientAllReduce, span);
            return Ok(());
        };
        stream.with_host(sums.view_mut(), |sums| links.data.reduce_scatter(sums, &partition.sums))?;
        links.end(Collective::GradientReduceScatter, span);
        let mut common = partition.take_common(stream, sums);
        let span = links.begin();
        stream.with_host(common.view_mut(), |common| links.data.all_gather(common, &partition.common))?;
        links.end(Collective::GradientAllReduce, span);
        partition.put_common(stream, sums, common.view());
        Ok(())
    }

    /// Adds what belongs to one parameter but was summed apart.
    fn finish_gradients(&mut self) -> Result<(), StepError> {
        for chunk in self.slice.chunks() {
            let (tensor, shared) = (&mut self.links.tensor, self.execution.sequence_parallel);
            finish_gradients(&self.stream, &self.geometry, chunk, &mut self.gradients, tensor, shared)?;
        }
        if self.geometry.trains_tied_head() {
            self.add_tied_ends()?;
        }
        Ok(())
    }

    /// The square sums of the rank's units, from finished gradients.
    fn squares(&mut self) -> Result<SquareSums, StepError> {
        let (stream, geometry, gradients) = (&self.stream, &self.geometry, &self.gradients);
        let norms = self.place.tensor == 0;
        let holds = |unit| self.slice.holds(unit);
        let Some(partition) = &self.partition else {
            let units = self.slice.units(geometry);
            return Ok(SquareSums::of_units(stream, geometry, &units, gradients, holds, norms));
        };
        let mut blocks = partition.squares(stream, geometry, gradients);
        let span = self.links.begin();
        self.links.data.all_gather(&mut blocks, &partition.blocks)?;
        self.links.end(Collective::Figures, span);
        let of_unit = |unit| partition.squares_of(stream, geometry, gradients, &blocks, unit);
        Ok(SquareSums::of_blocks(geometry, holds, norms, of_unit))
    }
}

/// What a network computes with: what is trained, or the weights beside which it lies and the adapters that it is.
fn weights<'a>(
    base: Option<&'a FrozenUnits>,
    trained: &'a DeviceUnits,
) -> (Parameters<'a>, Option<&'a DeviceUnits>) {
    match base {
        Some(base) => (base.into(), Some(trained)),
        None => (trained.into(), None),
    }
}
