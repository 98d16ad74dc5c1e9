//! Verifying a plan before training under it: [`verify_plan`], with a small model that makes the same
//! choices as the stage's.
//!
//! What decides which code a rank runs stays: the plan, logical shards and data groups, how unevenly
//! heads, columns, layers and positions fall on them, copies of key-value heads, a tied head, dropout,
//! clipping, a shared optimizer, packed documents, what goes through the model together, what is computed again and
//! which rows ranks share. What only costs time shrinks.

use std::num::NonZeroUsize;
use std::ops::Range;

use sixfold_model::{Family, Geometry, GeometryError, MicroBatch, OptimizerOptions};
use sixfold_parallel::verify::{Verification, Verified, VerifyError};
use sixfold_parallel::{Execution, StepBatch, TrainingJob};
use sixfold_tensor::{Counter, IGNORED_TARGET, Purpose};
use sixfold_topology::PipelineLayout;

use crate::options::{OptionsError, TrainOptions};

/// Steps that are trained: one from the initial weights, one from moments that are not zero, and one more.
const STEPS: u64 = 3;
const HIDDEN_SIZE: usize = 16;
const HEAD_SIZE: usize = 4;
/// Most query heads of a key-value head, where shards hold whole groups of them.
const HEADS_OF_GROUP_MAX: usize = 4;
/// Gradients of a small model are small; they shall be clipped where the stage clips.
const CLIP_NORM_MAX: f32 = 0.1;

/// A plan could not be verified, or was refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyPlanError {
    /// The stage's options do not fit each other.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The small model's sizes do not fit each other.
    #[error("the small model: {0}")]
    Geometry(#[from] GeometryError),
    /// A thread could not start, a rank failed, or the plan computes something else than one rank.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// Trains a small model with the choices of `options` under their plan, all ranks in this process, and
/// on one rank, and compares every gradient, weight, moment and loss to the bit.
///
/// # Errors
/// [`VerifyError::Differs`] names the first number that differs; else why nothing could be compared.
pub fn verify_plan(options: &TrainOptions) -> Result<Verified, VerifyPlanError> {
    options.validate()?;
    let small = Small::of(options)?;
    let batches = |step, groups| small.batch(step, groups);
    let verification = Verification {
        job: &small.job,
        plan: options.plan(),
        layout: small.layout.clone(),
        data_groups: small.groups,
        execution: small.execution,
        share_optimizer: options.shares_optimizer(),
        steps: STEPS,
        batches: &batches,
    };
    Ok(verification.run()?)
}

/// As many of `total` things, dealt out over `parts`, that each part gets `each` at most, but the same parts
/// still get one more than the others.
fn reduced(total: usize, parts: usize, each: usize) -> usize {
    parts * (total / parts).min(each) + total % parts
}

/// Lengths of (virtual) pipeline stages that are as uneven, as far as two layers are.
fn reduced_stages(stage_layers: &[usize]) -> Vec<usize> {
    let least = stage_layers.iter().copied().min().unwrap_or(0);
    stage_layers.iter().map(|layers| least.min(2) + (layers - least).min(2)).collect()
}

/// A small job like another.
struct Small {
    job: TrainingJob,
    layout: PipelineLayout,
    execution: Execution,
    groups: usize,
    micro_batches_of_group: usize,
    sequences_of_micro_batch: usize,
    length: usize,
}

impl Small {
    fn of(options: &TrainOptions) -> Result<Self, VerifyPlanError> {
        let (shards, groups) = (options.tensor_shards, options.data_groups());
        let length = reduced(options.sequence(), shards, 12_usize.div_ceil(shards).max(2));
        let vocabulary = 8 * shards + 5;
        let mut config = options.geometry(vocabulary, None)?.config;
        config.vocab_size = vocabulary;
        let stages = options.usual_layout()?;
        let stage_layers = reduced_stages(stages.stage_layers());
        let of_group = config.heads_per_group();
        let (kv_heads, heads_of_group) = match config.num_key_value_heads {
            kv_heads if kv_heads < shards => (kv_heads, reduced(of_group, shards, 1)),
            kv_heads => (reduced(kv_heads, shards, 1), of_group.min(HEADS_OF_GROUP_MAX)),
        };
        config.head_dim = HEAD_SIZE;
        config.num_key_value_heads = kv_heads;
        config.num_attention_heads = kv_heads * heads_of_group;
        config.hidden_size = match config.family {
            Family::Gpt2 => config.num_attention_heads * HEAD_SIZE,
            _ => HIDDEN_SIZE,
        };
        config.intermediate_size = reduced(config.intermediate_size, shards, 3);
        config.num_hidden_layers = stage_layers.iter().sum();
        let layout =
            PipelineLayout::new(stages.stages(), stages.chunks(), &stage_layers, config.num_hidden_layers);
        let layout = layout.map_err(OptionsError::from)?;
        // Within the small sequence where it is within the stage's.
        let within = config.sliding_window.is_some_and(|window| window.get() < options.sequence());
        config.sliding_window = NonZeroUsize::new(length / 2).filter(|_| within);
        let full = config.full_attention_layers.min(config.num_hidden_layers.saturating_sub(1));
        config.full_attention_layers = if within { full } else { 0 };
        // As many more than there are tokens as make the shards of learned positions as uneven as the stage's.
        config.max_position_embeddings = length + (options.context_length - options.sequence()) % shards;
        let optimizer = OptimizerOptions {
            warmup_steps: options.warmup_steps.min(1),
            steps: STEPS,
            clip_norm: options.clip_norm.min(CLIP_NORM_MAX),
            ..options.optimizer()
        };
        let job = TrainingJob {
            geometry: options.with_lora(Geometry::new(config, shards)?)?,
            optimizer,
            seed: options.seed,
            dropout: options.dropout,
            adapter_dropout: options.lora_dropout,
            base_compression: options.base_format.compression(),
        };
        let micro = options.micro_batch();
        // As many data groups go through the model together.
        let together = options.pass_tokens / (micro * options.sequence());
        let execution =
            Execution { pass_tokens: (together * micro.min(2) * length).max(1), ..options.execution() };
        Ok(Self {
            job,
            layout,
            execution,
            groups,
            micro_batches_of_group: (options.batch_sequences / groups / micro).min(2),
            sequences_of_micro_batch: micro.min(2),
            length,
        })
    }

    fn batch(&self, step: u64, groups: Range<usize>) -> StepBatch {
        let all: Vec<Vec<MicroBatch>> = (0..self.groups).map(|group| self.group(step, group)).collect();
        let global_targets = all.iter().flatten().map(|batch| batch.counted_targets() as u64).sum();
        StepBatch { groups: all[groups].to_vec(), global_targets }
    }

    fn group(&self, step: u64, group: usize) -> Vec<MicroBatch> {
        let first = group * self.micro_batches_of_group;
        (first..first + self.micro_batches_of_group).map(|index| self.micro_batch(step, index)).collect()
    }

    /// Sequences of random tokens; where a sequence is long enough, a document ends within it.
    fn micro_batch(&self, step: u64, index: usize) -> MicroBatch {
        let (length, vocabulary) = (self.length, self.job.geometry.config.vocab_size as u32);
        let first_sample = (index * self.sequences_of_micro_batch) as u64;
        let mut batch =
            MicroBatch { first_sample, ..MicroBatch::of_documents(Vec::new(), Vec::new(), length) };
        for sample in first_sample..first_sample + self.sequences_of_micro_batch as u64 {
            let random = Counter::new(self.job.seed, step, sample, 0, Purpose::ORDER);
            let token = |at: usize| random.word(at as u64) % vocabulary;
            let row = batch.tokens.len();
            batch.tokens.extend((0..length).map(token));
            batch.targets.extend((1..=length).map(token));
            batch.document_starts.push(row);
            let second = random.word(length as u64 + 1) as usize % length;
            if second > 0 {
                batch.document_starts.push(row + second);
                batch.targets[row + second - 1] = IGNORED_TARGET;
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use sixfold_model::{Dtype, Recompute};
    use sixfold_topology::ParallelPlan;

    use super::*;

    fn options(plan: &str) -> TrainOptions {
        let plan: ParallelPlan = plan.parse().unwrap();
        TrainOptions {
            data_parallel: plan.data_parallel,
            tensor_parallel: plan.tensor_parallel,
            pipeline_parallel: plan.pipeline_parallel,
            ..TrainOptions::default()
        }
    }

    #[test]
    fn every_plan_is_verified_whatever_the_stage_chooses() {
        type Choose = fn(&mut TrainOptions);
        let choices: [(&str, Choose); 28] = [
            ("dp2.tp2.pp2", |_| {}),
            ("dp2.tp2.pp2", |o| o.zero_stage = 0),
            ("dp4.pp2", |o| (o.family, o.tie_embeddings, o.dropout) = (Family::Gpt2, true, 0.1)),
            ("dp8", |o| o.dropout = 0.1),
            ("tp4.pp3", |o| (o.kv_heads, o.layers) = (2, 7)),
            ("dp2.tp4", |o| (o.kv_heads, o.tie_embeddings) = (1, true)),
            ("tp2.pp3", |o| o.tie_embeddings = true),
            ("dp2.pp2", |o| (o.recompute, o.pass_tokens) = (Recompute::Full, 1)),
            ("dp2.tp2", |o| (o.recompute, o.pass_tokens) = (Recompute::Selective, 256)),
            ("tp8", |o| (o.tensor_shards, o.heads, o.kv_heads, o.hidden_size) = (8, 3, 3, 96)),
            ("tp2.pp4", |o| (o.micro_batch_sequences, o.batch_sequences, o.clip_norm) = (1, 24, 0.0)),
            ("dp4.tp2", |o| (o.feed_forward_size, o.sequence_length, o.warmup_steps) = (3, 1, 0)),
            ("dp2.tp2.pp2", |o| o.family = Family::Gpt2),
            ("tp2.pp3", |o| (o.family, o.tie_embeddings, o.dropout) = (Family::Gpt2, true, 0.1)),
            ("tp4", |o| {
                (o.family, o.heads, o.hidden_size) = (Family::Gpt2, 3, 96);
                (o.context_length, o.sequence_length) = (131, 64);
            }),
            ("dp2.tp2.pp2", |o| o.family = Family::Qwen2),
            ("tp4", |o| (o.family, o.kv_heads, o.recompute) = (Family::Qwen2, 2, Recompute::Selective)),
            ("tp4.pp2", |o| (o.family, o.kv_heads, o.sequence_parallel) = (Family::Qwen3, 2, false)),
            ("pp2", |o| o.virtual_stages = 2),
            ("dp2.tp2.pp2", |o| o.sliding_window = 48),
            ("dp2.tp2.pp2", |o| (o.virtual_stages, o.layers, o.tie_embeddings) = (3, 7, true)),
            ("tp2.pp3", |o| (o.stage_layers, o.layers) = (vec![1, 4, 2], 7)),
            ("pp2", |o| {
                (o.virtual_stages, o.stage_layers, o.micro_batch_sequences) = (2, vec![0, 3, 1, 0], 1);
            }),
            ("dp2.tp2.pp2", |o| o.sequence_parallel = false),
            ("tp4", |o| (o.sequence_parallel, o.recompute) = (true, Recompute::Selective)),
            ("tp4.pp2", |o| (o.sequence_length, o.dropout, o.micro_batch_sequences) = (3, 0.1, 1)),
            ("tp2.pp2", |o| {
                (o.family, o.virtual_stages, o.recompute) = (Family::Gpt2, 2, Recompute::Full);
                (o.dtype, o.sequence_length, o.tie_embeddings) = (Dtype::Bf16, 5, true);
            }),
            ("tp2", |o| (o.tensor_shards, o.learning_rate, o.weight_decay) = (2, 1e-3, 0.0)),
        ];
        for (plan, choose) in choices {
            let mut options = options(plan);
            choose(&mut options);
            let verified = verify_plan(&options).unwrap_or_else(|error| panic!("{plan}: {error}"));
            assert_eq!((verified.plan, verified.steps), (options.plan(), STEPS));
            assert!(verified.ranks.iter().all(|rank| rank.bytes_sent > 0), "{plan}");
        }
    }

    #[test]
    fn wrong_options_are_refused_before_anything_is_trained() {
        let error = verify_plan(&TrainOptions { tensor_parallel: 8, ..TrainOptions::default() }).unwrap_err();
        assert!(matches!(error, VerifyPlanError::Options(_)), "{error}");
    }

    /// Which shards are empty, and which hold more than the others, is what makes them run other code.
    #[test]
    fn the_small_model_is_cut_as_the_stage_s_is() {
        for (heads, kv_heads, layers, pipeline) in [(12, 6, 7, 3), (8, 2, 4, 2), (40, 20, 9, 4), (3, 3, 2, 1)]
        {
            let options = TrainOptions {
                heads,
                kv_heads,
                layers,
                hidden_size: heads * 16,
                feed_forward_size: 1001,
                pipeline_parallel: pipeline,
                tensor_shards: 8,
                ..TrainOptions::default()
            };
            let (small, whole) =
                (Small::of(&options).unwrap().job.geometry, options.geometry(500, None).unwrap());
            let excess = |lengths: Vec<usize>| {
                let least = *lengths.iter().min().unwrap();
                lengths.into_iter().map(|length| (length == 0, length - least)).collect::<Vec<_>>()
            };
            let of = |geometry: &Geometry, part: fn(&sixfold_model::Shard) -> usize| {
                excess((0..8).map(|shard| part(geometry.sharding.shard(shard))).collect())
            };
            assert_eq!(of(&small, |s| s.kv_heads.len()), of(&whole, |s| s.kv_heads.len()), "{kv_heads}");
            assert_eq!(of(&small, |s| s.feed_forward.len()), of(&whole, |s| s.feed_forward.len()));
            assert_eq!(small.sharding.has_kv_copies(), whole.sharding.has_kv_copies());
        }
    }

    #[test]
    fn the_small_model_s_stages_are_cut_as_the_stage_s_are() {
        for (layers, pipeline_parallel, virtual_stages, stage_layers, expected) in [
            (9, 4, 1, vec![], vec![2, 2, 3, 2]),
            (9, 2, 2, vec![], vec![2, 2, 3, 2]),
            (28, 4, 1, vec![7, 8, 8, 5], vec![4, 4, 4, 2]),
            (12, 3, 1, vec![0, 12, 0], vec![0, 2, 0]),
            (4, 2, 2, vec![1, 1, 1, 1], vec![1, 1, 1, 1]),
        ] {
            let stage = TrainOptions {
                layers,
                pipeline_parallel,
                virtual_stages,
                stage_layers,
                hidden_size: 512,
                ..TrainOptions::default()
            };
            let small = Small::of(&stage).unwrap();
            assert_eq!((small.layout.stages(), small.layout.chunks()), (pipeline_parallel, virtual_stages));
            assert_eq!(small.layout.stage_layers(), expected);
        }
    }

    #[test]
    fn a_window_is_within_the_small_sequence_where_it_is_within_the_stage_s() {
        let of = |sliding_window| {
            let stage = TrainOptions { sliding_window, ..TrainOptions::default() };
            let small = Small::of(&stage).unwrap();
            (small.job.geometry.config.sliding_window.map(NonZeroUsize::get), small.length)
        };
        assert_eq!(of(0).0, None);
        assert_eq!(of(128).0, None, "as long as the sequence");
        assert_eq!(of(127), (Some(of(0).1 / 2), of(0).1));
    }

    #[test]
    fn documents_end_within_sequences() {
        let small = Small::of(&TrainOptions::default()).unwrap();
        let step = small.batch(1, 0..8);
        let batches: Vec<_> = step.groups.iter().flatten().collect();
        let documents: usize = batches.iter().map(|batch| batch.document_starts.len()).sum();
        let sequences: usize = batches.iter().map(|batch| batch.sequences()).sum();
        assert!(documents > sequences, "{documents} documents in {sequences} sequences");
        for batch in batches {
            assert_eq!(batch.validate(small.job.geometry.config.vocab_size, small.length), Ok(()));
        }
    }
}
