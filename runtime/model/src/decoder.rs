//! The trained model at work: tokens in, logits out, keys and values kept.
//!
//! Read [`Decoder`] first. Prefill and decode are one call, [`Decoder::forward`], over any mix of
//! sequences. A row's logits do not depend on what else is in the call nor on how a prompt is cut
//! into calls, and have the bits of the trainer's forward pass for the same logical shards.
//!
//! Shapes: `x`, `h` are `[rows, d]`; rows are the tokens of all chunks, chunk after chunk.

mod kv_cache;
mod logits;
mod weights;

use std::ops::Range;

use sixfold_tensor::{
    Mat, MatMut, Panels, RopeTable, Start, add_assign, add_bias, matmul_panels, matmul_tree, rope,
};

pub use kv_cache::{KvPool, KvSequence, OutOfBlocks};
pub use logits::{Logits, Normalizer};
use weights::{LayerWeights, NormWeights, Projection, TreeProjection, Weights};

use crate::activation;
use crate::unit::{Geometry, UnitBuffer};

/// A model ready to compute logits. It holds no state of any request and may be shared by threads.
pub struct Decoder {
    geometry: Geometry,
    /// Of families with rotary positions.
    rope: Option<RopeTable>,
    weights: Weights,
}

/// Which logits of a chunk are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// None: the chunk is a part of a prompt that goes on.
    Nothing,
    /// Those after the last token.
    Last,
    /// Those after every token.
    All,
}

/// The next tokens of one sequence: a prompt, a part of one, or the token chosen last.
pub struct Chunk<'a> {
    /// At least one token.
    pub tokens: &'a [u32],
    /// What the sequence has so far; the chunk's keys and values are added to it.
    pub sequence: &'a mut KvSequence,
    /// Which logits to return.
    pub wanted: Wanted,
}

/// Why a call was refused. No sequence has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A chunk has no tokens.
    #[error("a chunk has no tokens")]
    Empty,
    /// A token is outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The sequence would be longer than the model's positions.
    #[error("{tokens} tokens exceed the model's {positions} positions")]
    Positions {
        /// Tokens that the sequence would have.
        tokens: usize,
        /// Positions that the model may be asked for.
        positions: usize,
    },
    /// The cache has no block left; a sequence must end first.
    #[error(transparent)]
    OutOfBlocks(#[from] OutOfBlocks),
}

impl Decoder {
    /// Packs the parameters of a whole model.
    ///
    /// # Panics
    /// If `parameters` does not hold every unit of `geometry`.
    pub fn new(geometry: Geometry, parameters: &UnitBuffer) -> Self {
        let weights = Weights::pack(&geometry, parameters);
        let rope = geometry.config.rotations();
        Self { geometry, rope, weights }
    }

    /// Sizes and logical shards.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// A cache of at most `blocks` blocks of keys and values for this model's sequences.
    pub fn kv_pool(&self, blocks: usize) -> KvPool {
        KvPool::new(&self.geometry.config, blocks)
    }

    /// Takes each chunk's tokens through the model.
    ///
    /// # Errors
    /// [`DecodeError`] if a chunk does not fit the model or the cache; then nothing has changed.
    pub fn forward(&self, chunks: &mut [Chunk<'_>]) -> Result<Logits, DecodeError> {
        self.forward_with(chunks, |_| {})
    }

    /// As [`Decoder::forward`]; says the number of each layer once it is computed, so that a caller
    /// can tell a long call from one that is stuck.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn forward_with(
        &self,
        chunks: &mut [Chunk<'_>],
        computed: impl Fn(usize),
    ) -> Result<Logits, DecodeError> {
        self.check(chunks)?;
        let more = chunks.iter_mut().map(|chunk| (&mut *chunk.sequence, chunk.tokens.len()));
        KvSequence::reserve(&mut more.collect::<Vec<_>>())?;
        let rows = Rows::of(chunks);
        let mut x = self.embed(chunks, &rows.positions);
        for (layer, weights) in self.weights.layers.iter().enumerate() {
            self.attend(layer, weights, &mut x, chunks, &rows);
            self.feed_forward(weights, &mut x);
            computed(layer);
        }
        chunks.iter_mut().for_each(|chunk| chunk.sequence.advance(chunk.tokens.len()));
        let x = rows.keep_wanted(chunks, &x, self.geometry.config.hidden_size);
        let h = self.norm(&x, &self.weights.final_norm);
        Ok(Logits::new(&self.geometry, product(&h, &self.weights.head)))
    }

    fn check(&self, chunks: &[Chunk<'_>]) -> Result<(), DecodeError> {
        let (vocabulary, positions) =
            (self.geometry.config.vocab_size, self.geometry.config.max_position_embeddings);
        for chunk in chunks {
            let tokens = chunk.sequence.tokens() + chunk.tokens.len();
            if chunk.tokens.is_empty() {
                return Err(DecodeError::Empty);
            }
            if tokens > positions {
                return Err(DecodeError::Positions { tokens, positions });
            }
            if let Some(&token) = chunk.tokens.iter().find(|token| **token as usize >= vocabulary) {
                return Err(DecodeError::Token { token, vocabulary });
            }
        }
        Ok(())
    }

    fn embed(&self, chunks: &[Chunk<'_>], positions: &[u32]) -> Vec<f32> {
        let d = self.geometry.config.hidden_size;
        let row = |token: &u32| &self.weights.embedding[*token as usize * d..(*token as usize + 1) * d];
        let mut x: Vec<f32> = chunks.iter().flat_map(|chunk| chunk.tokens).flat_map(row).copied().collect();
        if let Some(table) = &self.weights.positions {
            for (position, row) in positions.iter().zip(x.chunks_exact_mut(d)) {
                add_assign(row, &table[*position as usize * d..][..d]);
            }
        }
        x
    }

    fn norm(&self, x: &[f32], weights: &NormWeights) -> Vec<f32> {
        weights.norm().forward(x, self.geometry.config.rms_norm_eps).h
    }

    fn attend(
        &self,
        layer: usize,
        weights: &LayerWeights,
        x: &mut [f32],
        chunks: &mut [Chunk<'_>],
        rows: &Rows,
    ) {
        let config = &self.geometry.config;
        let h = self.norm(x, &weights.attention_norm);
        let mut q = project(&h, &weights.query);
        let mut k = project(&h, &weights.key);
        let v = project(&h, &weights.value);
        let (query, kv) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        if let Some(table) = &self.rope {
            for (turned, width) in [(&mut q, query), (&mut k, kv)] {
                let turned = MatMut::row_major(turned, rows.positions.len(), width);
                rope(turned, &rows.positions, table, false);
            }
        }
        let mut o = vec![0.0; q.len()];
        for (chunk, rows) in chunks.iter_mut().zip(&rows.of_chunks) {
            let (queries, keys) = (rows.start * query..rows.end * query, rows.start * kv..rows.end * kv);
            chunk.sequence.write(layer, &k[keys.clone()], &v[keys]);
            chunk.sequence.attend(layer, config.num_attention_heads, &q[queries.clone()], &mut o[queries]);
        }
        add_assign(x, &project_tree(&o, &weights.output));
    }

    fn feed_forward(&self, weights: &LayerWeights, x: &mut [f32]) {
        let h = self.norm(x, &weights.feed_forward_norm);
        let inner = project(&h, &weights.inner);
        let config = &self.geometry.config;
        let product = activation::forward(config.family, &inner, config.intermediate_size);
        add_assign(x, &project_tree(&product, &weights.down));
    }
}

/// `x W^T`, and the bias where there is one.
fn project(x: &[f32], Projection { weight, bias }: &Projection) -> Vec<f32> {
    let mut y = product(x, weight);
    if let Some(bias) = bias {
        add_bias(&mut y, bias);
    }
    y
}

/// `x W^T` for a packed weight.
fn product(x: &[f32], weight: &Panels) -> Vec<f32> {
    let rows = x.len() / weight.rows();
    let mut y = vec![0.0; rows * weight.cols()];
    matmul_panels(
        Mat::row_major(x, rows, weight.rows()),
        weight,
        &mut MatMut::row_major(&mut y, rows, weight.cols()),
        Start::Zero,
    );
    y
}

/// As [`project`], for a weight whose sum is cut into the logical shards.
fn project_tree(x: &[f32], TreeProjection { weight, leaves, bias }: &TreeProjection) -> Vec<f32> {
    let rows = x.len() / weight.rows();
    let mut y = vec![0.0; rows * weight.cols()];
    let mut out = MatMut::row_major(&mut y, rows, weight.cols());
    matmul_tree(Mat::row_major(x, rows, weight.rows()), weight, leaves, &mut out);
    if let Some(bias) = bias {
        add_bias(&mut y, bias);
    }
    y
}

/// Which rows belong to which chunk, and their positions.
struct Rows {
    of_chunks: Vec<Range<usize>>,
    positions: Vec<u32>,
}

impl Rows {
    fn of(chunks: &[Chunk<'_>]) -> Self {
        let mut rows = Self { of_chunks: Vec::with_capacity(chunks.len()), positions: Vec::new() };
        for chunk in chunks {
            let (first, before) = (rows.positions.len(), chunk.sequence.tokens());
            rows.positions.extend((before..before + chunk.tokens.len()).map(|position| position as u32));
            rows.of_chunks.push(first..rows.positions.len());
        }
        rows
    }

    /// The rows of `x` whose logits are wanted.
    fn keep_wanted(&self, chunks: &[Chunk<'_>], x: &[f32], d: usize) -> Vec<f32> {
        let mut kept = Vec::new();
        for (chunk, rows) in chunks.iter().zip(&self.of_chunks) {
            let first = match chunk.wanted {
                Wanted::Nothing => rows.end,
                Wanted::Last => rows.end - 1,
                Wanted::All => rows.start,
            };
            kept.extend_from_slice(&x[first * d..rows.end * d]);
        }
        kept
    }
}
