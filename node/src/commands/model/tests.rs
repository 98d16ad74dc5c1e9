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
    assert!(refused(&["import", "absent.gguf", "--to", &to]).contains("absent.gguf"));
    assert!(!Path::new(&to).exists());
}
