//! Why a model cannot be read or written: [`FormatError`].

use std::io;
use std::path::{Path, PathBuf};

/// Why a model cannot be read or written. Each names the file; what is wrong inside of one, the field too, and the byte
/// where there is one.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The system refused.
    #[error("{path}: {reason}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        reason: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {fault}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What of it.
        fault: Fault,
    },
    /// A file is sound, and asks for something that is not known here.
    #[error("{path}: {fault}", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What of it.
        fault: Fault,
    },
    /// The path is no model.
    #[error(
        "{path} is no model: a folder with config.json, a .gguf file, a .safetensors file or a llama2.c checkpoint is \
         one",
        path = path.display()
    )]
    Unrecognised {
        /// The path.
        path: PathBuf,
    },
    /// What would be written is there already.
    #[error("{path} exists; choose another place, or remove it first", path = path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
}

/// What is wrong inside of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`{place}: {problem}", place = offset.map(|at| format!(" at byte {at}")).unwrap_or_default())]
pub struct Fault {
    /// The field, by the name that the format gives it.
    pub field: String,
    /// The first byte of the field, in formats that have bytes and not text.
    pub offset: Option<u64>,
    /// What it is, and what it should be.
    pub problem: String,
}

impl Fault {
    /// A fault of a field of a text.
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), offset: None, problem: problem.into() }
    }

    /// A fault of a field that begins at a byte.
    pub(crate) fn at(field: impl Into<String>, offset: usize, problem: impl Into<String>) -> Self {
        Self { field: field.into(), offset: Some(offset as u64), problem: problem.into() }
    }

    /// The same fault in bytes that begin `by` bytes further on.
    pub(crate) fn moved(self, by: usize) -> Self {
        Self { offset: self.offset.map(|at| at + by as u64), ..self }
    }

    pub(crate) fn in_file(self, path: &Path) -> FormatError {
        FormatError::Damaged { path: path.to_owned(), fault: self }
    }

    pub(crate) fn unsupported_in(self, path: &Path) -> FormatError {
        FormatError::Unsupported { path: path.to_owned(), fault: self }
    }
}
