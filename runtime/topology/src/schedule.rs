//! Pipeline schedules: the order in which a stage works on the micro-batches of a step.
//!
//! 1F1B is the schedule of PipeDream-Flush (Narayanan et al. 2021, "Memory-efficient pipeline-parallel DNN
//! training", section 3.1): after a warm-up, a stage does one forward and one backward in turn, so that it keeps
//! at most as many activations as there are stages after it, itself included. Where a stage has several chunks of
//! layers it is interleaved (Narayanan et al. 2021, "Efficient large-scale language model training on GPU clusters
//! using Megatron-LM", section 2.2): micro-batches go through in rounds of as many as there are stages, each round
//! through all chunks of a stage in turn, which divides the time at the ends of a step in which stages have nothing
//! to do by the number of chunks. A last round of fewer micro-batches is one whose other places are empty.
//!
//! Backward passes of a chunk are in ascending order on every stage, as the order of sums requires. All stages do
//! forward passes in one order and backward passes in one order, so messages of one kind between two stages arrive
//! in the order in which they are asked for.
//!
//! Read [`pipeline_schedule`] first. [`pipeline_bubble`] says what a schedule leaves idle.

use crate::layout::PipelineLayout;

/// One thing that a pipeline stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PipelineOp {
    /// The forward pass of a micro-batch through one of the stage's chunks.
    Forward {
        /// Which chunk, counted from the first of the stage.
        chunk: usize,
        /// Which micro-batch.
        micro_batch: usize,
    },
    /// The backward pass of a micro-batch through one of the stage's chunks.
    Backward {
        /// Which chunk, counted from the first of the stage.
        chunk: usize,
        /// Which micro-batch.
        micro_batch: usize,
    },
}

/// The operations of stage `stage` of `stages`, each of `chunks` chunks, over `micro_batches`, in order.
///
/// A stage may hand over what it computes without waiting for the receiver; then no stage ever waits for one that
/// waits for it.
pub fn pipeline_schedule(
    stages: usize,
    chunks: usize,
    stage: usize,
    micro_batches: usize,
) -> Vec<PipelineOp> {
    let places = if chunks == 1 { micro_batches } else { micro_batches.next_multiple_of(stages) };
    let passes = places * chunks;
    // The place of a pass among all: rounds, in a round chunks, in a chunk micro-batches.
    let at = |pass: usize| match chunks {
        1 => (0, pass),
        _ => (pass / stages % chunks, pass / (stages * chunks) * stages + pass % stages),
    };
    let forward = |pass: usize| {
        let (chunk, micro_batch) = at(pass);
        PipelineOp::Forward { chunk, micro_batch }
    };
    let backward = |pass: usize| {
        let (chunk, micro_batch) = at(pass);
        PipelineOp::Backward { chunk: chunks - 1 - chunk, micro_batch }
    };
    let later = stages - stage - 1;
    let warm_up = if chunks == 1 { later } else { 2 * later + (chunks - 1) * stages }.min(passes);
    let steady = (0..passes - warm_up).flat_map(|pass| [forward(warm_up + pass), backward(pass)]);
    let ops = (0..warm_up).map(forward).chain(steady).chain((passes - warm_up..passes).map(backward));
    ops.filter(|op| op.micro_batch() < micro_batches).collect()
}

impl PipelineOp {
    /// Which micro-batch it takes through.
    pub fn micro_batch(self) -> usize {
        let (Self::Forward { micro_batch, .. } | Self::Backward { micro_batch, .. }) = self;
        micro_batch
    }

    /// Through which of the stage's chunks.
    pub fn chunk(self) -> usize {
        let (Self::Forward { chunk, .. } | Self::Backward { chunk, .. }) = self;
        chunk
    }
}

/// What pass a virtual stage does: which virtual stage, whether backward, and the micro-batch.
type Pass = (usize, bool, usize);

/// The part of a step's time in which each stage has nothing to do, where a forward pass takes what `costs` says of
/// each virtual stage, a backward pass twice as long, and sending no time.
pub fn pipeline_bubble(layout: &PipelineLayout, costs: &[u64], micro_batches: usize) -> Vec<f64> {
    let cost = |(virtual_stage, backward, _): Pass| {
        costs.get(virtual_stage).copied().unwrap_or(1) * if backward { 2 } else { 1 }
    };
    let times = timeline(layout.stages(), layout.chunks(), micro_batches, cost).unwrap_or_default();
    let end = times.iter().map(|times| times.end).max().unwrap_or(0);
    times.iter().map(|times| (end - times.busy) as f64 / end.max(1) as f64).collect()
}

/// How long a stage worked in a step, and when it was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    busy: u64,
    end: u64,
}

/// Runs all stages against each other, each in the order of its schedule; nothing if they wait for each other for
/// ever.
fn timeline(
    stages: usize,
    chunks: usize,
    micro_batches: usize,
    cost: impl Fn(Pass) -> u64,
) -> Option<Vec<Times>> {
    let last = stages * chunks - 1;
    let at = |(virtual_stage, backward, micro_batch): Pass| {
        (micro_batch * 2 + usize::from(backward)) * (last + 1) + virtual_stage
    };
    let mut ended: Vec<Option<u64>> = vec![None; 2 * (last + 1) * micro_batches];
    let mut times = vec![Times::default(); stages];
    let schedules = (0..stages).map(|stage| pipeline_schedule(stages, chunks, stage, micro_batches));
    let mut to_do: Vec<_> = schedules.map(|schedule| schedule.into_iter().peekable()).collect();
    loop {
        let mut done = 0;
        for (stage, ops) in to_do.iter_mut().enumerate() {
            let mut ready = None;
            let mut next = |op: &PipelineOp| {
                let (pass, needs) = dependency(*op, stage, stages, last);
                ready = match needs {
                    None => Some((pass, 0)),
                    Some(needs) => ended[at(needs)].map(|ended| (pass, ended)),
                };
                ready.is_some()
            };
            if ops.next_if(|op| next(op)).is_none() {
                continue;
            }
            let Some((pass, from)) = ready else { continue };
            let Times { busy, end } = times[stage];
            let took = cost(pass);
            times[stage] = Times { busy: busy + took, end: end.max(from) + took };
            ended[at(pass)] = Some(times[stage].end);
            done += 1;
        }
        match to_do.iter().all(|ops| ops.len() == 0) {
            true => return Some(times),
            false if done == 0 => return None,
            false => {}
        }
    }
}

/// The pass that `op` is on `stage`, and the one whose result it needs.
fn dependency(op: PipelineOp, stage: usize, stages: usize, last: usize) -> (Pass, Option<Pass>) {
    let virtual_stage = op.chunk() * stages + stage;
    let micro_batch = op.micro_batch();
    match op {
        PipelineOp::Forward { .. } => {
            let before = virtual_stage.checked_sub(1).map(|before| (before, false, micro_batch));
            ((virtual_stage, false, micro_batch), before)
        }
        PipelineOp::Backward { .. } => {
            let after = virtual_stage + 1;
            let needs =
                if virtual_stage == last { (last, false, micro_batch) } else { (after, true, micro_batch) };
            ((virtual_stage, true, micro_batch), Some(needs))
        }
    }
}

#[cfg(test)]
mod tests;
