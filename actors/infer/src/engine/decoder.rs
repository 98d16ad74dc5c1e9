//! The model as the engine sees it.

use crate::pulse::Pulse;

/// Sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderShape {
    /// Columns of a row of logits.
    pub vocabulary: usize,
    /// Positions that a sequence may have.
    pub context_tokens: usize,
    /// Tokens whose keys and values make a block.
    pub block_tokens: usize,
    /// Blocks that all sequences together may hold.
    pub blocks: usize,
}

/// Which rows of logits the engine wants of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// None: the prompt goes on.
    None,
    /// The last token's.
    Last,
    /// Every token's, to score a prompt.
    All,
}

impl Rows {
    /// How many rows a chunk of `tokens` tokens gets.
    pub fn count(self, tokens: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Last => 1,
            Self::All => tokens,
        }
    }
}

/// Tokens of one sequence to compute.
pub struct Work<'a, C> {
    /// The tokens; never none.
    pub tokens: &'a [u32],
    /// Position of the first one; the cache holds those before it.
    pub start: usize,
    /// Keys and values of the sequence.
    pub cache: &'a mut C,
    /// Rows of logits wanted.
    pub rows: Rows,
}

/// The model could not compute a step.
#[derive(Debug, thiserror::Error)]
#[error("the model failed: {0}")]
pub struct ModelError(pub String);

/// Rows of logits of one call, chunk after chunk, as many as each chunk wanted.
pub trait LogitRows {
    /// Logits of a row, by token.
    fn row(&self, row: usize) -> &[f32];

    /// Log-probabilities of tokens in a row.
    fn log_probabilities(&self, row: usize, tokens: &[u32]) -> Vec<f32>;
}

/// A decoder-only model that computes several sequences at once. A sequence's logits are the same
/// bits whatever else is computed with it, and however it is cut into chunks.
pub trait Decoder: Send + 'static {
    /// Keys and values of one sequence.
    type Cache: Send;
    /// What a call returns.
    type Logits: LogitRows;

    /// Its sizes.
    fn shape(&self) -> DecoderShape;

    /// An empty cache.
    fn cache(&self) -> Self::Cache;

    /// Computes the work and returns the logits that it wants. Beats the pulse on the way, so that a
    /// call that takes long is told from one that is stuck.
    ///
    /// # Errors
    /// [`ModelError`] where it cannot; the caches are then of no use.
    fn forward(
        &mut self,
        work: &mut [Work<'_, Self::Cache>],
        pulse: &Pulse,
    ) -> Result<Self::Logits, ModelError>;
}
