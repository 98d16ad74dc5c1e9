//! Content-addressed store, manifests and lineage, token shards, the files of models.
//!
//! Every output of a stage is an artefact: a [`Manifest`] that names files by their BLAKE3 hash and
//! other artefacts as its parents. A node keeps artefacts in its own [`Store`]; an artefact is
//! visible when its manifest is, and a manifest is written last. Moving artefacts between nodes is
//! the business of `sixfold-cluster`.
//!
//! Read [`Store`] first.

mod content;
mod manifest;
mod mmap;
pub mod model;
mod store;
pub mod tokens;

pub use content::ContentBuffer;
pub use manifest::{FileEntry, Manifest, ManifestError, Metadata};
pub use mmap::MappedFile;
pub use store::{BlobWriter, Store, StoreError};
