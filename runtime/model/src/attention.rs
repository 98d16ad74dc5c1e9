//! Causal grouped-query attention with rotary positions, and norms of heads where the family has them: projections for all of the rank's shards at once, and
//! attention for as many neighbouring shards at once as have equally many query heads to a key-value head.
//!
//! Shapes: `h` is `[rows, d]`; `qkv` is `[rows, queries | keys | values]` and `o` is `[rows, query heads *
//! head]`, each with the rank's shards side by side; the tape holds `qkv` with its queries and keys turned, or as it was
//! before its heads were normed, which are then normed and turned again. Of one call of attention, `lse` is `[rows, query heads]`. Attention reads and writes the columns of these matrices.

mod head_norm;

use std::ops::Range;

use sixfold_tensor::{
    AttentionSaved, AttentionShape, Buffer, Mat, MatMut, Purpose, View, ViewMut, visible_pairs,
};

use crate::batch::MicroBatch;
use crate::bias;
use crate::branch::Body;
use crate::families::Family;
use crate::linear::{Gradients, pack};
use crate::packed::{QUERY_KEY_VALUE, shard_ranges};
use crate::pass::Pass;
use crate::tensor_group::GroupError;
use crate::unit::{Place, Tensor, UnitId};

/// Keys that attention takes together, counted from the start of the document. A part of the
/// fixed order of additions: it travels with the model.
pub const KEYS_PER_BLOCK: usize = sixfold_tensor::KEY_BLOCK;

pub(crate) struct Attention;

pub(crate) struct AttentionTape {
    qkv: Buffer,
    o: Buffer,
    /// What lies between the factors of adapters of queries, keys and values, and of the output; empty where there are none.
    low: [Buffer; 2],
    /// One for each call of attention, in order.
    lse: Vec<Buffer>,
}

/// Where the heads of a shard lie, or those of shards that are neighbours.
struct Heads {
    /// The first logical shard.
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
            let shape = AttentionShape {
                tokens,
                q_heads,
                kv_heads,
                head_dim,
                keys: tokens,
                query_offset: 0,
                window: pass.geometry.config.window(layer),
            };
            let qkv = qkv.try_into().ok()?;
            (q_heads > 0).then(|| Self { shard, shape, qkv, o: o[0].clone() })
        })
        .collect()
    }

    /// What one call of attention computes: shards side by side whose key-value heads have equally many query heads.
    fn of_calls(pass: &Pass<'_>, layer: usize) -> Vec<Self> {
        Self::of(pass, layer).into_iter().fold(Vec::new(), |mut calls, next| {
            match calls.last_mut() {
                Some(call) if call.shape.group() == next.shape.group() => call.append(&next),
                _ => calls.push(next),
            }
            calls
        })
    }

    /// Adds the heads of the shard that lies next in every matrix.
    fn append(&mut self, next: &Self) {
        self.shape.q_heads += next.shape.q_heads;
        self.shape.kv_heads += next.shape.kv_heads;
        self.qkv.iter_mut().zip(&next.qkv).for_each(|(columns, next)| columns.end = next.end);
        self.o.end = next.o.end;
    }

    /// Queries, keys and values in a `qkv` of rows of `width`.
    fn columns<'a>(&self, qkv: View<'a>, rows: usize, width: usize) -> [Mat<'a>; 3] {
        let qkv = Mat::row_major(qkv, rows, width);
        self.qkv.clone().map(|columns| qkv.columns(columns))
    }

    /// Operations of `products` matrix products between queries and the keys that they may see.
    fn flops(&self, products: u64, batch: &MicroBatch) -> u64 {
        let seen: usize = batch.documents().map(|rows| visible_pairs(rows.len(), self.shape.window)).sum();
        products * 2 * seen as u64 * self.o.len() as u64
    }
}

impl Body for Attention {
    type Tape = AttentionTape;
    const NORM: Tensor = Tensor::AttentionNorm;
    const BIAS: Tensor = Tensor::AttentionOutputBias;
    const DROPOUT: Purpose = Purpose::ATTENTION_DROPOUT;

    fn readers(_: Family) -> &'static [Tensor] {
        &QUERY_KEY_VALUE
    }

    fn forward(
        pass: &mut Pass<'_>,
        layer: usize,
        h: View<'_>,
    ) -> Result<(Buffer, AttentionTape), GroupError> {
        let (stream, rows, weights) = (pass.stream, pass.rows(), pass.weights.layer(layer));
        let mut qkv = weights.query_key_value.forward(stream, pass.parameters, h, rows);
        let (width, o_width) = (weights.query_key_value.outputs(), weights.attention_output.inputs());
        let (mut o, mut lses) = (stream.uninit(rows * o_width), Vec::new());
        let mut low = [(); 2].map(|()| stream.uninit(0));
        if let Some(adapters) = &weights.adapters.query_key_value {
            low[0] = adapters.forward(pass, h, qkv.view_mut());
        }
        bias::add(pass, layer, &QUERY_KEY_VALUE, qkv.view_mut());
        let former = norm_and_rotate(pass, layer, &mut qkv);
        for heads in Heads::of_calls(pass, layer) {
            let of_call = heads.columns(qkv.view(), rows, width);
            let out = MatMut::row_major(o.view_mut(), rows, o_width).columns(heads.o.clone());
            let mut lse = stream.uninit(rows * heads.shape.q_heads);
            stream.attention(of_call, &heads.shape, &pass.batch.document_starts, out, lse.view_mut());
            lses.push(lse);
            pass.work.attention += heads.flops(2, pass.batch);
        }
        count_projections(pass, layer, 1);
        if let Some(adapter) = &weights.adapters.attention_output {
            low[1] = adapter.forward(pass, o.view())?;
        }
        let y = weights.attention_output.forward_tree(stream, pass.parameters, o.view(), rows);
        Ok((y, AttentionTape { qkv: former.unwrap_or(qkv), o, low, lse: lses }))
    }

    fn add_to_sum(pass: &Pass<'_>, layer: usize, tape: &AttentionTape, y: ViewMut<'_>) {
        if let Some(adapter) = &pass.weights.layer(layer).adapters.attention_output {
            adapter.add(pass, tape.low[1].view(), y);
        }
    }

    fn backward(
        pass: &mut Pass<'_>,
        layer: usize,
        tape: &AttentionTape,
        h: View<'_>,
        dy: View<'_>,
        gradients: &mut Gradients<'_>,
    ) -> Result<(Buffer, Option<Buffer>), GroupError> {
        let stream = pass.stream;
        let (rows, d, weights) = (pass.rows(), pass.width(), pass.weights.layer(layer));
        let (width, o_width) = (weights.query_key_value.outputs(), weights.attention_output.inputs());
        let mut d_o = weights.attention_output.backward(stream, pass.parameters, dy, rows);
        if let Some(adapter) = &weights.adapters.attention_output {
            adapter.backward(pass, tape.low[1].view(), tape.o.view(), dy, d_o.view_mut(), gradients);
        }
        let unit = |heads: &Heads| UnitId::of_layer(layer, Tensor::AttentionOutput, heads.shard);
        let units: Vec<_> =
            Heads::of(pass, layer).iter().map(|heads| (unit(heads), heads.o.clone())).collect();
        gradients.of_inputs(&units, dy, d, tape.o.view());
        let again = pass.geometry.config.family.norms_heads().then(|| {
            let mut qkv = stream.copy_of(tape.qkv.view());
            norm_and_rotate(pass, layer, &mut qkv);
            qkv
        });
        let qkv = again.as_ref().unwrap_or(&tape.qkv);
        let mut d_qkv = stream.uninit(rows * width);
        let [o, d_o] = [&tape.o, &d_o].map(|of_heads| Mat::row_major(of_heads.view(), rows, o_width));
        for (heads, lse) in Heads::of_calls(pass, layer).iter().zip(&tape.lse) {
            let [q, k, v] = heads.columns(qkv.view(), rows, width);
            let saved = AttentionSaved { q, k, v, out: o.columns(heads.o.clone()), lse_th: lse.view() };
            let (d_o, columns) = (d_o.columns(heads.o.clone()), heads.qkv.clone());
            let (starts, to) =
                (&pass.batch.document_starts, MatMut::row_major(d_qkv.view_mut(), rows, width));
            stream.attention_backward(d_o, &saved, &heads.shape, starts, to, columns);
            pass.work.attention += heads.flops(5, pass.batch);
        }
        rotate(pass, d_qkv.view_mut(), layer, true);
        if again.is_some() {
            head_norm::backward(pass, layer, tape.qkv.view(), d_qkv.view_mut(), gradients);
        }
        let run = gradients.run(Place::Layer(layer as u32), &QUERY_KEY_VALUE, &pass.slice.shards);
        if !run.is_empty() {
            let of_rows = Mat::row_major(d_qkv.view(), rows, width);
            gradients.of_outputs(run, of_rows, &pack(stream, h, d, pass.geometry.config.dtype));
        }
        bias::backward(pass, layer, &QUERY_KEY_VALUE, d_qkv.view(), gradients);
        count_projections(pass, layer, pass.backward_products());
        let through = match &weights.adapters.query_key_value {
            None => None,
            Some(adapters) => {
                Some(adapters.backward(pass, tape.low[0].view(), h, d_qkv.view(), gradients)?)
            }
        };
        Ok((weights.query_key_value.backward_tree(stream, pass.parameters, d_qkv.view(), rows), through))
    }
}

/// Norms the heads of queries and keys of `qkv`, where the family does that, and turns them; returns what `qkv` was before
/// the norms.
fn norm_and_rotate(pass: &Pass<'_>, layer: usize, qkv: &mut Buffer) -> Option<Buffer> {
    let norms_heads = pass.geometry.config.family.norms_heads();
    let former = norms_heads.then(|| head_norm::forward(pass, layer, qkv.view_mut()));
    rotate(pass, qkv.view_mut(), layer, false);
    former
}

/// Turns the queries and keys of `qkv` by their positions, or back, where positions are rotary.
fn rotate(pass: &Pass<'_>, qkv: ViewMut<'_>, layer: usize, inverse: bool) {
    let Some(table) = pass.rope else { return };
    let rows = pass.rows();
    let turned = Heads::of(pass, layer).last().map_or(0, |heads| heads.qkv[1].end);
    let width = qkv.len() / rows;
    let turned = MatMut::row_major(qkv, rows, width).columns(0..turned);
    pass.stream.rope(turned, pass.positions.view(), table, inverse);
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
