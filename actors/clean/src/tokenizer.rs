//! A byte-level BPE tokenizer: trained on documents, saved as `tokenizer.json`, the same bytes for
//! the same documents.
//!
//! Words are split as GPT-2 splits them, by the `tokenizers` library, which also encodes and decodes.
//! The merges are learned by [`MergeTrainer`]: the library's own trainer breaks ties by token number
//! and may apply a merge in two steps whose order follows a hash map's.

mod merges;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerImpl};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use crate::error::CleanError;
pub use merges::MergeTrainer;

/// Stands after each document.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Tokens that no text can produce; their ids are their places here.
pub const SPECIAL_TOKENS: [&str; 4] = [END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>"];

/// Entries that every vocabulary has: the special tokens and all bytes.
pub const VOCABULARY_MIN: u32 = SPECIAL_TOKENS.len() as u32 + 256;

type Trained =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Trains a tokenizer of at most `vocabulary` entries on `texts`. With [`VOCABULARY_MIN`] entries it
/// has one token a byte.
///
/// # Errors
/// [`CleanError::Options`] where the vocabulary is too small, [`CleanError::Tokenizer`].
pub fn train(texts: Vec<String>, vocabulary: u32, pair_count_min: u64) -> Result<Tokenizer, CleanError> {
    if vocabulary < VOCABULARY_MIN {
        return Err(CleanError::Options(format!(
            "a vocabulary of {vocabulary} is too small: {VOCABULARY_MIN} entries are bytes and special tokens"
        )));
    }
    let byte_level = ByteLevel::new(false, false, true);
    let mut trained = Trained::new(BPE::default());
    trained.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    let specials = SPECIAL_TOKENS.map(|token| AddedToken::from(token, true));
    let mut trainer = MergeTrainer::new(vocabulary as usize, pair_count_min, specials.to_vec());
    trained.train(&mut trainer, texts.into_iter()).map_err(failed)?;
    load(trained.to_string(true).map_err(failed)?.as_bytes())
}

/// Reads a `tokenizer.json` for encoding documents: special tokens in a text are text.
///
/// # Errors
/// [`CleanError::Tokenizer`] where it is not one.
pub fn load(json: &[u8]) -> Result<Tokenizer, CleanError> {
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(failed)?;
    tokenizer.set_encode_special_tokens(true);
    Ok(tokenizer)
}

/// The content of `tokenizer.json`.
///
/// # Errors
/// [`CleanError::Tokenizer`] where it cannot be written.
pub fn to_json(tokenizer: &Tokenizer) -> Result<String, CleanError> {
    tokenizer.to_string(true).map_err(failed)
}

/// From documents to tokens.
pub struct DocumentEncoder {
    /// To which special tokens in a text are text.
    pub tokenizer: Tokenizer,
    /// Stands after each document.
    pub end_of_text: u32,
    /// Whether the tokenizer's own rule adds special tokens, such as one at the beginning.
    pub adds_special: bool,
}

impl DocumentEncoder {
    /// By a tokenizer that [`train`] has made.
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, end_of_text: 0, adds_special: false }
    }

    /// A document's token ids, the end of text included.
    ///
    /// # Errors
    /// [`CleanError::Tokenizer`] where the library cannot encode it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, CleanError> {
        let encoding = self.tokenizer.encode_fast(text, self.adds_special).map_err(failed)?;
        let mut ids = Vec::with_capacity(encoding.len() + 1);
        ids.extend_from_slice(encoding.get_ids());
        if ids.last() != Some(&self.end_of_text) {
            ids.push(self.end_of_text);
        }
        Ok(ids)
    }
}

fn failed(error: tokenizers::Error) -> CleanError {
    CleanError::Tokenizer(error.to_string())
}

#[cfg(test)]
mod tests;
