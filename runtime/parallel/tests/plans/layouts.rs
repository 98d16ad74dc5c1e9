//! Stages that take turns with several chunks of layers, or have as many as one likes.

use sixfold_model::ModelConfig;
use sixfold_parallel::{Execution, PlaceError, RankLinks, Trainer, TrainingJob};
use sixfold_tensor::Device;
use sixfold_topology::Rank;

use super::gang::{Run, connect, parse};
use super::{assert_all_equal, config, gpt2, job, run};

/// As the plans, but stages take turns with their chunks of layers, or have as many layers as the test says.
const LAYOUTS: [&str; 8] = [
    "pp2 v2",
    "pp2 v3",
    "pp3 v2",
    "tp2.pp2 v2",
    "dp2.pp2 v2",
    "dp2.tp2.pp2 v2",
    "pp3 1+2+3",
    "tp2.pp2 v2 2+1+1+2",
];

fn six_layers(config: ModelConfig) -> TrainingJob {
    job(ModelConfig { num_hidden_layers: 6, ..config }, 4)
}

#[test]
fn every_layout_of_a_pipeline_has_the_bits_of_the_serial_run() {
    assert_all_equal(&six_layers(config()), &LAYOUTS);
    assert_all_equal(&job(ModelConfig { num_hidden_layers: 8, ..config() }, 4), &["pp4 v2", "dp2.pp4 v2"]);
    assert_all_equal(
        &six_layers(ModelConfig { num_key_value_heads: 2, ..config() }),
        &["tp2.pp2 v2", "pp2 v3"],
    );
    // The embedding and the head alone are stages, too.
    assert_all_equal(&job(config(), 4), &["pp3 0+3+0", "pp2 v2 0+2+1+0"]);
}

#[test]
fn interleaved_stages_with_a_tied_head_keep_the_bits() {
    let tied = ModelConfig { tie_word_embeddings: true, ..config() };
    assert_all_equal(&six_layers(tied.clone()), &["pp2 v2", "pp3 v2", "dp2.tp2.pp2 v2", "pp3 1+2+3"]);
    assert_all_equal(&job(tied, 4), &["pp2 v2 0+2+1+0"]);
}

#[test]
fn every_layout_of_a_gpt2_has_the_bits_of_the_serial_run() {
    for tie_word_embeddings in [false, true] {
        assert_all_equal(&six_layers(ModelConfig { tie_word_embeddings, ..gpt2() }), &LAYOUTS);
    }
}

/// More or fewer than one round of micro-batches, and a last round that is not full.
#[test]
fn any_number_of_micro_batches_goes_through_interleaved_stages() {
    for groups in [1, 2, 8] {
        for pass_tokens in [1, 40] {
            let job = six_layers(config());
            let execution = Execution { pass_tokens, ..Execution::default() };
            let serial = Run { plan: "pp1", groups, execution, ..layout_run(&job) }.go().0;
            for plan in ["pp3 v2", "pp2 v3", "pp2 v2"] {
                let (outcome, _) = Run { plan, groups, execution, ..layout_run(&job) }.go();
                assert!(outcome == serial, "{plan}, {groups} groups, {pass_tokens} tokens");
            }
        }
    }
}

fn layout_run(job: &TrainingJob) -> Run<'_> {
    Run { steps: 0..2, ..Run::new(job, "pp1") }
}

#[test]
fn a_shared_optimizer_of_interleaved_stages_keeps_the_bits() {
    let tied = ModelConfig { tie_word_embeddings: true, ..config() };
    let cut_inside = ModelConfig { vocab_size: 4000, ..config() };
    for (name, config) in [("plain", config()), ("tied", tied), ("cut", cut_inside), ("gpt2", gpt2())] {
        let job = six_layers(config);
        let serial = Run { plan: "dp1", shared: true, ..layout_run(&job) }.go().0;
        for plan in ["dp2.pp2 v2", "dp4.pp2 v3", "dp2.tp2.pp2 v2", "dp2.pp3 1+2+3"] {
            let (outcome, _) = Run { plan, shared: true, ..layout_run(&job) }.go();
            assert!(outcome == serial, "{name}, {plan}");
        }
    }
}

#[test]
fn another_layout_continues_a_run() {
    let job = six_layers(config());
    let (begun, _) = Run { plan: "pp2 v3", steps: 0..1, ..layout_run(&job) }.go();
    let (moved, _) = Run { plan: "tp2.pp3 1+2+3", steps: 1..2, from: Some(&begun), ..layout_run(&job) }.go();
    let (ended, _) = Run { plan: "dp2", steps: 2..3, from: Some(&moved), ..layout_run(&job) }.go();
    assert!(ended.units == Run { steps: 0..3, ..layout_run(&job) }.go().0.units);
}

#[test]
fn ranks_of_interleaved_stages_hold_and_compute_only_their_share() {
    let job = six_layers(config());
    let (_, serial) = run(&job, "pp1");
    for (plan, ways) in [("pp2 v3", 2), ("tp2.pp3 v2", 6)] {
        let (_, accounts) = run(&job, plan);
        for account in accounts {
            assert_eq!(account.parameters.layer_bytes, serial[0].parameters.layer_bytes / ways, "{plan}");
            assert_eq!(account.work.projections, serial[0].work.projections / ways, "{plan}");
        }
    }
}

#[test]
fn refuses_a_layout_of_another_model() {
    let (plan, layout) = parse("pp2 v2", &six_layers(config()));
    let links = RankLinks::new(&plan, Rank(0), connect(&plan).remove(0)).unwrap();
    let stream = Device::strict_cpu().stream();
    let refused = Trainer::with_layout(&job(config(), 4), &plan, &layout, Rank(0), links, stream).err();
    assert!(matches!(refused, Some(PlaceError::Layout(_))), "{refused:?}");
}
