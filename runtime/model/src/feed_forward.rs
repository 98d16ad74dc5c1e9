//! The feed-forward layer: an activation between projections, for all of the rank's shards at once.
//!
//! Shapes: `h` is `[rows, d]`; `inner` is `[rows, columns]` for each projection into the layer, gates before ups; `product`,
//! what the activation makes of it, is `[rows, columns]`, where `columns` are those of the rank's shards, side by side.

use sixfold_tensor::{Buffer, Purpose, Stream, View};

use crate::branch::Body;
use crate::linear::{Gradients, pack};
use crate::packed::shard_ranges;
use crate::pass::Pass;
use crate::unit::{Place, Tensor, UnitId};
use crate::{activation, bias};

pub(crate) struct FeedForward;

pub(crate) struct FeedForwardTape {
    inner: Buffer,
    product: Buffer,
}

impl Body for FeedForward {
    type Tape = FeedForwardTape;
    const NORM: Tensor = Tensor::FeedForwardNorm;
    const BIAS: Tensor = Tensor::DownBias;
    const DROPOUT: Purpose = Purpose::MLP_DROPOUT;

    fn forward(pass: &mut Pass<'_>, layer: usize, h: View<'_>) -> (Buffer, FeedForwardTape) {
        let (stream, rows, weights) = (pass.stream, pass.rows(), pass.weights.layer(layer));
        let family = pass.geometry.config.family;
        let mut inner = weights.inner.forward(stream, pass.parameters, h, rows);
        bias::add(pass, layer, family.feed_forward_inputs(), inner.view_mut());
        let product = activation::forward(stream, family, inner.view(), weights.down.inputs());
        let y = weights.down.forward_tree(stream, pass.parameters, product.view(), rows);
        pass.work.projections += weights.inner.flops(rows) + weights.down.flops(rows);
        (y, FeedForwardTape { inner, product })
    }

    fn drop_cheap(stream: &Stream, tape: &mut FeedForwardTape) {
        tape.product = stream.uninit(0);
    }

    fn backward(
        pass: &mut Pass<'_>,
        layer: usize,
        tape: &FeedForwardTape,
        h: View<'_>,
        dy: View<'_>,
        gradients: &mut Gradients<'_>,
    ) -> Buffer {
        let stream = pass.stream;
        let (rows, d, weights) = (pass.rows(), pass.width(), pass.weights.layer(layer));
        let (columns, family) = (weights.down.inputs(), pass.geometry.config.family);
        let dproduct = weights.down.backward(stream, pass.parameters, dy, rows);
        let ranges = shard_ranges(pass.geometry, pass.slice, layer, &[Tensor::Down]);
        let unit = |shard| UnitId::of_layer(layer, Tensor::Down, shard);
        let units =
            pass.slice.shards.clone().zip(ranges).map(|(shard, ranges)| (unit(shard), ranges[0].clone()));
        let units: Vec<_> = units.collect();
        if tape.product.is_empty() {
            let product = activation::forward(stream, family, tape.inner.view(), columns);
            gradients.of_inputs(&units, dy, d, product.view());
        } else {
            gradients.of_inputs(&units, dy, d, tape.product.view());
        }
        let d_inner = activation::backward(stream, family, dproduct.view(), tape.inner.view(), columns);
        let run = gradients.run(Place::Layer(layer as u32), family.feed_forward_inputs(), &pass.slice.shards);
        gradients.of_outputs(run, d_inner.view(), &pack(stream, h, d, pass.geometry.config.dtype));
        bias::backward(pass, layer, family.feed_forward_inputs(), d_inner.view(), gradients);
        pass.work.projections += 2 * (weights.inner.flops(rows) + weights.down.flops(rows));
        weights.inner.backward_tree(stream, pass.parameters, d_inner.view(), rows)
    }
}
