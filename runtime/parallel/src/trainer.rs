//! One rank's part of a training step: [`Trainer`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sixfold_model::{
    Geometry, GroupSum, GroupTree, MicroBatch, ModelSlice, Network, Optimizer, OptimizerOptions, Output,
    PackedWeights, Recompute, SquareSums, StepSeed, Surroundings, Tape, TensorGroup, UnitBuffer, UnitId,
    Work, finish_gradients, gradient_index, initialize, tied_sums,
};
use sixfold_tensor::{Start, add_assign, tree_sum_scalars};
use sixfold_topology::{Coordinates, ParallelPlan, PipelineOp, Rank, one_forward_one_backward};

use crate::error::{PlaceError, StepError};
use crate::group::are_finite;
use crate::health::{
    NUMBERS_OF_RANK, NotFinite, Origin, RankTime, StepHealth, Stopwatch, decode, encode, holder, units_of,
};
use crate::links::RankLinks;
use crate::partition::Partition;
use crate::passes::passes;
use crate::share::ParameterShare;

/// How a step is computed: choices between time and memory that change no bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execution {
    /// What backward passes compute again instead of keeping it.
    pub recompute: Recompute,
    /// How many tokens go through the model together, at most, where a data group is one micro-batch of
    /// fewer.
    pub pass_tokens: usize,
}

impl Default for Execution {
    fn default() -> Self {
        // Enough rows for products near the machine's speed.
        Self { recompute: Recompute::None, pass_tokens: 2048 }
    }
}

/// What is the same on every rank and for every plan.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingJob {
    /// Sizes and logical shards.
    pub geometry: Geometry,
    /// Optimizer and learning rate.
    pub optimizer: OptimizerOptions,
    /// What all random numbers follow from.
    pub seed: u64,
    /// Probability of dropout on the embedding and on every residual branch.
    pub dropout: f32,
}

/// A rank's input of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepBatch {
    /// Micro-batches of each of the rank's data groups, in order: the same for all ranks with the
    /// same data coordinate. Every group of the step has as many.
    pub groups: Vec<Vec<MicroBatch>>,
    /// Targets of the whole step that count in the loss, over all groups and ranks: what the sum
    /// of losses is divided by.
    pub global_targets: u64,
}

/// What a step came to. Equal on all ranks, to the bit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean loss of the step's targets that count, before the update.
    pub loss: f32,
    /// Global norm of the gradient, before clipping.
    pub gradient_norm: f32,
    /// Learning rate of the step.
    pub learning_rate: f32,
    /// Ranks whose flag ([`Trainer::flag`]) was up when the step's sums were exchanged.
    pub flags: u32,
}

/// One rank of a training job: its units, their moments, and its links to other ranks.
pub struct Trainer {
    network: Network,
    plan: ParallelPlan,
    rank: Rank,
    place: Coordinates,
    /// Pipeline stages of the plan.
    stages: usize,
    parameters: UnitBuffer,
    /// The parameters as the products of the current step read them.
    weights: PackedWeights,
    optimizer: Optimizer,
    groups: GroupTree,
    seed: u64,
    dropout: f32,
    pass_tokens: usize,
    links: RankLinks,
    work: Work,
    stopwatch: Stopwatch,
    /// Operations that other ranks know of.
    told_flops: u64,
    /// Units of the whole model.
    units: Vec<UnitId>,
    health: StepHealth,
    flag: Arc<AtomicBool>,
    /// How replicas share the moments, where they do.
    partition: Option<Partition>,
}

/// Which part of the model `rank` owns under `plan`.
pub fn slice_of(geometry: &Geometry, plan: &ParallelPlan, rank: Rank) -> ModelSlice {
    let place = plan.coordinates(rank);
    ModelSlice {
        layers: plan.layers(rank, geometry.config.num_hidden_layers),
        input: place.pipeline == 0,
        output: place.pipeline + 1 == plan.pipeline_parallel,
        shards: plan.shards(rank, geometry.sharding.logical()),
    }
}

impl Trainer {
    /// A rank at step 0, with initial parameters. The caller has validated `plan` against the job.
    ///
    /// # Errors
    /// [`PlaceError`] if the model or the links do not fit the plan.
    pub fn new(
        job: &TrainingJob,
        plan: &ParallelPlan,
        rank: Rank,
        links: RankLinks,
    ) -> Result<Self, PlaceError> {
        let slice = slice_of(&job.geometry, plan, rank);
        let parameters = initialize(&job.geometry, &slice, job.seed);
        Ok(Self {
            plan: *plan,
            rank,
            place: plan.coordinates(rank),
            stages: plan.pipeline_parallel,
            optimizer: Optimizer::new(job.optimizer.clone(), &parameters),
            groups: GroupTree::new(Arc::new(gradient_index(&job.geometry, &slice))),
            weights: PackedWeights::new(&job.geometry, &slice, &parameters),
            network: Network::new(Arc::new(job.geometry.clone()), slice),
            parameters,
            seed: job.seed,
            dropout: job.dropout,
            pass_tokens: Execution::default().pass_tokens,
            links,
            work: Work::default(),
            stopwatch: Stopwatch::default(),
            told_flops: 0,
            units: units_of(&job.geometry),
            health: StepHealth::default(),
            flag: Arc::default(),
            partition: None,
        })
    }

    /// Chooses how the next steps are computed. All ranks must choose alike.
    pub fn set_execution(&mut self, execution: Execution) {
        self.network.recompute = execution.recompute;
        self.pass_tokens = execution.pass_tokens;
    }

    /// From now on the ranks of the data-parallel group share the optimizer: each keeps its part of the moments
    /// ([`Optimizer::parts`]) and updates it alone, and parameters are gathered after each update. Changes no bit. All
    /// ranks must do so before the same step; a state is restored before or after it.
    pub fn share_optimizer(&mut self) {
        let (data, sums) = (&self.links.data, self.groups.index());
        if data.size() > 1 && self.partition.is_none() {
            let (geometry, parameters) = (self.network.geometry(), self.parameters.index());
            let partition = Partition::new(geometry, parameters, sums, data.size(), data.piece());
            self.optimizer.keep(partition.parts().clone());
            self.partition = Some(partition);
        }
    }

    /// Bytes of both moments that the rank holds.
    pub fn moment_bytes(&self) -> u64 {
        let Optimizer { first_moment, second_moment, .. } = &self.optimizer;
        (size_of_val(first_moment.values()) + size_of_val(second_moment.values())) as u64
    }

    /// The rank's parameters.
    pub fn parameters(&self) -> &UnitBuffer {
        &self.parameters
    }

    /// The optimizer with the rank's moments.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Parameters, first and second moments, to overwrite with those of a checkpoint. The moments are
    /// those of [`Optimizer::parts`].
    pub fn state_mut(&mut self) -> [&mut UnitBuffer; 3] {
        let Optimizer { first_moment, second_moment, .. } = &mut self.optimizer;
        [&mut self.parameters, first_moment, second_moment]
    }

    /// Bytes of parameters that the rank holds, by kind.
    pub fn parameter_share(&self) -> ParameterShare {
        ParameterShare::of(self.network.geometry(), &self.parameters)
    }

    /// Operations that the rank has done so far.
    pub fn work(&self) -> Work {
        self.work
    }

    /// What the ranks told each other of the last step.
    pub fn health(&self) -> &StepHealth {
        &self.health
    }

    /// Bytes that the rank has sent to other ranks so far.
    pub fn bytes_sent(&self) -> u64 {
        self.links.bytes_sent()
    }

    /// Bytes that the rank would have sent so far if its sums had gone around rings.
    pub(crate) fn ring_bytes(&self) -> u64 {
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
        show: impl FnOnce(&UnitBuffer),
    ) -> Result<StepReport, StepError> {
        self.check(&batch)?;
        self.stopwatch.start(&self.links);
        self.weights.pack(self.network.geometry(), self.network.slice(), &self.parameters);
        let targets = batch.global_targets as f32;
        let scale = 1.0 / targets;
        let mut sum = self.accumulate(step, batch, scale)?;
        let not_finite = self.not_finite(&sum.gradients);
        self.sum_over_replicas(&mut sum.gradients)?;
        let (loss, told) = self.share_with_replicas(sum.loss, not_finite)?;

        let (geometry, slice) = (self.network.geometry(), self.network.slice());
        finish_gradients(geometry, slice, &mut sum.gradients, &mut self.links.tensor)?;
        let ends = slice.input != slice.output;
        if geometry.config.tie_word_embeddings && ends {
            let tied = tied_sums(slice, sum.gradients.index());
            add_across(&mut self.links, slice.input, &mut sum.gradients.values_mut()[tied])?;
        }
        show(&sum.gradients);
        let mut squares = self.squares(&sum.gradients)?;
        let (loss, told) = self.share_with_replica(&mut squares, loss, &told)?;
        let loss = loss / targets;
        let gradient_norm = squares.norm(self.network.geometry());
        self.health = decode(&told, &self.units);
        if !gradient_norm.is_finite() && self.health.not_finite.is_none() {
            self.health.not_finite = self.not_finite_square(&squares);
        }
        let learning_rate = self.optimizer.step(&mut self.parameters, &sum.gradients, step, gradient_norm);
        if let Some(partition) = &self.partition {
            self.links.data.all_gather(self.parameters.values_mut(), &partition.parameters)?;
        }
        self.groups.give_back(sum);
        self.stopwatch.stop(&self.links);
        Ok(StepReport { loss, gradient_norm, learning_rate, flags: self.health.flags })
    }

    /// Sums gradients over the ranks that work on other data groups: all of them, or where the optimizer is shared
    /// this rank's part and those that every rank updates.
    fn sum_over_replicas(&mut self, sums: &mut UnitBuffer) -> Result<(), StepError> {
        let data = &mut self.links.data;
        let Some(partition) = &self.partition else { return Ok(data.sum(sums.values_mut())?) };
        data.reduce_scatter(sums.values_mut(), &partition.sums)?;
        let mut common = partition.take_common(sums);
        data.all_gather(&mut common, &partition.common)?;
        partition.put_common(sums, &common);
        Ok(())
    }

    /// The square sums of the rank's units, from finished gradients.
    fn squares(&mut self, gradients: &UnitBuffer) -> Result<SquareSums, StepError> {
        let (geometry, slice) = (self.network.geometry(), self.network.slice());
        let norms = self.place.tensor == 0;
        let Some(partition) = &self.partition else {
            return Ok(SquareSums::of_slice(geometry, slice, gradients, norms));
        };
        let mut blocks = partition.squares(geometry, gradients);
        self.links.data.all_gather(&mut blocks, &partition.blocks)?;
        let of_unit = |unit| partition.squares_of(geometry, gradients, &blocks, unit);
        Ok(SquareSums::of_blocks(geometry, slice, norms, of_unit))
    }

    fn check(&self, batch: &StepBatch) -> Result<(), StepError> {
        let config = &self.network.geometry().config;
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

    /// Runs the pipeline over all micro-batches and adds up the rank's groups.
    fn accumulate(&mut self, step: u64, batch: StepBatch, scale: f32) -> Result<GroupSum, StepError> {
        let (micro_batches, per_sum) = passes(batch.groups, self.stages, self.pass_tokens);
        let ops = one_forward_one_backward(self.stages, self.place.pipeline, micro_batches.len());
        let mut micro_batches = micro_batches.into_iter();
        let mut tapes: VecDeque<(Tape, f32)> = VecDeque::new();
        let mut group = None;
        for op in ops {
            match op {
                PipelineOp::Forward(_) => {
                    if let Some(micro_batch) = micro_batches.next() {
                        tapes.push_back(self.forward(step, micro_batch)?);
                    }
                }
                PipelineOp::Backward(index) => {
                    let Some((tape, loss)) = tapes.pop_front() else { continue };
                    let start = if index % per_sum == 0 { Start::Zero } else { Start::FromC };
                    let mut sum = group.take().unwrap_or_else(|| self.groups.take());
                    sum.loss += loss;
                    self.backward(step, tape, scale, &mut sum.gradients, start)?;
                    if (index + 1) % per_sum == 0 {
                        self.groups.push(sum);
                    } else {
                        group = Some(sum);
                    }
                }
            }
        }
        self.groups.finish().ok_or(StepError::Groups { groups: 0 })
    }

    fn forward(&mut self, step: u64, micro_batch: MicroBatch) -> Result<(Tape, f32), StepError> {
        let activations = micro_batch.tokens.len() * self.network.geometry().config.hidden_size;
        let received = self.links.previous.as_mut().map(|link| link.receive(activations)).transpose()?;
        let mut around = Surroundings {
            parameters: &self.parameters,
            weights: &self.weights,
            seed: StepSeed { seed: self.seed, step, dropout: self.dropout },
            group: &mut self.links.tensor,
            work: &mut self.work,
        };
        let (output, tape) = self.network.forward(&mut around, micro_batch, received.unwrap_or_default())?;
        match (output, self.links.next.as_mut()) {
            (Output::Activations(x), Some(next)) => {
                next.send(&x)?;
                Ok((tape, 0.0))
            }
            (Output::Activations(_), None) => Ok((tape, 0.0)),
            (Output::Losses(losses), _) => {
                let groups: Vec<f32> =
                    losses.chunks_exact(losses.len() / tape.groups()).map(tree_sum_scalars).collect();
                Ok((tape, tree_sum_scalars(&groups)))
            }
        }
    }

    fn backward(
        &mut self,
        step: u64,
        tape: Tape,
        scale: f32,
        gradients: &mut UnitBuffer,
        start: Start,
    ) -> Result<(), StepError> {
        let activations = tape.rows() * self.network.geometry().config.hidden_size;
        let received = self.links.next.as_mut().map(|link| link.receive(activations)).transpose()?;
        let mut around = Surroundings {
            parameters: &self.parameters,
            weights: &self.weights,
            seed: StepSeed { seed: self.seed, step, dropout: self.dropout },
            group: &mut self.links.tensor,
            work: &mut self.work,
        };
        let received = received.unwrap_or_default();
        let before = self.network.backward(&mut around, tape, received, scale, gradients, start)?;
        match (before, self.links.previous.as_mut()) {
            (Some(dx), Some(previous)) => Ok(previous.send(&dx)?),
            _ => Ok(()),
        }
    }

    /// Where this rank's part of the step first had a number that is not finite.
    fn not_finite(&mut self, gradients: &UnitBuffer) -> Option<Origin> {
        let pass = self.links.tensor.leave().map(Origin::Pass);
        // Of a single replica's gradients the squares tell as much.
        if pass.is_some() || self.links.data.size() == 1 || are_finite(gradients.values()) {
            return pass;
        }
        let (unit, _) = gradients.iter().find(|(_, gradient)| !are_finite(gradient))?;
        // A tied head's gradient is still apart from the embedding's.
        let is_parameter = self.parameters.get(unit).is_some();
        Some(Origin::Gradient(if is_parameter { unit } else { UnitId::embedding(unit.shard as usize) }))
    }

    /// The first parameter whose square sum is not finite; its gradient may be.
    fn not_finite_square(&self, squares: &SquareSums) -> Option<NotFinite> {
        let unit = squares.first_not_finite()?;
        let rank = holder(self.network.geometry(), &self.plan, unit)?;
        Some(NotFinite { rank, origin: Origin::Gradient(unit) })
    }

    /// Adds the losses of the ranks that work on other data groups. Also returns what they and this rank tell of
    /// themselves, with zeros for all other ranks.
    fn share_with_replicas(
        &mut self,
        loss: f32,
        not_finite: Option<Origin>,
    ) -> Result<(f32, Vec<f32>), StepError> {
        let compute_ms = self.stopwatch.lap(&self.links).as_secs_f32() * 1e3;
        let flops = self.work.flops();
        let gflop = (flops - std::mem::replace(&mut self.told_flops, flops)) as f32 / 1e9;
        let flag = self.flag.load(Ordering::Acquire);
        let own = encode(RankTime { compute_ms, gflop }, flag, not_finite, &self.units);
        let mut message = vec![0.0; NUMBERS_OF_RANK * self.plan.data_parallel];
        message[NUMBERS_OF_RANK * self.place.data..][..NUMBERS_OF_RANK].copy_from_slice(&own);
        message.push(loss);
        self.links.data.sum(&mut message)?;
        let loss = message.pop().unwrap_or(loss);
        let mut told = vec![0.0; NUMBERS_OF_RANK * self.plan.world_size()];
        for (rank, record) in
            self.plan.data_group(self.rank).into_iter().zip(message.chunks_exact(NUMBERS_OF_RANK))
        {
            told[NUMBERS_OF_RANK * rank.index()..][..NUMBERS_OF_RANK].copy_from_slice(record);
        }
        Ok((loss, told))
    }

    /// Completes the table of squares and what ranks told over the ranks of one replica, and tells all of
    /// them the last pipeline stage's loss. Every number comes from one rank and is zero elsewhere, so the
    /// sums are exact.
    fn share_with_replica(
        &mut self,
        squares: &mut SquareSums,
        loss: f32,
        told: &[f32],
    ) -> Result<(f32, Vec<f32>), StepError> {
        let mut table = std::mem::take(&mut squares.values);
        let units = table.len();
        table.extend_from_slice(told);
        self.links.tensor.sum(&mut table)?;
        table.push(loss);
        if let Some(previous) = self.links.previous.as_mut() {
            let before = previous.receive(table.len())?;
            add_assign(&mut table, &before);
        }
        if let Some(next) = self.links.next.as_mut() {
            next.send(&table)?;
            table = next.receive(table.len())?;
        }
        if let Some(previous) = self.links.previous.as_mut() {
            previous.send(&table)?;
        }
        let loss = table.pop().unwrap_or(loss);
        let told = table.split_off(units);
        squares.values = table;
        Ok((loss, told))
    }
}

/// Gives both ends of a pipeline the sum of what they have, the first stage's first.
fn add_across(links: &mut RankLinks, first: bool, values: &mut [f32]) -> Result<(), StepError> {
    let Some(link) = links.other_end() else { return Ok(()) };
    if first {
        add_assign(values, &link.receive(values.len())?);
        link.send(values)?;
    } else {
        link.send(values)?;
        values.copy_from_slice(&link.receive(values.len())?);
    }
    Ok(())
}
