//! Hidden states of a call, and the vector that a text's come to.

use sixfold_tensor::{Buffer, Mirror, Stream};

use super::{Chunk, DecodeError, Decoder, KvSequence, Wanted};
use crate::attention::KEYS_PER_BLOCK;

/// Blocks of keys and values that texts share which go through the model together, so that what they take is bounded whatever
/// their lengths. A longer text has as many as it needs, and goes alone.
const BLOCKS_AT_ONCE: usize = 16;
/// Tokens that go through the model together.
const TOKENS_AT_ONCE: usize = BLOCKS_AT_ONCE * KEYS_PER_BLOCK;

/// The hidden states after the final norm, a row of `hidden_size` for each token for which one was wanted, in the order of the
/// call: the `last_hidden_state` of Hugging Face's models without a head.
#[derive(Debug)]
pub struct HiddenStates {
    values: Mirror,
    width: usize,
}

/// Which vector stands for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of the hidden states of its tokens.
    Mean,
    /// The hidden state of its last token, the only one that depends on all of them.
    Last,
}

impl HiddenStates {
    pub(super) fn new(stream: &Stream, values: Buffer, width: usize) -> Self {
        Self { values: stream.mirror(values), width }
    }

    /// The rows, one after another.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.host().chunks_exact(self.width)
    }
}

impl Decoder {
    /// As [`Decoder::forward`], as far as the final norm: the hidden states of the tokens whose logits are wanted.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn hidden_states(&self, chunks: &mut [Chunk<'_>]) -> Result<HiddenStates, DecodeError> {
        let h = self.final_states(chunks, |_| {})?;
        Ok(HiddenStates::new(&self.stream, h, self.geometry.config.hidden_size))
    }

    /// A vector of `hidden_size` for each text, which does not depend on the others. Several texts go through the model
    /// together; keys and values take at most the memory of [`Decoder::TEXTS_AT_ONCE`] blocks, or what the longest text needs.
    ///
    /// # Errors
    /// [`DecodeError`] if a text does not fit the model: [`Decoder::check`] says which.
    pub fn embed(&self, texts: &[&[u32]], pooling: Pooling) -> Result<Vec<Vec<f32>>, DecodeError> {
        let (mut vectors, mut rest) = (Vec::with_capacity(texts.len()), texts);
        while !rest.is_empty() {
            let (together, after) = rest.split_at(together(rest));
            vectors.extend(self.embed_together(together, pooling)?);
            rest = after;
        }
        Ok(vectors)
    }

    fn embed_together(&self, texts: &[&[u32]], pooling: Pooling) -> Result<Vec<Vec<f32>>, DecodeError> {
        let pool = self.kv_pool(texts.iter().map(|text| blocks(text)).sum());
        let mut sequences: Vec<KvSequence> = texts.iter().map(|_| pool.sequence()).collect();
        let mut pooled = vec![Pooled::new(self.geometry.config.hidden_size); texts.len()];
        // Only a text that goes alone has several parts.
        let parts = texts.iter().map(|text| text.len().div_ceil(TOKENS_AT_ONCE)).max().unwrap_or(0);
        for part in 0..parts.max(1) {
            let (from, is_last) = (part * TOKENS_AT_ONCE, part + 1 >= parts);
            let wanted = match pooling {
                Pooling::Mean => Wanted::All,
                Pooling::Last if is_last => Wanted::Last,
                Pooling::Last => Wanted::Nothing,
            };
            let chunks = sequences.iter_mut().zip(texts).map(|(sequence, text)| {
                let tokens = &text[from..text.len().min(from + TOKENS_AT_ONCE)];
                Chunk { tokens, sequence, wanted }
            });
            let mut chunks: Vec<Chunk<'_>> = chunks.collect();
            let states = self.hidden_states(&mut chunks)?;
            let mut rows = states.rows();
            for (pooled, chunk) in pooled.iter_mut().zip(&chunks) {
                rows.by_ref().take(wanted.rows(chunk.tokens.len())).for_each(|row| pooled.add(row));
            }
        }
        Ok(pooled.iter().map(Pooled::mean).collect())
    }

    /// Texts that go through the model together at most.
    pub const TEXTS_AT_ONCE: usize = BLOCKS_AT_ONCE;
}

/// Blocks of keys and values that a text needs.
fn blocks(text: &[u32]) -> usize {
    text.len().div_ceil(KEYS_PER_BLOCK).max(1)
}

/// How many of the texts, from the first on, share the blocks.
fn together(texts: &[&[u32]]) -> usize {
    let mut taken = 0;
    let fit = texts.iter().take_while(|text| {
        taken += blocks(text);
        taken <= BLOCKS_AT_ONCE
    });
    fit.count().max(1)
}

/// The hidden states of one text so far, added in the order of its tokens.
#[derive(Clone)]
struct Pooled {
    sums: Vec<f64>,
    rows: usize,
}

impl Pooled {
    fn new(width: usize) -> Self {
        Self { sums: vec![0.0; width], rows: 0 }
    }

    fn add(&mut self, row: &[f32]) {
        self.sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        self.rows += 1;
    }

    fn mean(&self) -> Vec<f32> {
        self.sums.iter().map(|sum| (sum / self.rows as f64) as f32).collect()
    }
}
