//! Whole gangs through the actor, each rank a thread with links within the process or over the network.

mod base;
mod commits;
mod dialogues;
mod gang;
mod layouts;
mod lora;
pub(crate) mod meeting;
mod shared_rows;
mod telling;

use std::time::Duration;

use gang::{Gang, Outcome};
use sixfold_cluster::task::{ErrorClass, LinkChoice, Metric, TaskError};
use sixfold_model::Family;
use sixfold_topology::Rank;

use crate::options::TrainOptions;

const STEPS: u64 = 6;

fn options(plan: &str) -> TrainOptions {
    let plan: sixfold_topology::ParallelPlan = plan.parse().unwrap();
    TrainOptions {
        layers: 2,
        hidden_size: 16,
        heads: 4,
        kv_heads: 4,
        context_length: 12,
        steps: STEPS,
        batch_sequences: 4,
        warmup_steps: 2,
        learning_rate: 0.01,
        min_learning_rate: 0.001,
        dropout: 0.1,
        checkpoint_every_steps: 2,
        peak_gflops: 0.5,
        data_parallel: plan.data_parallel,
        tensor_parallel: plan.tensor_parallel,
        pipeline_parallel: plan.pipeline_parallel,
        ..TrainOptions::default()
    }
}

fn undisturbed() -> Outcome {
    Gang::new(options("tp1")).run().unwrap()
}

#[test]
fn every_plan_gives_the_bits_of_the_serial_run() {
    let serial = undisturbed();
    assert!(serial.number("loss_last") < serial.number("loss_first"));
    for plan in ["tp2", "pp2", "dp2", "tp2.pp2", "dp2.tp2"] {
        let outcome = Gang::new(options(plan)).run().unwrap();
        assert_eq!(outcome.hashes(), serial.hashes(), "{plan}");
        assert_eq!(outcome.ranks.len(), options(plan).plan().world_size());
    }
}

#[test]
fn replicas_share_the_moments_and_change_no_bit() {
    let serial = undisturbed();
    let moments = |outcome: &Outcome| -> Vec<u64> {
        outcome.ranks.iter().map(|rank| rank["moment_bytes"].as_u64().unwrap()).collect()
    };
    let whole = moments(&serial)[0];
    for plan in ["dp2", "dp4"] {
        for family in Family::ALL {
            for tie_embeddings in [false, true] {
                let with = |plan, zero_stage| {
                    let options = TrainOptions { family, tie_embeddings, zero_stage, ..options(plan) };
                    Gang::new(options).run().unwrap()
                };
                let (serial, copies, shared) = (with("tp1", 1), with(plan, 0), with(plan, 1));
                assert_eq!(copies.hashes(), serial.hashes(), "{plan} {family:?}, tied {tie_embeddings}");
                assert_eq!(shared.hashes(), serial.hashes(), "{plan} {family:?}, tied {tie_embeddings}");
                let (copies, shared): (u64, u64) =
                    (moments(&copies).iter().sum(), moments(&shared).iter().sum());
                assert_eq!(copies, moments(&serial)[0] * shared_ranks(plan), "every replica has all");
                assert!(shared < copies * 9 / 10, "{plan}: {shared} of {copies} bytes of moments");
            }
        }
        let shared = Gang::new(options(plan)).run().unwrap();
        let sum: u64 = moments(&shared).iter().sum();
        assert!(sum < whole * 5 / 4, "{plan}: {sum} bytes of moments, {whole} serially");
    }
}

fn shared_ranks(plan: &str) -> u64 {
    plan.parse::<sixfold_topology::ParallelPlan>().unwrap().world_size() as u64
}

#[test]
fn checkpoints_go_from_plan_to_plan_with_and_without_a_shared_optimizer() {
    let with = |plan, zero_stage| TrainOptions { zero_stage, steps: 8, ..options(plan) };
    let expected = Gang::new(with("tp1", 0)).run().unwrap();
    let mut gang = Gang::new(with("dp2", 1));
    let mut outcome = gang.run().unwrap();
    assert_eq!(outcome.hashes(), expected.hashes());
    for (step, plan, zero_stage) in [(2, "tp2", 0), (4, "dp4", 1), (6, "tp1", 0)] {
        gang = gang.again(with(plan, zero_stage)).resumed_at(step);
        outcome = gang.run().unwrap();
        assert_eq!(outcome.hashes(), expected.hashes(), "{plan} from step {step}");
        let line = format!("going on from step {step} of 8");
        assert!(outcome.log.iter().any(|logged| logged.contains(&line)), "{:?}", outcome.log);
    }
}

#[test]
fn links_over_the_network_give_the_same_bits() {
    let serial = undisturbed();
    for choice in [LinkChoice::Quic, LinkChoice::SharedMemory] {
        let mut gang = Gang::new(options("dp2.tp2.pp2"));
        gang.network = Some(choice);
        assert_eq!(gang.run().unwrap().hashes(), serial.hashes(), "{choice:?}");
    }
}

#[test]
fn a_peer_lost_over_the_network_is_named() {
    for choice in [LinkChoice::Quic, LinkChoice::SharedMemory] {
        let mut gang = Gang::new(options("pp2"));
        (gang.network, gang.stopped) = (Some(choice), Some(Rank(1)));
        let errors = gang.run().unwrap_err();
        assert_eq!(errors[&Rank(0)].class, ErrorClass::Restart);
        let message = &errors[&Rank(0)].message;
        assert!(message.contains("rank 1 on here"), "{choice:?}: {message}");
    }
}

#[test]
fn ranks_hold_and_compute_a_share() {
    let serial = undisturbed().ranks.remove(0);
    let whole = |key: &str| serial[key].as_u64().unwrap();
    for rank in Gang::new(options("tp2.pp2")).run().unwrap().ranks {
        for key in ["parameter_bytes", "flops"] {
            let part = rank[key].as_u64().unwrap();
            assert!(part > 0 && part * 10 < whole(key) * 6, "{key}: {part} of {}", whole(key));
        }
        assert!(rank["bytes_sent"].as_u64().unwrap() > 0);
    }
    assert_eq!(whole("bytes_sent"), 0);
}

#[test]
fn swapping_two_leaves_of_the_tree_changes_the_hashes() {
    let mut swapped = Gang::new(options("tp4"));
    let straight = swapped.run().unwrap();
    swapped.swapped = Some((Rank(1), Rank(2)));
    assert_ne!(swapped.run().unwrap().hashes(), straight.hashes());
}

#[test]
fn any_plan_goes_on_from_any_checkpoint() {
    let expected = undisturbed();
    for (before, after) in [("tp2.pp2", "dp2"), ("dp2.tp2", "pp2"), ("tp1", "tp2.pp2")] {
        let gang = Gang::new(options(before));
        gang.run().unwrap();
        let resumed = gang.again(options(after)).resumed_at(4);
        let outcome = resumed.run().unwrap();
        assert_eq!(outcome.hashes(), expected.hashes(), "{before} to {after}");
        assert!(outcome.log.iter().any(|line| line.contains("going on from step 4")), "{:?}", outcome.log);
    }
}

#[test]
fn a_finished_run_only_writes_its_model_again() {
    let gang = Gang::new(options("tp2"));
    let first = gang.run().unwrap();
    let again = gang.again(options("pp2")).resumed_at(STEPS).run().unwrap();
    assert_eq!(again.hashes(), first.hashes());
}

#[test]
fn a_damaged_checkpoint_is_refused_and_an_older_one_used() {
    for (before, after) in [("tp2.pp2", "tp2"), ("dp2", "dp4"), ("dp4", "dp4")] {
        let gang = Gang::new(options(before));
        let expected = gang.run().unwrap();
        for damage in [gang::Damage::Bit, gang::Damage::Cut, gang::Damage::Gone] {
            let resumed = gang.again(options(after)).resumed_at(4);
            let restore = resumed.damage_one_file(4, damage);
            let outcome = resumed.run().unwrap();
            assert_eq!(outcome.hashes(), expected.hashes(), "{damage:?}");
            let logged = |text: &str| outcome.log.iter().any(|line| line.contains(text));
            assert!(logged("checkpoint of step 4 is not used"), "{before}: {:?}", outcome.log);
            assert!(logged("going on from step 2"), "{before}: {:?}", outcome.log);
            restore();
        }
    }
}

#[test]
fn a_checkpoint_of_another_job_is_refused() {
    let gang = Gang::new(options("tp2"));
    gang.run().unwrap();
    let other = TrainOptions { seed: 2, ..options("tp2") };
    let fresh = Gang::new(other.clone()).run().unwrap();
    let outcome = gang.again(other).resumed_at(4).run().unwrap();
    assert_eq!(outcome.hashes(), fresh.hashes());
    assert!(outcome.log.iter().any(|line| line.contains("other options")), "{:?}", outcome.log);
}

#[test]
fn the_model_can_be_read_back() {
    let gang = Gang::new(options("tp2.pp2"));
    let outcome = gang.run().unwrap();
    let file = |name| gang.store.read(outcome.model, name).unwrap();
    let (config, shards) = sixfold_model::ModelConfig::from_hugging_face(&file("config.json")).unwrap();
    assert_eq!((shards, config.eos_token_id), (Some(4), Some(crate::testing::END_OF_TEXT)));
    let geometry = sixfold_model::Geometry::new(config, 4).unwrap();
    let whole = sixfold_model::ModelSlice::whole(&geometry);
    let parameters = sixfold_model::read_parameters(&geometry, &whole, &file("model.safetensors")).unwrap();
    let hash = sixfold_model::weights_blake3(&geometry, &parameters).to_hex().to_string();
    assert_eq!(outcome.metrics["weights_blake3"], Metric::Text(hash));
    assert_eq!(file("tokenizer.json"), crate::testing::TOKENIZER);
    let training: serde_json::Value = serde_json::from_slice(&file("training.json")).unwrap();
    assert_eq!(training["loss_bits"].as_array().unwrap().len(), STEPS as usize);
    assert_eq!(training["plan"]["tensor_parallel"], 2);
}

#[test]
fn a_lost_member_restarts_its_peers() {
    let mut gang = Gang::new(options("tp2"));
    gang.stopped = Some(Rank(1));
    let errors = gang.run().unwrap_err();
    assert!(errors.values().all(|error| error.class == ErrorClass::Restart), "{errors:?}");
    let says = |rank, text: &str| errors[&rank].message.starts_with(text);
    assert!(says(Rank(1), "stopped before step"), "{errors:?}");
    assert!(says(Rank(0), "rank 0, step"), "{errors:?}");
}

#[test]
fn a_slow_rank_is_named() {
    let mut gang = Gang::new(TrainOptions { steps: 12, ..options("tp2.pp2") });
    gang.slowed = Some((Rank(3), Duration::from_millis(2)));
    let outcome = gang.run().unwrap();
    let named: Vec<_> = outcome.log.iter().filter(|line| line.contains("straggler")).collect();
    assert_eq!(named.len(), 1, "{:?}", outcome.log);
    assert!(named[0].starts_with("rank 3 on node here is a straggler: "), "{named:?}");
    assert_eq!(outcome.progress.len(), 12);
    let slow = outcome.progress.iter().filter(|figures| figures["slowest_rank"] == Metric::Count(3));
    assert!(slow.count() > 10, "{:?}", outcome.progress);
    let Metric::Number(ratio) = outcome.progress[6]["slowest_rank_to_median"] else { panic!("no ratio") };
    assert!(ratio > 1.5, "{ratio}");
    let serial = Gang::new(options("tp1")).run().unwrap();
    assert!(!serial.progress[0].contains_key("slowest_rank"), "a rank alone is compared with nobody");
}

#[test]
fn the_rank_and_the_layer_of_the_first_number_that_is_not_finite_are_named() {
    let diverging = TrainOptions { learning_rate: 1e30, clip_norm: 0.0, ..options("dp2.tp2.pp2") };
    let errors = Gang::new(diverging).run().unwrap_err();
    assert_eq!(errors.len(), 8);
    for error in errors.values() {
        assert_eq!(error, &errors[&Rank(0)], "all ranks say the same");
        assert_eq!(error.class, ErrorClass::Fatal);
        let words = [
            "step 1: rank 2 on node here had",
            "in the backward pass of model.layers.1.mlp",
            "training cannot go on",
        ];
        for word in words {
            assert!(error.message.contains(word), "`{word}` is not in: {}", error.message);
        }
    }
}

#[test]
fn a_gang_that_does_not_gather_can_be_stopped() {
    let mut gang = Gang::new(options("tp2"));
    gang.absent = Some(Rank(1));
    let errors = gang.run().unwrap_err();
    assert_eq!(errors[&Rank(0)], TaskError::restart("stopped while waiting for other ranks"));
}

#[test]
fn wrong_options_are_fatal_and_named() {
    let refused = |edit: fn(&mut TrainOptions)| {
        let mut options = options("tp1");
        edit(&mut options);
        let error = Gang::new(options).run().unwrap_err().remove(&Rank(0)).unwrap();
        assert_eq!(error.class, ErrorClass::Fatal, "{error}");
        error.message
    };
    assert!(refused(|o| o.heads = 5).contains("`heads` is 5"));
    assert!(refused(|o| o.context_length = 100_000).contains("lower sequence_length"));
    assert!(refused(|o| o.learning_rate = 1e30).contains("training cannot go on"));
}
