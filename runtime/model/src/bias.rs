//! Biases of projections, where the family has them; nothing is done where it has none.
//!
//! The bias of a projection whose outputs are cut lies with its shard. That of one whose inputs are cut is whole on every
//! rank of a tensor-parallel group, and is added once, after the sum over shards.
//! Shapes: `y`, `dy` are `[rows, outputs]`.

use std::ops::Range;

use sixfold_tensor::{Segment, add_assign, add_bias, bias_gradient};

use crate::linear::Gradients;
use crate::packed::shard_ranges;
use crate::pass::Pass;
use crate::unit::{Place, Tensor, UnitId};

/// Adds the biases of projections whose outputs are cut and lie side by side.
pub(crate) fn add(pass: &Pass<'_>, layer: usize, projections: &[Tensor], y: &mut [f32]) {
    let run = run(pass, layer, projections);
    if !run.is_empty() {
        add_bias(y, &pass.parameters.values()[run]);
    }
}

/// The gradients of [`add`]'s biases.
pub(crate) fn backward(
    pass: &Pass<'_>,
    layer: usize,
    projections: &[Tensor],
    dy: &[f32],
    gradients: &mut Gradients<'_>,
) {
    if run(pass, layer, projections).is_empty() {
        return;
    }
    let ranges = shard_ranges(pass.geometry, pass.slice, layer, projections);
    let mut units = Vec::new();
    for (shard, ranges) in pass.slice.shards.clone().zip(ranges) {
        for (projection, columns) in projections.iter().zip(ranges) {
            let bias = projection.bias().map(|bias| UnitId::of_layer(layer, bias, shard));
            units.extend(bias.map(|bias| (bias, columns)));
        }
    }
    of_units(pass, units, dy, gradients);
}

/// Where the biases of projections lie among the parameters.
fn run(pass: &Pass<'_>, layer: usize, projections: &[Tensor]) -> Range<usize> {
    let biases: Vec<Tensor> = projections.iter().filter_map(|tensor| tensor.bias()).collect();
    pass.parameters.index().run(Place::Layer(layer as u32), &biases, &pass.slice.shards)
}

/// Adds the bias of a projection whose inputs are cut.
pub(crate) fn add_whole(pass: &Pass<'_>, bias: UnitId, y: &mut [f32]) {
    if let Some(bias) = pass.parameters.get(bias) {
        add_bias(y, bias);
    }
}

/// The gradient of [`add_whole`]'s bias.
pub(crate) fn backward_whole(pass: &Pass<'_>, bias: UnitId, dy: &[f32], gradients: &mut Gradients<'_>) {
    of_units(pass, vec![(bias, 0..pass.width())], dy, gradients);
}

/// The gradients of biases, each of given columns of `dy`, by sequence block.
fn of_units(
    pass: &Pass<'_>,
    mut units: Vec<(UnitId, Range<usize>)>,
    dy: &[f32],
    gradients: &mut Gradients<'_>,
) {
    units.retain(|(unit, _)| pass.parameters.get(*unit).is_some());
    if units.is_empty() {
        return;
    }
    let width = dy.len() / pass.rows();
    let mut sums = vec![0.0; pass.leaves() * width];
    let mut first = 0;
    for Segment { end, leaf } in pass.segments() {
        bias_gradient(&dy[first * width..end * width], &mut sums[leaf * width..][..width]);
        first = end;
    }
    for (unit, columns) in units {
        gradients.add_leaves(unit, |leaves| {
            let of_leaves = leaves.chunks_exact_mut(columns.len()).zip(sums.chunks_exact(width));
            of_leaves.for_each(|(leaf, sums)| add_assign(leaf, &sums[columns.clone()]));
        });
    }
}
