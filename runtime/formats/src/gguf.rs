//! GGUF, the files of llama.cpp: metadata, tokenizer and tensors in one (`docs/gguf.md` of ggml).
//!
//! [`open`] reads versions 2 and 3, little-endian; [`write_gguf`] writes version 3. [`keys`] has the names of the metadata
//! that both use.

mod config;
mod cursor;
mod header;
mod keys;
mod metadata;
mod rope;
mod value;
mod vocabulary;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use crate::architecture::{Architecture, Sizes};
use crate::error::{Fault, FormatError};
use crate::mapped_file::MappedFile;
use crate::model::{Arrangement, Format, Model, Naming, Tensor};
use crate::tokenizer;

use header::Header;
pub(crate) use header::MAGIC;
pub use write::write_gguf;

/// Opens a file; its tokenizer becomes tokenizer.json unless it is not wanted.
///
/// # Errors
/// [`FormatError`] names the field that cannot be, and its offset.
pub(crate) fn open(path: &Path, with_tokenizer: bool) -> Result<Model, FormatError> {
    let file = MappedFile::open(path)?;
    let header = Header::read(file.bytes()).map_err(|fault| fault.in_file(path))?;
    let tensors = header.tensors.iter().map(|entry| Tensor {
        name: entry.name.to_owned(),
        shape: entry.shape.clone(),
        encoding: entry.encoding,
        file: 0,
        bytes: entry.bytes.clone(),
        arrangement: Arrangement::Same,
        described_at: entry.offset,
    });
    let tensors = tensors.collect();
    let (config, sizes, texts) = describe(&header, file.bytes(), with_tokenizer, path)?;
    let path = path.to_owned();
    let mut model = Model { path, format: Format::Gguf, files: vec![file], config, sizes, tensors, texts };
    model.arrange(Naming::Gguf)?;
    tokenizer::check(&model)?;
    Ok(model)
}

type Description =
    (serde_json::Map<String, serde_json::Value>, Result<Sizes, Fault>, BTreeMap<String, Vec<u8>>);

/// config.json, sizes, and the other files of a folder.
fn describe(
    header: &Header<'_>,
    file: &[u8],
    with_tokenizer: bool,
    path: &Path,
) -> Result<Description, FormatError> {
    let damaged = |fault: Fault| fault.in_file(path);
    let name = header.text(keys::ARCHITECTURE).map_err(damaged)?;
    let name = name.ok_or_else(|| damaged(Fault::new(keys::ARCHITECTURE, "is missing")))?;
    let Some(architecture) = Architecture::of_gguf(name) else {
        let problem = format!("is `{name}`; known are {}", Architecture::known());
        return Ok((Default::default(), Err(header.fault(keys::ARCHITECTURE, problem)), BTreeMap::new()));
    };
    let special = vocabulary::special_tokens(header).map_err(damaged)?;
    let config = config::read(header, file, name, architecture, &special).map_err(damaged)?;
    let texts = if with_tokenizer {
        let vocabulary = vocabulary::read(header, special).map_err(|fault| Fault {
            problem: format!("{}; --no-tokenizer takes the model without it", fault.problem),
            ..fault
        });
        vocabulary.map_err(damaged)?.map(|vocabulary| vocabulary.to_texts()).unwrap_or_default()
    } else {
        BTreeMap::new()
    };
    let sizes = Sizes::of(&config).map_err(damaged)?;
    Ok((config, Ok(sizes), texts))
}
