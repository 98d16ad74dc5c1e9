//! Trainings that start from a model, and models that come from a folder.

use std::path::Path;
use std::sync::Arc;

use ractor::Actor;
use sixfold_artifact::Store;
use sixfold_cluster::task::{ErrorClass, LocalHost, TaskContext, TaskError, TaskOutput, TaskSpec};
use sixfold_cluster::work::Threaded;
use sixfold_model::{Geometry, ModelConfig, ModelSlice, read_parameters};
use sixfold_wire::id::{ArtifactId, Epoch, JobId, TaskId};

use super::gang::{Gang, NODE};
use super::options;
use crate::import::{ModelImporter, ModelOptions};
use crate::options::TrainOptions;

/// A gang beside one that has made a model, which it starts from.
fn continued(from: &Gang, base: ArtifactId, options: TrainOptions) -> Gang {
    from.again(options).starting_from(base)
}

fn second(plan: &str) -> TrainOptions {
    TrainOptions { seed: 2, ..options(plan) }
}

#[test]
fn every_plan_starts_from_the_base_with_the_same_bits() {
    let first = Gang::new(options("tp2"));
    let base = first.run().unwrap();
    let serial = continued(&first, base.model, second("tp1")).run().unwrap();
    let fresh = first.again(second("tp1")).run().unwrap();
    assert!(serial.number("loss_first") < base.number("loss_last") * 1.05, "it goes on where the base was");
    assert_ne!(serial.hashes(), fresh.hashes());
    for plan in ["dp2", "pp2", "tp2.pp2", "dp2.tp2"] {
        let outcome = continued(&first, base.model, second(plan)).run().unwrap();
        assert_eq!(outcome.hashes(), serial.hashes(), "{plan}");
    }
    let manifest = first.store.manifest(serial.model).unwrap();
    assert!(manifest.parents.contains(&base.model));
    assert_eq!(manifest.metadata["base"], base.model.to_string());
}

#[test]
fn after_a_fault_a_training_goes_on_from_its_own_states_and_not_from_the_base() {
    let first = Gang::new(options("tp1"));
    let base = first.run().unwrap().model;
    let undisturbed = continued(&first, base, second("dp2"));
    let expected = undisturbed.run().unwrap();
    let outcome = undisturbed.again(second("pp2")).resumed_at(4).run().unwrap();
    assert_eq!(outcome.hashes(), expected.hashes());
    assert!(outcome.log.iter().any(|line| line.contains("going on from step 4")), "{:?}", outcome.log);
    // Of a training from another base nothing is taken.
    let other = undisturbed.again(second("tp1")).resumed_at(4);
    let other = other.starting_from(expected.model).run().unwrap();
    assert!(
        other.log.iter().any(|line| line.contains("checkpoint of step 4 is not used")),
        "{:?}",
        other.log
    );
}

#[test]
fn a_base_of_another_shape_or_none_is_refused() {
    let first = Gang::new(options("tp1"));
    let base = first.run().unwrap().model;
    let refused = |gang: Gang| {
        let errors = gang.run().unwrap_err();
        let error = errors.into_values().next().unwrap();
        assert_eq!(error.class, ErrorClass::Fatal, "{error}");
        error.message
    };
    let other = TrainOptions { layers: 3, ..options("tp1") };
    assert!(refused(continued(&first, base, other)).contains("submit the job again"));
    let mut with_base = serde_json::to_value(options("tp1")).unwrap();
    let config = first.store.read(base, "config.json").unwrap();
    with_base.as_object_mut().unwrap().append(&mut crate::options_of_base(&config).unwrap());
    let with_base: TrainOptions = serde_json::from_value(with_base).unwrap();
    assert!(refused(first.again(with_base.clone())).contains("no input of the stage is a model"));
    continued(&first, base, with_base).run().unwrap();
}

/// Runs a `model` stage on a folder.
fn import(store: &Store, folder: &Path) -> Result<TaskOutput, TaskError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let spec = TaskSpec {
        id: TaskId { job: JobId(1), phase: 0, index: 0 },
        role: "model".into(),
        stage: "model".into(),
        count: 1,
        options_json: serde_json::to_string(&ModelOptions { path: folder.to_owned() }).unwrap(),
        inputs: Vec::new(),
        resume: Vec::new(),
    };
    let (host, scratch) = (Arc::new(LocalHost::new(store.clone())), tempfile::tempdir().unwrap());
    runtime.block_on(async {
        let (context, result) =
            TaskContext::new(spec, Epoch(1), NODE.into(), store.clone(), scratch.path().to_owned(), host);
        let (_, actor) = Actor::spawn(None, Threaded::new(ModelImporter), context).await.unwrap();
        let result = result.await.unwrap();
        actor.await.unwrap();
        result
    })
}

#[test]
fn a_folder_of_one_file_or_of_several_becomes_the_same_model() {
    let gang = Gang::new(options("tp1"));
    let trained = gang.run().unwrap().model;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    gang.store.export(trained, folder.path()).unwrap();
    let output = import(&gang.store, folder.path()).unwrap();
    let single = continued(&gang, output.artifacts[0], second("tp1")).run().unwrap();
    let expected = continued(&gang, trained, second("tp1")).run().unwrap();
    assert_eq!(single.hashes(), expected.hashes());

    // The tensors in two files, with an index.
    let bytes = std::fs::read(path("model.safetensors")).unwrap();
    std::fs::remove_file(path("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let file_of = |name: &str| if name.contains("layers.1") { "two.safetensors" } else { "one.safetensors" };
    for file in ["one.safetensors", "two.safetensors"] {
        let own: Vec<_> = all.tensors().into_iter().filter(|(name, _)| file_of(name) == file).collect();
        std::fs::write(path(file), safetensors::serialize(own, None).unwrap()).unwrap();
    }
    let names = all.names().into_iter().map(|name| (name.to_owned(), file_of(name).into()));
    let index = serde_json::json!({"weight_map": names.collect::<serde_json::Map<_, _>>()});
    std::fs::write(path("model.safetensors.index.json"), index.to_string()).unwrap();
    let output = import(&gang.store, folder.path()).unwrap();
    let several = continued(&gang, output.artifacts[0], second("tp1")).run().unwrap();
    assert_eq!(several.hashes(), expected.hashes());

    // What is damaged is refused, with the file's name.
    let refused = |file: &str, content: &[u8]| {
        let whole = std::fs::read(path(file)).unwrap();
        std::fs::write(path(file), content).unwrap();
        let error = import(&gang.store, folder.path()).unwrap_err();
        std::fs::write(path(file), whole).unwrap();
        assert_eq!(error.class, ErrorClass::Fatal, "{error}");
        error.message
    };
    assert!(refused("config.json", b"{}").contains("config.json"));
    assert!(refused("one.safetensors", b"short").contains("one.safetensors"));
    let one = std::fs::read(path("one.safetensors")).unwrap();
    assert!(refused("two.safetensors", &one).contains("where the index"));
    let not_finite: Vec<u8> = {
        let mut whole = std::fs::read(path("two.safetensors")).unwrap();
        let end = whole.len();
        whole[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        whole
    };
    assert!(refused("two.safetensors", &not_finite).contains("not finite"));
    std::fs::remove_file(path("tokenizer.json")).unwrap();
    assert!(import(&gang.store, folder.path()).unwrap_err().message.contains("tokenizer.json"));
}

#[test]
fn a_file_of_another_format_becomes_a_model_too() {
    let gang = Gang::new(options("tp1"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtime/formats/tests/golden/llama.gguf");
    let output = import(&gang.store, &file).unwrap();
    let read = |name: &str| gang.store.read(output.artifacts[0], name).unwrap();
    let (config, _) = ModelConfig::from_hugging_face(&read("config.json")).unwrap();
    let geometry = Geometry::new(config, 2).unwrap();
    read_parameters(&geometry, &ModelSlice::whole(&geometry), &read("model.safetensors")).unwrap();
    assert!(read("tokenizer.json").starts_with(b"{"));
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.gguf");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&cut, &whole[..whole.len() - 100]).unwrap();
    let error = import(&gang.store, &cut).unwrap_err();
    assert_eq!(error.class, ErrorClass::Fatal, "{error}");
    assert!(error.message.contains("cut.gguf"), "{error}");
}
