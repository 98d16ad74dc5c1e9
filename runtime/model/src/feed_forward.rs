//! The feed-forward layer: SwiGLU between two projections, one logical shard at a time.
//!
//! Shapes: `h` is `[rows, d]`; `gate`, `up` and their product are `[rows, columns of the shard]`.

use sixfold_tensor::{Panels, Purpose, Start, swiglu, swiglu_backward};

use crate::branch::Body;
use crate::linear::{Linear, shared_weight_gradient, weight_gradient};
use crate::pass::Pass;
use crate::unit::{Tensor, UnitBuffer, UnitId};

pub(crate) struct FeedForward;

pub(crate) struct FeedForwardTape {
    gate: Vec<f32>,
    up: Vec<f32>,
    product: Vec<f32>,
}

impl Body for FeedForward {
    type Tape = FeedForwardTape;
    const NORM: Tensor = Tensor::FeedForwardNorm;
    const DROPOUT: Purpose = Purpose::MLP_DROPOUT;

    fn forward(
        pass: &mut Pass<'_>,
        layer: usize,
        shard: usize,
        h: &[f32],
    ) -> Option<(Vec<f32>, FeedForwardTape)> {
        let columns = pass.geometry.sharding.shard(shard).feed_forward.len();
        if columns == 0 {
            return None;
        }
        let d = pass.width();
        let unit = |tensor| pass.parameters.unit(UnitId::of_layer(layer, tensor, shard));
        let flops = &mut pass.work.projections;
        let gate = Linear::new(unit(Tensor::Gate), d).forward(h, flops);
        let up = Linear::new(unit(Tensor::Up), d).forward(h, flops);
        let mut product = vec![0.0; gate.len()];
        swiglu(&gate, &up, &mut product);
        let partial = Linear::new(unit(Tensor::Down), columns).forward(&product, flops);
        Some((partial, FeedForwardTape { gate, up, product }))
    }

    fn backward(
        pass: &mut Pass<'_>,
        layer: usize,
        shard: usize,
        tape: &FeedForwardTape,
        h: &Panels,
        dy: &[f32],
        gradients: &mut UnitBuffer,
    ) -> Vec<f32> {
        let d = pass.width();
        let columns = pass.geometry.sharding.shard(shard).feed_forward.len();
        let id = |tensor| UnitId::of_layer(layer, tensor, shard);
        let weight = |tensor| pass.parameters.unit(id(tensor));
        let flops = &mut pass.work.projections;

        let mut dproduct = vec![0.0; tape.product.len()];
        Linear::new(weight(Tensor::Down), columns).input_gradient(dy, &mut dproduct, Start::Zero, flops);
        weight_gradient(dy, &tape.product, gradients.unit_mut(id(Tensor::Down)), columns, flops);

        let (mut dgate, mut dup) = (vec![0.0; dproduct.len()], vec![0.0; dproduct.len()]);
        swiglu_backward(&dproduct, &tape.gate, &tape.up, &mut dgate, &mut dup);
        shared_weight_gradient(&dgate, h, gradients.unit_mut(id(Tensor::Gate)), flops);
        shared_weight_gradient(&dup, h, gradients.unit_mut(id(Tensor::Up)), flops);

        let mut dh = vec![0.0; dy.len()];
        Linear::new(weight(Tensor::Gate), d).input_gradient(&dgate, &mut dh, Start::Zero, flops);
        Linear::new(weight(Tensor::Up), d).input_gradient(&dup, &mut dh, Start::FromC, flops);
        dh
    }
}
