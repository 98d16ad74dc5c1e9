//! A read-only view of a file's bytes without reading them. The only unsafe code of this crate.

#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::FormatError;

/// A file of a model, mapped into memory.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the whole of a file.
    ///
    /// # Errors
    /// [`FormatError::Io`] where the file cannot be opened or mapped.
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        let failed = |reason| FormatError::Io { path: path.to_owned(), reason };
        let file = File::open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        if !about.is_file() {
            return Err(failed(std::io::Error::other("is not a file")));
        }
        // SAFETY: nobody may change the bytes while they are borrowed. A model's files are written once; what is read
        // of them is checked as it is read, and nothing here relies on two reads of a byte being equal. Whoever cuts a
        // file short while it is read gets the signal that the system has for it.
        let map = (about.len() > 0).then(|| unsafe { memmap2::Mmap::map(&file) }).transpose();
        Ok(Self { path: path.to_owned(), map: map.map_err(failed)? })
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes; a file of none cannot be mapped on every system.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_bytes_of_empty_and_full_files_and_refuses_folders() {
        let folder = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"some bytes"] {
            let path = folder.path().join("file");
            std::fs::write(&path, content).unwrap();
            assert_eq!(MappedFile::open(&path).unwrap().bytes(), content);
        }
        assert!(MappedFile::open(folder.path()).is_err());
        assert!(MappedFile::open(&folder.path().join("absent")).is_err());
    }
}
