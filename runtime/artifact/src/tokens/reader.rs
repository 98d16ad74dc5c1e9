//! Tests of `reader`.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sixfold_wire::id::ArtifactId;

use super::TokensError;
use super::index::{DType, TokenIndex, index_file, overlap};
use super::mask::MaskBits;
use crate::Store;
use crate::mmap::MappedFile;

/// Larger indices are refused: at a hundred bytes a shard this is a hundred thousand shards.
const INDEX_BYTES_MAX: u64 = 16 << 20;

/// One split of a tokenised corpus, memory-mapped. Cheap to open whatever its size.
#[derive(Debug)]
pub struct TokenShards {
    index: TokenIndex,
    shards: Vec<Shard>,
    boundaries: MappedFile,
    mask: Option<MappedFile>,
}

#[derive(Debug)]
struct Shard {
    tokens: Range<u64>,
    content: MappedFile,
}

impl TokenShards {
    /// Opens a split whose files lie under their own names in `folder`.
    ///
    /// # Errors
    /// [`TokensError`] where a file is missing or its length does not fit the index.
    pub fn open(folder: &Path, split: &str) -> Result<Self, TokensError> {
        Self::open_with(split, |name| Ok(folder.join(name)))
    }

    /// Opens a split of a `tokens` artefact on this node.
    ///
    /// # Errors
    /// As [`TokenShards::open`], and [`TokensError::Store`] where the artefact is not here.
    pub fn from_artifact(store: &Store, id: ArtifactId, split: &str) -> Result<Self, TokensError> {
        Self::open_with(split, |name| Ok(store.file_path(id, name)?))
    }

    fn open_with(
        split: &str,
        path_of: impl Fn(&str) -> Result<PathBuf, TokensError>,
    ) -> Result<Self, TokensError> {
        let index = TokenIndex::decode(&read_index(&path_of(&index_file(split))?)?)?;
        let mut shards = Vec::new();
        let mut start = 0;
        for entry in &index.shards {
            let content = map(&path_of(&entry.file)?)?;
            check_length(&entry.file, &content, entry.tokens.checked_mul(index.dtype.bytes()))?;
            let end = start + entry.tokens;
            shards.push(Shard { tokens: start..end, content });
            start = end;
        }
        let boundaries = map(&path_of(&index.boundaries)?)?;
        let length = index.documents.checked_add(1).and_then(|count| count.checked_mul(8));
        check_length(&index.boundaries, &boundaries, length)?;
        let mask = match &index.mask {
            Some(file) => {
                let mask = map(&path_of(file)?)?;
                check_length(file, &mask, Some(MaskBits::bytes_for(index.tokens)))?;
                Some(mask)
            }
            None => None,
        };
        let opened = Self { index, shards, boundaries, mask };
        opened.check_boundaries()?;
        Ok(opened)
    }

    fn check_boundaries(&self) -> Result<(), TokensError> {
        let mut values = self.boundaries.bytes().as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        let first = values.next();
        let last = values.try_fold(0, |previous, value| (value >= previous).then_some(value));
        if first == Some(0) && last == Some(self.index.tokens) {
            return Ok(());
        }
        Err(TokensError::Inconsistent("the documents' boundaries do not cover the tokens in order"))
    }

    /// Tokens of the split.
    pub fn len(&self) -> u64 {
        self.index.tokens
    }

    /// Whether the split has no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries of the vocabulary; every id that is read is smaller.
    pub fn vocabulary(&self) -> u32 {
        self.index.vocabulary
    }

    /// What the split consists of.
    pub fn index(&self) -> &TokenIndex {
        &self.index
    }

    /// Documents of the split.
    pub fn documents(&self) -> u64 {
        self.index.documents
    }

    /// The tokens of a document, its end-of-text token included.
    pub fn document(&self, document: u64) -> Option<Range<u64>> {
        (document < self.index.documents).then(|| self.boundary(document)..self.boundary(document + 1))
    }

    /// The document that a token belongs to.
    pub fn document_at(&self, token: u64) -> Option<u64> {
        if token >= self.len() {
            return None;
        }
        let (mut low, mut high) = (0, self.index.documents);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.boundary(middle + 1) <= token { low = middle + 1 } else { high = middle }
        }
        Some(low)
    }

    /// Whether some tokens are not to be learned: those of questions in a split of dialogues.
    pub fn is_masked(&self) -> bool {
        self.mask.is_some()
    }

    /// Whether a model is to learn to say the token at `token`.
    pub fn is_learned(&self, token: u64) -> bool {
        self.mask.as_ref().is_none_or(|mask| MaskBits::get(mask.bytes(), token))
    }

    /// Boundary `number` of `documents + 1`; the caller checked the number.
    fn boundary(&self, number: u64) -> u64 {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        self.boundaries
            .bytes()
            .as_chunks::<8>()
            .0
            .get(at)
            .map_or(self.index.tokens, |b| u64::from_le_bytes(*b))
    }

    /// The token ids of `range`.
    ///
    /// # Errors
    /// As [`TokenShards::copy_to`].
    pub fn get(&self, range: Range<u64>) -> Result<Vec<u32>, TokensError> {
        self.check_range(&range)?;
        let count = usize::try_from(range.end - range.start)
            .map_err(|_| TokensError::OutOfRange { range: range.clone(), tokens: self.len() })?;
        let mut out = vec![0; count];
        self.copy_to(range.start, &mut out)?;
        Ok(out)
    }

    /// Fills `out` with the token ids from `start` on.
    ///
    /// # Errors
    /// [`TokensError::OutOfRange`] where the split ends before, [`TokensError::OutOfVocabulary`]
    /// where a shard holds an id that the vocabulary does not have.
    pub fn copy_to(&self, start: u64, out: &mut [u32]) -> Result<(), TokensError> {
        let range = start..start.saturating_add(out.len() as u64);
        self.check_range(&range)?;
        let first = self.shards.partition_point(|shard| shard.tokens.end <= start);
        let mut rest = &mut *out;
        for shard in &self.shards[first..] {
            if rest.is_empty() {
                break;
            }
            let part = overlap(&range, &shard.tokens);
            let (head, tail) = rest.split_at_mut((part.end - part.start) as usize);
            self.copy_shard(shard, part.start - shard.tokens.start, head);
            rest = tail;
        }
        self.check_vocabulary(start, out)
    }

    fn check_range(&self, range: &Range<u64>) -> Result<(), TokensError> {
        if range.start <= range.end && range.end <= self.len() {
            return Ok(());
        }
        Err(TokensError::OutOfRange { range: range.clone(), tokens: self.len() })
    }

    fn copy_shard(&self, shard: &Shard, start: u64, out: &mut [u32]) {
        let bytes = &shard.content.bytes()[(start * self.index.dtype.bytes()) as usize..];
        match self.index.dtype {
            DType::U16 => {
                let ids = bytes.as_chunks::<2>().0.iter().map(|id| u32::from(u16::from_le_bytes(*id)));
                out.iter_mut().zip(ids).for_each(|(out, id)| *out = id);
            }
            DType::U32 => {
                let ids = bytes.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id));
                out.iter_mut().zip(ids).for_each(|(out, id)| *out = id);
            }
        }
    }

    fn check_vocabulary(&self, start: u64, ids: &[u32]) -> Result<(), TokensError> {
        let vocabulary = self.vocabulary();
        match ids.iter().position(|&id| id >= vocabulary) {
            None => Ok(()),
            Some(at) => {
                Err(TokensError::OutOfVocabulary { token: ids[at], position: start + at as u64, vocabulary })
            }
        }
    }
}

fn read_index(path: &Path) -> Result<Vec<u8>, TokensError> {
    let io = |source| TokensError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(INDEX_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > INDEX_BYTES_MAX {
        return Err(TokensError::IndexTooLarge { bytes: bytes.len() as u64, limit: INDEX_BYTES_MAX });
    }
    Ok(bytes)
}

fn map(path: &Path) -> Result<MappedFile, TokensError> {
    MappedFile::open(path).map_err(|source| TokensError::Io { path: path.to_owned(), source })
}

fn check_length(file: &str, content: &MappedFile, expected: Option<u64>) -> Result<(), TokensError> {
    let found = content.bytes().len() as u64;
    let expected = expected.unwrap_or(u64::MAX);
    if found == expected {
        Ok(())
    } else {
        Err(TokensError::Length { file: file.to_owned(), found, expected })
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
