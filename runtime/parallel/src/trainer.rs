//! One rank's part of a training step: [`Trainer`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sixfold_model::{
    Geometry, GroupSum, GroupTree, MicroBatch, ModelSlice, Network, Optimizer, OptimizerOptions, Output,
    PackedWeights, SquareSums, StepSeed, Surroundings, Tape, TensorGroup, UnitBuffer, UnitIndex, Work,
    finish_gradients, gradient_index, initialize,
};
use sixfold_tensor::{add_assign, tree_sum_scalars};
use sixfold_topology::{Coordinates, ParallelPlan, PipelineOp, Rank, one_forward_one_backward};

use crate::error::{PlaceError, StepError};
use crate::links::RankLinks;
use crate::share::ParameterShare;

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
    place: Coordinates,
    /// Pipeline stages of the plan.
    stages: usize,
    parameters: UnitBuffer,
    /// The parameters as the products of the current step read them.
    weights: PackedWeights,
    optimizer: Optimizer,
    gradient_index: Arc<UnitIndex>,
    seed: u64,
    dropout: f32,
    links: RankLinks,
    work: Work,
    flag: Arc<AtomicBool>,
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
        if job.geometry.config.tie_word_embeddings && plan.pipeline_parallel > 1 {
            return Err(PlaceError::TiedHead);
        }
        let slice = slice_of(&job.geometry, plan, rank);
        let parameters = initialize(&job.geometry, &slice, job.seed);
        Ok(Self {
            place: plan.coordinates(rank),
            stages: plan.pipeline_parallel,
            optimizer: Optimizer::new(job.optimizer.clone(), &parameters),
            gradient_index: Arc::new(gradient_index(&job.geometry, &slice)),
            weights: PackedWeights::new(&job.geometry, &slice, &parameters),
            network: Network::new(Arc::new(job.geometry.clone()), slice),
            parameters,
            seed: job.seed,
            dropout: job.dropout,
            links,
            work: Work::default(),
            flag: Arc::default(),
        })
    }

    /// The rank's parameters.
    pub fn parameters(&self) -> &UnitBuffer {
        &self.parameters
    }

    /// The optimizer with the rank's moments.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Parameters, first and second moments, to overwrite with those of a checkpoint.
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

    /// Bytes that the rank has sent to other ranks so far.
    pub fn bytes_sent(&self) -> u64 {
        self.links.bytes_sent()
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
        self.check(&batch)?;
        self.weights.pack(self.network.geometry(), self.network.slice(), &self.parameters);
        let targets = batch.global_targets as f32;
        let scale = 1.0 / targets;
        let mut sum = self.accumulate(step, batch, scale)?;
        self.links.data.sum(sum.gradients.values_mut())?;
        let flag = f32::from(u8::from(self.flag.load(Ordering::Acquire)));
        let mut loss_and_flags = [sum.loss, flag];
        self.links.data.sum(&mut loss_and_flags)?;
        let [loss, flags] = loss_and_flags;

        let (geometry, slice) = (self.network.geometry(), self.network.slice());
        let index = self.parameters.index().clone();
        let gradients = finish_gradients(geometry, slice, index, &sum.gradients, &mut self.links.tensor)?;
        let mut squares = SquareSums::of_slice(geometry, slice, &gradients, self.place.tensor == 0);
        let (loss, flags) = self.share_with_replica(&mut squares, loss, flags)?;
        let loss = loss / targets;
        let gradient_norm = squares.norm(self.network.geometry());
        let learning_rate = self.optimizer.step(&mut self.parameters, &gradients, step, gradient_norm);
        Ok(StepReport { loss, gradient_norm, learning_rate, flags })
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
        let per_group = batch.groups[0].len();
        let mut micro_batches: VecDeque<MicroBatch> = batch.groups.into_iter().flatten().collect();
        let ops = one_forward_one_backward(self.stages, self.place.pipeline, micro_batches.len());
        let mut tapes: VecDeque<(Tape, f32)> = VecDeque::new();
        let mut tree = GroupTree::default();
        let mut group = GroupSum::zeros(self.gradient_index.clone());
        for op in ops {
            match op {
                PipelineOp::Forward(_) => {
                    if let Some(micro_batch) = micro_batches.pop_front() {
                        tapes.push_back(self.forward(step, micro_batch)?);
                    }
                }
                PipelineOp::Backward(index) => {
                    if let Some((tape, loss)) = tapes.pop_front() {
                        group.loss += loss;
                        self.backward(step, tape, scale, &mut group.gradients)?;
                    }
                    if (index + 1) % per_group == 0 {
                        let next = GroupSum::zeros(self.gradient_index.clone());
                        tree.push(std::mem::replace(&mut group, next));
                    }
                }
            }
        }
        tree.finish().ok_or(StepError::Groups { groups: 0 })
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
            (Output::Losses(losses), _) => Ok((tape, tree_sum_scalars(&losses))),
        }
    }

    fn backward(
        &mut self,
        step: u64,
        tape: Tape,
        scale: f32,
        gradients: &mut UnitBuffer,
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
        let before =
            self.network.backward(&mut around, tape, received.unwrap_or_default(), scale, gradients)?;
        match (before, self.links.previous.as_mut()) {
            (Some(dx), Some(previous)) => Ok(previous.send(&dx)?),
            _ => Ok(()),
        }
    }

    /// Completes the table of squares over the ranks of one replica, and tells all of them the
    /// last pipeline stage's loss and how many flags are up. Every number comes from one rank and is zero
    /// elsewhere, or is a small whole number, so the sums are exact.
    fn share_with_replica(
        &mut self,
        squares: &mut SquareSums,
        loss: f32,
        flags: f32,
    ) -> Result<(f32, u32), StepError> {
        let mut table = std::mem::take(&mut squares.values);
        table.push(flags);
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
        let flags = table.pop().unwrap_or(flags);
        squares.values = table;
        Ok((loss, flags as u32))
    }
}
