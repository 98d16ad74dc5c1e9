//! Writes Hugging Face's folders, tensor by tensor: [`write_folder`].

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{CONFIG, INDEX, WEIGHTS, unfinished};
use crate::architecture::Sizes;
use crate::encoding::Encoding;
use crate::error::FormatError;
use crate::model::{Model, Tensor};

/// Bytes at whose multiples the numbers of a file begin.
const ALIGNMENT: usize = 8;
/// Numbers that are decoded before they are written.
const NUMBERS_AT_ONCE: usize = 1 << 20;

/// How a folder is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FolderOptions {
    /// Of all numbers: F32, F16 or BF16. Without it they stay as they are; quantised ones become f32, which is what
    /// they say exactly.
    pub encoding: Option<Encoding>,
    /// Most bytes of a file with weights, unless a tensor alone is larger; without it there is one file.
    pub shard_bytes: Option<u64>,
}

/// Writes a model into a new folder, which is there whole or not at all; says how many bytes it has written since it said
/// so last.
///
/// # Errors
/// [`FormatError`] where the folder exists and is not empty, the system refuses, or the model has tensors alone.
pub fn write_folder(
    model: &Model,
    target: &Path,
    options: FolderOptions,
    mut written: impl FnMut(u64),
) -> Result<(), FormatError> {
    let sizes = model.sizes()?;
    whole_folder(target, |folder| {
        put_texts(model, sizes, folder, dtype_name(model, options))?;
        write_weights(model, folder, options, &mut written)
    })
}

/// Makes a folder that is there whole or not at all: `fill` gets the place where it is made.
///
/// # Errors
/// [`FormatError`] where it exists and is not empty, or the system refuses.
pub(crate) fn whole_folder(
    target: &Path,
    fill: impl FnOnce(&Path) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    if std::fs::read_dir(target).map_or(target.exists(), |mut entries| entries.next().is_some()) {
        return Err(FormatError::Exists { path: target.to_owned() });
    }
    let partial = unfinished(target);
    std::fs::create_dir_all(&partial).map_err(failed(&partial))?;
    let moved = fill(&partial).and_then(|()| {
        if target.exists() {
            std::fs::remove_dir(target).map_err(failed(target))?;
        }
        std::fs::rename(&partial, target).map_err(failed(target))
    });
    if moved.is_err() {
        // What is left of a failed try is of no use, and if it cannot be removed the first error says more.
        let _ = std::fs::remove_dir_all(&partial);
    }
    moved
}

pub(crate) fn failed(path: &Path) -> impl FnOnce(io::Error) -> FormatError {
    let path = path.to_owned();
    move |reason| FormatError::Io { path, reason }
}

/// Writes all files but the weights; `dtype` is what `transformers` calls the kind of the numbers.
pub(crate) fn put_texts(model: &Model, sizes: &Sizes, folder: &Path, dtype: &str) -> Result<(), FormatError> {
    let mut config = model.config().clone();
    // What the writer of the other file had in it says nothing of these numbers.
    for key in ["quantization_config", "torch_dtype", "dtype"] {
        config.remove(key);
    }
    config.insert("torch_dtype".to_owned(), dtype.into());
    config.insert("architectures".to_owned(), json!([sizes.architecture.class()]));
    put(folder, CONFIG, &pretty(&Value::Object(config)))?;
    for (name, content) in &model.texts {
        put(folder, name, content)?;
    }
    Ok(())
}

pub(crate) fn put(folder: &Path, name: &str, content: &[u8]) -> Result<(), FormatError> {
    let path = folder.join(name);
    std::fs::write(&path, content).map_err(failed(&path))
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// What a tensor's numbers are encoded as.
fn encoding_of(tensor: &Tensor, options: FolderOptions) -> Encoding {
    options.encoding.unwrap_or(if tensor.encoding.is_plain() { tensor.encoding } else { Encoding::F32 })
}

/// The encoding that most numbers have, as `transformers` calls it.
fn dtype_name(model: &Model, options: FolderOptions) -> &'static str {
    let numbers = |encoding| {
        let of = |tensor: &&Tensor| encoding_of(tensor, options) == encoding;
        model.tensors().iter().filter(of).map(Tensor::numbers).sum::<usize>()
    };
    let named = [(Encoding::F32, "float32"), (Encoding::F16, "float16"), (Encoding::Bf16, "bfloat16")];
    named.into_iter().max_by_key(|(encoding, _)| numbers(*encoding)).map_or("float32", |(_, name)| name)
}

fn write_weights(
    model: &Model,
    folder: &Path,
    options: FolderOptions,
    written: &mut dyn FnMut(u64),
) -> Result<(), FormatError> {
    let shards = cut(model, options);
    let name = |shard: usize| match shards.len() {
        1 => WEIGHTS.to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
    };
    for (number, tensors) in shards.iter().enumerate() {
        let path = folder.join(name(number));
        write_file(model, &path, tensors, options, written).map_err(failed(&path))?;
    }
    if shards.len() > 1 {
        let entries = shards.iter().enumerate().flat_map(|(number, tensors)| {
            tensors.iter().map(move |tensor| (tensor.name.clone(), Value::from(name(number))))
        });
        let map: Map<String, Value> = entries.collect();
        let total: usize = model.tensors().iter().map(|tensor| bytes_of(tensor, options)).sum();
        put(folder, INDEX, &pretty(&json!({"metadata": {"total_size": total}, "weight_map": map})))?;
    }
    Ok(())
}

fn bytes_of(tensor: &Tensor, options: FolderOptions) -> usize {
    tensor.numbers() * encoding_of(tensor, options).block_bytes()
}

/// The tensors of each file.
fn cut(model: &Model, options: FolderOptions) -> Vec<Vec<&Tensor>> {
    let most = options.shard_bytes.unwrap_or(u64::MAX);
    let (mut shards, mut filled) = (vec![Vec::new()], 0);
    for tensor in model.tensors() {
        let bytes = bytes_of(tensor, options) as u64;
        if filled > 0 && filled + bytes > most {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(last) = shards.last_mut() {
            last.push(tensor);
        }
    }
    shards
}

fn write_file(
    model: &Model,
    path: &Path,
    tensors: &[&Tensor],
    options: FolderOptions,
    written: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut out = BufWriter::new(File::create_new(path)?);
    let header = header(tensors, options);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for tensor in tensors {
        write_tensor(model, tensor, encoding_of(tensor, options), &mut out, written)?;
    }
    out.into_inner()?.sync_all()
}

/// The header of a file, filled up with spaces so that numbers begin where their kind wants them to.
fn header(tensors: &[&Tensor], options: FolderOptions) -> Vec<u8> {
    let mut entries = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut begin = 0;
    for tensor in tensors {
        let end = begin + bytes_of(tensor, options);
        let dtype = encoding_of(tensor, options).name();
        let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end]});
        entries.insert(tensor.name.clone(), entry);
        begin = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    header
}

/// Writes the rows of a tensor, some at a time.
pub(crate) fn write_tensor(
    model: &Model,
    tensor: &Tensor,
    encoding: Encoding,
    out: &mut impl Write,
    written: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut put = |bytes: &[u8]| {
        written(bytes.len() as u64);
        out.write_all(bytes)
    };
    if let Some(bytes) = model.bytes(tensor).filter(|_| tensor.encoding == encoding) {
        return bytes.chunks(NUMBERS_AT_ONCE).try_for_each(put);
    }
    let rows = model.rows(tensor);
    let at_once = (NUMBERS_AT_ONCE / rows.columns().max(1)).max(1);
    let (mut numbers, mut bytes) = (Vec::new(), Vec::new());
    for first in (0..rows.len()).step_by(at_once) {
        let last = rows.len().min(first + at_once);
        numbers.resize((last - first) * rows.columns(), 0.0);
        for (row, numbers) in (first..last).zip(numbers.chunks_exact_mut(rows.columns().max(1))) {
            rows.read(row, numbers);
        }
        bytes.clear();
        encoding.encode(&numbers, &mut bytes);
        put(&bytes)?;
    }
    Ok(())
}
