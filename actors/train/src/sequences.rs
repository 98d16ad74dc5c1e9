//! The sequences that a split is cut or packed into: [`Sequences`].

use std::ops::Range;

use sixfold_artifact::tokens::{TokenShards, TokensError};
use sixfold_model::MicroBatch;
use sixfold_tensor::IGNORED_TARGET;

use crate::error::TrainError;
use crate::packing::Packing;

/// What stands where no document does.
const PADDING: u32 = 0;

/// A split as sequences of equal length.
///
/// Documents do not see each other: a token attends to its own document, whose positions count from its first
/// token. The first token of a document is never a target, since nothing that it could follow from is in sight.
///
/// A split of text is one run of tokens, cut at equal distances: a sequence may hold the end of one document and
/// the beginning of the next, and a document that a sequence's end cuts goes on in the next sequence as if it
/// began there. A split with a mask consists of dialogues: they are packed whole, one longer than a sequence without
/// its end, what is left of a sequence is padding, and targets are the tokens that are to be learned.
pub(crate) struct Sequences {
    shards: TokenShards,
    length: usize,
    layout: Layout,
}

enum Layout {
    /// So many sequences, one behind the other.
    Run { samples: u64 },
    Packed {
        packing: Packing,
        /// Targets of each sequence that count.
        counted: Vec<u32>,
    },
}

/// What became of the documents of a split with a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    /// In the sequences.
    pub(crate) documents: u64,
    /// Of them, those without their end.
    pub(crate) cut: u64,
    /// In no sequence, since nothing in them is to be learned.
    pub(crate) left_out: u64,
}

impl Sequences {
    /// The sequences of a split, at least one.
    ///
    /// # Errors
    /// [`TrainError::TooFewTokens`] if it has not enough for one.
    pub(crate) fn new(shards: TokenShards, length: usize) -> Result<(Self, Packed), TrainError> {
        Self::up_to(shards, length, u64::MAX)
    }

    /// As [`Self::new`], of the first documents, or sequences, that together have about `tokens_max` tokens.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn up_to(
        shards: TokenShards,
        length: usize,
        tokens_max: u64,
    ) -> Result<(Self, Packed), TrainError> {
        let (layout, packed) = if shards.is_masked() {
            pack(&shards, length, tokens_max)
        } else {
            let samples = shards.len().saturating_sub(1) / length as u64;
            let samples = samples.min(tokens_max.div_ceil(length as u64));
            (Layout::Run { samples }, Packed::default())
        };
        let sequences = Self { shards, length, layout };
        match sequences.samples() {
            0 => Err(TrainError::TooFewTokens { tokens: sequences.shards.len(), sequence_length: length }),
            _ => Ok((sequences, packed)),
        }
    }

    /// How many there are.
    pub(crate) fn samples(&self) -> u64 {
        match &self.layout {
            Layout::Run { samples } => *samples,
            Layout::Packed { packing, .. } => packing.len() as u64,
        }
    }

    /// Targets of a sequence that count.
    pub(crate) fn counted(&self, sample: u64) -> u64 {
        match &self.layout {
            Layout::Run { .. } => {
                let length = self.length as u64;
                length - self.starts(sample * length).count() as u64
            }
            Layout::Packed { counted, .. } => counted.get(sample as usize).copied().unwrap_or(0).into(),
        }
    }

    /// Adds a sequence to a micro-batch.
    pub(crate) fn append(&self, sample: u64, batch: &mut MicroBatch) -> Result<(), TokensError> {
        match &self.layout {
            Layout::Run { .. } => self.append_run(sample * self.length as u64, batch),
            Layout::Packed { packing, .. } => {
                let end = batch.tokens.len() + self.length;
                for &document in packing.sequence(sample as usize) {
                    self.append_document(document, batch)?;
                }
                append_padding(end - batch.tokens.len(), batch);
                Ok(())
            }
        }
    }

    /// Adds a sequence that is nothing but padding.
    pub(crate) fn append_nothing(&self, batch: &mut MicroBatch) {
        append_padding(self.length, batch);
    }

    /// Where documents begin in the sequence whose first token is `first`, and right behind it,
    /// counted from that token, which itself is left out.
    fn starts(&self, first: u64) -> impl Iterator<Item = usize> + '_ {
        let last = first + self.length as u64;
        let later =
            self.shards.document_at(first).map_or(0, |document| document + 1)..self.shards.documents();
        let documents = later.filter_map(|document| self.shards.document(document));
        let near =
            documents.take_while(move |tokens| tokens.start <= last).filter(|tokens| !tokens.is_empty());
        near.map(move |tokens| (tokens.start - first) as usize)
    }

    /// Adds the sequence whose first token is `first`, and marks its documents.
    fn append_run(&self, first: u64, batch: &mut MicroBatch) -> Result<(), TokensError> {
        let mut window = vec![0; self.length + 1];
        self.shards.copy_to(first, &mut window)?;
        let row = batch.tokens.len();
        batch.tokens.extend_from_slice(&window[..self.length]);
        batch.targets.extend_from_slice(&window[1..]);
        batch.document_starts.push(row);
        for start in self.starts(first) {
            batch.targets[row + start - 1] = IGNORED_TARGET;
            if start < self.length {
                batch.document_starts.push(row + start);
            }
        }
        Ok(())
    }

    fn append_document(&self, document: u64, batch: &mut MicroBatch) -> Result<(), TokensError> {
        let Some(tokens) = self.shards.document(document) else { return Ok(()) };
        let rows = rows(&tokens, self.length);
        let mut window = vec![0; rows + 1];
        self.shards.copy_to(tokens.start, &mut window)?;
        batch.document_starts.push(batch.tokens.len());
        batch.tokens.extend_from_slice(&window[..rows]);
        let targets = (tokens.start + 1..).zip(&window[1..]);
        let learned = |(at, &token)| if self.shards.is_learned(at) { token } else { IGNORED_TARGET };
        batch.targets.extend(targets.map(learned));
        Ok(())
    }
}

/// Rows that a document takes: its last token is a target alone.
fn rows(tokens: &Range<u64>, length: usize) -> usize {
    ((tokens.end - tokens.start).saturating_sub(1)).min(length as u64) as usize
}

fn append_padding(rows: usize, batch: &mut MicroBatch) {
    if rows > 0 {
        batch.document_starts.push(batch.tokens.len());
        batch.tokens.extend(std::iter::repeat_n(PADDING, rows));
        batch.targets.extend(std::iter::repeat_n(IGNORED_TARGET, rows));
    }
}

/// Packs the first documents that together have `tokens_max` tokens, but not those in which nothing is to be learned.
fn pack(shards: &TokenShards, length: usize, tokens_max: u64) -> (Layout, Packed) {
    let mut packed = Packed::default();
    let mut documents = Vec::new();
    let mut counted_of = Vec::new();
    for document in 0..shards.documents() {
        let Some(tokens) = shards.document(document).filter(|tokens| tokens.start < tokens_max) else {
            break;
        };
        let rows = rows(&tokens, length);
        let targets = tokens.start + 1..tokens.start + 1 + rows as u64;
        let counted = targets.filter(|&token| shards.is_learned(token)).count() as u32;
        counted_of.push(counted);
        if counted == 0 {
            packed.left_out += 1;
            continue;
        }
        packed.documents += 1;
        packed.cut += u64::from(tokens.end - tokens.start > rows as u64 + 1);
        documents.push((document, rows));
    }
    let packing = Packing::new(documents, length);
    let of_sequence =
        |sequence| packing.sequence(sequence).iter().map(|&document| counted_of[document as usize]).sum();
    let counted = (0..packing.len()).map(of_sequence).collect();
    (Layout::Packed { packing, counted }, packed)
}
