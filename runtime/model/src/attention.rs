//! Causal grouped-query attention with rotary positions, one logical shard at a time.
//!
//! Shapes: `h` is `[rows, d]`; `q` and `o` are `[rows, query heads of the shard, head]`, `k` and
//! `v` are `[rows, kv heads of the shard, head]`; `lse` is `[rows, query heads of the shard]`.

use sixfold_tensor::{
    AttentionGradients, AttentionSaved, AttentionShape, Panels, Purpose, Start, attention,
    attention_backward, rope,
};

use crate::batch::MicroBatch;
use crate::branch::Body;
use crate::linear::{Linear, shared_weight_gradient, weight_gradient};
use crate::pass::Pass;
use crate::unit::{Tensor, UnitBuffer, UnitId};

/// Keys that attention takes together, counted from the start of the document. A part of the
/// fixed order of additions: it travels with the model.
pub const KEYS_PER_BLOCK: usize = sixfold_tensor::KEY_BLOCK;

pub(crate) struct Attention;

pub(crate) struct AttentionTape {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    o: Vec<f32>,
    lse: Vec<f32>,
}

/// Sizes of one shard's attention over a micro-batch.
struct Widths {
    shape: AttentionShape,
    /// `query heads * head`
    query: usize,
}

impl Widths {
    /// Nothing where the shard has no heads.
    fn of(pass: &Pass<'_>, shard: usize) -> Option<Self> {
        let shard = pass.geometry.sharding.shard(shard);
        let (q_heads, kv_heads) = (shard.query_heads.len(), shard.kv_heads.len());
        let (tokens, head_dim) = (pass.rows(), pass.geometry.config.head_dim);
        let shape = AttentionShape { tokens, q_heads, kv_heads, head_dim, keys: tokens, query_offset: 0 };
        (q_heads > 0).then(|| Self { shape, query: q_heads * head_dim })
    }

    /// Operations of `products` matrix products between queries and the keys that they may see.
    fn flops(&self, products: u64, batch: &MicroBatch) -> u64 {
        let seen: usize = batch.documents().map(|rows| rows.len() * (rows.len() + 1) / 2).sum();
        products * 2 * seen as u64 * self.query as u64
    }
}

impl Body for Attention {
    type Tape = AttentionTape;
    const NORM: Tensor = Tensor::AttentionNorm;
    const DROPOUT: Purpose = Purpose::ATTENTION_DROPOUT;

    fn forward(
        pass: &mut Pass<'_>,
        layer: usize,
        shard: usize,
        h: &[f32],
    ) -> Option<(Vec<f32>, AttentionTape)> {
        let widths = Widths::of(pass, shard)?;
        let d = pass.width();
        let unit = |tensor| pass.parameters.unit(UnitId::of_layer(layer, tensor, shard));
        let copied = pass.geometry.sharding.is_kv_copied(shard);
        let work = &mut *pass.work;
        let mut project =
            |tensor| Linear::new(unit(tensor), d).forward(h, work.of_projection(tensor, copied));
        let mut q = project(Tensor::Query);
        let mut k = project(Tensor::Key);
        let v = project(Tensor::Value);
        rope(&mut q, &pass.positions, pass.rope, false);
        rope(&mut k, &pass.positions, pass.rope, false);

        let mut o = vec![0.0; q.len()];
        let mut lse = vec![0.0; pass.rows() * widths.shape.q_heads];
        attention(&q, &k, &v, &widths.shape, &pass.batch.document_starts, &mut o, &mut lse);
        pass.work.attention += widths.flops(2, pass.batch);
        let output = Linear::new(unit(Tensor::AttentionOutput), widths.query);
        let partial = output.forward(&o, &mut pass.work.projections);
        Some((partial, AttentionTape { q, k, v, o, lse }))
    }

    fn backward(
        pass: &mut Pass<'_>,
        layer: usize,
        shard: usize,
        tape: &AttentionTape,
        h: &Panels,
        dy: &[f32],
        gradients: &mut UnitBuffer,
    ) -> Vec<f32> {
        let Some(widths) = Widths::of(pass, shard) else {
            return Vec::new();
        };
        let d = pass.width();
        let id = |tensor| UnitId::of_layer(layer, tensor, shard);
        let weight = |tensor| pass.parameters.unit(id(tensor));

        let mut d_o = vec![0.0; tape.o.len()];
        let flops = &mut pass.work.projections;
        let output = Linear::new(weight(Tensor::AttentionOutput), widths.query);
        output.input_gradient(dy, &mut d_o, Start::Zero, flops);
        let d_output = gradients.unit_mut(id(Tensor::AttentionOutput));
        weight_gradient(dy, &tape.o, d_output, widths.query, flops);

        let inputs = attention_inputs_gradient(pass, &widths, tape, &d_o);

        let mut dh = vec![0.0; dy.len()];
        let copied = pass.geometry.sharding.is_kv_copied(shard);
        let mut start = Start::Zero;
        for (tensor, gradient) in [Tensor::Query, Tensor::Key, Tensor::Value].into_iter().zip(&inputs) {
            let flops = pass.work.of_projection(tensor, copied);
            shared_weight_gradient(gradient, h, gradients.unit_mut(id(tensor)), flops);
            Linear::new(weight(tensor), d).input_gradient(gradient, &mut dh, start, flops);
            start = Start::FromC;
        }
        dh
    }
}

/// Gradients of the queries and keys before rotation, and of the values.
fn attention_inputs_gradient(
    pass: &mut Pass<'_>,
    widths: &Widths,
    tape: &AttentionTape,
    d_o: &[f32],
) -> [Vec<f32>; 3] {
    let mut dq = vec![0.0; tape.q.len()];
    let (mut dk, mut dv) = (vec![0.0; tape.k.len()], vec![0.0; tape.v.len()]);
    let saved = AttentionSaved {
        q_thd: &tape.q,
        k_thd: &tape.k,
        v_thd: &tape.v,
        out_thd: &tape.o,
        lse_th: &tape.lse,
    };
    let gradients = AttentionGradients { d_q_thd: &mut dq, d_k_thd: &mut dk, d_v_thd: &mut dv };
    attention_backward(d_o, &saved, &widths.shape, &pass.batch.document_starts, gradients);
    pass.work.attention += widths.flops(5, pass.batch);
    rope(&mut dq, &pass.positions, pass.rope, true);
    rope(&mut dk, &pass.positions, pass.rope, true);
    [dq, dk, dv]
}
