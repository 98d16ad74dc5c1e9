//! Causal attention with grouped KV heads over packed documents, forward and backward.
//!
//! A query sees the keys of its own document up to its own position. Keys are taken in blocks of [`KEY_BLOCK`] counted from
//! the document's start, with an online softmax a block (Milakov and Gimelshein 2018; Dao et al., "FlashAttention",
//! 2022). What one query row computes depends on nothing but that row and its keys, in this order:
//!
//! 1. scores of a block: over `d` ascending, then `* 1/sqrt(head_dim)`;
//! 2. the block's maximum, `alpha = exp(old maximum - new maximum)`, `p = exp(score - new maximum)`;
//! 3. the sum `l = l * alpha + sum(p)`, the latter in the lanes of [`lane_sum`](crate::cpu::lane_sum);
//! 4. the output `o * alpha`, continued over the block's visible keys ascending.
//!
//! With a window (Child et al., "Generating Long Sequences with Sparse Transformers", 2019; Beltagy et al., "Longformer",
//! 2020; as in Mistral 7B) it sees the last keys of these only. The blocks stay where they are, those that it does not see
//! are left out, so time grows with the window and a window that holds the whole document changes no bit.
//!
//! So prefill, chunked prefill and decode give the same bits, and rows do not depend on each other. Backward: a
//! query's gradient goes over keys ascending; a key's over the rows (query, head of the KV group) that see it, queries
//! ascending, heads ascending within a query, all in one accumulator.
//!
//! Operands are matrices with a row a token, `[tokens][heads * head_dim]`, and a stride: queries, keys and values may be
//! columns of one matrix, so nothing is gathered before or scattered after. Read [`attention`] first, and
//! [`KeyValueBlocks`] for a cache.

mod backward;
mod blocks;
mod forward;
mod pack;

pub use backward::{AttentionGradients, AttentionSaved, attention_backward};
pub use blocks::{BlockedKeyValues, KeyValueBlocks, value_stride};

use std::num::NonZeroUsize;
use std::ops::Range;

use crate::cpu::simd::simd_level;
use crate::cpu::{Mat, MatMut, PANEL_COLUMNS, SimdLevel, threads};

/// Keys of one block; also the page of a KV cache.
pub const KEY_BLOCK: usize = crate::cpu::tile::SCORE_STRIDE;

/// Pairs of a query and a key that it sees, in a document of `tokens`, with a window of so many keys or without.
pub fn visible_pairs(tokens: usize, window: Option<NonZeroUsize>) -> usize {
    let window = window.map_or(tokens, |window| window.get().min(tokens));
    window * (window + 1) / 2 + (tokens - window) * window
}

/// The dims of one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttentionShape {
    /// Query tokens.
    pub tokens: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Key and value heads; query head `h` reads KV head `h / (q_heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Key tokens.
    pub keys: usize,
    /// Position of the first query among the keys.
    pub query_offset: usize,
    /// Keys that a query sees at most, its own among them; without it, all of its document so far.
    pub window: Option<NonZeroUsize>,
}

impl AttentionShape {
    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// [`Self::window`], or more than any document.
    pub(crate) fn window(&self) -> usize {
        self.window.map_or(usize::MAX, NonZeroUsize::get)
    }

    fn check(&self, q: &Mat<'_>, out: (usize, usize), lse_th: &[f32]) {
        let width = self.q_heads * self.head_dim;
        assert!(
            self.q_heads.is_multiple_of(self.kv_heads),
            "{} query heads, {} KV heads",
            self.q_heads,
            self.kv_heads
        );
        assert!(self.query_offset + self.tokens <= self.keys, "a query lies beyond the keys");
        check_rows("queries", q, (self.tokens, width));
        assert_eq!(out, (self.tokens, width), "shape of the outputs");
        assert_eq!(lse_th.len(), self.tokens * self.q_heads, "one log-sum-exp a query head");
    }

    fn check_keys(&self, k: &Mat<'_>, v: &Mat<'_>) {
        check_rows("keys", k, (self.keys, self.kv_heads * self.head_dim));
        check_rows("values", v, (self.keys, self.kv_heads * self.head_dim));
    }

    /// The factor on scores.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Keys of a block; none if the end is not beyond the start. Both ascend from row to row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Visible {
    start: usize,
    end: usize,
}

impl Visible {
    /// The keys that any of some rows sees, given their first and last.
    fn any(rows: &[Self]) -> Self {
        Self { start: rows[0].start, end: rows[rows.len() - 1].end }
    }

    /// The keys that all of some rows see.
    fn all(rows: &[Self]) -> Self {
        Self { start: rows[rows.len() - 1].start, end: rows[0].end }
    }

    fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether it has any of the keys of a panel's width from `column` on.
    fn meets_panel(self, column: usize) -> bool {
        !self.is_empty() && self.start < column + PANEL_COLUMNS && column < self.end
    }
}

fn check_rows(what: &str, mat: &Mat<'_>, shape: (usize, usize)) {
    assert_eq!((mat.rows, mat.cols), shape, "shape of the {what}");
    assert_eq!(mat.col_stride, 1, "elements of the {what} lie side by side");
}

/// The part of a call that lies in one document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    /// Query tokens of the call.
    pub(crate) queries: Range<usize>,
    /// Keys of the call, from the document's start to the last query.
    pub(crate) keys: Range<usize>,
}

impl Segment {
    /// The first query's position in the document.
    pub(crate) fn first_position(&self) -> usize {
        self.keys.len() - self.queries.len()
    }

    /// The keys of `block` that row of work `row` sees.
    fn visible(&self, shape: &AttentionShape, row: usize, block: usize) -> Visible {
        let in_block = |key: usize| key.saturating_sub(block * KEY_BLOCK).min(KEY_BLOCK);
        let position = self.first_position() + row / shape.group();
        let first = (position + 1).saturating_sub(shape.window());
        Visible { start: in_block(first), end: in_block(position + 1) }
    }

    /// The blocks of which any of the rows of work sees a key.
    fn blocks(&self, shape: &AttentionShape, rows: Range<usize>) -> Range<usize> {
        let position = |row: usize| self.first_position() + row / shape.group();
        let first = (position(rows.start) + 1).saturating_sub(shape.window());
        first / KEY_BLOCK..position(rows.end - 1) / KEY_BLOCK + 1
    }

    /// The rows of work that see any of `keys`, given as positions in the document.
    fn rows_that_see(&self, shape: &AttentionShape, keys: Range<usize>) -> Range<usize> {
        let query = |position: usize| position.saturating_sub(self.first_position()).min(self.queries.len());
        let end = query((keys.end - 1).saturating_add(shape.window()));
        query(keys.start) * shape.group()..end * shape.group()
    }

    /// Multiply-adds of one product over all rows and keys.
    fn cost(&self, shape: &AttentionShape) -> usize {
        self.rows(shape) * self.keys.len().min(shape.window()) * shape.head_dim * shape.kv_heads
    }

    /// Query rows of one KV head.
    pub(crate) fn rows(&self, shape: &AttentionShape) -> usize {
        self.queries.len() * shape.group()
    }
}

/// Where row of work `row` of a KV head lies: query `row / group` of the segment with head `row % group` of the KV head's
/// group, as `(token, query head)`.
fn row_place(shape: &AttentionShape, segment: &Segment, kv_head: usize, row: usize) -> (usize, usize) {
    (segment.queries.start + row / shape.group(), kv_head * shape.group() + row % shape.group())
}

/// Head `head` of token `token`.
fn head_of<'a>(mat: Mat<'a>, token: usize, head: usize, head_dim: usize) -> &'a [f32] {
    &mat.data[token * mat.row_stride + head * head_dim..][..head_dim]
}

/// Cuts the queries at the documents' starts.
pub(crate) fn segments(shape: &AttentionShape, document_starts: &[usize]) -> Vec<Segment> {
    let queries = shape.query_offset..shape.query_offset + shape.tokens;
    assert!(document_starts.is_sorted(), "document starts ascend");
    assert!(
        document_starts.first().is_some_and(|&first| first <= queries.start),
        "the first query has a document"
    );
    let ends = document_starts[1..].iter().copied().chain([usize::MAX]);
    let parts = document_starts.iter().zip(ends).map(|(&start, end)| {
        let (first, end) = (start.max(queries.start), end.min(queries.end));
        (start, first, end)
    });
    parts
        .filter(|(_, first, end)| first < end)
        .map(|(start, first, end)| Segment {
            queries: first - queries.start..end - queries.start,
            keys: start..end,
        })
        .collect()
}

/// Causal attention of `q` over `k` and `v`; writes `out` and the log-sum-exp of each row's scores, which backward
/// needs.
///
/// `q` and `out` are `[tokens][q_heads * head_dim]`, `k` and `v` `[keys][kv_heads * head_dim]`, each with a row stride of its
/// own; `lse_th` is `[tokens][q_heads]`. Query `i` is the token at key position `query_offset + i`. `document_starts`
/// holds the key positions at which documents begin, ascending (`&[0]` for a single one); several sequences in one call are
/// several documents.
///
/// # Panics
/// The shapes disagree, the elements of a row do not lie side by side, or the first query lies before the first document.
pub fn attention(
    q: Mat<'_>,
    k: Mat<'_>,
    v: Mat<'_>,
    shape: &AttentionShape,
    document_starts: &[usize],
    out: MatMut<'_>,
    lse_th: &mut [f32],
) {
    attention_at(simd_level(), [q, k, v], shape, document_starts, out, lse_th);
}

fn attention_at(
    level: SimdLevel,
    [q, k, v]: [Mat<'_>; 3],
    shape: &AttentionShape,
    document_starts: &[usize],
    out: MatMut<'_>,
    lse_th: &mut [f32],
) {
    shape.check(&q, (out.rows, out.cols), lse_th);
    shape.check_keys(&k, &v);
    let segments = segments(shape, document_starts);
    let sources = segments.iter().map(|segment| pack::Unpacked { shape, segment, k, v });
    let sources: Vec<_> = sources.collect();
    // Whole heads where there are enough of them for the threads.
    if threads::threads() == 1 || segments.len() * shape.kv_heads >= 2 * threads::threads() {
        let work: Vec<_> = segments.iter().zip(&sources).collect();
        return forward::run(level, q, &work, shape, usize::MAX, out, lse_th);
    }
    pack::with_packed(shape, &sources, |packed| {
        let work: Vec<_> = segments.iter().zip(packed).collect();
        forward::run(level, q, &work, shape, forward::TASK_ROWS, out, lse_th);
    });
}

/// Causal attention of one sequence over keys and values that a cache holds in blocks; the bits of [`attention`].
///
/// The sequence is one document: query `i` is at position `query_offset + i` and `keys` counts what the cache holds. Blocks
/// that lie before every query's window are not asked for.
///
/// # Panics
/// The shapes disagree, or the cache's blocks are shorter than the head dim asks for.
pub fn attention_blocks<B: KeyValueBlocks>(
    q: Mat<'_>,
    blocks: &B,
    shape: &AttentionShape,
    out: MatMut<'_>,
    lse_th: &mut [f32],
) {
    shape.check(&q, (out.rows, out.cols), lse_th);
    let (segments, source) = (segments(shape, &[0]), pack::Cached(blocks));
    let work: Vec<_> = segments.iter().map(|segment| (segment, &source)).collect();
    forward::run(simd_level(), q, &work, shape, forward::TASK_ROWS, out, lse_th);
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod window_tests;
