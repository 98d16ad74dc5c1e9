//! The feed-forward layer: SwiGLU between two projections, for all of the rank's shards at once.
//!
//! Shapes: `h` is `[rows, d]`; `gate_up` is `[rows, 2 columns]`, gates before ups; their product is `[rows,
//! columns]`, where `columns` are those of the rank's shards, side by side.

use sixfold_tensor::{Purpose, swiglu, swiglu_backward};

use crate::branch::Body;
use crate::linear::{Gradients, pack};
use crate::packed::{GATE_UP, shard_ranges};
use crate::pass::Pass;
use crate::unit::{Place, Tensor, UnitId};

pub(crate) struct FeedForward;

pub(crate) struct FeedForwardTape {
    gate_up: Vec<f32>,
    product: Vec<f32>,
}

impl Body for FeedForward {
    type Tape = FeedForwardTape;
    const NORM: Tensor = Tensor::FeedForwardNorm;
    const DROPOUT: Purpose = Purpose::MLP_DROPOUT;

    fn forward(pass: &mut Pass<'_>, layer: usize, h: &[f32]) -> (Vec<f32>, FeedForwardTape) {
        let (rows, weights) = (pass.rows(), pass.weights.layer(layer));
        let gate_up = weights.gate_up.forward(h, rows);
        let product = product(&gate_up, weights.down.inputs());
        let y = weights.down.forward_tree(&product, rows);
        pass.work.projections += weights.gate_up.flops(rows) + weights.down.flops(rows);
        (y, FeedForwardTape { gate_up, product })
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
        let columns = weights.down.inputs();
        let dproduct = weights.down.backward(dy, rows);
        let ranges = shard_ranges(pass.geometry, pass.slice, layer, &[Tensor::Down]);
        let unit = |shard| UnitId::of_layer(layer, Tensor::Down, shard);
        let units =
            pass.slice.shards.clone().zip(ranges).map(|(shard, ranges)| (unit(shard), ranges[0].clone()));
        let units: Vec<_> = units.collect();
        if tape.product.is_empty() {
            gradients.of_inputs(&units, dy, d, &product(&tape.gate_up, columns));
        } else {
            gradients.of_inputs(&units, dy, d, &tape.product);
        }
        let mut d_gate_up = vec![0.0; tape.gate_up.len()];
        if !dproduct.is_empty() {
            swiglu_backward(&dproduct, &tape.gate_up, columns, &mut d_gate_up);
        }
        let run = gradients.run(Place::Layer(layer as u32), &GATE_UP, &pass.slice.shards);
        gradients.of_outputs(run, &d_gate_up, &pack(h, d));
        pass.work.projections += 2 * (weights.gate_up.flops(rows) + weights.down.flops(rows));
        weights.gate_up.backward_tree(&d_gate_up, rows)
    }
}

/// The gated activation.
fn product(gate_up: &[f32], columns: usize) -> Vec<f32> {
    let mut product = vec![0.0; gate_up.len() / 2];
    if !product.is_empty() {
        swiglu(gate_up, columns, &mut product);
    }
    product
}
