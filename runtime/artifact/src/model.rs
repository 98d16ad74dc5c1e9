//! The files of a `model` artefact, under the names that Hugging Face and PEFT have for them: [`ModelFiles`].
//!
//! ```text
//! config.json                 of every model, with its tokenizer
//! model.safetensors           the weights; or, of a task model, which is adapters alone:
//! adapter_config.json         what the adapters are, as PEFT writes it
//! adapter_model.safetensors   the adapters
//! ```
//! The manifest of a task model *needs* one other model: the base beside whose weights its adapters lie. That may be a task
//! model, too. Many task models may need one base, which a store has once.

use sixfold_wire::id::ArtifactId;

use crate::manifest::Manifest;
use crate::mmap::MappedFile;
use crate::store::{Store, StoreError};

/// The kind of the artefacts.
pub const KIND: &str = "model";
/// All weights.
pub const WEIGHTS: &str = "model.safetensors";
/// What the adapters are.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The adapters.
pub const ADAPTERS: &str = "adapter_model.safetensors";

/// What the weights of a model are made of, mapped, after the hashes were checked.
#[derive(Debug)]
pub struct ModelFiles {
    weights: MappedFile,
    /// In the order in which they come to the weights.
    adapters: Vec<AdapterFiles>,
}

#[derive(Debug)]
struct AdapterFiles {
    config: Vec<u8>,
    adapters: MappedFile,
}

impl ModelFiles {
    /// The files of a model in the store, and of those that it needs.
    ///
    /// # Errors
    /// [`StoreError::MissingFile`] of a model that has neither weights nor adapters with a base, else as [`Store::map_entry`].
    pub fn open(store: &Store, id: ArtifactId) -> Result<Self, StoreError> {
        let (mut adapters, mut id) = (Vec::new(), id);
        // A manifest's id is its hash, so no chain comes back to where it was.
        loop {
            let manifest = store.manifest(id)?;
            let (true, &[base]) = (manifest.file(WEIGHTS).is_none(), manifest.needs.as_slice()) else {
                adapters.reverse();
                return Ok(Self { weights: map(store, id, &manifest, WEIGHTS)?, adapters });
            };
            let config = store.read(id, ADAPTER_CONFIG)?;
            adapters.push(AdapterFiles { config, adapters: map(store, id, &manifest, ADAPTERS)? });
            id = base;
        }
    }

    /// The content of `model.safetensors`.
    pub fn weights(&self) -> &[u8] {
        self.weights.bytes()
    }

    /// The contents of `adapter_config.json` and `adapter_model.safetensors` of all adapters, in the order in which they come
    /// to the weights.
    pub fn adapters(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.adapters.iter().map(|files| (files.config.as_slice(), files.adapters.bytes()))
    }
}

fn map(store: &Store, id: ArtifactId, manifest: &Manifest, name: &str) -> Result<MappedFile, StoreError> {
    let missing = || StoreError::MissingFile { id, kind: manifest.kind.clone(), name: name.to_owned() };
    store.map_entry(manifest.file(name).ok_or_else(missing)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(store: &Store, files: &[(&str, &str)], needs: &[ArtifactId]) -> ArtifactId {
        let mut manifest = Manifest { needs: needs.to_vec(), ..Manifest::new(KIND, "train") };
        manifest.files.extend(files.iter().map(|(name, text)| store.put(name, text.as_bytes()).unwrap()));
        store.publish(&manifest).unwrap()
    }

    #[test]
    fn a_task_model_is_read_with_all_that_it_needs_the_base_first() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let base = publish(&store, &[(WEIGHTS, "weights")], &[]);
        let first = publish(&store, &[(ADAPTER_CONFIG, "rank 1"), (ADAPTERS, "one")], &[base]);
        let second = publish(&store, &[(ADAPTER_CONFIG, "rank 2"), (ADAPTERS, "two")], &[first]);
        let files = ModelFiles::open(&store, second).unwrap();
        assert_eq!(files.weights(), b"weights");
        let adapters: Vec<_> = files.adapters().collect();
        assert_eq!(adapters, [(&b"rank 1"[..], &b"one"[..]), (&b"rank 2"[..], &b"two"[..])]);
        assert_eq!(ModelFiles::open(&store, base).unwrap().adapters().count(), 0);
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let base = publish(&store, &[(WEIGHTS, "weights")], &[]);
        let missing = |id| match ModelFiles::open(&store, id).unwrap_err() {
            StoreError::MissingFile { name, .. } => name,
            StoreError::MissingArtifact(id) => id.to_string(),
            other => panic!("{other}"),
        };
        assert_eq!(missing(publish(&store, &[("config.json", "{}")], &[])), WEIGHTS);
        assert_eq!(missing(publish(&store, &[(ADAPTER_CONFIG, "{}")], &[base])), ADAPTERS);
        assert_eq!(missing(publish(&store, &[(ADAPTERS, "one")], &[base])), ADAPTER_CONFIG);
        let task = publish(&store, &[(ADAPTER_CONFIG, "{}"), (ADAPTERS, "one")], &[base]);
        store.remove(base).unwrap();
        assert_eq!(missing(task), base.to_string());
    }
}
