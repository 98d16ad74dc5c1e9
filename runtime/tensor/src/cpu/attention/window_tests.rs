//! Tests of the window of `attention`.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::tests::Case;
use super::*;

fn shape(tokens: usize, window: usize) -> AttentionShape {
    AttentionShape {
        tokens,
        q_heads: 4,
        kv_heads: 2,
        head_dim: 20,
        keys: tokens,
        query_offset: 0,
        window: NonZeroUsize::new(window),
    }
}

#[test]
fn a_window_of_the_whole_document_has_the_bits_of_none() {
    let starts = [0, 130];
    let dense = Case::new(shape(230, 0), &starts);
    for (window, is_dense) in [(130, true), (1000, true), (usize::MAX, true), (129, false)] {
        let case = Case::new(shape(230, window), &starts);
        let level = simd_level();
        assert_eq!(case.forward(level) == dense.forward(level), is_dense, "{window}");
        assert_eq!(case.backward(level) == dense.backward(level), is_dense, "{window}");
    }
}

#[test]
fn what_lies_before_every_window_is_not_seen() {
    // The first query is at position 100 and sees the keys from 61 on.
    let case = |poison: f32| {
        let shape = AttentionShape { tokens: 60, keys: 160, query_offset: 100, ..shape(60, 40) };
        let mut case = Case::new(shape, &[0]);
        case.k[..61 * 40].fill(poison);
        case.v[..61 * 40].fill(poison);
        case
    };
    let (clean, poisoned) = (case(0.5), case(f32::NAN));
    let level = simd_level();
    assert_eq!(clean.forward(level), poisoned.forward(level));
    let [d_q, d_k, d_v] = clean.backward(level);
    assert_eq!([&d_q, &d_k, &d_v], [&poisoned.backward(level)[0], &d_k, &d_v]);
    assert!(d_k[..61 * 40].iter().chain(&d_v[..61 * 40]).all(|&gradient| gradient == 0.0));
    assert!(d_k[61 * 40..62 * 40].iter().any(|&gradient| gradient != 0.0));
}

/// Counts the blocks that are read.
struct Counting {
    cache: BlockedKeyValues,
    reads: AtomicUsize,
}

impl KeyValueBlocks for Counting {
    fn keys(&self, kv_head: usize, block: usize) -> &[f32] {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.cache.keys(kv_head, block)
    }

    fn values(&self, kv_head: usize, block: usize) -> &[f32] {
        self.cache.values(kv_head, block)
    }
}

fn reads(tokens: usize, window: usize) -> usize {
    let case = Case::new(shape(tokens, window), &[0]);
    let mut cache = BlockedKeyValues::new(2, 20);
    cache.push(&case.k, &case.v);
    let blocks = Counting { cache, reads: AtomicUsize::new(0) };
    let (mut out, mut lse) = (vec![0.0; case.q.len()], vec![0.0; tokens * 4]);
    let q = Mat::row_major(&case.q, tokens, 80);
    attention_blocks(q, &blocks, &case.shape, MatMut::row_major(&mut out, tokens, 80), &mut lse);
    blocks.reads.into_inner()
}

#[test]
fn the_blocks_read_grow_with_the_window_and_not_with_the_square_of_the_document() {
    // Chunks of 48 rows are 24 queries, which see 87 keys: in at most 3 blocks, for each of 2 KV heads.
    assert!(reads(1920, 64) <= 1920 / 24 * 3 * 2);
    assert_eq!(reads(2880, 64) - reads(1920, 64), reads(1920, 64) - reads(960, 64));
    assert_eq!(reads(1920, 0), (0..80usize).map(|chunk| (chunk * 24 + 23) / 64 + 1).sum::<usize>() * 2);
}
