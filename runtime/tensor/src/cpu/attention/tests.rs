//! Tests of `attention`.

use super::*;
use crate::cpu::{Counter, Purpose, RowsMut, SimdLevel, set_threads};

fn random(sample: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    Counter::new(51, 0, sample, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
    values
}

pub(super) struct Case {
    pub(super) shape: AttentionShape,
    starts: Vec<usize>,
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    d_out: Vec<f32>,
}

impl Case {
    pub(super) fn new(shape: AttentionShape, starts: &[usize]) -> Self {
        let (q_len, k_len) =
            (shape.tokens * shape.q_heads * shape.head_dim, shape.keys * shape.kv_heads * shape.head_dim);
        let starts = starts.to_vec();
        Self {
            shape,
            starts,
            q: random(1, q_len),
            k: random(2, k_len),
            v: random(3, k_len),
            d_out: random(4, q_len),
        }
    }

    fn mats(&self) -> [Mat<'_>; 3] {
        let AttentionShape { tokens, q_heads, kv_heads, head_dim, keys, .. } = self.shape;
        let kv = kv_heads * head_dim;
        [
            Mat::row_major(&self.q, tokens, q_heads * head_dim),
            Mat::row_major(&self.k, keys, kv),
            Mat::row_major(&self.v, keys, kv),
        ]
    }

    pub(super) fn forward(&self, level: SimdLevel) -> (Vec<f32>, Vec<f32>) {
        let (mut out, mut lse) =
            (vec![f32::NAN; self.q.len()], vec![f32::NAN; self.q.len() / self.shape.head_dim]);
        let width = self.shape.q_heads * self.shape.head_dim;
        let out_mat = MatMut::row_major(&mut out, self.shape.tokens, width);
        attention_at(level, self.mats(), &self.shape, &self.starts, out_mat, &mut lse);
        (out, lse)
    }

    pub(super) fn backward(&self, level: SimdLevel) -> [Vec<f32>; 3] {
        let (out, lse) = self.forward(level);
        let [q, k, v] = self.mats();
        let saved = AttentionSaved { q, k, v, out: Mat { data: &out, ..q }, lse_th: &lse };
        let nan = |len| vec![f32::NAN; len];
        let (mut d_q, mut d_k, mut d_v) = (nan(self.q.len()), nan(self.k.len()), nan(self.k.len()));
        let gradients = AttentionGradients {
            d_q: RowsMut::row_major(&mut d_q, q.cols),
            d_k: RowsMut::row_major(&mut d_k, k.cols),
            d_v: RowsMut::row_major(&mut d_v, k.cols),
        };
        let d_out = Mat { data: &self.d_out, ..q };
        backward::backward_at(level, d_out, &saved, &self.shape, &self.starts, gradients);
        [d_q, d_k, d_v]
    }

    fn document_start(&self, position: usize) -> usize {
        self.starts.iter().copied().filter(|&start| start <= position).max().unwrap()
    }

    /// Output, log-sum-exp and gradients in f64, by the textbook formulas.
    fn reference(&self) -> (Vec<f64>, Vec<f64>, [Vec<f64>; 3]) {
        let AttentionShape { tokens, q_heads, kv_heads, head_dim, query_offset, .. } = self.shape;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let (mut out, mut lse) = (vec![0.0; self.q.len()], vec![0.0; tokens * q_heads]);
        let mut gradients = [vec![0.0; self.q.len()], vec![0.0; self.k.len()], vec![0.0; self.k.len()]];
        for row in 0..tokens * q_heads {
            let (position, kv_head) = (query_offset + row / q_heads, row % q_heads / (q_heads / kv_heads));
            let at = |key: usize| (key * kv_heads + kv_head) * head_dim;
            let (q, d_out) =
                (&self.q[row * head_dim..][..head_dim], &self.d_out[row * head_dim..][..head_dim]);
            let window = self.shape.window.map_or(usize::MAX, std::num::NonZeroUsize::get);
            let keys = self.document_start(position).max((position + 1).saturating_sub(window))..position + 1;
            let scores: Vec<f64> =
                keys.clone().map(|key| dot(q, &self.k[at(key)..][..head_dim]) * scale).collect();
            let sum: f64 = scores.iter().map(|score| score.exp()).sum();
            lse[row] = sum.ln();
            let p: Vec<f64> = scores.iter().map(|score| score.exp() / sum).collect();
            let d_p: Vec<f64> = keys.clone().map(|key| dot(d_out, &self.v[at(key)..][..head_dim])).collect();
            let delta: f64 = p.iter().zip(&d_p).map(|(p, d_p)| p * d_p).sum();
            for (index, key) in keys.enumerate() {
                let d_score = p[index] * (d_p[index] - delta) * scale;
                for d in 0..head_dim {
                    out[row * head_dim + d] += p[index] * f64::from(self.v[at(key) + d]);
                    gradients[0][row * head_dim + d] += d_score * f64::from(self.k[at(key) + d]);
                    gradients[1][at(key) + d] += d_score * f64::from(q[d]);
                    gradients[2][at(key) + d] += p[index] * f64::from(d_out[d]);
                }
            }
        }
        (out, lse, gradients)
    }
}

/// Shapes with odd head dims, groups, offsets and document cuts.
fn cases() -> Vec<Case> {
    let shape = |tokens, q_heads, kv_heads, head_dim, query_offset| AttentionShape {
        tokens,
        q_heads,
        kv_heads,
        head_dim,
        keys: query_offset + tokens,
        query_offset,
        window: None,
    };
    let windowed = |shape, window| AttentionShape { window: std::num::NonZeroUsize::new(window), ..shape };
    vec![
        Case::new(shape(1, 1, 1, 1, 0), &[0]),
        Case::new(shape(70, 6, 2, 10, 0), &[0]),
        Case::new(shape(150, 4, 4, 33, 0), &[0, 1, 40, 139]),
        Case::new(shape(80, 3, 1, 64, 100), &[0, 90, 150]),
        Case::new(shape(30, 16, 1, 8, 47), &[20]),
        Case::new(windowed(shape(150, 2, 1, 33, 0), 1), &[0, 40]),
        Case::new(windowed(shape(220, 2, 2, 16, 0), 7), &[0, 150]),
        Case::new(windowed(shape(200, 3, 1, 10, 70), 64), &[0]),
        Case::new(windowed(shape(300, 4, 2, 40, 0), 65), &[0, 3, 210]),
        Case::new(windowed(shape(150, 1, 1, 64, 150), 130), &[0]),
    ]
}

fn assert_close(actual: &[f32], expected: &[f64], what: &str) {
    for (index, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        assert!(error < 4e-6 * (1.0 + expected.abs()), "{what}[{index}] is {actual}, not {expected}");
    }
}

#[test]
fn forward_and_backward_match_a_double_precision_reference() {
    for case in cases() {
        let (out, lse, [d_q, d_k, d_v]) = case.reference();
        let (actual_out, actual_lse) = case.forward(simd_level());
        let [actual_q, actual_k, actual_v] = case.backward(simd_level());
        assert_close(&actual_out, &out, "out");
        assert_close(&actual_lse, &lse, "lse");
        assert_close(&actual_q, &d_q, "d_q");
        assert_close(&actual_k, &d_k, "d_k");
        assert_close(&actual_v, &d_v, "d_v");
    }
}

#[test]
fn levels_and_threads_agree_to_the_bit() {
    for case in cases() {
        let expected = (case.forward(SimdLevel::PLAIN), case.backward(SimdLevel::PLAIN));
        for level in SimdLevel::available() {
            assert!(
                (case.forward(level), case.backward(level)) == expected,
                "{} {:?}",
                level.name(),
                case.shape
            );
        }
        set_threads(3).unwrap();
        let threaded = (case.forward(simd_level()), case.backward(simd_level()));
        set_threads(1).unwrap();
        assert!(threaded == expected, "threads {:?}", case.shape);
    }
}

/// Prefill in the given chunks over a growing cache.
fn chunked(case: &Case, chunks: &[usize]) -> (Vec<f32>, Vec<f32>) {
    let AttentionShape { q_heads, kv_heads, head_dim, .. } = case.shape;
    let mut cache = BlockedKeyValues::new(kv_heads, head_dim);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for &tokens in chunks {
        let first = cache.tokens();
        let kv = first * kv_heads * head_dim..(first + tokens) * kv_heads * head_dim;
        cache.push(&case.k[kv.clone()], &case.v[kv]);
        let shape = AttentionShape { tokens, keys: first + tokens, query_offset: first, ..case.shape };
        let (mut part, mut part_lse) = (vec![0.0; tokens * q_heads * head_dim], vec![0.0; tokens * q_heads]);
        let q = case.mats()[0].row_range(first..first + tokens);
        attention_blocks(q, &cache, &shape, MatMut::row_major(&mut part, tokens, q.cols), &mut part_lse);
        out.extend(part);
        lse.extend(part_lse);
    }
    (out, lse)
}

#[test]
fn prefill_chunked_prefill_and_decode_have_the_same_bits() {
    for (q_heads, kv_heads, head_dim, window) in [(9, 3, 64, 0), (4, 1, 20, 0), (6, 3, 20, 70), (2, 2, 33, 5)]
    {
        let (tokens, window) = (150, std::num::NonZeroUsize::new(window));
        let shape =
            AttentionShape { tokens, q_heads, kv_heads, head_dim, keys: tokens, query_offset: 0, window };
        let case = Case::new(shape, &[0]);
        let whole = case.forward(simd_level());
        assert!(chunked(&case, &[1; 150]) == whole, "decode");
        assert!(chunked(&case, &[50, 1, 13, 80, 6]) == whole, "chunks");
    }
}

#[test]
fn a_document_does_not_depend_on_its_neighbours() {
    let shape = AttentionShape {
        tokens: 140,
        q_heads: 4,
        kv_heads: 2,
        head_dim: 16,
        keys: 140,
        query_offset: 0,
        window: None,
    };
    let packed = Case::new(shape, &[0, 45]);
    let (q_width, kv_width) = (4 * 16, 2 * 16);
    let alone = Case {
        shape: AttentionShape { tokens: 95, keys: 95, ..shape },
        starts: vec![0],
        q: packed.q[45 * q_width..].to_vec(),
        k: packed.k[45 * kv_width..].to_vec(),
        v: packed.v[45 * kv_width..].to_vec(),
        d_out: packed.d_out[45 * q_width..].to_vec(),
    };
    let level = simd_level();
    assert_eq!(packed.forward(level).0[45 * q_width..], alone.forward(level).0);
    let ([d_q, d_k, d_v], [alone_q, alone_k, alone_v]) = (packed.backward(level), alone.backward(level));
    assert_eq!(d_q[45 * q_width..], alone_q);
    assert_eq!((&d_k[45 * kv_width..], &d_v[45 * kv_width..]), (&alone_k[..], &alone_v[..]));
}

#[test]
fn what_lies_in_unused_slots_is_not_seen() {
    let shape = AttentionShape {
        tokens: 5,
        q_heads: 2,
        kv_heads: 1,
        head_dim: 8,
        keys: 5,
        query_offset: 0,
        window: None,
    };
    let case = Case::new(shape, &[0]);
    let mut cache = BlockedKeyValues::new(1, 8);
    cache.push(&[f32::NAN; 80], &[f32::NAN; 80]);
    cache.truncate(0);
    cache.push(&case.k, &case.v);
    let (mut out, mut lse) = (vec![0.0; case.q.len()], vec![0.0; 10]);
    attention_blocks(case.mats()[0], &cache, &shape, MatMut::row_major(&mut out, 5, 16), &mut lse);
    assert_eq!((out, lse), case.forward(simd_level()));
}

#[test]
fn columns_of_one_matrix_have_the_bits_of_matrices_of_their_own() {
    let shape = AttentionShape {
        tokens: 90,
        q_heads: 6,
        kv_heads: 2,
        head_dim: 20,
        keys: 90,
        query_offset: 0,
        window: None,
    };
    let case = Case::new(shape, &[0, 33]);
    let level = simd_level();
    let (out, lse) = case.forward(level);
    // A column of something else before each part.
    const COLUMNS: [std::ops::Range<usize>; 3] = [1..121, 122..162, 163..203];
    let mut qkv = vec![f32::NAN; 90 * 203];
    for ((row, q), (k, v)) in
        qkv.chunks_mut(203).zip(case.q.chunks(120)).zip(case.k.chunks(40).zip(case.v.chunks(40)))
    {
        COLUMNS.into_iter().zip([q, k, v]).for_each(|(columns, part)| row[columns].copy_from_slice(part));
    }
    let mat = Mat::row_major(&qkv, 90, 203);
    let [q, k, v] = COLUMNS.map(|columns| mat.columns(columns));
    let (mut wide_out, mut wide_lse) = (vec![7.0; 90 * 130], vec![0.0; lse.len()]);
    let out_mat = MatMut::with_stride(&mut wide_out[5..], 90, 120, 130);
    attention_at(level, [q, k, v], &shape, &case.starts, out_mat, &mut wide_lse);
    let wide = Mat::row_major(&wide_out, 90, 130).columns(5..125);
    assert_eq!(wide_lse, lse);
    assert!((0..90).all(|row| wide.data[row * 130..][..120] == out[row * 120..][..120]));
    assert!(wide_out.chunks(130).all(|row| row[..5].iter().chain(&row[125..]).all(|&other| other == 7.0)));

    let saved = AttentionSaved { q, k, v, out: wide, lse_th: &wide_lse };
    let mut d_qkv = vec![7.0; qkv.len()];
    let [d_q, d_k, d_v] = RowsMut::of_columns(&mut d_qkv, 203, COLUMNS);
    let d_out = Mat::row_major(&case.d_out, 90, 120);
    backward::backward_at(level, d_out, &saved, &shape, &case.starts, AttentionGradients { d_q, d_k, d_v });
    let parts = case.backward(level);
    for (row, d_row) in d_qkv.chunks(203).enumerate() {
        for (columns, part) in COLUMNS.into_iter().zip(&parts) {
            assert_eq!(d_row[columns.clone()], part[row * columns.len()..][..columns.len()]);
        }
        assert_eq!([d_row[0], d_row[121], d_row[162]], [7.0; 3]);
    }
}
