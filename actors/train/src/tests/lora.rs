//! Adapters beside a model that another training made.

use sixfold_cluster::task::Metric;
use sixfold_model::{
    Geometry, ModelConfig, ModelSlice, PeftAdapter, merge_adapters, read_parameters, weights_blake3,
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

    // The model is the base's with the adapters, which are told by what is in both files.
    let read = |id, file: &str| first.store.read(id, file).unwrap();
    let (config, shards) = ModelConfig::from_hugging_face(&read(serial.model, "config.json")).unwrap();
    let base_geometry = Geometry::new(config.clone(), shards.unwrap()).unwrap();
    let peft = PeftAdapter::parse(&read(serial.model, "adapter_config.json"), &config).unwrap();
    let geometry = base_geometry.clone().with_lora(peft.lora().clone()).unwrap();
    let whole = ModelSlice::whole(&geometry);
    let adapters = peft.read(&geometry, &read(serial.model, "adapter_model.safetensors")).unwrap();
    let hash = weights_blake3(&geometry, &adapters).to_hex().to_string();
    assert_eq!(*serial.hashes()[0], Metric::Text(hash));
    let [of_base, merged] = [base.model, serial.model]
        .map(|id| read_parameters(&base_geometry, &whole, &read(id, "model.safetensors")).unwrap());
    assert_eq!(merge_adapters(&geometry, &of_base, &adapters), merged);
    assert_ne!(of_base, merged);
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
