//! Every parallel plan trains the same model, to the bit, and no rank does more than its share.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

#[path = "plans/gang.rs"]
mod gang;
#[path = "plans/layouts.rs"]
mod layouts;
#[path = "plans/lora.rs"]
mod lora;
#[path = "plans/shared_rows.rs"]
mod shared_rows;

use std::num::NonZeroUsize;

use gang::{Account, Outcome, Run, batch, connect};
use sixfold_model::{Dtype, Family, Geometry, ModelConfig, OptimizerOptions, Recompute, UnitId};
use sixfold_parallel::{Execution, PlaceError, RankLinks, StepBatch, StepError, Trainer, TrainingJob};
use sixfold_tensor::{Device, MemoryUse};
use sixfold_topology::{ParallelPlan, Rank};

const GROUPS: usize = 4;

fn config() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: 41,
        hidden_size: 16,
        intermediate_size: 40,
        num_hidden_layers: 3,
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

/// As many positions as cannot be shared out evenly, and more than a sequence has.
fn gpt2() -> ModelConfig {
    ModelConfig {
        family: Family::Gpt2,
        hidden_size: 32,
        num_key_value_heads: 8,
        max_position_embeddings: 13,
        ..config()
    }
}

/// With copies of key-value heads, which have biases here.
fn qwen2() -> ModelConfig {
    ModelConfig { family: Family::Qwen2, num_key_value_heads: 2, ..config() }
}

/// With copies of key heads, which are normed here, and with all biases.
fn qwen3() -> ModelConfig {
    ModelConfig {
        family: Family::Qwen3,
        num_key_value_heads: 2,
        head_dim: 6,
        attention_bias: true,
        ..config()
    }
}

fn job(config: ModelConfig, logical: usize) -> TrainingJob {
    let geometry = Geometry::new(config, logical).unwrap();
    let optimizer = OptimizerOptions {
        learning_rate: 0.01,
        warmup_steps: 2,
        steps: 20,
        clip_norm: 0.5,
        ..Default::default()
    };
    TrainingJob { geometry, optimizer, seed: 9, dropout: 0.1, adapter_dropout: 0.0, base_compression: None }
}

fn run(job: &TrainingJob, plan: &str) -> (Outcome, Vec<Account>) {
    Run::new(job, plan).go()
}

fn assert_all_equal(job: &TrainingJob, plans: &[&str]) {
    let (serial, _) = run(job, "dp1.tp1.pp1");
    for plan in plans {
        for sequence_parallel in [true, false].into_iter().take(if plan.contains("tp") { 2 } else { 1 }) {
            let execution = Execution { sequence_parallel, ..Execution::default() };
            let (outcome, _) = Run { execution, ..Run::new(job, plan) }.go();
            let plan = format!("{plan}, sequence parallel {sequence_parallel}");
            assert_eq!(outcome.reports, serial.reports, "loss, norm or learning rate of {plan}");
            assert_eq!(outcome.weights_blake3(), serial.weights_blake3(), "weights of {plan}");
            assert!(outcome == serial, "moments of {plan}");
        }
    }
}

const PLANS: [&str; 9] = ["tp2", "tp4", "pp2", "pp3", "dp2", "dp4", "tp2.pp2", "dp2.tp2", "dp2.tp2.pp2"];

#[test]
fn every_plan_has_the_bits_of_the_serial_run() {
    assert_all_equal(&job(config(), 4), &PLANS);
}

/// Sequences in which nothing, one token, or all of them count.
#[test]
fn targets_that_count_unevenly_keep_the_bits() {
    let job = job(config(), 4);
    let run = |plan, masked| Run { masked, groups: 8, ..Run::new(&job, plan) }.go().0;
    let serial = run("dp1", true);
    assert_ne!(serial.reports, run("dp1", false).reports);
    for plan in ["dp2.tp2", "pp2", "dp8", "dp2.tp2.pp2", "pp3"] {
        assert!(run(plan, true) == serial, "{plan}");
    }
}

/// Between steps, which are as they would have been.
#[test]
fn evaluations_have_the_bits_of_the_serial_run_and_change_no_step() {
    let job = job(ModelConfig { num_hidden_layers: 6, ..config() }, 4);
    let run = |plan, evaluates, execution| {
        Run { masked: true, groups: 8, evaluates, execution, ..Run::new(&job, plan) }.go().0
    };
    let plain = Execution::default();
    let serial = run("dp1", true, plain);
    assert_eq!(serial.evaluations.len(), 4);
    assert!(f32::from_bits(serial.evaluations[3]) < f32::from_bits(serial.evaluations[0]));
    let without = run("dp1", false, plain);
    assert_eq!((&without.reports, without.weights_blake3()), (&serial.reports, serial.weights_blake3()));
    for plan in ["dp2.tp2", "tp4", "pp2", "dp8", "dp2.tp2.pp2", "pp3", "pp2 v2", "dp2.pp2 v3"] {
        for pass_tokens in [1, plain.pass_tokens] {
            let outcome = run(plan, true, Execution { pass_tokens, ..plain });
            assert!(outcome == serial, "{plan}, {pass_tokens} tokens at a time");
        }
    }
}

#[test]
fn a_sliding_window_keeps_the_bits() {
    let windowed = |window| ModelConfig { sliding_window: NonZeroUsize::new(window), ..config() };
    assert_all_equal(&job(windowed(3), 4), &["tp4", "dp2.tp2.pp2", "pp3"]);
    let losses = |config| run(&job(config, 4), "dp1").0.reports;
    assert_eq!(losses(windowed(32)), losses(config()));
    assert_ne!(losses(windowed(3)), losses(config()));
}

#[test]
fn copies_of_key_value_heads_keep_the_bits() {
    assert_all_equal(&job(ModelConfig { num_key_value_heads: 2, ..config() }, 4), &PLANS);
    assert_all_equal(&job(ModelConfig { num_key_value_heads: 1, ..config() }, 8), &["tp8", "tp4.pp2"]);
}

#[test]
fn copies_of_a_key_value_head_stay_one_parameter() {
    for (family, of_each, kv_heads, logical) in [
        (Family::Llama, 2, 2, 4),
        (Family::Llama, 2, 1, 8),
        (Family::Llama, 2, 1, 4),
        (Family::Qwen2, 4, 2, 4),
        (Family::Qwen2, 4, 1, 8),
    ] {
        let job = job(ModelConfig { family, num_key_value_heads: kv_heads, ..config() }, logical);
        let (outcome, _) = run(&job, "tp2");
        let mut copies = 0;
        for (unit, state) in outcome.units.iter().filter(|(unit, _)| unit.tensor.is_key_value()) {
            let original = job.geometry.sharding.kv_original(unit.shard as usize) as u32;
            copies += usize::from(original != unit.shard);
            assert!(*state == outcome.units[&UnitId { shard: original, ..*unit }], "{unit}");
        }
        assert_eq!(copies, of_each * job.geometry.config.num_hidden_layers * (logical - kv_heads));
    }
}

#[test]
fn uneven_and_empty_shards_keep_the_bits() {
    let narrow = ModelConfig {
        num_attention_heads: 3,
        num_key_value_heads: 3,
        intermediate_size: 7,
        vocab_size: 5,
        ..config()
    };
    assert_all_equal(&job(narrow, 8), &["tp8", "tp4", "tp2", "dp2.tp2.pp2"]);
}

#[test]
fn a_tied_head_keeps_the_bits() {
    let tied = ModelConfig { tie_word_embeddings: true, ..config() };
    assert_all_equal(
        &job(tied, 4),
        &["tp2", "tp4", "dp2.tp2", "pp2", "pp3", "tp2.pp2", "dp2.tp2.pp2", "dp2.pp3"],
    );
}

#[test]
fn every_plan_of_a_gpt2_has_the_bits_of_the_serial_run() {
    for tie_word_embeddings in [false, true] {
        assert_all_equal(&job(ModelConfig { tie_word_embeddings, ..gpt2() }, 4), &PLANS);
    }
    let narrow = ModelConfig {
        hidden_size: 12,
        num_attention_heads: 3,
        num_key_value_heads: 3,
        intermediate_size: 7,
        ..gpt2()
    };
    assert_all_equal(&job(narrow, 8), &["tp8", "tp4", "tp2", "dp2.tp2.pp2"]);
}

#[test]
fn every_plan_of_a_qwen2_has_the_bits_of_the_serial_run() {
    assert_all_equal(&job(qwen2(), 4), &PLANS);
    assert_all_equal(&job(ModelConfig { num_key_value_heads: 1, ..qwen2() }, 8), &["tp8", "tp4.pp2"]);
    let windowed = ModelConfig {
        sliding_window: NonZeroUsize::new(3),
        full_attention_layers: 2,
        tie_word_embeddings: true,
        ..qwen2()
    };
    assert_all_equal(&job(windowed.clone(), 4), &["tp4", "pp3", "dp2.tp2.pp2"]);
    let losses = |config| run(&job(config, 4), "dp1").0.reports;
    let all = ModelConfig { full_attention_layers: 0, ..windowed.clone() };
    let none = ModelConfig { sliding_window: None, ..all.clone() };
    assert!(losses(windowed.clone()) != losses(all) && losses(windowed) != losses(none));
}

#[test]
fn every_plan_of_a_qwen3_has_the_bits_of_the_serial_run() {
    assert_all_equal(&job(qwen3(), 4), &PLANS);
    let plain = ModelConfig { num_key_value_heads: 4, attention_bias: false, ..qwen3() };
    assert_all_equal(&job(plain, 4), &["tp4", "dp2.tp2.pp2"]);
    assert_all_equal(&job(ModelConfig { num_key_value_heads: 1, ..qwen3() }, 8), &["tp8", "tp4.pp2"]);
    // Some shards have no heads.
    let narrow = ModelConfig { num_attention_heads: 3, num_key_value_heads: 3, ..qwen3() };
    assert_all_equal(&job(narrow, 8), &["tp8", "tp4", "tp2", "dp2.tp2.pp2"]);
}

#[test]
fn every_plan_of_products_in_bf16_has_the_bits_of_the_serial_run() {
    let of = |dtype| job(ModelConfig { dtype, num_key_value_heads: 2, ..config() }, 4);
    assert_all_equal(&of(Dtype::Bf16), &PLANS);
    let tied = ModelConfig { dtype: Dtype::Bf16, tie_word_embeddings: true, ..gpt2() };
    assert_all_equal(&job(tied, 4), &["tp4", "dp2.tp2.pp2"]);
    let losses = |dtype| run(&of(dtype), "dp1").0.reports.into_iter().map(|[loss, ..]| f32::from_bits(loss));
    for (exact, rounded) in losses(Dtype::F32).zip(losses(Dtype::Bf16)) {
        assert!(exact != rounded && (exact - rounded).abs() < 0.01 * exact, "{exact} and {rounded}");
    }
}

#[test]
fn what_goes_together_and_what_is_computed_again_keeps_the_bits() {
    assert_execution_keeps_the_bits(&job(ModelConfig { num_key_value_heads: 2, ..config() }, 4));
    assert_execution_keeps_the_bits(&job(gpt2(), 4));
    assert_execution_keeps_the_bits(&job(qwen3(), 4));
}

fn assert_execution_keeps_the_bits(job: &TrainingJob) {
    let (expected, kept) = run(job, "tp2.pp2");
    for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
        for (pass_tokens, sequence_parallel) in
            [(1, false), (24, false), (1 << 20, false), (1, true), (24, true), (1 << 20, true)]
        {
            let execution = Execution { recompute, pass_tokens, sequence_parallel };
            for plan in ["dp1", "tp2.pp2"] {
                let (outcome, accounts) = Run { execution, ..Run::new(job, plan) }.go();
                assert!(outcome == expected, "{plan} {execution:?}");
                let again = accounts[0].work.projections > kept[0].work.projections;
                assert!(again == (recompute == Recompute::Full) || plan == "dp1", "{execution:?}");
            }
        }
    }
}

#[test]
fn swapping_two_leaves_of_the_tree_changes_the_hash() {
    let job = job(config(), 4);
    let (straight, _) = run(&job, "tp4");
    let swap = Some((Rank(1), Rank(2)));
    let tensor = Run { swapped: swap, ..Run::new(&job, "tp4") };
    assert_ne!(tensor.go().0.weights_blake3(), straight.weights_blake3());
    let data = Run { plan: "dp4", ..tensor };
    assert_ne!(data.go().0.weights_blake3(), straight.weights_blake3());
}

#[test]
fn another_plan_continues_a_run() {
    let job = job(config(), 4);
    let whole = Run { steps: 0..6, ..Run::new(&job, "pp1") };
    let (begun, _) = Run { plan: "dp2.tp2", steps: 0..2, ..whole }.go();
    let (moved, _) = Run { plan: "tp2.pp2", steps: 2..4, from: Some(&begun), ..whole }.go();
    let (ended, _) = Run { plan: "tp4", steps: 4..6, from: Some(&moved), ..whole }.go();
    let (whole, _) = whole.go();
    let reports = [begun.reports, moved.reports, ended.reports].concat();
    assert_eq!(reports, whole.reports);
    assert!(ended.units == whole.units);
}

#[test]
fn ranks_hold_and_compute_only_their_share() {
    assert_shares(&job(config(), 4));
    assert_shares(&job(ModelConfig { num_key_value_heads: 2, ..config() }, 4));
    assert_shares(&job(gpt2(), 4));
}

fn assert_shares(job: &TrainingJob) {
    let (_, serial) = run(job, "pp1");
    let serial = &serial[0];
    assert_eq!(serial.bytes_sent, 0);
    for text in ["tp2", "tp4", "pp3", "dp2", "tp2.pp3", "dp2.tp2.pp3"] {
        let plan: ParallelPlan = text.parse().unwrap();
        let (_, accounts) = run(job, text);
        let model_ways = (plan.tensor_parallel * plan.pipeline_parallel) as u64;
        for account in &accounts {
            assert_eq!(account.parameters.layer_bytes, serial.parameters.layer_bytes / model_ways, "{text}");
            let of_layers = |account: &Account| account.work.projections + account.work.attention;
            let ways = model_ways * plan.data_parallel as u64;
            assert_eq!(of_layers(account), of_layers(serial) / ways, "{text}");
            assert!(account.bytes_sent > 0);
        }
        let head: u64 = accounts.iter().map(|account| account.work.head).sum();
        assert_eq!(head, serial.work.head, "{text}");

        let mut held: Vec<_> = accounts.iter().flat_map(|account| &account.units).collect();
        held.retain(|unit| !unit.tensor.is_whole());
        held.sort();
        let copies = held.chunk_by(|a, b| a == b).map(<[_]>::len);
        assert!(copies.into_iter().all(|copies| copies == plan.data_parallel), "{text}");
        held.dedup();
        let all = serial.units.iter().filter(|unit| !unit.tensor.is_whole());
        assert!(held.into_iter().eq(all), "{text}");
    }
}

/// As [`run`], where replicas share the optimizer.
fn run_shared(job: &TrainingJob, plan: &str) -> (Outcome, Vec<Account>) {
    Run { shared: true, ..Run::new(job, plan) }.go()
}

#[test]
fn a_shared_optimizer_keeps_the_bits() {
    let copies = ModelConfig { num_key_value_heads: 2, ..config() };
    let tied = ModelConfig { tie_word_embeddings: true, ..config() };
    let cut_inside = ModelConfig { vocab_size: 4000, ..config() };
    for (name, config) in [
        ("plain", config()),
        ("copies", copies),
        ("tied", tied),
        ("cut", cut_inside),
        ("gpt2", gpt2()),
        ("qwen2", qwen2()),
        ("qwen3", qwen3()),
    ] {
        let job = job(config, 4);
        let (serial, _) = run(&job, "dp1");
        for plan in ["dp1", "dp2", "dp4", "dp2.tp2", "dp2.pp2", "dp4.tp2", "dp2.tp2.pp2"] {
            let (outcome, _) = run_shared(&job, plan);
            assert!(outcome == serial, "{name}, {plan}");
        }
    }
}

#[test]
fn replicas_that_share_the_optimizer_hold_their_part_of_the_moments_and_send_what_a_ring_sends() {
    let job = job(ModelConfig { vocab_size: 4000, ..config() }, 4);
    let (_, serial) = run(&job, "dp1");
    for (plan, members) in [("dp2", 2), ("dp4", 4)] {
        let ((_, whole), (_, shared)) = (run(&job, plan), run_shared(&job, plan));
        let sent = |accounts: &[Account]| accounts.iter().map(|account| account.bytes_sent).sum::<u64>();
        let (ring, sent) = (sent(&whole), sent(&shared));
        println!("{plan}: sent {sent} bytes shared, {ring} not");
        assert!(sent <= ring + ring / 50, "{plan}: {sent} and {ring}");
        for account in &shared {
            let share = account.moment_bytes as f64 / serial[0].moment_bytes as f64;
            println!("{plan}: {} bytes of moments, {share:.4} of all", account.moment_bytes);
            assert!((share - 1.0 / f64::from(members)).abs() < 0.03, "{plan}: {share}");
        }
    }
}

#[test]
fn a_shared_optimizer_is_continued_by_other_plans_and_back() {
    let job = job(config(), 4);
    let whole = Run { steps: 0..6, ..Run::new(&job, "dp1") };
    let (begun, _) = Run { plan: "dp4", steps: 0..2, shared: true, ..whole }.go();
    let (moved, _) = Run { plan: "tp2.pp2", steps: 2..4, from: Some(&begun), ..whole }.go();
    let (ended, _) = Run { plan: "dp2.tp2", steps: 4..6, from: Some(&moved), shared: true, ..whole }.go();
    assert!(ended.units == whole.go().0.units);
}

#[test]
fn training_learns() {
    let job = TrainingJob { dropout: 0.0, ..job(config(), 4) };
    let steps = Run { steps: 0..20, ..Run::new(&job, "dp1") };
    let losses: Vec<f32> = steps.go().0.reports.iter().map(|report| f32::from_bits(report[0])).collect();
    assert!((losses[0] - 41.0_f32.ln()).abs() < 0.1, "{losses:?}");
    assert!(losses[19] < losses[0] - 1.0, "{losses:?}");
}

#[test]
fn refuses_missing_links() {
    let plan: ParallelPlan = "pp2".parse().unwrap();
    let missing = RankLinks::new(&plan, Rank(1), Default::default()).err();
    assert_eq!(missing, Some(PlaceError::Link { rank: Rank(1), peer: Rank(0) }));
    let three: ParallelPlan = "dp3".parse().unwrap();
    let uneven = RankLinks::new(&three, Rank(2), Default::default()).err();
    assert_eq!(uneven, Some(PlaceError::Degree { members: 3 }));
}

#[test]
fn refuses_batches_that_do_not_fit() {
    let (job, plan) = (job(config(), 4), ParallelPlan::SERIAL);
    let links = RankLinks::new(&plan, Rank(0), Default::default()).unwrap();
    let mut trainer = Trainer::new(&job, &plan, Rank(0), links, Device::cpu().stream()).unwrap();
    let good = batch(&job, &plan, Rank(0), 0, 2);
    let mut step = |edit: fn(&mut StepBatch)| {
        let mut batch = good.clone();
        edit(&mut batch);
        trainer.step(0, batch)
    };
    assert!(matches!(step(|batch| batch.groups.clear()), Err(StepError::Groups { .. })));
    assert!(matches!(
        step(|batch| batch.groups.push(batch.groups[0].clone())),
        Err(StepError::Groups { .. })
    ));
    assert!(matches!(step(|batch| drop(batch.groups[0].pop())), Err(StepError::Groups { .. })));
    assert!(matches!(step(|batch| batch.global_targets = 0), Err(StepError::NoTargets)));
    assert!(matches!(
        step(|batch| batch.global_targets = 75),
        Err(StepError::Targets { own: 76, global: 75 })
    ));
    assert!(matches!(step(|batch| batch.groups[0][0].targets[0] = 41), Err(StepError::Batch(_))));
    assert!(step(|_| {}).is_ok());
}

#[test]
fn steps_after_the_first_ask_the_system_for_no_memory() {
    // Buffers of many sizes.
    let config = ModelConfig { vocab_size: 3000, hidden_size: 64, intermediate_size: 200, ..config() };
    for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
        let (job, plan, device) = (job(config.clone(), 4), ParallelPlan::SERIAL, Device::cpu());
        let links = RankLinks::new(&plan, Rank(0), Default::default()).unwrap();
        let mut trainer = Trainer::new(&job, &plan, Rank(0), links, device.stream()).unwrap();
        trainer.set_execution(Execution { recompute, ..Execution::default() });
        let allocations: Vec<u64> = (0..4)
            .map(|step| {
                trainer.step(step, batch(&job, &plan, Rank(0), step, GROUPS)).unwrap();
                device.memory_use().allocations
            })
            .collect();
        assert_eq!(allocations, [allocations[0]; 4], "{recompute:?}");
        let MemoryUse { used_bytes, used_bytes_max, free_bytes, .. } = device.memory_use();
        assert!(used_bytes + free_bytes <= used_bytes_max + used_bytes_max / 4);
    }
}

#[test]
fn a_rank_that_leaves_ends_the_step_of_the_others() {
    let (job, plan): (_, ParallelPlan) = (job(config(), 4), "tp2".parse().unwrap());
    let mut links = connect(&plan);
    drop(links.pop());
    let links = RankLinks::new(&plan, Rank(0), links.remove(0)).unwrap();
    let mut trainer = Trainer::new(&job, &plan, Rank(0), links, Device::cpu().stream()).unwrap();
    let left = trainer.step(0, batch(&job, &plan, Rank(0), 0, GROUPS));
    assert!(matches!(left, Err(StepError::Tensor(_))));
}
