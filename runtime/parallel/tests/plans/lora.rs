//! Adapters on every plan.

use sixfold_model::{Compression, Dtype, Family, Geometry, Lora, ModelConfig, Projection, Recompute};
use sixfold_parallel::{Execution, TrainingJob};

use super::gang::Run;
use super::{PLANS, assert_all_equal, config, gpt2, job, run};

/// Adapters of all projections that the family has, with dropout before them.
fn adapted(config: ModelConfig, logical: usize) -> TrainingJob {
    let has_gate =
        |projection: &Projection| config.family == Family::Llama || *projection != Projection::Gate;
    let projections = Projection::ALL.into_iter().filter(has_gate).collect();
    with(config.clone(), logical, Lora { rank: 3, alpha: 6.0, projections })
}

fn with(config: ModelConfig, logical: usize, lora: Lora) -> TrainingJob {
    let job = job(config, logical);
    let geometry = job.geometry.with_lora(lora).unwrap();
    TrainingJob { geometry, adapter_dropout: 0.2, ..job }
}

#[test]
fn adapters_have_the_bits_of_the_serial_run_on_every_plan() {
    assert_all_equal(&adapted(config(), 4), &PLANS);
    let tied = ModelConfig { tie_word_embeddings: true, ..config() };
    assert_all_equal(&adapted(tied.clone(), 4), &["tp4", "pp2", "dp2.tp2.pp2"]);
    assert_all_equal(
        &adapted(ModelConfig { num_key_value_heads: 2, ..tied }, 4),
        &["tp2", "tp4", "dp2.tp2.pp2"],
    );
    assert_all_equal(&adapted(ModelConfig { dtype: Dtype::Bf16, ..config() }, 4), &["tp4", "dp2.tp2.pp2"]);
    assert_all_equal(&adapted(gpt2(), 4), &["tp4", "dp2.tp2.pp2"]);
    for family in [Family::Qwen2, Family::Qwen3] {
        assert_all_equal(&adapted(ModelConfig { family, ..config() }, 4), &["tp4", "dp2.tp2.pp2"]);
    }
    let narrow = ModelConfig {
        num_attention_heads: 3,
        num_key_value_heads: 3,
        intermediate_size: 7,
        vocab_size: 5,
        ..config()
    };
    assert_all_equal(&adapted(narrow, 8), &["tp8", "tp2", "dp2.tp2.pp2"]);
}

#[test]
fn adapters_of_some_projections_have_the_bits_of_the_serial_run() {
    for projections in [
        vec![Projection::Query, Projection::Value],
        vec![Projection::Key, Projection::Down],
        vec![Projection::AttentionOutput],
        vec![Projection::Up],
    ] {
        let lora = Lora { rank: 2, alpha: 4.0, projections: projections.into_iter().collect() };
        assert_all_equal(&with(config(), 4, lora), &["tp4", "dp2.tp2.pp2"]);
    }
}

#[test]
fn compressed_weights_have_the_bits_of_the_serial_run() {
    for compression in [Compression::Bf16, Compression::Int8, Compression::Nf4] {
        let tied = ModelConfig { tie_word_embeddings: true, num_key_value_heads: 2, ..config() };
        let plain = adapted(tied, 4);
        let job = TrainingJob { base_compression: Some(compression), ..plain.clone() };
        assert_all_equal(&job, &["tp4", "pp3", "dp2.tp2.pp2"]);
        let loss = |job| f32::from_bits(run(job, "dp1").0.reports[0][0]);
        let (compressed, plain) = (loss(&job), loss(&plain));
        assert!(compressed != plain && (compressed - plain).abs() < 0.01 * plain, "{compressed} {plain}");
    }
}

#[test]
fn what_adapters_compute_again_keeps_the_bits() {
    let job = adapted(ModelConfig { num_key_value_heads: 2, ..config() }, 4);
    let (expected, _) = run(&job, "tp2.pp2");
    for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
        for (pass_tokens, sequence_parallel) in [(1, false), (24, true), (1 << 20, true)] {
            let execution = Execution { recompute, pass_tokens, sequence_parallel };
            let (outcome, _) = Run { execution, ..Run::new(&job, "dp2.tp2") }.go();
            assert!(outcome == expected, "{execution:?}");
        }
    }
}

#[test]
fn adapters_train_and_the_weights_beside_them_stay() {
    let job = adapted(config(), 4);
    let (outcome, accounts) = Run { steps: 0..8, ..Run::new(&job, "tp2.pp2") }.go();
    let geometry: &Geometry = &job.geometry;
    let trained: usize = outcome.units.keys().map(|unit| geometry.region(*unit).len()).sum();
    let per_layer = 3 * ((16 + 32) + 2 * (16 + 16) + (32 + 16) + 2 * (16 + 40) + (40 + 16));
    assert_eq!(trained, 3 * per_layer, "rank times inputs and outputs of each projection");
    let loss = |at: usize| f32::from_bits(outcome.reports[at][0]);
    assert!(loss(7) < loss(0), "{} {}", loss(0), loss(7));
    let (all, _) = run(&super::job(super::config(), 4), "tp2.pp2");
    assert_eq!(outcome.reports[0][0], all.reports[0][0], "new adapters change nothing");
    assert!(accounts.iter().all(|account| account.work.adapters > 0));
}
