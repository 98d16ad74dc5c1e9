//! The speed of training on this machine, without a cluster: all ranks in this process, random tokens.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use sixfold_model::{MicroBatch, UnitId};
use sixfold_parallel::{RankLinks, StepBatch, Trainer, TrainingJob};
use sixfold_tensor::{Counter, Device, Purpose};
use sixfold_topology::{ParallelPlan, PipelineLayout, Rank};
use sixfold_transport::tensor::local_pair;
use sixfold_wire::id::ContentHash;

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
    /// Floating-point operations of a step ([`Geometry::training_flop_per_token`]).
    ///
    /// [`Geometry::training_flop_per_token`]: sixfold_model::Geometry::training_flop_per_token
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
    /// BLAKE3 over that of each unit's parameters after the last step, in the order of the units.
    pub weights_blake3: ContentHash,
    /// What each rank saw.
    pub ranks: Vec<MeasuredRank>,
}

/// What one rank saw of its steps. Those that count are those after the first and the warm-up.
#[derive(Clone, Debug, Default)]
pub struct MeasuredRank {
    /// Mean loss of each step, the first and the warm-up included. Equal on all ranks.
    pub losses: Vec<f32>,
    /// Wall time of the first step.
    pub first: Duration,
    /// Wall time of each step that counts.
    pub steps: Vec<Duration>,
    /// How long it computed in them, without what it waited for others.
    pub computed: Duration,
    /// The part of their time in which it waited for others of its pipeline.
    pub bubble: f64,
    /// As [`Measured::scheduled_bubble`].
    pub scheduled_bubble: Vec<f64>,
    /// Bytes that it sent in them.
    pub bytes_sent: u64,
    /// Bytes that it would have sent in them if its sums had gone around rings.
    pub ring_bytes: u64,
    /// The most bytes that its device's buffers had.
    pub buffer_bytes_max: usize,
    /// Bytes of the weights beside its adapters; what is compressed of them is in no buffer.
    pub base_bytes: usize,
    /// Bytes of both moments that it holds.
    pub moment_bytes: u64,
    /// The hash of the parameters of each unit that it holds, after the last step.
    pub parameters: BTreeMap<UnitId, ContentHash>,
}

/// A training that is measured: the options' job on random tokens, new ones each step.
pub struct Course<'a> {
    options: &'a TrainOptions,
    vocabulary: usize,
    groups: usize,
    warmup: u64,
    steps: u64,
    job: TrainingJob,
    plan: ParallelPlan,
    layout: PipelineLayout,
    /// None: each rank has the CPU for itself.
    device: Option<Device>,
}

impl<'a> Course<'a> {
    /// `warmup` steps besides the very first, then `steps` that count. `groups` says how many data groups a step has, 0 for
    /// as many as the job has. Kernels of this process have the options' threads from now on.
    ///
    /// # Errors
    /// [`TrainError`] if the options do not fit each other.
    pub fn new(
        options: &'a TrainOptions,
        vocabulary: usize,
        groups: usize,
        (warmup, steps): (u64, u64),
    ) -> Result<Self, TrainError> {
        options.validate()?;
        let groups = if groups == 0 { options.data_groups() } else { groups };
        let whole = options.batch_sequences.is_multiple_of(groups * options.micro_batch_sequences.max(1));
        let plan = options.plan();
        let must = if !groups.is_power_of_two() || !whole {
            Some("a power of two, each with as many whole micro-batches of the step's sequences".to_owned())
        } else if groups < plan.data_parallel {
            Some(format!("at least data_parallel, {}", plan.data_parallel))
        } else {
            None
        };
        if let Some(must) = must {
            return Err(OptionsError::Range { option: "groups", value: groups.to_string(), must }.into());
        }
        sixfold_tensor::keep_freed_memory();
        sixfold_tensor::set_threads(options.threads)
            .map_err(|error| TrainError::Thread(error.to_string()))?;
        let geometry = options.with_lora(options.geometry(vocabulary, None)?)?;
        let layout = options.layout(&geometry).map_err(OptionsError::from)?;
        let job = TrainingJob {
            geometry,
            optimizer: options.optimizer(),
            seed: options.seed,
            dropout: options.dropout,
            adapter_dropout: options.lora_dropout,
            base_compression: options.base_format.compression(),
        };
        Ok(Self { options, vocabulary, groups, warmup, steps, job, plan, layout, device: None })
    }

    /// The same training with all ranks on one device.
    #[must_use]
    pub fn on(self, device: Device) -> Self {
        Self { device: Some(device), ..self }
    }

    /// Trainable numbers of the model.
    pub fn parameters(&self) -> usize {
        self.job.geometry.config.parameters()
    }

    /// The ranks that `rank` needs links to.
    pub fn peers(&self, rank: Rank) -> Vec<Rank> {
        RankLinks::peers(&self.plan, rank)
    }

    /// Does the steps of one rank. `tell` hears of every step that is done.
    ///
    /// # Errors
    /// [`TrainError`] if the links do not fit the plan or another rank is gone.
    pub fn rank(
        &self,
        rank: Rank,
        links: Links,
        mut tell: impl FnMut(u64),
    ) -> Result<MeasuredRank, TrainError> {
        let Self { options, job, plan, layout, .. } = self;
        let links = RankLinks::new(plan, rank, links)?;
        let device = self.device.clone().unwrap_or_else(Device::cpu);
        let mut trainer = Trainer::with_layout(job, plan, layout, rank, links, device.stream())?;
        trainer.set_execution(options.execution());
        if options.shares_optimizer() {
            trainer.share_optimizer();
        }
        let mut measured = MeasuredRank::default();
        for step in 0..=self.warmup + self.steps {
            if step == 1 + self.warmup {
                (measured.bytes_sent, measured.ring_bytes) = (trainer.bytes_sent(), trainer.ring_bytes());
            }
            let mut batch = random_batch(options, self.vocabulary, self.groups, step);
            batch.groups = batch.groups.drain(plan.groups(rank, self.groups)).collect();
            let since = Instant::now();
            let report =
                trainer.step(step, batch).map_err(|source| TrainError::Step { rank, step, source })?;
            let took = since.elapsed();
            measured.losses.push(report.loss);
            if step == 0 {
                measured.first = took;
            }
            if step > self.warmup {
                measured.steps.push(took);
                let time = trainer.health().times.get(rank.index()).copied().unwrap_or_default();
                measured.computed += Duration::from_secs_f32(time.compute_ms.max(0.0) / 1e3);
                measured.bubble += f64::from(time.bubble) / self.steps as f64;
            }
            tell(step + 1);
        }
        measured.bytes_sent = trainer.bytes_sent() - measured.bytes_sent;
        measured.ring_bytes = trainer.ring_bytes() - measured.ring_bytes;
        measured.scheduled_bubble = trainer.scheduled_bubble();
        measured.buffer_bytes_max = device.memory_use().used_bytes_max;
        measured.base_bytes = trainer.base_bytes();
        measured.moment_bytes = trainer.moment_bytes();
        let parameters = trainer.parameters();
        let hash = |unit| {
            let bytes: Vec<u8> = parameters.unit(unit).iter().flat_map(|value| value.to_le_bytes()).collect();
            (unit, ContentHash::of(&bytes))
        };
        measured.parameters = parameters.iter().map(|(unit, _)| hash(unit)).collect();
        Ok(measured)
    }

    /// Does the steps with every rank in this process. `tell` hears of every step that is done.
    ///
    /// # Errors
    /// [`TrainError`] if a rank fails.
    pub fn measure(&self, tell: impl FnMut(u64)) -> Result<Measured, TrainError> {
        let ranks = self.all_ranks(tell)?;
        let first = &ranks[0];
        let (geometry, options) = (&self.job.geometry, self.options);
        let flop = geometry.training_flop_per_token(options.sequence()) * options.batch_tokens() as f64;
        Ok(Measured {
            parameters: self.parameters(),
            flop,
            first_loss: first.losses[0],
            first: first.first,
            bubble: ranks.iter().map(|rank| rank.bubble).collect(),
            scheduled_bubble: first.scheduled_bubble.clone(),
            steps: first.steps.clone(),
            weights_blake3: whole_hash(&ranks)?,
            ranks,
        })
    }

    /// Does the steps with every rank in this process, all on the threads of the options where they are several.
    fn all_ranks(&self, tell: impl FnMut(u64)) -> Result<Vec<MeasuredRank>, TrainError> {
        let mut links = connect(&self.plan).into_iter();
        let first = links.next().unwrap_or_default();
        thread::scope(|scope| {
            let others = (1..).map(Rank).zip(links);
            let others: Vec<_> =
                others.map(|(index, links)| scope.spawn(move || self.rank(index, links, |_| {}))).collect();
            let first = self.rank(Rank(0), first, tell);
            let ended = others.into_iter().map(|other| {
                let panicked = |_| TrainError::Thread("a rank panicked".to_owned());
                other.join().map_err(panicked).flatten()
            });
            // What others failed of is nearer to the cause than that they are gone.
            let others = ended.collect::<Result<Vec<_>, _>>()?;
            Ok([vec![first?], others].concat())
        })
    }
}

/// Trains `warmup` steps, then `steps` that are timed, under the options' plan with every rank in this process; see
/// [`Course`].
///
/// # Errors
/// [`TrainError`] if the options do not fit each other.
pub fn measure(
    options: &TrainOptions,
    vocabulary: usize,
    groups: usize,
    warmup: u64,
    steps: u64,
    tell: impl FnMut(u64),
) -> Result<Measured, TrainError> {
    Course::new(options, vocabulary, groups, (warmup, steps))?.measure(tell)
}

/// The hash of all parameters, of which replicas must have the same.
fn whole_hash(ranks: &[MeasuredRank]) -> Result<ContentHash, TrainError> {
    let mut units = BTreeMap::new();
    for (unit, hash) in ranks.iter().flat_map(|rank| &rank.parameters) {
        if *units.entry(*unit).or_insert(*hash) != *hash {
            return Err(TrainError::Thread(format!("replicas of {unit} differ")));
        }
    }
    let bytes: Vec<u8> = units.values().flat_map(|hash| *hash.as_bytes()).collect();
    Ok(ContentHash::of(&bytes))
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
    use crate::options::BaseFormat;
    use sixfold_model::{Family, Recompute};

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
        let alone = measure(&serial, 300, 0, 0, 2, |_| {}).unwrap();
        let measured = measure(&interleaved, 300, 0, 0, 2, |_| {}).unwrap();
        let bits = |measured: &Measured, rank: usize| {
            measured.ranks[rank].losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>()
        };
        assert!((0..4).all(|rank| bits(&measured, rank) == bits(&alone, 0)));
        assert_eq!((measured.weights_blake3, measured.ranks.len()), (alone.weights_blake3, 4));
        let other = measure(&TrainOptions { seed: 2, ..serial }, 300, 0, 0, 2, |_| {}).unwrap();
        assert_ne!(other.weights_blake3, alone.weights_blake3);
        assert_eq!((alone.ranks[0].bytes_sent, alone.ranks[0].ring_bytes), (0, 0));
        let all = &alone.ranks[0];
        for rank in &measured.ranks {
            assert!(rank.bytes_sent > 0 && rank.ring_bytes > 0 && rank.computed > Duration::ZERO);
            assert!(
                rank.moment_bytes < all.moment_bytes * 2 / 3 && rank.buffer_bytes_max < all.buffer_bytes_max
            );
        }
        assert_eq!((measured.steps.len(), measured.bubble.len()), (2, 4));
        assert!(measured.bubble.iter().all(|bubble| (0.0..1.0).contains(bubble)), "{:?}", measured.bubble);
        assert!(measured.scheduled_bubble.iter().all(|bubble| *bubble > 0.0));
        assert!(measure(&interleaved, 300, 1, 0, 2, |_| {}).is_err(), "fewer groups than replicas");
    }

    #[test]
    fn training_by_the_kernels_of_gpus_has_the_bits_of_the_cpu() {
        let device = match Device::emulated_cuda() {
            Ok(device) => device,
            Err(error) => return println!("skipped: {error}"),
        };
        let llama = TrainOptions {
            layers: 2,
            hidden_size: 32,
            heads: 4,
            kv_heads: 2,
            sequence_length: 24,
            batch_sequences: 4,
            dropout: 0.1,
            ..TrainOptions::default()
        };
        let gpt2 = TrainOptions { family: Family::Gpt2, kv_heads: 4, ..llama.clone() };
        let plan = TrainOptions { tensor_parallel: 2, pipeline_parallel: 2, ..llama.clone() };
        let recomputed = TrainOptions { recompute: Recompute::Full, tie_embeddings: true, ..llama.clone() };
        let base = Some(llama.geometry(300, None).unwrap().config);
        let adapters = TrainOptions {
            base,
            feed_forward_size: 88,
            lora_rank: 4,
            base_format: BaseFormat::Nf4,
            ..llama.clone()
        };
        for options in [llama, gpt2, plan, recomputed, adapters] {
            let course = Course::new(&options, 300, 0, (0, 2)).unwrap();
            let expected = course.measure(|_| {}).unwrap();
            let measured = course.on(device.clone()).measure(|_| {}).unwrap();
            let bits = |measured: &Measured| {
                measured.ranks[0].losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(bits(&measured), bits(&expected), "{options:?}");
            assert_eq!(measured.weights_blake3, expected.weights_blake3, "{options:?}");
        }
    }

    #[test]
    fn weights_beside_adapters_take_what_their_format_says() {
        let plain = TrainOptions { feed_forward_size: 344, ..TrainOptions::default() };
        let base = Some(plain.geometry(300, None).unwrap().config);
        let bytes = |base_format| {
            let options = TrainOptions { base: base.clone(), lora_rank: 4, base_format, ..plain.clone() };
            measure(&options, 300, 0, 0, 1, |_| {}).unwrap().ranks[0].base_bytes as f64
        };
        let all = bytes(BaseFormat::F32);
        assert_eq!(all, 4.0 * base.as_ref().unwrap().parameters() as f64);
        // Tables in 16 bits, norms in 32, all else in as many as the format has.
        for (format, least, most) in [
            (BaseFormat::Bf16, 0.5, 0.51),
            (BaseFormat::Int8, 8.5 / 32.0, 0.3),
            (BaseFormat::Nf4, 4.5 / 32.0, 0.2),
        ] {
            let part = bytes(format) / all;
            assert!((least..most).contains(&part), "{format:?}: {part}");
        }
    }
}
