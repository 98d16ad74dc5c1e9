//! A read-only view of a file's bytes without reading them. The only unsafe code of this crate.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

/// A file mapped into memory. Its pages are read when they are looked at, and shared with other processes.
#[derive(Debug)]
pub struct MappedFile(Content);

/// A file of no bytes cannot be mapped on every system.
#[derive(Debug)]
enum Content {
    Empty,
    Mapped(memmap2::Mmap),
}

impl MappedFile {
    /// Maps the whole of a file that is not changed while it is mapped, as a store's files are not.
    ///
    /// # Errors
    /// Where the file cannot be opened or mapped.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self(Content::Empty));
        }
        // SAFETY: the bytes must not change while they are borrowed. A store writes a file under
        // another name, renames it when it is complete, and never writes to it again.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(Content::Mapped(map)))
    }

    /// The file's bytes. They begin at a page, so any number type's alignment fits.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Content::Empty => &[],
            Content::Mapped(map) => map,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_bytes_of_empty_and_full_files() {
        let folder = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"some bytes"] {
            let path = folder.path().join("file");
            std::fs::write(&path, content).unwrap();
            assert_eq!(MappedFile::open(&path).unwrap().bytes(), content);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn says_that_a_file_is_missing() {
        assert_eq!(
            MappedFile::open(Path::new("/does/not/exist")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
