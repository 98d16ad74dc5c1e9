//! The feed-forward layer: an activation between projections, for all of the rank's shards at once.
//!
//! Shapes: `h` is `[rows, d]`; `inner` is `[rows, columns]` for each projection into the layer, gates before ups; `product`,
//! what the activation makes of it, is `[rows, columns]`, where `columns` are those of the rank's shards, side by side.

use sixfold_tensor::Purpose;

use crate::branch::Body;
use crate::linear::{Gradients, pack};
use crate::packed::shard_ranges;
use crate::pass::Pass;
use crate::unit::{Place, Tensor, UnitId};
use crate::{activation, bias};

pub(crate) struct FeedForward;

pub(crate) struct FeedForwardTape {
    inner: Vec<f32>,
    product: Vec<f32>,
}

impl Body for FeedForward {
    type Tape = FeedForwardTape;
    const NORM: Tensor = Tensor::FeedForwardNorm;
    const BIAS: Tensor = Tensor::DownBias;
    const DROPOUT: Purpose = Purpose::MLP_DROPOUT;

    fn forward(pass: &mut Pass<'_>, layer: usize, h: &[f32]) -> (Vec<f32>, FeedForwardTape) {
        let (rows, weights) = (pass.rows(), pass.weights.layer(layer));
        let family = pass.geometry.config.family;
        let mut inner = weights.inner.forward(h, rows);
        bias::add(pass, layer, family.feed_forward_inputs(), &mut inner);
        let product = activation::forward(family, &inner, weights.down.inputs());
        let y = weights.down.forward_tree(&product, rows);
        pass.work.projections += weights.inner.flops(rows) + weights.down.flops(rows);
        (y, FeedForwardTape { inner, product })
    }

    fn drop_cheap(tape: &mut FeedForwardTape) {
        tape.product = Vec::new();
    }

    fn backward(
        pass: &mut Pass<'_>,
        layer: usize,
        tape: &FeedForwardTape,
        h: &[f32],
        dy: &[f32],
        gradients: &mut Gradients<'_>,
    ) -> Vec<f32> {
        let (rows, d, weights) = (pass.rows(), pass.width(), pass.weights.layer(layer));
        let (columns, family) = (weights.down.inputs(), pass.geometry.config.family);
        let dproduct = weights.down.backward(dy, rows);
        let ranges = shard_ranges(pass.geometry, pass.slice, layer, &[Tensor::Down]);
        let unit = |shard| UnitId::of_layer(layer, Tensor::Down, shard);
        let units =
            pass.slice.shards.clone().zip(ranges).map(|(shard, ranges)| (unit(shard), ranges[0].clone()));
        let units: Vec<_> = units.collect();
        if tape.product.is_empty() {
            gradients.of_inputs(&units, dy, d, &activation::forward(family, &tape.inner, columns));
        } else {
            gradients.of_inputs(&units, dy, d, &tape.product);
        }
        let d_inner = activation::backward(family, &dproduct, &tape.inner, columns);
        let run = gradients.run(Place::Layer(layer as u32), family.feed_forward_inputs(), &pass.slice.shards);
        gradients.of_outputs(run, &d_inner, &pack(h, d, pass.geometry.config.dtype));
        bias::backward(pass, layer, family.feed_forward_inputs(), &d_inner, gradients);
        pass.work.projections += 2 * (weights.inner.flops(rows) + weights.down.flops(rows));
        weights.inner.backward_tree(&d_inner, rows)
    }
}
