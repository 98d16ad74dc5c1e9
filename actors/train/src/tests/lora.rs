//! Adapters beside a model that another training made.

use sixfold_artifact::Manifest;
use sixfold_artifact::model::{ADAPTER_CONFIG, ADAPTERS, ModelFiles, WEIGHTS};
use sixfold_cluster::task::{ErrorClass, Metric};
use sixfold_model::{
    AdaptedWeights, Geometry, ModelConfig, ModelSlice, PeftAdapter, UnitBuffer, merge_adapters,
    weights_blake3, write_parameters,
};
use sixfold_wire::id::ArtifactId;

use super::gang::Gang;
use super::options;
use crate::options::{BaseFormat, TrainOptions};

/// Adapters of all projections of `base`, with dropout.
fn adapted(first: &Gang, base: ArtifactId, plan: &str) -> TrainOptions {
    let config = first.store.read(base, "config.json").unwrap();
    let mut all = serde_json::to_value(options(plan)).unwrap();
    all.as_object_mut().unwrap().append(&mut crate::options_of_base(&config).unwrap());
    let lora = TrainOptions { lora_rank: 4, lora_dropout: 0.1, ..serde_json::from_value(all).unwrap() };
    TrainOptions { learning_rate: 0.01, ..lora }
}

#[test]
fn adapters_of_any_plan_have_the_same_bits_and_the_weights_of_their_base() {
    let first = Gang::new(options("tp2"));
    let base = first.run().unwrap();
    let run = |plan, format| {
        let options = TrainOptions { base_format: format, ..adapted(&first, base.model, plan) };
        first.again(options).starting_from(base.model).run().unwrap()
    };
    let serial = run("tp1", BaseFormat::F32);
    for plan in ["dp2", "pp2", "dp2.tp2"] {
        assert_eq!(run(plan, BaseFormat::F32).hashes(), serial.hashes(), "{plan}");
    }
    assert!(serial.number("loss_first") < base.number("loss_last") * 1.1, "they begin as the base");
    let [quantised, on_two] = ["tp1", "tp2.pp2"].map(|plan| run(plan, BaseFormat::Nf4));
    assert_eq!(quantised.hashes(), on_two.hashes());
    assert_ne!(quantised.hashes(), serial.hashes());

    // The model is adapters alone, beside a base that is told by the manifest and by PEFT's file.
    let manifest = first.store.manifest(serial.model).unwrap();
    assert_eq!((manifest.needs.as_slice(), manifest.file(WEIGHTS)), ([base.model].as_slice(), None));
    let peft: serde_json::Value =
        serde_json::from_slice(&first.store.read(serial.model, ADAPTER_CONFIG).unwrap()).unwrap();
    assert_eq!(peft["base_model_name_or_path"], base.model.to_string());
    let (geometry, adapters) = adapters_of(&first, serial.model);
    let hash = weights_blake3(&geometry, &adapters).to_hex().to_string();
    assert_eq!(*serial.hashes()[0], Metric::Text(hash));
    let [of_base, both] = [base.model, serial.model].map(|id| weights_of(&first, id, &geometry.base()));
    assert_eq!(merge_adapters(&geometry, &of_base, &adapters), both);
    assert_ne!(of_base, both);
}

/// The adapters of a task model.
fn adapters_of(gang: &Gang, id: ArtifactId) -> (Geometry, UnitBuffer) {
    let read = |file: &str| gang.store.read(id, file).unwrap();
    let (config, shards) = ModelConfig::from_hugging_face(&read("config.json")).unwrap();
    let peft = PeftAdapter::parse(&read(ADAPTER_CONFIG), &config).unwrap();
    let geometry = Geometry::new(config, shards.unwrap()).unwrap().with_lora(peft.lora().clone()).unwrap();
    let adapters = peft.read(&geometry, &read(ADAPTERS)).unwrap();
    (geometry, adapters)
}

/// The weights that a model stands for.
fn weights_of(gang: &Gang, id: ArtifactId, geometry: &Geometry) -> UnitBuffer {
    let files = ModelFiles::open(&gang.store, id).unwrap();
    let weights = AdaptedWeights::parse(geometry, &[files.weights()], files.adapters()).unwrap();
    weights.read_slice(geometry, &ModelSlice::whole(geometry)).unwrap()
}

#[test]
fn a_training_from_a_task_model_has_the_bits_of_one_from_the_merged_model() {
    let first = Gang::new(options("tp1"));
    let base = first.run().unwrap().model;
    let task = first.again(adapted(&first, base, "tp2")).starting_from(base).run().unwrap().model;
    let merged = {
        let geometry = adapters_of(&first, task).0.base();
        let weights = write_parameters(&geometry, &weights_of(&first, task, &geometry)).unwrap();
        let mut manifest = Manifest { needs: Vec::new(), ..first.store.manifest(task).unwrap() };
        manifest.files.retain(|file| !file.name.starts_with("adapter"));
        manifest.files.push(first.store.put(WEIGHTS, &weights).unwrap());
        first.store.publish(&manifest).unwrap()
    };
    let whole = |plan| TrainOptions { lora_rank: 0, ..adapted(&first, base, plan) };
    let nf4 = |plan| TrainOptions { base_format: BaseFormat::Nf4, ..adapted(&first, base, plan) };
    let from = |model, options| first.again(options).starting_from(model).run().unwrap();
    for (of_task, of_merged) in [
        (from(task, whole("tp2.pp2")), from(merged, whole("tp1"))),
        (from(task, adapted(&first, base, "dp2")), from(merged, adapted(&first, base, "tp1"))),
        (from(task, nf4("tp2")), from(merged, nf4("tp1"))),
    ] {
        assert_eq!(of_task.hashes(), of_merged.hashes());
    }
    let second = from(task, adapted(&first, base, "tp1"));
    assert_eq!(first.store.manifest(second.model).unwrap().needs, [task]);
    assert_ne!(from(base, whole("tp1")).hashes(), from(merged, whole("tp1")).hashes());

    let alone = first.again(whole("tp1")).starting_from(second.model);
    first.store.remove(base).unwrap();
    let errors = alone.run().unwrap_err();
    let error = errors.into_values().next().unwrap();
    assert!(error.message.contains(&base.to_string()), "{error}");
    assert_eq!(error.class, ErrorClass::Restart, "it may be on another node");
}

#[test]
fn adapters_that_no_longer_improve_are_the_best_ones() {
    let small = TrainOptions { batch_sequences: 8, context_length: 24, ..options("tp1") };
    let first = Gang::of_dialogues(small);
    let base = first.run().unwrap().model;
    let stopping = |plan| TrainOptions {
        batch_sequences: 8,
        steps: 12,
        learning_rate: 0.5,
        evaluate_every_steps: 1,
        evaluate_tokens: 500,
        early_stop_evaluations: 2,
        ..adapted(&first, base, plan)
    };
    let serial = first.again(stopping("tp1")).starting_from(base).run().unwrap();
    let (Metric::Count(kept), Metric::Count(done)) = (&serial.metrics["kept_step"], &serial.metrics["steps"])
    else {
        panic!("{:?}", serial.metrics)
    };
    assert!(*kept < *done, "the last ones of {done} steps are the best");
    let on_four = first.again(stopping("dp2.tp2")).starting_from(base).run().unwrap();
    assert_eq!(on_four.hashes(), serial.hashes());
    // A training from the task model begins with the loss of those that were kept.
    let once = TrainOptions { steps: 1, early_stop_evaluations: 0, lora_rank: 0, ..stopping("tp1") };
    let again = first.again(once).starting_from(serial.model).run().unwrap();
    let (begun, best) = (again.number("held_out_loss_first"), serial.number("held_out_loss"));
    assert!((begun - best).abs() < 1e-4 * best, "{begun} and {best}");
}

#[test]
fn after_a_fault_adapters_go_on_from_their_own_states() {
    let first = Gang::new(options("tp1"));
    let base = first.run().unwrap().model;
    let undisturbed = first.again(adapted(&first, base, "dp2")).starting_from(base);
    let expected = undisturbed.run().unwrap();
    let again = undisturbed.again(adapted(&first, base, "pp2")).starting_from(base);
    let outcome = again.resumed_at(4).run().unwrap();
    assert_eq!(outcome.hashes(), expected.hashes());
    assert!(outcome.log.iter().any(|line| line.contains("going on from step 4")), "{:?}", outcome.log);
}

#[test]
fn adapters_without_a_base_are_refused() {
    let error = TrainOptions { lora_rank: 4, ..options("tp1") }.validate().unwrap_err();
    assert_eq!(error.to_string(), "`lora_rank` is 4; it must be 0 where no input is a model");
    let error = TrainOptions { base_format: BaseFormat::Nf4, ..options("tp1") }.validate().unwrap_err();
    assert!(error.to_string().starts_with("`base_format`"), "{error}");
}
