//! The commands over the small models of the crate of formats.

use std::path::{Path, PathBuf};

use clap::Parser;
use sixfold_model::{PeftAdapter, merge_adapters};

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
        logprobs::score(&logprobs::decoder(&model, None).unwrap(), &(0..30).collect::<Vec<_>>())
    };
    let score = scored(&path("folder")).unwrap();
    assert_eq!((score.logprobs.len(), score.logprobs.iter().all(|logprob| *logprob < 0.0)), (29, true));
    // F16 holds the numbers of this model.
    assert_eq!(scored(&to_folder).unwrap(), score);
}

#[test]
fn a_model_is_scored_under_a_plan_with_the_decoder_s_bits() {
    let place = tempfile::tempdir().unwrap();
    let (source, to) = (golden("llama.gguf").display().to_string(), place.path().join("folder"));
    sixfold_model(&["import", &source, "--to", &to.display().to_string()]).unwrap();
    sixfold_model(&["logprobs", &source, "--ids", "1,15,7", "--plan", "tp2.pp2", "--json"]).unwrap();
    let (model, ids) =
        (opened(&to, &SourceArgs { tokenizer: None, no_tokenizer: true }).unwrap(), [1, 15, 7]);
    let alone = logprobs::score(&logprobs::decoder(&model, None).unwrap(), &ids).unwrap();
    for plan in ["tp1", "tp2", "tp4", "pp2", "tp2.pp2"] {
        assert_eq!(logprobs::score_under(&plan.parse().unwrap(), &model, &ids).unwrap(), alone, "{plan}");
    }
    for (plan, why) in [("dp2", "replicas"), ("tp3", "power of two"), ("tp8", "shards"), ("pp99", "layers")] {
        let refused = sixfold_model(&["logprobs", &source, "--ids", "1", "--plan", plan]).unwrap_err();
        let said = format!("{refused:#}");
        assert!(said.contains("--plan") && said.contains(why), "{said}");
    }
    assert!(sixfold_model(&["logprobs", &source, "--ids", "1", "--plan", "x2"]).is_err());
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
    let lora = PeftAdapter::parse(peft.to_string().as_bytes(), &geometry.config).unwrap();
    let adapted = adapted.with_lora(lora.lora().clone()).unwrap();
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

/// Texts and vectors, as they are written to a file.
fn embedded(model: &str, to: &Path, more: &[&str]) -> Vec<Vec<f32>> {
    let to_text = to.display().to_string();
    sixfold_model(&[&["embed", model, "--to", &to_text][..], more].concat()).unwrap();
    let bytes = std::fs::read(to).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("embeddings").unwrap();
    let numbers = tensor.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
    let [rows, width] = tensor.shape() else { panic!("{:?}", tensor.shape()) };
    let numbers: Vec<f32> = numbers.collect();
    assert_eq!(numbers.len(), rows * width);
    std::fs::remove_file(to).unwrap();
    numbers.chunks_exact(*width).map(<[f32]>::to_vec).collect()
}

#[test]
fn texts_of_any_source_become_vectors() {
    let place = tempfile::tempdir().unwrap();
    let (to, model) = (place.path().join("vectors"), golden("llama.gguf").display().to_string());
    let write = |name: &str, text: &str| {
        std::fs::write(place.path().join(name), text).unwrap();
        place.path().join(name).display().to_string()
    };
    let (lines, json) =
        (write("a.txt", "ab\nb a\n"), write("a.jsonl", "\"ab\"\n{\"text\": \"b a\", \"id\": 1}"));
    let given = embedded(&model, &to, &["--text", "ab", "--text", "b a", "--json"]);
    assert_eq!(given.len(), 2);
    for vector in &given {
        let length: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
    }
    assert_eq!(embedded(&model, &to, &["--file", &lines]), given);
    assert_eq!(embedded(&model, &to, &["--file", &json, "--threads", "1"]), given);
    let many: Vec<&str> = std::iter::repeat_n(["--text", "ab"], 40).flatten().collect();
    assert!(embedded(&model, &to, &many).iter().all(|vector| *vector == given[0]));
    let last = embedded(&model, &to, &["--ids", "3,5,7", "--pooling", "last", "--text", "ab"]);
    assert_eq!(last.len(), 2);
    assert_ne!(last[0], given[0]);
    let mean = embedded(&model, &to, &["--ids", "3,5,7"]);
    assert_ne!(mean[0], last[1]);

    // Of one token mean and last are one, and what is not divided by its length points the same way.
    let plain = embedded(&model, &to, &["--ids", "3", "--no-normalize"]);
    let divided = embedded(&model, &to, &["--ids", "3", "--pooling", "last"]);
    let length = plain[0].iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    assert!((length - 1.0).abs() > 1e-3, "{length}");
    for (plain, divided) in plain[0].iter().zip(&divided[0]) {
        assert!((f64::from(*plain) / length - f64::from(*divided)).abs() < 1e-6);
    }
}

#[test]
fn texts_that_cannot_be_vectors_are_named() {
    let place = tempfile::tempdir().unwrap();
    let model = golden("llama.gguf").display().to_string();
    let file = place.path().join("a.jsonl");
    let to = place.path().join("to").display().to_string();
    let (name, long) = (file.display().to_string(), "b a ".repeat(10_000));
    let refused = |args: &[&str]| {
        format!("{:#}", sixfold_model(&[&["embed", &model, "--to", &to][..], args].concat()).unwrap_err())
    };
    let too_long = refused(&["--text", "a", "--text", &long]);
    assert!(too_long.starts_with("text 2: ") && too_long.contains("positions"), "{too_long}");
    std::fs::write(&file, "\"a\"\n{\"txt\": 1}\n").unwrap();
    assert!(refused(&["--file", &name]).contains("a.jsonl, line 2"));
    std::fs::write(&file, format!("\"a\"\n\"{long}\"\n")).unwrap();
    assert!(refused(&["--text", "b", "--file", &name]).starts_with("text 3 ("));
    std::fs::write(&file, "").unwrap();
    assert!(refused(&["--file", &name]).contains("no texts"));
    assert!(refused(&["--ids", "100000"]).contains("--ids"));
    assert!(refused(&["--file", "absent.txt"]).contains("absent.txt"));
    // clap asks for one of them.
    assert!(refused(&[]).contains("--text"));
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "something is left");
}
