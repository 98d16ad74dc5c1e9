//! The commands over the small models of the crate of formats.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

fn sixfold_model(args: &[&str]) -> Result<()> {
    let args = ["sixfold", "model"].into_iter().chain(args.iter().copied());
    match Cli::try_parse_from(args)?.command {
        Command::Model(command) => run(command),
        _ => bail!("another command"),
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/formats/tests/golden").join(name)
}

#[test]
fn a_gguf_file_is_imported_scored_and_exported_again() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    let source = golden("gpt2.gguf").display().to_string();
    sixfold_model(&["inspect", &source, "--tensors"]).unwrap();
    sixfold_model(&["import", &source, "--to", &path("folder"), "--dtype", "f32"]).unwrap();
    for model in [&source, &path("folder")] {
        sixfold_model(&["logprobs", model, "--ids", "1,15,7", "--json"]).unwrap();
    }
    let to = path("again.gguf");
    sixfold_model(&["export", &path("folder"), "--format", "gguf", "--dtype", "f16", "--to", &to]).unwrap();
    let to_folder = path("again");
    sixfold_model(&["export", &to, "--format", "safetensors", "--to", &to_folder, "--json"]).unwrap();
    let onnx = path("onnx");
    sixfold_model(&["export", &to, "--format", "onnx", "--to", &onnx, "--json"]).unwrap();
    let files = ["model.onnx", "model.onnx_data", "config.json", "tokenizer.json", "generation_config.json"];
    assert!(files.iter().all(|file| Path::new(&onnx).join(file).is_file()));
    let scored = |model: &str| {
        let model = opened(Path::new(model), &SourceArgs { tokenizer: None, no_tokenizer: true }).unwrap();
        logprobs::score(&logprobs::decoder(&model).unwrap(), &(0..30).collect::<Vec<_>>())
    };
    let (logprobs, next) = scored(&path("folder")).unwrap();
    assert_eq!((logprobs.len(), logprobs.iter().all(|logprob| *logprob < 0.0)), (29, true));
    // F16 holds the numbers of this model.
    assert_eq!(scored(&to_folder).unwrap(), (logprobs, next));
}

#[test]
fn what_cannot_be_is_said() {
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("to").display().to_string();
    let source = golden("gpt2.gguf").display().to_string();
    let refused = |args: &[&str]| sixfold_model(args).unwrap_err().to_string();
    assert!(refused(&["logprobs", &source, "--ids", "48"]).contains("end at 47"));
    let sharded = ["export", &source, "--format", "gguf", "--to", &to, "--shard-mib", "1"];
    assert!(refused(&sharded).contains("one file"));
    let quantised = ["export", &source, "--format", "safetensors", "--to", &to, "--quant", "q8_0"];
    assert!(refused(&quantised).contains("--dtype"));
    for more in [["--quant", "q8_0"], ["--dtype", "bf16"], ["--shard-mib", "1"]] {
        let onnx = ["export", &source, "--format", "onnx", "--to", &to, more[0], more[1]];
        assert!(refused(&onnx).contains("ONNX"), "{more:?}");
    }
    assert!(refused(&["import", "absent.gguf", "--to", &to]).contains("absent.gguf"));
    assert!(!Path::new(&to).exists());
}

#[test]
fn an_adapter_of_peft_is_merged_and_talks() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    let source = golden("llama.gguf").display().to_string();
    sixfold_model(&["import", &source, "--to", &path("base"), "--dtype", "f32"]).unwrap();
    let source = SourceArgs { tokenizer: None, no_tokenizer: true };
    let model = opened(Path::new(&path("base")), &source).unwrap();
    let text = serde_json::to_vec(model.config()).unwrap();
    let geometry = Geometry::new(ModelConfig::from_hugging_face(&text).unwrap().0, 2).unwrap();
    let peft =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]});
    let adapted = geometry.clone();
    let lora = Lora::from_peft(peft.to_string().as_bytes(), &geometry.config).unwrap();
    let adapted = adapted.with_lora(lora).unwrap();
    let mut adapters = sixfold_model::initialize(&adapted, &ModelSlice::whole(&adapted), 1);
    adapters.values_mut().iter_mut().for_each(|value| *value += 0.5);
    std::fs::create_dir(path("adapter")).unwrap();
    let adapter = |name: &str| place.path().join("adapter").join(name);
    std::fs::write(adapter("adapter_config.json"), peft.to_string()).unwrap();
    let weights = write_parameters(&adapted, &adapters).unwrap();
    std::fs::write(adapter("adapter_model.safetensors"), &weights).unwrap();

    let merge = ["merge", &path("base"), "--adapter", &path("adapter"), "--to", &path("merged")];
    sixfold_model(&merge).unwrap();
    let merged =
        read_weights(&opened(Path::new(&path("merged")), &source).unwrap(), &geometry, None).unwrap();
    let base = read_weights(&model, &geometry, None).unwrap();
    assert_eq!(merged, merge_adapters(&adapted, &base, &adapters));
    assert_ne!(merged, base);

    let chat = [
        "sixfold",
        "chat",
        &path("base"),
        "--adapter",
        &path("adapter"),
        "--message",
        "a",
        "--max-tokens",
        "3",
    ];
    let Command::Chat(args) = Cli::try_parse_from(chat).unwrap().command else { panic!("another command") };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(crate::commands::chat::run(args)).unwrap();

    std::fs::write(adapter("adapter_model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let broken = sixfold_model(&["merge", &path("base"), "--adapter", &path("adapter"), "--to", &path("no")]);
    assert!(broken.unwrap_err().to_string().contains("adapter"));
    std::fs::remove_file(adapter("adapter_config.json")).unwrap();
    let missing =
        sixfold_model(&["merge", &path("base"), "--adapter", &path("adapter"), "--to", &path("no")]);
    assert!(missing.unwrap_err().to_string().contains("adapter_config.json"));
}
