//! `sixfold model`: models of others in and out.

mod embed;
mod inspect;
pub(super) mod logprobs;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use sixfold_artifact::model::{ADAPTER_CONFIG, ADAPTERS};
use sixfold_formats::{
    Encoding, FolderOptions, Format, Model, OpenOptions, open, write_folder, write_gguf, write_onnx,
};
use sixfold_model::{
    AdaptedWeights, Geometry, ModelConfig, ModelSlice, UnitBuffer, read_sharded_parameters, write_parameters,
};

use super::print_json;
use crate::cli::model::{ExportArgs, FormatArg, ImportArgs, MergeArgs, ModelCommand, PlainArg, SourceArgs};

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;
/// Logical shards of models that do not say with how many they were trained.
const LOGICAL_SHARDS: usize = 4;

/// `sixfold model import|export|inspect|logprobs|embed|merge`.
///
/// # Errors
/// Where a model cannot be read, written or computed with.
pub(crate) fn run(command: ModelCommand) -> Result<()> {
    match command {
        ModelCommand::Import(args) => import(&args),
        ModelCommand::Export(args) => export(&args),
        ModelCommand::Inspect(args) => inspect::run(&args),
        ModelCommand::Logprobs(args) => logprobs::run(&args),
        ModelCommand::Embed(args) => embed::run(&args),
        ModelCommand::Merge(args) => merge(&args),
    }
}

fn import(args: &ImportArgs) -> Result<()> {
    let model = opened(&args.source, &args.opened)?;
    let config = judged(&model)?;
    let encoding = args.dtype.map(Encoding::from);
    let options = FolderOptions { encoding, shard_bytes: args.shard_mib.map(|mib| mib * MIB) };
    let bar = byte_bar(bytes_to_write(&model, encoding), args.json);
    write_folder(&model, &args.to, options, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let tokenizer = model.text("tokenizer.json").is_some();
    if args.json {
        print_json(&json!({
            "to": args.to,
            "format": model.format().name(),
            "model_type": model.config()["model_type"],
            "parameters": config.parameters(),
            "tokenizer": tokenizer,
        }));
    } else {
        println!(
            "{}: {} with {} parameters, from {}{}",
            args.to.display(),
            model.config()["model_type"].as_str().unwrap_or_default(),
            config.parameters(),
            model.format().name(),
            if tokenizer { "" } else { ", without a tokenizer" },
        );
    }
    Ok(())
}

fn export(args: &ExportArgs) -> Result<()> {
    let model = opened(&args.model, &args.opened)?;
    let plain = args.dtype.map(Encoding::from);
    match args.format {
        FormatArg::Gguf => {
            if args.shard_mib.is_some() {
                bail!("--shard-mib cuts safetensors; a GGUF file is one file");
            }
            let encoding = args.quant.map(Encoding::from).or(plain).unwrap_or(Encoding::F16);
            let bar = byte_bar(bytes_to_write(&model, Some(encoding)), args.json);
            write_gguf(&model, &args.to, encoding, !args.opened.no_tokenizer, |bytes| bar.inc(bytes))?;
            bar.finish_and_clear();
        }
        FormatArg::Onnx => {
            if args.quant.is_some() || args.dtype == Some(PlainArg::Bf16) {
                bail!("ONNX is written with --dtype f32 or f16");
            }
            if args.shard_mib.is_some() {
                bail!("--shard-mib cuts safetensors; the weights beside an ONNX graph are one file");
            }
            let encoding = plain.unwrap_or(Encoding::F32);
            let bar = byte_bar(bytes_to_write(&model, Some(encoding)), args.json);
            write_onnx(&model, &args.to, encoding, |bytes| bar.inc(bytes))?;
            bar.finish_and_clear();
        }
        FormatArg::Safetensors => {
            if args.quant.is_some() {
                bail!("--quant is for --format gguf; safetensors are written with --dtype f32, f16 or bf16");
            }
            let options = FolderOptions { encoding: plain, shard_bytes: args.shard_mib.map(|mib| mib * MIB) };
            let bar = byte_bar(bytes_to_write(&model, plain), args.json);
            write_folder(&model, &args.to, options, |bytes| bar.inc(bytes))?;
            bar.finish_and_clear();
        }
    }
    let bytes = size_of(&args.to)?;
    if args.json {
        print_json(&json!({"to": args.to, "bytes": bytes}));
    } else {
        println!("{}: {:.1} MiB", args.to.display(), bytes as f64 / MIB as f64);
    }
    Ok(())
}

pub(super) fn opened(path: &Path, args: &SourceArgs) -> Result<Model> {
    let options = OpenOptions { tokenizer: args.tokenizer.clone(), without_tokenizer: args.no_tokenizer };
    Ok(open(path, &options)?)
}

/// The model as a folder: one of other files is written to a temporary folder, which is gone once it is mapped.
pub(super) fn as_folder(model: Model, args: &SourceArgs, quiet: bool) -> Result<Model> {
    if model.format() == Format::Folder {
        return Ok(model);
    }
    model.sizes()?;
    let place = tempfile::tempdir().context("no temporary folder (TMPDIR says where)")?;
    let folder = place.path().join("model");
    let bar = byte_bar(bytes_to_write(&model, None), quiet);
    write_folder(&model, &folder, FolderOptions::default(), |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    opened(&folder, args)
}

/// The weights of a model in a folder, with an adapter of PEFT's form merged into them where one is given.
pub(super) fn read_weights(model: &Model, geometry: &Geometry, adapter: Option<&Path>) -> Result<UnitBuffer> {
    let (whole, files) = (ModelSlice::whole(geometry), model.weight_bytes());
    let Some(adapter) = adapter else { return Ok(read_sharded_parameters(geometry, &whole, &files)?) };
    let file = |name: &str| {
        let path = adapter.join(name);
        std::fs::read(&path).with_context(|| format!("{}: an adapter has this file", path.display()))
    };
    let (config, adapters) = (file(ADAPTER_CONFIG)?, file(ADAPTERS)?);
    let adapted = AdaptedWeights::parse(geometry, &files, [(config.as_slice(), adapters.as_slice())])
        .with_context(|| format!("{}: no adapter of this model", adapter.display()))?;
    Ok(adapted.read_slice(geometry, &whole)?)
}

fn merge(args: &MergeArgs) -> Result<()> {
    let source = SourceArgs { tokenizer: None, no_tokenizer: false };
    let model = as_folder(opened(&args.model, &source)?, &source, args.json)?;
    let (config, logical) = ModelConfig::from_hugging_face(&serde_json::to_vec(model.config())?)?;
    let geometry = Geometry::new(config, logical.unwrap_or(LOGICAL_SHARDS))?;
    let merged = write_parameters(&geometry, &read_weights(&model, &geometry, Some(&args.adapter))?)?;
    let place = tempfile::tempdir().context("no temporary folder (TMPDIR says where)")?;
    std::fs::write(place.path().join("model.safetensors"), merged)?;
    std::fs::write(place.path().join("config.json"), serde_json::to_vec(model.config())?)?;
    for name in model.text_names() {
        std::fs::write(place.path().join(name), model.text(name).unwrap_or_default())?;
    }
    let options = FolderOptions { encoding: args.dtype.map(Encoding::from), ..FolderOptions::default() };
    write_folder(&opened(place.path(), &source)?, &args.to, options, |_| {})?;
    if args.json {
        print_json(&json!({"to": args.to, "adapter": args.adapter}));
    } else {
        println!("{}: {} with {} in it", args.to.display(), args.model.display(), args.adapter.display());
    }
    Ok(())
}

/// The configuration as the decoder reads it, which may have more to say against it than the files.
fn judged(model: &Model) -> Result<ModelConfig> {
    model.sizes()?;
    let text = serde_json::to_vec(model.config())?;
    let (config, _) = ModelConfig::from_hugging_face(&text)
        .with_context(|| format!("{} is sound, but nothing here computes it", model.path().display()))?;
    Ok(config)
}

/// Bytes of all numbers, with one encoding or, plain ones, their own.
fn bytes_to_write(model: &Model, encoding: Option<Encoding>) -> u64 {
    let bytes = |tensor: &sixfold_formats::Tensor| {
        let own = if tensor.encoding.is_plain() { tensor.encoding } else { Encoding::F32 };
        let encoding = encoding.unwrap_or(own);
        (tensor.numbers() / encoding.block_numbers() * encoding.block_bytes()) as u64
    };
    model.tensors().iter().map(bytes).sum()
}

/// A bar over bytes on standard error.
fn byte_bar(bytes: u64, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("[{bar:24}] {bytes}/{total_bytes} {bytes_per_sec}");
    ProgressBar::new(bytes)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "))
}

/// Bytes of a file, or of a folder's files.
fn size_of(path: &Path) -> Result<u64> {
    let about = path.metadata().with_context(|| path.display().to_string())?;
    if about.is_file() {
        return Ok(about.len());
    }
    let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
    entries.map(|entry| Ok(entry?.metadata()?.len())).sum()
}
