//! A job small enough to be trained in some milliseconds, for tests.

use std::ops::Range;

use sixfold_model::{Geometry, MicroBatch, ModelConfig, OptimizerOptions};
use sixfold_tensor::IGNORED_TARGET;

use crate::job::{StepBatch, TrainingJob};

/// Tokens of a sequence.
const LENGTH: usize = 10;
/// Sequences of a micro-batch.
const SEQUENCES: usize = 2;
/// Where the second document of a micro-batch's last sequence begins.
const SECOND_DOCUMENT: usize = 3;

pub(crate) fn config() -> ModelConfig {
    ModelConfig {
        family: sixfold_model::Family::Llama,
        vocab_size: 41,
        hidden_size: 16,
        intermediate_size: 40,
        num_hidden_layers: 4,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        head_dim: 4,
        max_position_embeddings: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: false,
        tie_word_embeddings: false,
        dtype: Default::default(),
        bos_token_id: None,
        eos_token_id: None,
    }
}

pub(crate) fn job(config: ModelConfig) -> TrainingJob {
    let optimizer = OptimizerOptions {
        learning_rate: 0.01,
        warmup_steps: 1,
        steps: 20,
        clip_norm: 0.1,
        ..Default::default()
    };
    TrainingJob {
        geometry: Geometry::new(config, 4).unwrap(),
        optimizer,
        seed: 9,
        dropout: 0.1,
        adapter_dropout: 0.0,
        base_compression: None,
    }
}

/// The given data groups of a step that has `groups`, each of `per_group` micro-batches.
pub(crate) fn batch(
    job: &TrainingJob,
    groups: usize,
    per_group: usize,
    step: u64,
    own: Range<usize>,
) -> StepBatch {
    let vocabulary = job.geometry.config.vocab_size as u64;
    let token = |sample: u64, i: u64| ((sample * 31 + step * 13 + i * 5) % vocabulary) as u32;
    let micro_batch = |index: usize| {
        let first_sample = (index * SEQUENCES) as u64;
        let all = |shift: u64| {
            let of = move |sample| (shift..LENGTH as u64 + shift).map(move |i| token(sample, i));
            (first_sample..first_sample + SEQUENCES as u64).flat_map(of).collect()
        };
        let mut batch = MicroBatch::of_documents(all(0), all(1), LENGTH);
        batch.document_starts.push(LENGTH + SECOND_DOCUMENT);
        batch.targets[LENGTH + SECOND_DOCUMENT - 1] = IGNORED_TARGET;
        MicroBatch { first_sample, ..batch }
    };
    let group = |group: usize| (0..per_group).map(|at| micro_batch(group * per_group + at)).collect();
    let global_targets = (groups * per_group * (SEQUENCES * LENGTH - 1)) as u64;
    StepBatch { groups: own.map(group).collect(), global_targets }
}
