//! Files of models: Hugging Face folders, GGUF, llama2.c; ONNX out.
//!
//! A *model folder* in Hugging Face's form (config.json, safetensors, tokenizer.json, templates) is what everything else in
//! Sixfold reads. Other formats are opened as if they were one: [`open`] maps the files, checks every length before it
//! is believed, holds the tensors against what the family must have, and gives a [`Model`] with config.json and
//! tokenizer.json. [`write_folder`], [`write_gguf`] and [`write_onnx`] write one tensor after another, so that memory is
//! bounded by the largest row, or tensor that has to be transposed, whatever the model's size.
//!
//! This crate does not compute with models, and knows no other crate of the workspace: whether a config.json can be
//! computed with is for the crate of models to judge. It runs no code that files bring along, pickles least of all.
//!
//! Read [`Model`] first.

mod architecture;
mod encoding;
mod error;
mod folder;
mod gguf;
mod llama2c;
mod mapped_file;
mod model;
mod onnx;
mod positions;
mod safetensors;
mod summary;
mod tokenizer;

use std::path::{Path, PathBuf};

pub use architecture::{Architecture, Sizes};
pub use encoding::Encoding;
pub use error::{Fault, FormatError};
pub use folder::{FolderOptions, write_folder};
pub use gguf::write_gguf;
pub use model::{Format, Model, RowReader, Tensor};
pub use onnx::write_onnx;
pub use summary::{Summary, TokenizerSummary};

use mapped_file::MappedFile;

/// How a model is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// A `tokenizer.bin` for a checkpoint of llama2.c; without it, the one that lies beside it.
    pub tokenizer: Option<PathBuf>,
    /// Leave out the tokenizer, which may be of a kind that is not known.
    pub without_tokenizer: bool,
}

/// Opens a model of any format: a folder, or a file whose first bytes say what it is.
///
/// # Errors
/// [`FormatError`] names file, field and offset of what cannot be, and says what can be done.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Model, FormatError> {
    let about =
        std::fs::metadata(path).map_err(|reason| FormatError::Io { path: path.to_owned(), reason })?;
    let unrecognised = || FormatError::Unrecognised { path: path.to_owned() };
    if about.is_dir() {
        let is_model = path.join(folder::CONFIG).exists();
        return if is_model { folder::open(path, !options.without_tokenizer) } else { Err(unrecognised()) };
    }
    let file = MappedFile::open(path)?;
    if file.bytes().starts_with(&gguf::MAGIC) {
        gguf::open(path, !options.without_tokenizer)
    } else if path.extension().is_some_and(|extension| extension == "safetensors") {
        folder::open_file(path)
    } else if llama2c::is_checkpoint(file.bytes()) {
        let beside = path.with_file_name(llama2c::TOKENIZER_FILE);
        let tokenizer = options.tokenizer.clone().or_else(|| beside.exists().then_some(beside));
        llama2c::open(path, tokenizer.as_deref().filter(|_| !options.without_tokenizer))
    } else {
        Err(unrecognised())
    }
}
