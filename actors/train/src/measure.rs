//! The speed of training on this machine, without a cluster: one rank, random tokens.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sixfold_model::MicroBatch;
use sixfold_parallel::{RankLinks, StepBatch, Trainer, TrainingJob};
use sixfold_tensor::{Counter, Device, Purpose};
use sixfold_topology::{ParallelPlan, Rank};

use crate::error::TrainError;
use crate::options::{OptionsError, TrainOptions};

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Trainable numbers of the model.
    pub parameters: usize,
    /// Multiply-adds of one step, as operations (two each): three passes over every weight but the embedding,
    /// and causal attention.
    pub flop: f64,
    /// Mean loss of the first step.
    pub first_loss: f32,
    /// Wall time of the first step, which also takes the memory.
    pub first: Duration,
    /// Wall time of each step that counts.
    pub steps: Vec<Duration>,
}

/// Trains `warmup` steps, then `steps` that are timed, on one rank with the threads of the options; each step
/// has new random tokens. `groups` says how many data groups they are, 0 for as many as the job has. `tell` hears of every step that is done.
///
/// # Errors
/// [`TrainError`] if the options do not fit each other.
pub fn measure(
    options: &TrainOptions,
    vocabulary: usize,
    groups: usize,
    warmup: u64,
    steps: u64,
    mut tell: impl FnMut(u64),
) -> Result<Measured, TrainError> {
    options.validate()?;
    let groups = if groups == 0 { options.data_groups() } else { groups };
    let whole = options.batch_sequences.is_multiple_of(groups * options.micro_batch_sequences.max(1));
    if !groups.is_power_of_two() || !whole {
        let must = "a power of two, each with as many whole micro-batches of the step's sequences".to_owned();
        return Err(OptionsError::Range { option: "groups", value: groups.to_string(), must }.into());
    }
    sixfold_tensor::keep_freed_memory();
    sixfold_tensor::set_threads(options.threads).map_err(|error| TrainError::Thread(error.to_string()))?;
    let geometry = options.geometry(vocabulary, None)?;
    let parameters = geometry.config.parameters();
    let job = TrainingJob {
        geometry,
        optimizer: options.optimizer(),
        seed: options.seed,
        dropout: options.dropout,
    };
    let (plan, rank) = (ParallelPlan::default(), Rank(0));
    let links = RankLinks::new(&plan, rank, HashMap::new())?;
    let mut trainer = Trainer::new(&job, &plan, rank, links, Device::cpu().stream())?;
    trainer.set_execution(options.execution());
    let mut losses = Vec::new();
    let mut times = Vec::new();
    for step in 0..=warmup + steps {
        let batch = random_batch(options, vocabulary, groups, step);
        let since = Instant::now();
        let report = trainer.step(step, batch).map_err(|source| TrainError::Step { rank, step, source })?;
        times.push(since.elapsed());
        losses.push(report.loss);
        tell(step + 1);
    }
    let embedding = if options.tie_embeddings { 0 } else { vocabulary * options.hidden_size };
    let tokens = options.batch_tokens() as f64;
    let attention = 6 * options.layers * options.hidden_size * options.sequence();
    Ok(Measured {
        parameters,
        flop: (6 * (parameters - embedding) + attention) as f64 * tokens,
        first_loss: losses[0],
        first: times[0],
        steps: times.split_off(1 + warmup as usize),
    })
}

/// Sequences of random tokens, a document each.
fn random_batch(options: &TrainOptions, vocabulary: usize, groups: usize, step: u64) -> StepBatch {
    let length = options.sequence();
    let micro = match options.micro_batch_sequences {
        0 => options.batch_sequences / groups,
        sequences => sequences,
    };
    let sequence = |sample: usize| {
        let stream = Counter::new(options.seed, step, sample as u64, 0, Purpose::ORDER);
        (0..=length as u64).map(move |at| stream.word(at) % vocabulary as u32).collect::<Vec<_>>()
    };
    let micro_batch = |first: usize| {
        let sequences: Vec<_> = (first..first + micro).map(sequence).collect();
        let tokens = sequences.iter().flat_map(|tokens| &tokens[..length]).copied().collect();
        let targets = sequences.iter().flat_map(|tokens| &tokens[1..]).copied().collect();
        MicroBatch { first_sample: first as u64, ..MicroBatch::of_documents(tokens, targets, length) }
    };
    let per_group = options.batch_sequences / groups;
    let group =
        |group: usize| (group * per_group..(group + 1) * per_group).step_by(micro).map(micro_batch).collect();
    StepBatch { groups: (0..groups).map(group).collect(), global_targets: options.batch_tokens() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_that_counts_is_timed_and_starts_near_a_uniform_guess() {
        let options =
            TrainOptions { layers: 1, hidden_size: 32, heads: 4, kv_heads: 2, ..TrainOptions::default() };
        let mut told = 0;
        let measured = measure(&options, 300, 0, 1, 2, |step| told = step).unwrap();
        assert_eq!((measured.steps.len(), told), (2, 4));
        assert!((measured.first_loss - 300_f32.ln()).abs() < 0.3, "{}", measured.first_loss);
        assert!(measure(&options, 300, 3, 1, 2, |_| {}).is_err());
        let other = TrainOptions { heads: 5, ..options };
        assert!(measure(&other, 300, 0, 1, 2, |_| {}).is_err());
    }
}
