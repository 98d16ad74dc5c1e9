//! The feed-forward layer: an activation between projections, for all of the rank's shards at once.
//!
//! Shapes: `h` is `[rows, d]`; `inner` is `[rows, columns]` for each projection into the layer, gates before ups; `product`,
//! what the activation makes of it, is `[rows, columns]`, where `columns` are those of the rank's shards, side by side.

use std::ops::Range;

use sixfold_tensor::{Buffer, Mat, Purpose, Stream, View, ViewMut};

use crate::branch::Body;
use crate::families::Family;
use crate::linear::{Gradients, pack};
use crate::packed::shard_ranges;
use crate::pass::Pass;
use crate::tensor_group::GroupError;
use crate::unit::{Place, Tensor, UnitId};
use crate::{activation, bias};

pub(crate) struct FeedForward;

pub(crate) struct FeedForwardTape {
    inner: Buffer,
    product: Buffer,
    /// What lies between the factors of adapters into the layer, and of those out of it; empty where there are none.
    low: [Buffer; 2],
}

impl Body for FeedForward {
    type Tape = FeedForwardTape;
    const NORM: Tensor = Tensor::FeedForwardNorm;
    const BIAS: Tensor = Tensor::DownBias;
    const DROPOUT: Purpose = Purpose::MLP_DROPOUT;

    fn readers(family: Family) -> &'static [Tensor] {
        family.feed_forward_inputs()
    }

    fn forward(
        pass: &mut Pass<'_>,
        layer: usize,
        h: View<'_>,
    ) -> Result<(Buffer, FeedForwardTape), GroupError> {
        let (stream, rows, weights) = (pass.stream, pass.rows(), pass.weights.layer(layer));
        let family = pass.geometry.config.family;
        let mut inner = weights.inner.forward(stream, pass.parameters, h, rows);
        let mut low = [(); 2].map(|()| stream.uninit(0));
        if let Some(adapters) = &weights.adapters.inner {
            low[0] = adapters.forward(pass, h, inner.view_mut());
        }
        bias::add(pass, layer, family.feed_forward_inputs(), inner.view_mut());
        let mut product = activation::forward(stream, family, inner.view(), weights.down.inputs());
        if let Some(adapter) = &weights.adapters.down {
            low[1] = adapter.forward(pass, product.view())?;
        }
        let y = weights.down.forward_tree(stream, pass.parameters, product.view(), rows);
        pass.work.projections += weights.inner.flops(rows) + weights.down.flops(rows);
        if !pass.geometry.trains_any(&[Tensor::Down]) {
            product = stream.uninit(0);
        }
        Ok((y, FeedForwardTape { inner, product, low }))
    }

    fn add_to_sum(pass: &Pass<'_>, layer: usize, tape: &FeedForwardTape, y: ViewMut<'_>) {
        if let Some(adapter) = &pass.weights.layer(layer).adapters.down {
            adapter.add(pass, tape.low[1].view(), y);
        }
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
    ) -> Result<(Buffer, Option<Buffer>), GroupError> {
        let stream = pass.stream;
        let (rows, d, weights) = (pass.rows(), pass.width(), pass.weights.layer(layer));
        let (columns, family) = (weights.down.inputs(), pass.geometry.config.family);
        let mut dproduct = weights.down.backward(stream, pass.parameters, dy, rows);
        if pass.geometry.trains_any(&[Tensor::Down]) {
            let again = tape.product.is_empty();
            let again = again.then(|| activation::forward(stream, family, tape.inner.view(), columns));
            let product = again.as_ref().unwrap_or(&tape.product).view();
            gradients.of_inputs(&down_units(pass, layer), dy, d, product);
            if let Some(adapter) = &weights.adapters.down {
                adapter.backward(pass, tape.low[1].view(), product, dy, dproduct.view_mut(), gradients);
            }
        }
        let d_inner = activation::backward(stream, family, dproduct.view(), tape.inner.view(), columns);
        let run = gradients.run(Place::Layer(layer as u32), family.feed_forward_inputs(), &pass.slice.shards);
        if !run.is_empty() {
            let of_rows = Mat::row_major(d_inner.view(), rows, weights.inner.outputs());
            gradients.of_outputs(run, of_rows, &pack(stream, h, d, pass.geometry.config.dtype));
        }
        bias::backward(pass, layer, family.feed_forward_inputs(), d_inner.view(), gradients);
        let products = pass.backward_products();
        pass.work.projections += products * (weights.inner.flops(rows) + weights.down.flops(rows));
        let through = match &weights.adapters.inner {
            None => None,
            Some(adapters) => {
                Some(adapters.backward(pass, tape.low[0].view(), h, d_inner.view(), gradients)?)
            }
        };
        Ok((weights.inner.backward_tree(stream, pass.parameters, d_inner.view(), rows), through))
    }
}

/// The units of the projection out of the layer, with their columns of what it reads.
fn down_units(pass: &Pass<'_>, layer: usize) -> Vec<(UnitId, Range<usize>)> {
    let ranges = shard_ranges(pass.geometry, pass.slice, layer, &[Tensor::Down]);
    let unit = |shard| UnitId::of_layer(layer, Tensor::Down, shard);
    pass.slice.shards.clone().zip(ranges).map(|(shard, ranges)| (unit(shard), ranges[0].clone())).collect()
}
