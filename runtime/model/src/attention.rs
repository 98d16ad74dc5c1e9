//! Causal grouped-query attention with rotary positions: projections for all of the rank's shards at once,
//! attention itself one logical shard at a time, since copied key-value heads make shards uneven.
//!
//! Shapes: `h` is `[rows, d]`; `qkv` is `[rows, queries | keys | values]` and `o` is `[rows, query heads *
//! head]`, each with the rank's shards side by side. Of one shard, `q` is `[rows, query heads, head]`, `k` and
//! `v` are `[rows, kv heads, head]`, `lse` is `[rows, query heads]`.

use std::ops::Range;

use sixfold_tensor::{
    AttentionGradients, AttentionSaved, AttentionShape, Purpose, attention, attention_backward, rope,
};

use crate::batch::MicroBatch;
use crate::branch::Body;
use crate::linear::{Gradients, pack};
use crate::packed::{QUERY_KEY_VALUE, shard_ranges};
use crate::pass::Pass;
use crate::unit::{Place, Tensor, UnitId};

/// Keys that attention takes together, counted from the start of the document. A part of the
/// fixed order of additions: it travels with the model.
pub const KEYS_PER_BLOCK: usize = sixfold_tensor::KEY_BLOCK;

pub(crate) struct Attention;

pub(crate) struct AttentionTape {
    o: Vec<f32>,
    /// One for each of the rank's shards that has heads, in order.
    shards: Vec<ShardTape>,
}

struct ShardTape {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    lse: Vec<f32>,
}

/// Where one shard's heads lie.
struct Heads {
    /// The logical shard.
    shard: usize,
    shape: AttentionShape,
    /// Columns of queries, keys and values in `qkv`.
    qkv: [Range<usize>; 3],
    /// Columns of `o`.
    o: Range<usize>,
}

impl Heads {
    /// Those of the rank's shards that have any.
    fn of(pass: &Pass<'_>, layer: usize) -> Vec<Self> {
        let (tokens, head_dim) = (pass.rows(), pass.geometry.config.head_dim);
        let qkv = shard_ranges(pass.geometry, pass.slice, layer, &QUERY_KEY_VALUE);
        let o = shard_ranges(pass.geometry, pass.slice, layer, &[Tensor::AttentionOutput]);
        let all = pass.slice.shards.clone().zip(qkv.into_iter().zip(o));
        all.filter_map(|(shard, (qkv, o))| {
            let of_shard = pass.geometry.sharding.shard(shard);
            let (q_heads, kv_heads) = (of_shard.query_heads.len(), of_shard.kv_heads.len());
            let shape = AttentionShape { tokens, q_heads, kv_heads, head_dim, keys: tokens, query_offset: 0 };
            let qkv = qkv.try_into().ok()?;
            (q_heads > 0).then(|| Self { shard, shape, qkv, o: o[0].clone() })
        })
        .collect()
    }

    /// Operations of `products` matrix products between queries and the keys that they may see.
    fn flops(&self, products: u64, batch: &MicroBatch) -> u64 {
        let seen: usize = batch.documents().map(|rows| rows.len() * (rows.len() + 1) / 2).sum();
        products * 2 * seen as u64 * self.o.len() as u64
    }
}

impl Body for Attention {
    type Tape = AttentionTape;
    const NORM: Tensor = Tensor::AttentionNorm;
    const DROPOUT: Purpose = Purpose::ATTENTION_DROPOUT;

    fn forward(pass: &mut Pass<'_>, layer: usize, h: &[f32]) -> (Vec<f32>, AttentionTape) {
        let (rows, weights) = (pass.rows(), pass.weights.layer(layer));
        let qkv = weights.query_key_value.forward(h, rows);
        let mut tape =
            AttentionTape { o: vec![0.0; rows * weights.attention_output.inputs()], shards: Vec::new() };
        for heads in Heads::of(pass, layer) {
            let [mut q, mut k, v] = heads.qkv.each_ref().map(|columns| gather(&qkv, rows, columns));
            rope(&mut q, &pass.positions, pass.rope, false);
            rope(&mut k, &pass.positions, pass.rope, false);
            let mut o = vec![0.0; q.len()];
            let mut lse = vec![0.0; rows * heads.shape.q_heads];
            attention(&q, &k, &v, &heads.shape, &pass.batch.document_starts, &mut o, &mut lse);
            scatter(&o, rows, &heads.o, &mut tape.o);
            tape.shards.push(ShardTape { q, k, v, lse });
            pass.work.attention += heads.flops(2, pass.batch);
        }
        count_projections(pass, layer, 1);
        (weights.attention_output.forward_tree(&tape.o, rows), tape)
    }

    fn backward(
        pass: &mut Pass<'_>,
        layer: usize,
        tape: &AttentionTape,
        h: &[f32],
        dy: &[f32],
        gradients: &mut Gradients<'_>,
    ) -> Vec<f32> {
        let (rows, d, weights) = (pass.rows(), pass.width(), pass.weights.layer(layer));
        let d_o = weights.attention_output.backward(dy, rows);
        let mut d_qkv = vec![0.0; rows * weights.query_key_value.outputs()];
        let all_heads = Heads::of(pass, layer);
        let unit = |heads: &Heads| UnitId::of_layer(layer, Tensor::AttentionOutput, heads.shard);
        let units: Vec<_> = all_heads.iter().map(|heads| (unit(heads), heads.o.clone())).collect();
        gradients.of_inputs(&units, dy, d, &tape.o);
        for (heads, shard) in all_heads.iter().zip(&tape.shards) {
            let parts = heads_gradient(pass, heads, shard, &tape.o, &d_o);
            for (part, columns) in parts.iter().zip(&heads.qkv) {
                scatter(part, rows, columns, &mut d_qkv);
            }
        }
        let run = gradients.run(Place::Layer(layer as u32), &QUERY_KEY_VALUE, &pass.slice.shards);
        gradients.of_outputs(run, &d_qkv, &pack(h, d));
        count_projections(pass, layer, 2);
        weights.query_key_value.backward_tree(&d_qkv, rows)
    }
}

/// Gradients of one shard's queries and keys before rotation, and of its values.
fn heads_gradient(
    pass: &mut Pass<'_>,
    heads: &Heads,
    tape: &ShardTape,
    o: &[f32],
    d_o: &[f32],
) -> [Vec<f32>; 3] {
    let rows = pass.rows();
    let (o, d_o) = (gather(o, rows, &heads.o), gather(d_o, rows, &heads.o));
    let mut dq = vec![0.0; tape.q.len()];
    let (mut dk, mut dv) = (vec![0.0; tape.k.len()], vec![0.0; tape.v.len()]);
    let saved =
        AttentionSaved { q_thd: &tape.q, k_thd: &tape.k, v_thd: &tape.v, out_thd: &o, lse_th: &tape.lse };
    let gradients = AttentionGradients { d_q_thd: &mut dq, d_k_thd: &mut dk, d_v_thd: &mut dv };
    attention_backward(&d_o, &saved, &heads.shape, &pass.batch.document_starts, gradients);
    pass.work.attention += heads.flops(5, pass.batch);
    rope(&mut dq, &pass.positions, pass.rope, true);
    rope(&mut dk, &pass.positions, pass.rope, true);
    [dq, dk, dv]
}

/// Counts `products` products with each of the layer's projections; those that shards do alike, for
/// copies of a head, apart.
fn count_projections(pass: &mut Pass<'_>, layer: usize, products: u64) {
    let (rows, weights) = (pass.rows(), pass.weights.layer(layer));
    let all = weights.query_key_value.flops(rows) + weights.attention_output.flops(rows);
    let is_copied = |heads: &&Heads| pass.geometry.sharding.is_kv_copied(heads.shard);
    let copied = Heads::of(pass, layer);
    let copied = copied.iter().filter(is_copied).map(|heads| heads.qkv[1].len() + heads.qkv[2].len());
    let copied = 2 * (rows * pass.width() * copied.sum::<usize>()) as u64;
    pass.work.projections += products * (all - copied);
    pass.work.kv_copies += products * copied;
}

/// The given columns of all rows, one row after another.
fn gather(x: &[f32], rows: usize, columns: &Range<usize>) -> Vec<f32> {
    let mut part = Vec::with_capacity(rows * columns.len());
    for row in x.chunks_exact(x.len() / rows) {
        part.extend_from_slice(&row[columns.clone()]);
    }
    part
}

/// Puts [`gather`]'s rows back.
fn scatter(part: &[f32], rows: usize, columns: &Range<usize>, x: &mut [f32]) {
    let width = x.len() / rows;
    for (row, part) in x.chunks_exact_mut(width).zip(part.chunks_exact(columns.len())) {
        row[columns.clone()].copy_from_slice(part);
    }
}
