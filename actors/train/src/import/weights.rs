//! The weights of a folder, as one safetensors file in the store: [`copy`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sixfold_artifact::{FileEntry, Store};

use super::{read, wrong};
use crate::error::TrainError;

const WEIGHTS_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
/// Bytes of the length that a safetensors file begins with.
const LENGTH_BYTES: u64 = 8;
/// Longer headers are refused, as by the safetensors library.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// The header ends at a multiple of it.
const ALIGNMENT: usize = 8;

/// What an index of several files says.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// What a file's header says of a tensor.
#[derive(Deserialize)]
struct Entry {
    dtype: Value,
    shape: Value,
    data_offsets: [u64; 2],
}

/// A tensor of one of several files.
struct Stored {
    name: String,
    entry: Entry,
    part: usize,
}

/// One of several files.
struct Part {
    path: PathBuf,
    file: File,
    data: u64,
}

/// Copies the weights of `folder` into the store under the name of a single file.
///
/// # Errors
/// [`TrainError::Import`] where a file is missing or not one of tensors.
pub(super) fn copy(store: &Store, folder: &Path) -> Result<FileEntry, TrainError> {
    let (single, index_path) = (folder.join(WEIGHTS_FILE), folder.join(INDEX_FILE));
    if single.exists() || !index_path.exists() {
        let file = File::open(&single).map_err(|error| wrong(&single, error))?;
        return Ok(store.put_reader(WEIGHTS_FILE, file)?);
    }
    let index: Index =
        serde_json::from_slice(&read(&index_path)?).map_err(|error| wrong(&index_path, error))?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let (mut parts, mut tensors) = (Vec::new(), Vec::new());
    for name in names {
        if name.contains(['/', '\\']) || name == ".." {
            return Err(wrong(&index_path, format_args!("{name} is no file of the folder")));
        }
        let (part, entries) = open(folder.join(name))?;
        let own = |name: &String| index.weight_map.get(name).is_some_and(|file| part.path.ends_with(file));
        let number = parts.len();
        let of_part = entries.into_iter().filter(|(name, _)| own(name));
        tensors.extend(of_part.map(|(name, entry)| Stored { name, entry, part: number }));
        parts.push(part);
    }
    if tensors.len() != index.weight_map.len() {
        let (has, names) = (tensors.len(), index.weight_map.len());
        return Err(wrong(&index_path, format_args!("it names {names} tensors, and its files have {has}")));
    }
    join(store, parts, &tensors)
}

/// Opens a file and reads its header.
fn open(path: PathBuf) -> Result<(Part, BTreeMap<String, Entry>), TrainError> {
    let refuse = |error: std::io::Error| wrong(&path, error);
    let mut file = File::open(&path).map_err(refuse)?;
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(refuse)?;
    let (length, whole) = (u64::from_le_bytes(length), file.metadata().map_err(refuse)?.len());
    if length > HEADER_BYTES_MAX || length + LENGTH_BYTES > whole {
        return Err(wrong(&path, format_args!("a header of {length} bytes in a file of {whole}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(refuse)?;
    let mut header: Map<String, Value> =
        serde_json::from_slice(&header).map_err(|error| wrong(&path, error))?;
    header.remove("__metadata__");
    let data = LENGTH_BYTES + length;
    let mut entries = BTreeMap::new();
    for (name, value) in header {
        let entry: Entry = serde_json::from_value(value).map_err(|error| wrong(&path, error))?;
        let [start, end] = entry.data_offsets;
        if start > end || end > whole - data {
            return Err(wrong(&path, format_args!("`{name}` lies outside of the file")));
        }
        entries.insert(name, entry);
    }
    Ok((Part { path, file, data }, entries))
}

/// Writes one file of the tensors of several.
fn join(store: &Store, mut parts: Vec<Part>, tensors: &[Stored]) -> Result<FileEntry, TrainError> {
    let mut end = 0;
    let mut header = Map::new();
    for Stored { name, entry: Entry { dtype, shape, data_offsets: [from, to] }, .. } in tensors {
        let start = end;
        end += to - from;
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let mut writer = store.writer()?;
    let written =
        writer.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| writer.write_all(&header));
    written.map_err(|error| wrong(store.root(), error))?;
    for Stored { name, entry, part } in tensors {
        let Part { path, file, data } = &mut parts[*part];
        let [from, to] = entry.data_offsets;
        let copied = file
            .seek(SeekFrom::Start(*data + from))
            .and_then(|_| std::io::copy(&mut Read::by_ref(file).take(to - from), &mut writer));
        let copied = copied.map_err(|error| wrong(path, error))?;
        if copied != to - from {
            return Err(wrong(path, format_args!("`{name}` is cut short")));
        }
    }
    Ok(writer.finish(WEIGHTS_FILE)?)
}
