//! The speed of training on this machine, without a cluster: all ranks in this process, random tokens.

use std::thread;
use std::time::{Duration, Instant};

use sixfold_model::MicroBatch;
use sixfold_parallel::{RankLinks, RankTime, StepBatch, Trainer, TrainingJob};
use sixfold_tensor::{Counter, Device, Purpose};
use sixfold_topology::{ParallelPlan, Rank};
use sixfold_transport::tensor::local_pair;

use crate::error::TrainError;
use crate::links::Links;
use crate::options::{OptionsError, TrainOptions};

/// What a link within this process takes in before a sender waits.
const WINDOW_BYTES: usize = 256 << 20;
/// How long a rank may wait for another.
const SILENCE: Duration = Duration::from_mins(10);

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Trainable numbers of the model.
    pub parameters: usize,
    /// Floating-point operations of a step ([`ModelConfig::training_flop_per_token`]).
    ///
    /// [`ModelConfig::training_flop_per_token`]: sixfold_model::ModelConfig::training_flop_per_token
    pub flop: f64,
    /// Mean loss of the first step.
    pub first_loss: f32,
    /// Wall time of the first step, which also takes the memory.
    pub first: Duration,
    /// Wall time of each step that counts.
    pub steps: Vec<Duration>,
    /// The part of that time in which each rank waited for others of its pipeline.
    pub bubble: Vec<f64>,
    /// The part in which each pipeline stage would have nothing to do if all ranks were as fast
    /// ([`Trainer::scheduled_bubble`]).
    pub scheduled_bubble: Vec<f64>,
}

/// What a rank saw of its steps, the first included.
#[derive(Default)]
struct Timed {
    steps: Vec<Duration>,
    losses: Vec<f32>,
    /// Of each step, by rank.
    bubbles: Vec<Vec<f64>>,
    scheduled_bubble: Vec<f64>,
}

/// Trains `warmup` steps, then `steps` that are timed, under the options' plan with every rank in this process, all on the
/// threads of the options where they are several; each step has new random tokens. `groups` says how many data groups they are, 0 for as many as the job has. `tell` hears of every step that is done.
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
    let (plan, ranks) = (options.plan(), options.plan().world_size());
    if groups < plan.data_parallel {
        let must = format!("at least data_parallel, {}", plan.data_parallel);
        return Err(OptionsError::Range { option: "groups", value: groups.to_string(), must }.into());
    }
    sixfold_tensor::keep_freed_memory();
    sixfold_tensor::set_threads(options.threads).map_err(|error| TrainError::Thread(error.to_string()))?;
    let geometry = options.geometry(vocabulary, None)?;
    let layout = options.layout(&geometry).map_err(OptionsError::from)?;
    let parameters = geometry.config.parameters();
    let flop = geometry.config.training_flop_per_token(options.sequence()) * options.batch_tokens() as f64;
    let job = TrainingJob {
        geometry,
        optimizer: options.optimizer(),
        seed: options.seed,
        dropout: options.dropout,
    };
    let rank = |rank: Rank, links: Links, tell: &mut dyn FnMut(u64)| {
        let links = RankLinks::new(&plan, rank, links)?;
        let mut trainer = Trainer::with_layout(&job, &plan, &layout, rank, links, Device::cpu().stream())?;
        trainer.set_execution(options.execution());
        let mut timed = Timed::default();
        for step in 0..=warmup + steps {
            let mut batch = random_batch(options, vocabulary, groups, step);
            batch.groups = batch.groups.drain(plan.groups(rank, groups)).collect();
            let since = Instant::now();
            let report =
                trainer.step(step, batch).map_err(|source| TrainError::Step { rank, step, source })?;
            timed.steps.push(since.elapsed());
            timed.losses.push(report.loss);
            let bubble = |time: &RankTime| f64::from(time.bubble);
            timed.bubbles.push(trainer.health().times.iter().map(bubble).collect());
            tell(step + 1);
        }
        timed.scheduled_bubble = trainer.scheduled_bubble();
        Ok::<Timed, TrainError>(timed)
    };
    let mut links = connect(&plan).into_iter();
    let first = links.next().unwrap_or_default();
    let timed = thread::scope(|scope| {
        let rank = &rank;
        let others = (1..ranks as u32).map(Rank).zip(links);
        let others: Vec<_> =
            others.map(|(index, links)| scope.spawn(move || rank(index, links, &mut |_| {}))).collect();
        let first = rank(Rank(0), first, &mut tell);
        let ended = others.into_iter().map(|other| {
            let panicked = |_| TrainError::Thread("a rank panicked".to_owned());
            other.join().map_err(panicked).flatten()
        });
        // What others failed of is nearer to the cause than that they are gone.
        ended.collect::<Result<Vec<_>, _>>().and(first)
    })?;
    let counted = timed.bubbles.len().min(1 + warmup as usize)..timed.bubbles.len();
    let bubble = |rank: usize| {
        timed.bubbles[counted.clone()].iter().map(|step: &Vec<f64>| step[rank]).sum::<f64>()
            / counted.len() as f64
    };
    Ok(Measured {
        parameters,
        flop,
        first_loss: timed.losses[0],
        first: timed.steps[0],
        bubble: (0..ranks).map(bubble).collect(),
        scheduled_bubble: timed.scheduled_bubble,
        steps: timed.steps[counted].to_vec(),
    })
}

/// The links of every rank, by peer.
fn connect(plan: &ParallelPlan) -> Vec<Links> {
    let mut links: Vec<Links> = plan.ranks().map(|_| Links::new()).collect();
    for rank in plan.ranks() {
        for peer in RankLinks::peers(plan, rank).into_iter().filter(|peer| *peer > rank) {
            let (near, far) = local_pair(WINDOW_BYTES, SILENCE);
            links[rank.index()].insert(peer, Box::new(near));
            links[peer.index()].insert(rank, Box::new(far));
        }
    }
    links
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
        assert_eq!((measured.bubble, measured.scheduled_bubble), (vec![0.0], vec![0.0]));
        let other = TrainOptions { heads: 5, ..options.clone() };
        assert!(measure(&other, 300, 0, 1, 2, |_| {}).is_err());
    }

    #[test]
    fn ranks_of_a_plan_are_timed_with_their_bubbles() {
        let serial = TrainOptions {
            layers: 4,
            hidden_size: 32,
            heads: 4,
            kv_heads: 2,
            sequence_length: 32,
            ..TrainOptions::default()
        };
        let interleaved =
            TrainOptions { pipeline_parallel: 2, data_parallel: 2, virtual_stages: 2, ..serial.clone() };
        let loss = measure(&serial, 300, 0, 0, 1, |_| {}).unwrap().first_loss;
        let measured = measure(&interleaved, 300, 0, 0, 2, |_| {}).unwrap();
        assert_eq!(measured.first_loss.to_bits(), loss.to_bits());
        assert_eq!((measured.steps.len(), measured.bubble.len()), (2, 4));
        assert!(measured.bubble.iter().all(|bubble| (0.0..1.0).contains(bubble)), "{:?}", measured.bubble);
        assert!(measured.scheduled_bubble.iter().all(|bubble| *bubble > 0.0));
        assert!(measure(&interleaved, 300, 1, 0, 2, |_| {}).is_err(), "fewer groups than replicas");
    }
}
