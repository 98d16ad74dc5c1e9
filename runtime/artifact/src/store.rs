//! A node's folder of artefacts.
//!
//! ```text
//! ROOT/blobs/ab/abcdef...      file contents, named by their hash
//! ROOT/manifests/ID.json       an artefact is visible when this exists
//! ROOT/partial/                files being written; emptied when the store is opened by its daemon
//! ```
//! A blob is written to `partial/`, synced, renamed and its folder synced; the manifest follows the
//! same way after all of its blobs. Several processes of one node may use one store at once: names
//! are hashes, so two writers of one name write the same bytes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sixfold_wire::id::{ArtifactId, ContentHash};

use crate::manifest::{FileEntry, Manifest, ManifestError};
use crate::mmap::MappedFile;

/// Content may be this old before its artefact is published.
const YOUNG: Duration = Duration::from_secs(60);

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No such artefact on this node.
    #[error("artefact {0} is not on this node")]
    MissingArtifact(ArtifactId),
    /// No such file content on this node.
    #[error("file content {0} is not on this node")]
    MissingBlob(ContentHash),
    /// The artefact has no file of that name.
    #[error("artefact {id} of kind {kind} has no file {name:?}")]
    MissingFile {
        /// The artefact.
        id: ArtifactId,
        /// Its kind.
        kind: String,
        /// The name asked for.
        name: String,
    },
    /// Content does not have the hash that its name says.
    #[error("damaged: expected content {expected}, found {found}")]
    Damaged {
        /// The hash in the manifest.
        expected: ContentHash,
        /// The hash of the bytes.
        found: ContentHash,
    },
    /// A manifest on disk or from a peer is not one.
    #[error("artefact {id}: {source}")]
    Manifest {
        /// The artefact.
        id: ArtifactId,
        /// What is wrong with it.
        source: ManifestError,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

/// A node's content-addressed store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store in `root` and makes its folders.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the folders cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        for folder in ["blobs", "manifests", "partial"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(io_error("make folder", &path))?;
        }
        Ok(Self { root })
    }

    /// Removes what a killed process left half-written. Call before other processes use the store.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the folder cannot be read.
    pub fn remove_partial_files(&self) -> Result<(), StoreError> {
        let folder = self.root.join("partial");
        for entry in fs::read_dir(&folder).map_err(io_error("read", &folder))? {
            let path = entry.map_err(io_error("read", &folder))?.path();
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Begins a file of unknown content; [`BlobWriter::finish`] names it.
    ///
    /// # Errors
    /// [`StoreError::Io`] where no file can be made.
    pub fn writer(&self) -> Result<BlobWriter, StoreError> {
        let folder = self.root.join("partial");
        let file = tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(&folder)
            .map_err(io_error("make a file in", &folder))?;
        Ok(BlobWriter {
            store: self.clone(),
            file: io::BufWriter::with_capacity(1 << 18, file),
            hasher: blake3::Hasher::new(),
            bytes: 0,
        })
    }

    /// Stores `content` as a file of an artefact to come.
    ///
    /// # Errors
    /// [`StoreError::Io`] where it cannot be written.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<FileEntry, StoreError> {
        let mut writer = self.writer()?;
        writer.write_all(content).map_err(io_error("write", &self.root))?;
        writer.finish(name)
    }

    /// Stores what `content` yields as a file of an artefact to come.
    ///
    /// # Errors
    /// [`StoreError::Io`] where it cannot be read or written.
    pub fn put_reader(&self, name: &str, mut content: impl Read) -> Result<FileEntry, StoreError> {
        let mut writer = self.writer()?;
        io::copy(&mut content, &mut writer).map_err(io_error("write", &self.root))?;
        writer.finish(name)
    }

    /// Makes an artefact visible on this node. All of its files must be here.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`] where a file is not here, [`StoreError::Io`] where it cannot be written.
    pub fn publish(&self, manifest: &Manifest) -> Result<ArtifactId, StoreError> {
        if let Some(missing) = manifest.files.iter().find(|file| !self.has_blob(&file.hash)) {
            return Err(StoreError::MissingBlob(missing.hash));
        }
        let id = manifest.id();
        let target = self.manifest_path(id);
        if !target.exists() {
            let mut writer = self.writer()?;
            writer.write_all(&manifest.encode()).map_err(io_error("write", &target))?;
            writer.persist(&target)?;
        }
        Ok(id)
    }

    /// The manifest of an artefact on this node.
    ///
    /// # Errors
    /// [`StoreError::MissingArtifact`] where it is not here, [`StoreError::Damaged`] where its bytes changed.
    pub fn manifest(&self, id: ArtifactId) -> Result<Manifest, StoreError> {
        let path = self.manifest_path(id);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::MissingArtifact(id));
            }
            read => read.map_err(io_error("read", &path))?,
        };
        let found = ContentHash::of(&bytes);
        if found != id.0 {
            return Err(StoreError::Damaged { expected: id.0, found });
        }
        Manifest::decode(&bytes).map_err(|source| StoreError::Manifest { id, source })
    }

    /// Whether the artefact is visible here.
    pub fn has(&self, id: ArtifactId) -> bool {
        self.manifest_path(id).exists()
    }

    /// Whether the file content is here.
    pub fn has_blob(&self, hash: &ContentHash) -> bool {
        self.blob_path(hash).exists()
    }

    /// Where the content of an artefact's file lies.
    ///
    /// # Errors
    /// [`StoreError::MissingFile`], [`StoreError::MissingArtifact`] or [`StoreError::MissingBlob`].
    pub fn file_path(&self, id: ArtifactId, name: &str) -> Result<PathBuf, StoreError> {
        let manifest = self.manifest(id)?;
        let Some(file) = manifest.file(name) else {
            return Err(StoreError::MissingFile { id, kind: manifest.kind, name: name.to_owned() });
        };
        self.entry_path(file)
    }

    /// Where the content of a file lies.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`] where it is not here.
    pub fn entry_path(&self, file: &FileEntry) -> Result<PathBuf, StoreError> {
        let path = self.blob_path(&file.hash);
        if path.exists() { Ok(path) } else { Err(StoreError::MissingBlob(file.hash)) }
    }

    /// Reads a whole file of an artefact and checks its hash.
    ///
    /// # Errors
    /// As [`Store::file_path`], and [`StoreError::Damaged`] where its bytes changed.
    pub fn read(&self, id: ArtifactId, name: &str) -> Result<Vec<u8>, StoreError> {
        let manifest = self.manifest(id)?;
        match manifest.file(name) {
            Some(file) => self.read_entry(file),
            None => Err(StoreError::MissingFile { id, kind: manifest.kind, name: name.to_owned() }),
        }
    }

    /// Reads a whole file and checks its hash.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`] where it is not here, [`StoreError::Damaged`] where its bytes changed.
    pub fn read_entry(&self, file: &FileEntry) -> Result<Vec<u8>, StoreError> {
        let path = self.entry_path(file)?;
        let content = fs::read(&path).map_err(io_error("read", &path))?;
        let found = ContentHash::of(&content);
        if found == file.hash { Ok(content) } else { Err(StoreError::Damaged { expected: file.hash, found }) }
    }

    /// A view of a file that takes no memory of its own, after its hash was checked.
    ///
    /// # Errors
    /// As [`Store::read_entry`].
    pub fn map_entry(&self, file: &FileEntry) -> Result<MappedFile, StoreError> {
        let path = self.entry_path(file)?;
        let mapped = MappedFile::open(&path).map_err(io_error("map", &path))?;
        let found = ContentHash::of(mapped.bytes());
        if found == file.hash { Ok(mapped) } else { Err(StoreError::Damaged { expected: file.hash, found }) }
    }

    /// Every artefact on this node, in the order of their ids.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the folder cannot be read.
    pub fn list(&self) -> Result<Vec<ArtifactId>, StoreError> {
        let folder = self.root.join("manifests");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io_error("read", &folder))? {
            let path = entry.map_err(io_error("read", &folder))?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            ids.extend(stem.parse::<ArtifactId>().ok());
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reads every file of an artefact and compares it with its hash.
    ///
    /// # Errors
    /// The first thing that is missing or damaged.
    pub fn verify(&self, id: ArtifactId) -> Result<Manifest, StoreError> {
        let manifest = self.manifest(id)?;
        for file in &manifest.files {
            let path = self.entry_path(file)?;
            let mut hasher = blake3::Hasher::new();
            hasher.update_mmap(&path).map_err(io_error("read", &path))?;
            let found = ContentHash::from_bytes(*hasher.finalize().as_bytes());
            if found != file.hash {
                return Err(StoreError::Damaged { expected: file.hash, found });
            }
        }
        Ok(manifest)
    }

    /// Writes an artefact's files under their own names into `folder`, as links where the file system can.
    ///
    /// # Errors
    /// As [`Store::verify`], and [`StoreError::Io`] where `folder` cannot be written.
    pub fn export(&self, id: ArtifactId, folder: &Path) -> Result<Manifest, StoreError> {
        let manifest = self.verify(id)?;
        fs::create_dir_all(folder).map_err(io_error("make folder", folder))?;
        for file in &manifest.files {
            let (source, target) = (self.entry_path(file)?, folder.join(&file.name));
            if target.exists() {
                fs::remove_file(&target).map_err(io_error("replace", &target))?;
            }
            fs::copy(&source, &target).map_err(io_error("copy to", &target))?;
        }
        Ok(manifest)
    }

    /// Takes an artefact away from this node, with the content that no other artefact here names.
    /// Content younger than a minute stays: it may belong to an artefact that is being written.
    ///
    /// # Errors
    /// [`StoreError`] where it is not here or cannot be removed.
    pub fn remove(&self, id: ArtifactId) -> Result<(), StoreError> {
        let manifest = self.manifest(id)?;
        let path = self.manifest_path(id);
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        let mut named = HashSet::new();
        for other in self.list()? {
            named.extend(self.manifest(other)?.files.into_iter().map(|file| file.hash));
        }
        for file in manifest.files.iter().filter(|file| !named.contains(&file.hash)) {
            let path = self.blob_path(&file.hash);
            let age = fs::metadata(&path).and_then(|metadata| metadata.modified()).map(|at| at.elapsed());
            if age.is_ok_and(|age| age.is_ok_and(|age| age > YOUNG)) {
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }

    fn manifest_path(&self, id: ArtifactId) -> PathBuf {
        self.root.join("manifests").join(format!("{id}.json"))
    }

    fn blob_path(&self, hash: &ContentHash) -> PathBuf {
        let name = hash.to_string();
        self.root.join("blobs").join(&name[..2]).join(name)
    }
}

/// A file being written into a [`Store`]; dropped unfinished, it leaves nothing.
pub struct BlobWriter {
    store: Store,
    file: io::BufWriter<tempfile::NamedTempFile>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl BlobWriter {
    /// Makes the content durable and names it within its artefact.
    ///
    /// # Errors
    /// [`StoreError::Io`] where it cannot be written or synced.
    pub fn finish(self, name: &str) -> Result<FileEntry, StoreError> {
        let hash = ContentHash::from_bytes(*self.hasher.finalize().as_bytes());
        let entry = FileEntry { name: name.to_owned(), hash, bytes: self.bytes };
        let target = self.store.blob_path(&hash);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(io_error("make folder", folder))?;
        }
        self.persist(&target)?;
        Ok(entry)
    }

    /// Like [`BlobWriter::finish`], for content whose hash is known beforehand.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where the content is another, else as [`BlobWriter::finish`].
    pub fn finish_expecting(self, expected: &FileEntry) -> Result<FileEntry, StoreError> {
        let found = ContentHash::from_bytes(*self.hasher.finalize().as_bytes());
        if found != expected.hash || self.bytes != expected.bytes {
            return Err(StoreError::Damaged { expected: expected.hash, found });
        }
        self.finish(&expected.name)
    }

    fn persist(self, target: &Path) -> Result<(), StoreError> {
        let file = self.file.into_inner().map_err(|error| io_error("write", target)(error.into_error()))?;
        file.as_file().sync_all().map_err(io_error("sync", target))?;
        file.persist(target).map_err(|error| io_error("rename to", target)(error.error))?;
        let folder = target.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync", folder))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        (folder, store)
    }

    fn one_file(store: &Store) -> (ArtifactId, FileEntry) {
        let mut manifest = Manifest::new("tokens", "tokenize");
        let file = store.put("a.bin", b"content").unwrap();
        manifest.files.push(file.clone());
        (store.publish(&manifest).unwrap(), file)
    }

    #[test]
    fn publishes_and_reads_back() {
        let (_folder, store) = store();
        let (id, _) = one_file(&store);
        assert_eq!(store.read(id, "a.bin").unwrap(), b"content");
        assert_eq!(store.list().unwrap(), [id]);
        assert!(matches!(store.read(id, "b.bin"), Err(StoreError::MissingFile { .. })));
    }

    #[test]
    fn is_invisible_until_all_files_are_here() {
        let (_folder, store) = store();
        let mut manifest = Manifest::new("tokens", "tokenize");
        manifest.files.push(FileEntry { name: "a".into(), hash: ContentHash::of(b"a"), bytes: 1 });
        assert!(matches!(store.publish(&manifest), Err(StoreError::MissingBlob(_))));
        assert!(!store.has(manifest.id()));
    }

    #[test]
    fn notices_damaged_content_and_manifests() {
        let (_folder, store) = store();
        let (id, file) = one_file(&store);
        fs::write(store.entry_path(&file).unwrap(), b"c0ntent").unwrap();
        assert!(matches!(store.read(id, "a.bin"), Err(StoreError::Damaged { .. })));
        assert!(matches!(store.map_entry(&file), Err(StoreError::Damaged { .. })));
        assert!(matches!(store.verify(id), Err(StoreError::Damaged { .. })));
        fs::write(store.manifest_path(id), b"{}").unwrap();
        assert!(matches!(store.manifest(id), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn refuses_content_other_than_announced() {
        let (_folder, store) = store();
        let announced = FileEntry { name: "a".into(), hash: ContentHash::of(b"other"), bytes: 7 };
        let mut writer = store.writer().unwrap();
        writer.write_all(b"content").unwrap();
        assert!(matches!(writer.finish_expecting(&announced), Err(StoreError::Damaged { .. })));
        assert!(!store.has_blob(&announced.hash));
    }

    #[test]
    fn removes_an_artefact_but_not_what_others_name() {
        let (_folder, store) = store();
        let (id, file) = one_file(&store);
        let mut other = Manifest::new("tokens", "other");
        other.files.push(file.clone());
        let other = store.publish(&other).unwrap();
        store.remove(id).unwrap();
        assert!(!store.has(id));
        assert_eq!(store.read(other, "a.bin").unwrap(), b"content");
        let old = std::time::SystemTime::now() - 2 * YOUNG;
        File::open(store.entry_path(&file).unwrap()).unwrap().set_modified(old).unwrap();
        store.remove(other).unwrap();
        assert!(!store.has_blob(&file.hash));
    }

    #[test]
    fn leaves_nothing_of_an_unfinished_file() {
        let (_folder, store) = store();
        store.writer().unwrap().write_all(b"half").unwrap();
        assert_eq!(fs::read_dir(store.root().join("partial")).unwrap().count(), 0);
    }
}
