//! The trained model at work: tokens in, logits out, keys and values kept.
//!
//! Read [`Decoder`] first. Prefill and decode are one call, [`Decoder::forward`], over any mix of
//! sequences. A row's logits do not depend on what else is in the call nor on how a prompt is cut
//! into calls, and have the bits of the trainer's forward pass for the same logical shards.
//!
//! Shapes: `x`, `h` are `[rows, d]`; rows are the tokens of all chunks, chunk after chunk.

mod hidden_states;
mod kv_cache;
mod logits;
mod weights;

use std::ops::Range;

use sixfold_tensor::{Buffer, IndexBuffer, Mat, MatMut, Panels, RopeTable, Start, Stream, View};

pub use hidden_states::{HiddenStates, Pooling};
pub use kv_cache::{KvPool, KvSequence, OutOfBlocks};
pub use logits::{Logits, Normalizer};
use weights::{LayerWeights, NormWeights, Projection, TreeProjection, Weights};

use crate::activation;
use crate::unit::Geometry;
use crate::unit_buffer::HostUnits;

/// A model ready to compute logits. It holds no state of any request and may be shared by threads.
pub struct Decoder {
    stream: Stream,
    geometry: Geometry,
    /// Of families with rotary positions.
    rope: Option<RopeTable>,
    weights: Weights,
}

/// Which logits of a chunk are wanted, or which hidden states.
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
    /// What to return of it.
    pub wanted: Wanted,
}

impl Wanted {
    /// How many rows of a chunk's are wanted.
    fn rows(self, tokens: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Last => 1,
            Self::All => tokens,
        }
    }
}

/// Why a call was refused. No sequence has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A chunk has no tokens.
    #[error("there are no tokens")]
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
    /// Packs the parameters of a whole model, for the device of `stream`.
    ///
    /// # Panics
    /// If `parameters` does not hold every unit of `geometry`.
    pub fn new(stream: Stream, geometry: Geometry, parameters: &HostUnits<'_>) -> Self {
        let weights = Weights::pack(&stream, &geometry, parameters);
        let rope = geometry.config.rotations(&stream);
        stream.device().release_free_memory();
        Self { stream, geometry, rope, weights }
    }

    /// Sizes and logical shards.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// A cache of at most `blocks` blocks of keys and values for this model's sequences.
    pub fn kv_pool(&self, blocks: usize) -> KvPool {
        KvPool::new(self.stream.clone(), &self.geometry.config, blocks)
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
        let h = self.final_states(chunks, computed)?;
        Ok(Logits::new(&self.stream, &self.geometry, self.product(h.view(), &self.weights.head)))
    }

    /// The wanted rows after the final norm.
    fn final_states(
        &self,
        chunks: &mut [Chunk<'_>],
        computed: impl Fn(usize),
    ) -> Result<Buffer, DecodeError> {
        chunks.iter().try_for_each(|chunk| self.check_after(chunk.sequence.tokens(), chunk.tokens))?;
        let more = chunks.iter_mut().map(|chunk| (&mut *chunk.sequence, chunk.tokens.len()));
        KvSequence::reserve(&mut more.collect::<Vec<_>>())?;
        let rows = Rows::of(&self.stream, chunks);
        let mut x = self.embed_tokens(chunks, &rows);
        for (layer, weights) in self.weights.layers.iter().enumerate() {
            self.attend(layer, weights, &mut x, chunks, &rows);
            self.feed_forward(weights, &mut x);
            computed(layer);
        }
        chunks.iter_mut().for_each(|chunk| chunk.sequence.advance(chunk.tokens.len()));
        let x = self.keep_wanted(chunks, &rows, x.view());
        Ok(self.norm(x.view(), &self.weights.final_norm))
    }

    /// Whether a new sequence can have these tokens.
    ///
    /// # Errors
    /// [`DecodeError`] says what of them does not fit the model.
    pub fn check(&self, tokens: &[u32]) -> Result<(), DecodeError> {
        self.check_after(0, tokens)
    }

    fn check_after(&self, before: usize, tokens: &[u32]) -> Result<(), DecodeError> {
        let (vocabulary, positions) =
            (self.geometry.config.vocab_size, self.geometry.config.max_position_embeddings);
        if tokens.is_empty() {
            return Err(DecodeError::Empty);
        }
        if before + tokens.len() > positions {
            return Err(DecodeError::Positions { tokens: before + tokens.len(), positions });
        }
        match tokens.iter().find(|token| **token as usize >= vocabulary) {
            Some(&token) => Err(DecodeError::Token { token, vocabulary }),
            None => Ok(()),
        }
    }

    fn embed_tokens(&self, chunks: &[Chunk<'_>], rows: &Rows) -> Buffer {
        let (stream, d) = (&self.stream, self.geometry.config.hidden_size);
        let tokens: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.tokens).copied().collect();
        let mut x = stream.uninit(tokens.len() * d);
        let tokens = stream.upload_indices(&tokens);
        stream.embed(self.weights.embedding.view(), d, 0, tokens.view(), x.view_mut());
        if let Some(table) = &self.weights.positions {
            stream.embed_add(table.view(), d, 0, rows.positions.view(), x.view_mut());
        }
        x
    }

    fn norm(&self, x: View<'_>, weights: &NormWeights) -> Buffer {
        weights.norm().forward(&self.stream, x, self.geometry.config.rms_norm_eps).h
    }

    fn attend(
        &self,
        layer: usize,
        weights: &LayerWeights,
        x: &mut Buffer,
        chunks: &mut [Chunk<'_>],
        rows: &Rows,
    ) {
        let (stream, config) = (&self.stream, &self.geometry.config);
        let h = self.norm(x.view(), &weights.attention_norm);
        let mut q = self.project(h.view(), &weights.query);
        let mut k = self.project(h.view(), &weights.key);
        let v = self.project(h.view(), &weights.value);
        if let Some(norm) = &weights.query_norm {
            q = self.norm(q.view(), norm);
        }
        if let Some(norm) = &weights.key_norm {
            k = self.norm(k.view(), norm);
        }
        let (query, kv) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        if let Some(table) = &self.rope {
            for (turned, width) in [(&mut q, query), (&mut k, kv)] {
                let turned = MatMut::row_major(turned.view_mut(), rows.count, width);
                stream.rope(turned, rows.positions.view(), table, false);
            }
        }
        let mut o = stream.uninit(q.len());
        for (chunk, rows) in chunks.iter_mut().zip(&rows.of_chunks) {
            let (queries, keys) = (rows.start * query..rows.end * query, rows.start * kv..rows.end * kv);
            chunk.sequence.write(layer, k.slice(keys.clone()), v.slice(keys));
            let (q, o) = (q.slice(queries.clone()), o.slice_mut(queries));
            chunk.sequence.attend(layer, config.num_attention_heads, q, o);
        }
        stream.add_assign(x.view_mut(), self.project_tree(o.view(), &weights.output).view());
    }

    fn feed_forward(&self, weights: &LayerWeights, x: &mut Buffer) {
        let (stream, config) = (&self.stream, &self.geometry.config);
        let h = self.norm(x.view(), &weights.feed_forward_norm);
        let inner = self.project(h.view(), &weights.inner);
        let product = activation::forward(stream, config.family, inner.view(), config.intermediate_size);
        stream.add_assign(x.view_mut(), self.project_tree(product.view(), &weights.down).view());
    }

    /// `x W^T`, and the bias where there is one.
    fn project(&self, x: View<'_>, Projection { weight, bias }: &Projection) -> Buffer {
        let y = self.product(x, weight);
        self.add_bias(y, bias.as_ref())
    }

    /// `x W^T` for a packed weight.
    fn product(&self, x: View<'_>, weight: &Panels) -> Buffer {
        let rows = x.len() / weight.rows();
        let mut y = self.stream.uninit(rows * weight.cols());
        let out = MatMut::row_major(y.view_mut(), rows, weight.cols());
        self.stream.matmul_panels(Mat::row_major(x, rows, weight.rows()), weight, out, Start::Zero);
        y
    }

    /// As [`Self::project`], for a weight whose sum is cut into the logical shards.
    fn project_tree(&self, x: View<'_>, TreeProjection { weight, leaves, bias }: &TreeProjection) -> Buffer {
        let rows = x.len() / weight.rows();
        let mut y = self.stream.uninit(rows * weight.cols());
        let out = MatMut::row_major(y.view_mut(), rows, weight.cols());
        self.stream.matmul_tree(Mat::row_major(x, rows, weight.rows()), weight, leaves, out, Start::Zero);
        self.add_bias(y, bias.as_ref())
    }

    fn add_bias(&self, mut y: Buffer, bias: Option<&Buffer>) -> Buffer {
        if let Some(bias) = bias {
            self.stream.add_bias(y.view_mut(), bias.view());
        }
        y
    }

    /// The rows of `x` that are wanted.
    fn keep_wanted(&self, chunks: &[Chunk<'_>], rows: &Rows, x: View<'_>) -> Buffer {
        let d = self.geometry.config.hidden_size;
        let wanted = chunks.iter().zip(&rows.of_chunks);
        let wanted = wanted.map(|(chunk, rows)| rows.end - chunk.wanted.rows(rows.len())..rows.end);
        let mut kept = self.stream.uninit(wanted.clone().map(|rows| rows.len()).sum::<usize>() * d);
        let mut rest = kept.view_mut();
        for rows in wanted {
            let (to, after) = rest.split_at(rows.len() * d);
            self.stream.copy(x.slice(rows.start * d..rows.end * d), to);
            rest = after;
        }
        kept
    }
}

/// Which rows belong to which chunk, and their positions.
struct Rows {
    count: usize,
    of_chunks: Vec<Range<usize>>,
    positions: IndexBuffer,
}

impl Rows {
    fn of(stream: &Stream, chunks: &[Chunk<'_>]) -> Self {
        let (mut of_chunks, mut positions) = (Vec::with_capacity(chunks.len()), Vec::new());
        for chunk in chunks {
            let (first, before) = (positions.len(), chunk.sequence.tokens());
            positions.extend((before..before + chunk.tokens.len()).map(|position| position as u32));
            of_chunks.push(first..positions.len());
        }
        Self { count: positions.len(), of_chunks, positions: stream.upload_indices(&positions) }
    }
}
