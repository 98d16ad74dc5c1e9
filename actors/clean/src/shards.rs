//! Token shards of a corpus: which documents train, which are held out, and their ids on disk.

use std::io::BufReader;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::Deserialize;
use sixfold_artifact::tokens::{
    MaskBits, ShardEntry, TokenIndex, TokenWriter, boundaries_file, encode_boundaries, index_file, mask_file,
    shard_file,
};
use sixfold_artifact::{BlobWriter, FileEntry, Store};

use crate::document::{document_id, read_lines};
use crate::error::CleanError;
use crate::progress::Progress;
use crate::tokenizer::DocumentEncoder;

/// Documents encoded together, and their bytes at most.
const BATCH_DOCUMENTS: usize = 256;
const BATCH_BYTES: usize = 32 << 20;

/// A line of a corpus, of an import, or of a map phase; what is rejected is passed over.
#[derive(Deserialize)]
struct TextLine {
    id: Option<String>,
    #[serde(default)]
    url: String,
    text: String,
    #[serde(default)]
    rejection: Option<serde::de::IgnoredAny>,
}

/// A text with a number that does not depend on its place.
pub struct Text {
    /// The text.
    pub text: String,
    /// A hash of its id, spread evenly over all values.
    pub hash: u64,
}

/// The documents of files of JSON lines, in order.
pub fn texts(paths: &[PathBuf]) -> impl Iterator<Item = Result<Text, CleanError>> {
    paths.iter().flat_map(|path| {
        let (lines, failure) = match std::fs::File::open(path) {
            Ok(file) => (Some(read_lines::<TextLine>(BufReader::with_capacity(1 << 18, file))), None),
            Err(error) => (None, Some(Err(error))),
        };
        let lines = failure.into_iter().chain(lines.into_iter().flatten());
        lines.filter_map(move |line| match line {
            Ok(line) if line.rejection.is_some() => None,
            Ok(line) => {
                let id = line.id.unwrap_or_else(|| document_id(&line.url, &line.text));
                Some(Ok(Text { hash: hash_of(&id), text: line.text }))
            }
            Err(source) => Some(Err(CleanError::File { path: path.clone(), source })),
        })
    })
}

/// The first bytes of a hash, as a number.
pub(crate) fn hash_of(id: &str) -> u64 {
    let hash = blake3::hash(id.as_bytes());
    hash.as_bytes().iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Tells documents that are held out from those that train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldOut {
    /// Hashes up to this one are held out.
    threshold: Option<u64>,
}

impl HeldOut {
    /// A rule that holds out about `share` of the documents with these hashes, and neither none of
    /// several nor all. Whether a document is held out depends on its own hash, so it stays where it
    /// is when the corpus grows.
    pub fn new(share: f64, hashes: impl Iterator<Item = u64> + Clone) -> Self {
        let (Some(smallest), Some(largest)) = (hashes.clone().min(), hashes.max()) else {
            return Self { threshold: None };
        };
        if share <= 0.0 || smallest == largest {
            return Self { threshold: None };
        }
        let threshold = (share * u64::MAX as f64) as u64;
        Self { threshold: Some(threshold.clamp(smallest, largest - 1)) }
    }

    /// Whether the document is held out.
    pub fn holds(&self, hash: u64) -> bool {
        self.threshold.is_some_and(|threshold| hash <= threshold)
    }
}

/// Writes one split into a store.
pub struct SplitWriter {
    store: Store,
    split: &'static str,
    vocabulary: u32,
    shard_tokens_max: u64,
    shard: Option<TokenWriter<BlobWriter>>,
    shards: Vec<(ShardEntry, FileEntry)>,
    boundaries: Vec<u64>,
    mask: Option<MaskBits>,
    /// Bytes of the documents' text.
    pub text_bytes: u64,
}

impl SplitWriter {
    /// Begins a split.
    pub fn new(store: &Store, split: &'static str, vocabulary: u32, shard_tokens_max: u64) -> Self {
        let (shards, boundaries) = (Vec::new(), vec![0]);
        let store = store.clone();
        Self {
            store,
            split,
            vocabulary,
            shard_tokens_max,
            shard: None,
            shards,
            boundaries,
            mask: None,
            text_bytes: 0,
        }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.boundaries.last().copied().unwrap_or(0)
    }

    /// Documents so far.
    pub fn documents(&self) -> u64 {
        self.boundaries.len() as u64 - 1
    }

    /// Begins with a mask: a bit for each token.
    #[must_use]
    pub fn with_mask(self) -> Self {
        Self { mask: Some(MaskBits::default()), ..self }
    }

    /// Adds a document of `text_bytes`, and which of its tokens are to be learned.
    ///
    /// # Errors
    /// [`CleanError`] where they cannot be written.
    pub fn push_masked(
        &mut self,
        text_bytes: usize,
        ids: &[u32],
        learned: &[bool],
    ) -> Result<(), CleanError> {
        self.push(text_bytes, ids)?;
        let mask = self.mask.get_or_insert_default();
        learned.iter().for_each(|&learned| mask.push(learned));
        Ok(())
    }

    fn push(&mut self, text_bytes: usize, ids: &[u32]) -> Result<(), CleanError> {
        let mut shard = match self.shard.take() {
            Some(shard) => shard,
            None => TokenWriter::new(self.store.writer()?, self.vocabulary),
        };
        shard.push(ids)?;
        self.boundaries.push(self.tokens() + ids.len() as u64);
        self.text_bytes += text_bytes as u64;
        if shard.tokens() >= self.shard_tokens_max {
            self.end_shard(shard)?;
        } else {
            self.shard = Some(shard);
        }
        Ok(())
    }

    fn end_shard(&mut self, shard: TokenWriter<BlobWriter>) -> Result<(), CleanError> {
        let (blob, tokens) = shard.finish()?;
        let file = shard_file(self.split, self.shards.len());
        let entry = blob.finish(&file)?;
        self.shards.push((ShardEntry { file, tokens }, entry));
        Ok(())
    }

    /// Ends the split and returns its files: index, boundaries, shards.
    ///
    /// # Errors
    /// [`CleanError`] where they cannot be written.
    pub fn finish(mut self) -> Result<Vec<FileEntry>, CleanError> {
        // A split without documents has a shard too, so that readers find the files that they expect.
        let last = match self.shard.take() {
            None if self.shards.is_empty() => Some(TokenWriter::new(self.store.writer()?, self.vocabulary)),
            last => last,
        };
        if let Some(shard) = last {
            self.end_shard(shard)?;
        }
        let documents = self.documents();
        let (entries, files): (Vec<ShardEntry>, Vec<FileEntry>) = self.shards.into_iter().unzip();
        let mut index = TokenIndex::new(self.split, self.vocabulary, documents, entries);
        let mut written = Vec::new();
        if let Some(mask) = &self.mask {
            index = index.with_mask(self.split);
            written.push(self.store.put(&mask_file(self.split), mask.bytes())?);
        }
        written.extend([
            self.store.put(&index_file(self.split), &index.encode()?)?,
            self.store.put(&boundaries_file(self.split), &encode_boundaries(&self.boundaries))?,
        ]);
        written.extend(files);
        Ok(written)
    }
}

/// Encodes documents and writes each to its split, in order.
///
/// # Errors
/// The first document that cannot be read, encoded or written, or [`CleanError::Cancelled`].
pub fn write_splits(
    texts: impl Iterator<Item = Result<Text, CleanError>>,
    encoder: &DocumentEncoder,
    held_out: HeldOut,
    splits: &mut [SplitWriter; 2],
    progress: &Progress,
) -> Result<(), CleanError> {
    let mut texts = texts.peekable();
    while texts.peek().is_some() {
        progress.check()?;
        let batch = next_batch(&mut texts)?;
        let encoded: Result<Vec<Vec<u32>>, CleanError> =
            batch.par_iter().map(|text| encoder.encode(&text.text)).collect();
        let mut tokens = 0;
        for (text, ids) in batch.iter().zip(encoded?) {
            splits[usize::from(held_out.holds(text.hash))].push(text.text.len(), &ids)?;
            tokens += ids.len() as u64;
        }
        progress.add(batch.len() as u64, tokens);
    }
    Ok(())
}

fn next_batch(texts: &mut impl Iterator<Item = Result<Text, CleanError>>) -> Result<Vec<Text>, CleanError> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < BATCH_DOCUMENTS && bytes < BATCH_BYTES {
        let Some(text) = texts.next().transpose()? else { break };
        bytes += text.text.len();
        batch.push(text);
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_out_a_share_and_never_all_or_none_of_several() {
        let hashes: Vec<u64> = (0..10_000).map(|n| hash_of(&n.to_string())).collect();
        let rule = HeldOut::new(0.05, hashes.iter().copied());
        let held = hashes.iter().filter(|hash| rule.holds(**hash)).count();
        assert!((400..600).contains(&held), "{held}");
        for share in [1e-12, 0.5, 1.0] {
            let rule = HeldOut::new(share, [5, 9, u64::MAX].into_iter());
            let held = [5, 9, u64::MAX].iter().filter(|hash| rule.holds(**hash)).count();
            assert!((1..3).contains(&held), "{share}: {held}");
        }
        assert!(!HeldOut::new(0.5, [7].into_iter()).holds(7));
        assert!(!HeldOut::new(0.0, [1, 2].into_iter()).holds(1));
        assert!(!HeldOut::new(0.5, std::iter::empty()).holds(0));
    }
}
