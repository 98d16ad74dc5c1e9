//! A model as its files have it, under Hugging Face's names: [`Model`], [`Tensor`] and [`RowReader`].

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::architecture::{Expected, Role, Sizes};
use crate::encoding::Encoding;
use crate::error::{Fault, FormatError};
use crate::mapped_file::MappedFile;

/// What kind of files a model is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A folder with config.json and safetensors.
    Folder,
    /// A `.safetensors` file alone.
    Safetensors,
    /// A GGUF file.
    Gguf,
    /// A checkpoint of llama2.c.
    Llama2c,
}

impl Format {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Folder => "Hugging Face folder",
            Self::Safetensors => "safetensors",
            Self::Gguf => "GGUF",
            Self::Llama2c => "llama2.c checkpoint",
        }
    }
}

/// A model of any format, mapped into memory and checked: every tensor that its family has is there, with the shape that
/// its sizes say, and lies inside of its file. Numbers are not read until somebody asks for them.
#[derive(Debug)]
pub struct Model {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) files: Vec<MappedFile>,
    /// config.json; empty for a `.safetensors` file alone.
    pub(crate) config: Map<String, Value>,
    /// Or why they are not known.
    pub(crate) sizes: Result<Sizes, Fault>,
    pub(crate) tensors: Vec<Tensor>,
    /// The other files of a folder, by their names.
    pub(crate) texts: BTreeMap<String, Vec<u8>>,
}

/// A tensor of a model, and where its numbers lie.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// In Hugging Face's folders, or the file's own where the family is not known.
    pub name: String,
    /// In Hugging Face's folders.
    pub shape: Vec<usize>,
    /// Of the file's numbers.
    pub encoding: Encoding,
    /// The number of the file.
    pub(crate) file: usize,
    pub(crate) bytes: Range<usize>,
    pub(crate) arrangement: Arrangement,
    /// Of what the file says of it.
    pub(crate) described_at: usize,
}

/// How the file's rows become those of Hugging Face's folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrangement {
    /// They are the same.
    Same,
    /// Of a head, the file has numbers side by side that a position turns together.
    Interleaved {
        /// Rows of a head.
        head_dim: usize,
    },
    /// The file has columns.
    Transposed,
}

/// By whose names, and in whose arrangement, a file has its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    HuggingFace,
    Gguf,
}

impl Model {
    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of files it is in.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its config.json, as it is or as it follows from the file; empty for tensors alone.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Its sizes.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] where the family is not known here, or there are tensors alone.
    pub fn sizes(&self) -> Result<&Sizes, FormatError> {
        self.sizes.as_ref().map_err(|fault| fault.clone().unsupported_in(&self.path))
    }

    /// Its tensors: for known families in the order in which the model uses them.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Another file of its folder, such as `tokenizer.json`.
    pub fn text(&self, name: &str) -> Option<&[u8]> {
        self.texts.get(name).map(Vec::as_slice)
    }

    /// The names of the other files.
    pub fn text_names(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(String::as_str)
    }

    /// The paths of its files with tensors.
    pub fn weight_files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(MappedFile::path)
    }

    /// The bytes of its files with tensors, mapped.
    pub fn weight_bytes(&self) -> Vec<&[u8]> {
        self.files.iter().map(MappedFile::bytes).collect()
    }

    /// BLAKE3 of its files with tensors, one after another. Reads all of them; says how many bytes it has read since it
    /// said so last.
    pub fn hash(&self, mut read: impl FnMut(u64)) -> blake3::Hash {
        const AT_ONCE: usize = 1 << 24;
        let mut hasher = blake3::Hasher::new();
        for part in self.files.iter().flat_map(|file| file.bytes().chunks(AT_ONCE)) {
            hasher.update(part);
            read(part.len() as u64);
        }
        hasher.finalize()
    }

    /// Bytes of its files with tensors.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes().len() as u64).sum()
    }

    /// The numbers of a tensor of this model.
    pub fn rows(&self, tensor: &Tensor) -> RowReader<'_> {
        RowReader::new(&self.files[tensor.file].bytes()[tensor.bytes.clone()], tensor)
    }

    /// The bytes of a tensor of this model, if they are as Hugging Face's folders have them.
    pub(crate) fn bytes(&self, tensor: &Tensor) -> Option<&[u8]> {
        let same = tensor.arrangement == Arrangement::Same;
        same.then(|| &self.files[tensor.file].bytes()[tensor.bytes.clone()])
    }

    /// Puts the tensors of the files into the order and under the names of the family.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if one is missing, has another shape, or is none of the family's.
    pub(crate) fn arrange(&mut self, naming: Naming) -> Result<(), FormatError> {
        let Ok(sizes) = &self.sizes else { return Ok(()) };
        let mut found: HashMap<String, Tensor> =
            self.tensors.drain(..).map(|tensor| (tensor.name.clone(), tensor)).collect();
        for expected in sizes.expected() {
            let tensor = take(&mut found, &expected, naming).ok_or_else(|| {
                let name = if naming == Naming::Gguf { &expected.gguf } else { &expected.name };
                Fault::new(name.clone(), "is missing").in_file(&self.path)
            })?;
            let path = self.files[tensor.file].path();
            let tensor = tensor.arranged(expected, sizes, naming).map_err(|fault| fault.in_file(path))?;
            self.tensors.push(tensor);
        }
        let foreign = found.values().filter(|tensor| !is_ignored(&tensor.name, sizes));
        match foreign.min_by(|a, b| a.name.cmp(&b.name)) {
            None => Ok(()),
            Some(tensor) => {
                let model_type = sizes.architecture.model_type();
                let problem = format!("is no tensor of a {model_type} with these sizes");
                Err(Fault::at(&tensor.name, tensor.described_at, problem)
                    .in_file(self.files[tensor.file].path()))
            }
        }
    }
}

/// The tensor of the file that is the expected one; the files of some models leave out the name of the model inside of
/// the one with a head.
fn take(found: &mut HashMap<String, Tensor>, expected: &Expected, naming: Naming) -> Option<Tensor> {
    match naming {
        Naming::Gguf => found.remove(&expected.gguf),
        Naming::HuggingFace => found.remove(&expected.name).or_else(|| {
            let (_, short) = expected.name.split_once('.').filter(|(first, _)| *first != "lm_head")?;
            found.remove(short)
        }),
    }
}

/// Whether a tensor follows from the config: frequencies, masks, and a head that is the embedding.
fn is_ignored(name: &str, sizes: &Sizes) -> bool {
    const FOLLOW: [&str; 4] = ["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", "rope_freqs.weight"];
    FOLLOW.iter().any(|ending| name.ends_with(ending)) || (sizes.tied && name == "lm_head.weight")
}

impl Tensor {
    /// How many numbers it has.
    pub fn numbers(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in its file.
    pub fn stored_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn arranged(self, expected: Expected, sizes: &Sizes, naming: Naming) -> Result<Self, Fault> {
        let transposed = naming == Naming::Gguf && expected.role == Role::Transposed;
        let in_file: Vec<usize> =
            if transposed { expected.shape.iter().rev().copied().collect() } else { expected.shape.clone() };
        if self.shape != in_file {
            let problem = format!("has the shape {:?}; the model's sizes say {in_file:?}", self.shape);
            return Err(Fault::at(self.name, self.described_at, problem));
        }
        let interleaved = naming == Naming::Gguf && sizes.architecture.is_interleaved_in_gguf();
        let arrangement = match expected.role {
            Role::Rotated if interleaved => Arrangement::Interleaved { head_dim: sizes.head_dim },
            Role::Transposed if transposed => Arrangement::Transposed,
            _ => Arrangement::Same,
        };
        Ok(Self { name: expected.name, shape: expected.shape, arrangement, ..self })
    }
}

/// The row of an interleaved file that is a row of Hugging Face's folders: of a head, the first half are the first of
/// each pair, the second half the second ones.
pub(crate) fn interleaved(row: usize, head_dim: usize) -> usize {
    let (head, within, half) = (row / head_dim * head_dim, row % head_dim, head_dim / 2);
    head + if within < half { 2 * within } else { 2 * (within - half) + 1 }
}

/// The rows of a tensor as Hugging Face's folders have them, decoded one at a time. A tensor of one dimension is a row.
pub struct RowReader<'a> {
    bytes: &'a [u8],
    encoding: Encoding,
    arrangement: Arrangement,
    rows: usize,
    columns: usize,
    /// All numbers of the file, where a row of them is needed for many of ours.
    whole: Option<Vec<f32>>,
}

impl<'a> RowReader<'a> {
    fn new(bytes: &'a [u8], tensor: &Tensor) -> Self {
        let (rows, columns) = match tensor.shape.as_slice() {
            [] => (1, 1),
            [columns] => (1, *columns),
            [rows, inner @ ..] => (*rows, inner.iter().product()),
        };
        let (encoding, arrangement) = (tensor.encoding, tensor.arrangement);
        let by_number =
            arrangement == Arrangement::Transposed || (rows == 1 && arrangement != Arrangement::Same);
        let whole = by_number.then(|| {
            let mut whole = vec![0.0; rows * columns];
            encoding.decode(bytes, &mut whole);
            whole
        });
        Self { bytes, encoding, arrangement, rows, columns, whole }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Numbers of each.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Decodes a row.
    ///
    /// # Panics
    /// If there are not so many, or `numbers` are not as many as its columns.
    pub fn read(&self, row: usize, numbers: &mut [f32]) {
        assert!(row < self.rows && numbers.len() == self.columns, "row {row} of {}", self.rows);
        match (&self.whole, self.arrangement) {
            (Some(whole), Arrangement::Transposed) => {
                let column = whole.iter().skip(row).step_by(self.rows);
                numbers.iter_mut().zip(column).for_each(|(number, stored)| *number = *stored);
            }
            (Some(whole), Arrangement::Interleaved { head_dim }) => {
                let stored = (0..self.columns).map(|column| whole[interleaved(column, head_dim)]);
                numbers.iter_mut().zip(stored).for_each(|(number, stored)| *number = stored);
            }
            (None, Arrangement::Interleaved { head_dim }) => self.decode(interleaved(row, head_dim), numbers),
            (_, Arrangement::Same) | (None, Arrangement::Transposed) => self.decode(row, numbers),
        }
    }

    fn decode(&self, row: usize, numbers: &mut [f32]) {
        let bytes = self.bytes.len() / self.rows;
        self.encoding.decode(&self.bytes[row * bytes..][..bytes], numbers);
    }
}
