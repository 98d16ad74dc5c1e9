//! What an artefact is made of. The document on disk and on the wire is the manifest's JSON; its
//! hash is the artefact's id, so a manifest never changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sixfold_wire::id::{ArtifactId, ContentHash};

/// Facts about an artefact that people and later stages read: counts, steps, languages.
pub type Metadata = BTreeMap<String, serde_json::Value>;

/// Larger manifests are refused, so that a hostile one cannot exhaust memory.
const MANIFEST_BYTES_MAX: usize = 16 << 20;

/// One file of an artefact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name within the artefact, for example `model.safetensors`. Never a path.
    pub name: String,
    /// BLAKE3 hash of the content.
    pub hash: ContentHash,
    /// Length of the content.
    pub bytes: u64,
}

/// An artefact: its kind, files, parents and metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What it is: `warc`, `corpus`, `tokens`, `checkpoint`, `model`, `evaluation` ...
    pub kind: String,
    /// The stage that made it, by its name in the job file.
    pub stage: String,
    /// Its files, in the producer's order.
    pub files: Vec<FileEntry>,
    /// The artefacts that it was made from.
    pub parents: Vec<ArtifactId>,
    /// The artefacts without which this one cannot be read, as adapters cannot without the model beside which they lie. Whoever
    /// fetches it fetches these too, and they are kept as long as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<ArtifactId>,
    /// Facts about it.
    pub metadata: Metadata,
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// More bytes than any manifest has.
    #[error("a manifest of {bytes} bytes is larger than the limit of {MANIFEST_BYTES_MAX}")]
    TooLarge {
        /// Length of what was given.
        bytes: usize,
    },
    /// Not JSON, or not of a manifest's form.
    #[error("not a manifest: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A file name that could lead out of its folder.
    #[error("the manifest names a file {name:?}, which is not a plain file name")]
    FileName {
        /// The name.
        name: String,
    },
}

impl Manifest {
    /// An empty manifest of a kind, made by a stage.
    pub fn new(kind: &str, stage: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            stage: stage.to_owned(),
            files: Vec::new(),
            parents: Vec::new(),
            needs: Vec::new(),
            metadata: Metadata::new(),
        }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// The file of that name.
    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Length of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The JSON whose hash is the artefact's id.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and maps with string keys: serialising them cannot fail.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// The artefact's id.
    pub fn id(&self) -> ArtifactId {
        ArtifactId(ContentHash::of(&self.encode()))
    }

    /// Reads a manifest from another node or from disk.
    ///
    /// # Errors
    /// [`ManifestError`] where the bytes are too many, malformed, or name files by paths.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { bytes: bytes.len() });
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        match manifest.files.iter().find(|file| !is_plain(&file.name)) {
            Some(file) => Err(ManifestError::FileName { name: file.name.clone() }),
            None => Ok(manifest),
        }
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let mut manifest = Manifest::new("tokens", "tokenize").with("documents", 7);
        manifest.files.push(FileEntry { name: "a.bin".into(), hash: ContentHash::of(b"a"), bytes: 1 });
        manifest
    }

    #[test]
    fn id_depends_on_every_part() {
        let manifest = sample();
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        assert_ne!(manifest.clone().with("documents", 8).id(), manifest.id());
        let needs = vec![manifest.id()];
        let needing = Manifest { needs, ..manifest.clone() };
        assert_eq!(Manifest::decode(&needing.encode()).unwrap(), needing);
        assert_ne!(needing.id(), manifest.id());
    }

    #[test]
    fn what_needs_nothing_is_written_as_before_there_were_needs() {
        let text = String::from_utf8(sample().encode()).unwrap();
        assert!(!text.contains("needs"), "{text}");
    }

    #[test]
    fn refuses_paths_as_file_names() {
        for name in ["../x", "/etc/passwd", "", "..", "a\\b"] {
            let mut manifest = sample();
            manifest.files[0].name = name.into();
            assert!(
                matches!(Manifest::decode(&manifest.encode()), Err(ManifestError::FileName { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn refuses_unknown_fields_and_oversize() {
        assert!(
            Manifest::decode(br#"{"kind":"a","stage":"b","files":[],"parents":[],"metadata":{},"x":1}"#)
                .is_err()
        );
        assert!(matches!(
            Manifest::decode(&vec![b' '; MANIFEST_BYTES_MAX + 1]),
            Err(ManifestError::TooLarge { .. })
        ));
    }
}
