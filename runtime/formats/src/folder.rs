//! Hugging Face's folders: config.json, safetensors in one file or several, tokenizer and templates.

mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::architecture::Sizes;
use crate::error::{Fault, FormatError};
use crate::mapped_file::MappedFile;
use crate::model::{Format, Model, Naming, Tensor};
use crate::{safetensors, tokenizer};

pub use write::{FolderOptions, write_folder};
pub(crate) use write::{failed, put, put_texts, whole_folder, write_tensor};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Files of a folder that are taken as they are.
const TEXTS: [&str; 9] = [
    tokenizer::TOKENIZER,
    tokenizer::TOKENIZER_CONFIG,
    tokenizer::GENERATION_CONFIG,
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];
/// Most bytes of a file that is read and not mapped.
const TEXT_BYTES_MAX: u64 = 1 << 28;

/// Opens a folder, with the files of its tokenizer if they are wanted.
///
/// # Errors
/// [`FormatError`] says what of which file cannot be.
pub(crate) fn open(path: &Path, with_tokenizer: bool) -> Result<Model, FormatError> {
    let config = read_object(&path.join(CONFIG))?;
    let files = weight_files(path)?;
    let mut tensors = Vec::new();
    for (number, file) in files.iter().enumerate() {
        tensors.extend(safetensors::read(file, number)?);
    }
    check_names(&tensors, &files)?;
    let mut texts = BTreeMap::new();
    for name in TEXTS.into_iter().filter(|_| with_tokenizer) {
        let file = path.join(name);
        if file.exists() {
            texts.insert(name.to_owned(), read_bounded(&file)?);
        }
    }
    let sizes = match Sizes::of(&config) {
        Err(fault) if !Sizes::is_unknown(&fault) => return Err(fault.in_file(&path.join(CONFIG))),
        sizes => sizes,
    };
    let mut model =
        Model { path: path.to_owned(), format: Format::Folder, files, config, sizes, tensors, texts };
    model.arrange(Naming::HuggingFace)?;
    tokenizer::check(&model)?;
    Ok(model)
}

/// Opens a `.safetensors` file alone, of which no more than the tensors is known.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_file(path: &Path) -> Result<Model, FormatError> {
    let file = MappedFile::open(path)?;
    let tensors = safetensors::read(&file, 0)?;
    let problem = "is missing: a .safetensors file has tensors alone; name the folder with its config.json";
    Ok(Model {
        path: path.to_owned(),
        format: Format::Safetensors,
        files: vec![file],
        config: Map::new(),
        sizes: Err(Fault::new("model_type", problem)),
        tensors,
        texts: BTreeMap::new(),
    })
}

/// One file, or those of an index where there is not the one, as `transformers` looks for them.
fn weight_files(path: &Path) -> Result<Vec<MappedFile>, FormatError> {
    let file = path.join(WEIGHTS);
    if !file.exists() && path.join(INDEX).exists() {
        return sharded(path);
    }
    if !file.exists() && path.join("pytorch_model.bin").exists() {
        let problem = "is missing, and pickled weights are not read: they may run any code; load the model with \
                       transformers and save it again, which writes safetensors";
        return Err(Fault::new(WEIGHTS, problem).unsupported_in(path));
    }
    if !file.exists() && path.join("adapter_model.safetensors").exists() {
        let problem = "is missing: these are adapters alone; `sixfold model merge BASE --adapter` puts them into the weights of \
                       their base, and `sixfold chat BASE --adapter` talks to both";
        return Err(Fault::new(WEIGHTS, problem).unsupported_in(path));
    }
    Ok(vec![MappedFile::open(&file)?])
}

/// The files that an index names; each tensor must lie in the file that the index says.
fn sharded(path: &Path) -> Result<Vec<MappedFile>, FormatError> {
    let index_path = path.join(INDEX);
    let index = read_object(&index_path)?;
    let damaged = |field: &str, problem: String| Fault::new(field, problem).in_file(&index_path);
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| damaged("weight_map", "is no object".to_owned()))?;
    let mut by_file: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|file| is_file_name(file));
        let file = file.ok_or_else(|| damaged(tensor, "is in no file of the folder".to_owned()))?;
        by_file.entry(file).or_default().insert(tensor);
    }
    if by_file.is_empty() {
        return Err(damaged("weight_map", "is empty".to_owned()));
    }
    let mut files = Vec::new();
    for (name, tensors) in by_file {
        let file = MappedFile::open(&path.join(name))?;
        let found = safetensors::read(&file, 0)?;
        let found: BTreeSet<&str> = found.iter().map(|tensor| tensor.name.as_str()).collect();
        if let Some(missing) = tensors.difference(&found).next() {
            return Err(damaged(missing, format!("is not in {name}, where the index has it")));
        }
        if let Some(foreign) = found.difference(&tensors).next() {
            return Err(damaged(foreign, format!("is in {name}, where the index does not have it")));
        }
        files.push(file);
    }
    Ok(files)
}

/// Whether a name leads to a file of the same folder and nowhere else.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains('\0')
}

fn check_names(tensors: &[Tensor], files: &[MappedFile]) -> Result<(), FormatError> {
    let mut names = BTreeSet::new();
    for tensor in tensors {
        if !names.insert(&tensor.name) {
            let fault = Fault::at(&tensor.name, tensor.described_at, "is in two files");
            return Err(fault.in_file(files[tensor.file].path()));
        }
    }
    Ok(())
}

pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, FormatError> {
    let failed = |reason| FormatError::Io { path: path.to_owned(), reason };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > TEXT_BYTES_MAX {
        let problem = format!("has {bytes} bytes; {TEXT_BYTES_MAX} are the most");
        return Err(Fault::new("length", problem).in_file(path));
    }
    std::fs::read(path).map_err(failed)
}

pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, FormatError> {
    let text = read_bounded(path)?;
    parse_object(&text).map_err(|fault| fault.in_file(path))
}

/// Reads a JSON object.
pub(crate) fn parse_object(text: &[u8]) -> Result<Map<String, Value>, Fault> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Fault::new("text", "is no JSON object")),
        Err(error) => Err(Fault::new("text", format!("is no JSON: {error}"))),
    }
}

/// A place beside `target`, where something is made before it is moved there whole.
pub(crate) fn unfinished(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".unfinished-{}", std::process::id()));
    target.with_file_name(name)
}
