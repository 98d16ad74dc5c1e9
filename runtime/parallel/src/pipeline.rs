//! One rank's passes of a step: [`Pipeline`] runs the schedule over the rank's chunks of layers.

use std::collections::VecDeque;
use std::sync::Arc;

use sixfold_collective::{Kind, PointToPoint};
use sixfold_model::{
    DeviceUnits, Geometry, MicroBatch, ModelSlice, Network, Output, PackedWeights, Parameters, StepSeed,
    Surroundings, Tape, UnitIndex, Work, gradient_index,
};
use sixfold_tensor::{Buffer, Stream, tree_sum_scalars};
use sixfold_topology::{PipelineOp, pipeline_schedule};

use crate::error::StepError;
use crate::job::Execution;
use crate::links::{RankLinks, receive, send};
use crate::profile::Collective;
use crate::score::Score;
use crate::slice::RankSlice;
use crate::sums::{ChunkSums, Target};

/// Rows of a pass that are worth packing weights for: a few hundredths of the products' time. Of fewer, several passes read
/// the same packed copies, which are as large as the parameters twice.
const ROWS_PACKED_FOR: usize = 1024;

/// The chunks of layers of one pipeline stage on one rank.
pub(crate) struct Pipeline {
    stream: Stream,
    /// Pipeline stages.
    stages: usize,
    /// Which of them this is.
    stage: usize,
    chunks: Vec<Chunk>,
}

struct Chunk {
    network: Network,
    /// The parameters as the products of the current step read them.
    weights: PackedWeights,
    sums: ChunkSums,
    /// Micro-batches that have gone forward and not back yet, each with its loss.
    tapes: VecDeque<(Tape, f32)>,
}

/// What the passes of a step work with.
pub(crate) struct Passes<'a> {
    /// What goes through, in order.
    pub(crate) micro_batches: &'a [MicroBatch],
    /// How many of them, one after another, are one data group.
    pub(crate) per_sum: usize,
    pub(crate) seed: StepSeed,
    /// How often the loss of a row counts.
    pub(crate) scale: f32,
    /// Of the model, or of the one beside which adapters lie.
    pub(crate) parameters: Parameters<'a>,
    pub(crate) adapters: Option<&'a DeviceUnits>,
    /// Where the sums of gradients go.
    pub(crate) gradients: &'a mut DeviceUnits,
    pub(crate) links: &'a mut RankLinks,
    pub(crate) work: &'a mut Work,
}

impl Pipeline {
    /// Stage `stage` of `stages`, which holds `slice`: parameters, and adapters where the model has any, that lie as these
    /// say.
    pub(crate) fn new(
        stream: &Stream,
        geometry: &Arc<Geometry>,
        slice: &RankSlice,
        (stages, stage): (usize, usize),
        (parameters, adapters): (&UnitIndex, Option<&UnitIndex>),
    ) -> Self {
        let mut start = 0;
        let chunk = |slice: &ModelSlice| {
            let index = gradient_index(geometry, slice);
            let place = start..start + index.len();
            start = place.end;
            Chunk {
                weights: PackedWeights::new(geometry, slice, parameters, adapters),
                network: Network::new(stream.clone(), geometry.clone(), slice.clone()),
                sums: ChunkSums::new(stream, place, index),
                tapes: VecDeque::new(),
            }
        };
        let stream = stream.clone();
        Self { stream, stages, stage, chunks: slice.chunks().iter().map(chunk).collect() }
    }

    pub(crate) fn set_execution(&mut self, Execution { recompute, sequence_parallel, .. }: Execution) {
        for Chunk { network, .. } in &mut self.chunks {
            (network.recompute, network.sequence_parallel) = (recompute, sequence_parallel);
        }
    }

    /// To be called when the weights have changed; adapters may.
    pub(crate) fn outdate(&mut self) {
        self.chunks.iter_mut().for_each(|chunk| chunk.weights.outdate());
    }

    /// Takes all micro-batches through, forward and back. Returns the sum of the losses, which is zero unless the
    /// stage has the head.
    pub(crate) fn run(&mut self, mut passes: Passes<'_>) -> Result<f32, StepError> {
        self.keep_weights(&passes);
        for op in self.schedule(&passes) {
            let chunk = &mut self.chunks[op.chunk()];
            match op {
                PipelineOp::Forward { micro_batch, .. } => {
                    chunk.forward(&self.stream, &mut passes, micro_batch)?;
                }
                PipelineOp::Backward { micro_batch, .. } => {
                    chunk.backward(&self.stream, &mut passes, micro_batch)?;
                }
            }
        }
        if passes.adapters.is_none() {
            self.outdate();
        }
        Ok(self.chunks.iter_mut().map(|chunk| chunk.sums.finish(passes.gradients)).sum())
    }
}

impl Pipeline {
    /// Takes all micro-batches through, forward only, in the order in which a step does. Returns the sum of the losses, which
    /// is zero unless the stage has the head: those of a data group in order, groups in the tree.
    pub(crate) fn evaluate(&mut self, passes: Passes<'_>) -> Result<f32, StepError> {
        let (per_sum, mut losses) = (passes.per_sum.max(1), Vec::new());
        self.forward_only(passes, |_, _, of_rows, tape| {
            losses.push(sum_of_losses(of_rows, tape.groups()));
            Ok(())
        })?;
        let groups: Vec<f32> = losses.chunks(per_sum).map(|group| group.iter().sum()).collect();
        Ok(if groups.is_empty() { 0.0 } else { tree_sum_scalars(&groups) })
    }

    /// Takes all micro-batches, a sequence each, through, forward only. Returns what the model says of each sequence, which
    /// is nothing unless the stage has the head.
    pub(crate) fn score(&mut self, passes: Passes<'_>) -> Result<Vec<Score>, StepError> {
        let mut scores = Vec::new();
        self.forward_only(passes, |network, around, losses, tape| {
            let last = losses.len() - 1;
            let next = network.likeliest(around, tape, last..last + 1)?;
            scores.push(Score { logprobs: losses[..last].iter().map(|loss| -loss).collect(), next: next[0] });
            Ok(())
        })?;
        Ok(scores)
    }

    /// Takes all micro-batches through, forward only, in the order in which a step does. Where the stage has the head, `found`
    /// is handed the losses of each micro-batch's rows.
    fn forward_only(
        &mut self,
        mut passes: Passes<'_>,
        mut found: impl FnMut(&Network, &mut Surroundings<'_>, &[f32], &Tape) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        self.keep_weights(&passes);
        for op in self.schedule(&passes) {
            let PipelineOp::Forward { micro_batch, .. } = op else { continue };
            let chunk = &self.chunks[op.chunk()];
            let (losses, tape) = chunk.through(&self.stream, &mut passes, micro_batch)?;
            if let Some(losses) = losses {
                found(&chunk.network, &mut passes.around(&chunk.weights), &losses, &tape)?;
            }
        }
        if passes.adapters.is_none() {
            self.outdate();
        }
        Ok(())
    }

    fn keep_weights(&mut self, passes: &Passes<'_>) {
        if passes.micro_batches.len() > 1 && passes.micro_batches[0].tokens.len() < ROWS_PACKED_FOR {
            self.chunks.iter_mut().for_each(|chunk| chunk.weights.keep(&self.stream, passes.parameters));
        }
    }

    fn schedule(&self, passes: &Passes<'_>) -> Vec<PipelineOp> {
        pipeline_schedule(self.stages, self.chunks.len(), self.stage, passes.micro_batches.len())
    }
}

impl Chunk {
    fn forward(
        &mut self,
        stream: &Stream,
        passes: &mut Passes<'_>,
        micro_batch: usize,
    ) -> Result<(), StepError> {
        let (losses, tape) = self.through(stream, passes, micro_batch)?;
        let loss = losses.map_or(0.0, |losses| sum_of_losses(&losses, tape.groups()));
        self.tapes.push_back((tape, loss));
        Ok(())
    }

    /// Takes a micro-batch through. Activations go to the chunk after; the losses of rows are returned.
    fn through(
        &self,
        stream: &Stream,
        passes: &mut Passes<'_>,
        micro_batch: usize,
    ) -> Result<(Option<Vec<f32>>, Tape), StepError> {
        let micro_batch = passes.micro_batches[micro_batch].clone();
        let numbers = self.network.numbers(&micro_batch);
        let span = passes.links.begin();
        let before = passes.links.before().filter(|_| !self.network.slice().input);
        let received = take(stream, before, Kind::Activations, numbers)?;
        if received.is_some() {
            passes.links.end(Collective::PipelineReceive, span);
        }
        let (output, tape) =
            self.network.forward(&mut passes.around(&self.weights), micro_batch, received)?;
        match output {
            Output::Activations(x) => {
                let span = passes.links.begin();
                if let Some(link) = passes.links.after() {
                    send(stream, link, Kind::Activations, x.view())?;
                    passes.links.end(Collective::PipelineSend, span);
                }
                Ok((None, tape))
            }
            Output::Losses(losses) => Ok((Some(stream.to_vec(losses.view())), tape)),
        }
    }

    fn backward(
        &mut self,
        stream: &Stream,
        passes: &mut Passes<'_>,
        micro_batch: usize,
    ) -> Result<(), StepError> {
        let Some((tape, loss)) = self.tapes.pop_front() else { return Ok(()) };
        let numbers = self.network.numbers(tape.batch());
        let span = passes.links.begin();
        let after = passes.links.after().filter(|_| !self.network.slice().output);
        let received = take(stream, after, Kind::Gradients, numbers)?;
        if received.is_some() {
            passes.links.end(Collective::PipelineReceive, span);
        }
        let Target { gradients, onto, loss: losses } =
            self.sums.target(passes.gradients, passes.per_sum == 1);
        *losses += loss;
        let mut around = Surroundings {
            parameters: passes.parameters,
            adapters: passes.adapters,
            weights: &self.weights,
            seed: passes.seed,
            group: &mut passes.links.tensor,
            work: passes.work,
        };
        let before = self.network.backward(&mut around, tape, received, passes.scale, gradients, onto)?;
        let span = passes.links.begin();
        if let (Some(dx), Some(link)) = (before, passes.links.before()) {
            send(stream, link, Kind::Gradients, dx.view())?;
            passes.links.end(Collective::PipelineSend, span);
        }
        if (micro_batch + 1).is_multiple_of(passes.per_sum) {
            self.sums.end_group(passes.gradients);
        }
        Ok(())
    }
}

impl Passes<'_> {
    fn around<'a>(&'a mut self, weights: &'a PackedWeights) -> Surroundings<'a> {
        Surroundings {
            parameters: self.parameters,
            adapters: self.adapters,
            weights,
            seed: self.seed,
            group: &mut self.links.tensor,
            work: self.work,
        }
    }
}

/// The sum of a micro-batch's losses, of which each data group has as many: each group's in a tree, and groups in another.
fn sum_of_losses(of_rows: &[f32], groups: usize) -> f32 {
    let groups: Vec<f32> = of_rows.chunks_exact(of_rows.len() / groups).map(tree_sum_scalars).collect();
    tree_sum_scalars(&groups)
}

/// What the neighbouring stage has sent, where there is one that does.
fn take(
    stream: &Stream,
    link: Option<&mut PointToPoint>,
    kind: Kind,
    numbers: usize,
) -> Result<Option<Buffer>, StepError> {
    let Some(link) = link else { return Ok(None) };
    let mut received = stream.uninit(numbers);
    receive(stream, link, kind, received.view_mut())?;
    Ok(Some(received))
}

#[cfg(test)]
mod tests;
