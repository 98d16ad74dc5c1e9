//! Tests of `writer`.

use std::io::{self, Write};

use super::{DType, TokensError};

/// Writes one shard: documents in, little-endian token ids out.
pub struct TokenWriter<W> {
    sink: W,
    dtype: DType,
    vocabulary: u32,
    tokens: u64,
}

impl<W: Write> TokenWriter<W> {
    /// Begins a shard in `sink`, which should be buffered.
    pub fn new(sink: W, vocabulary: u32) -> Self {
        Self { sink, dtype: DType::for_vocabulary(vocabulary), vocabulary, tokens: 0 }
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Appends a document's token ids.
    ///
    /// # Errors
    /// [`TokensError::OutOfVocabulary`] and nothing written, or [`TokensError::Io`].
    pub fn push(&mut self, ids: &[u32]) -> Result<(), TokensError> {
        if let Some(at) = ids.iter().position(|&id| id >= self.vocabulary) {
            return Err(TokensError::OutOfVocabulary {
                token: ids[at],
                position: self.tokens + at as u64,
                vocabulary: self.vocabulary,
            });
        }
        let written = match self.dtype {
            DType::U16 => ids.iter().try_for_each(|&id| self.sink.write_all(&(id as u16).to_le_bytes())),
            DType::U32 => ids.iter().try_for_each(|&id| self.sink.write_all(&id.to_le_bytes())),
        };
        written.map_err(write_error)?;
        self.tokens += ids.len() as u64;
        Ok(())
    }

    /// Ends the shard and gives the sink back, with the number of its tokens.
    ///
    /// # Errors
    /// [`TokensError::Io`] where buffered bytes cannot be written.
    pub fn finish(mut self) -> Result<(W, u64), TokensError> {
        self.sink.flush().map_err(write_error)?;
        Ok((self.sink, self.tokens))
    }
}

fn write_error(source: io::Error) -> TokensError {
    TokensError::Io { path: "token shard".into(), source }
}

/// The content of a boundaries file: `documents + 1` numbers, the first 0, the last the split's tokens.
pub fn encode_boundaries(boundaries: &[u64]) -> Vec<u8> {
    boundaries.iter().flat_map(|boundary| boundary.to_le_bytes()).collect()
}
