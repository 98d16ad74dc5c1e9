//! Biases of projections, where the family has them; nothing is done where it has none.
//!
//! The bias of a projection whose outputs are cut lies with its shard. That of one whose inputs are cut is whole on every
//! rank of a tensor-parallel group, and is added once, after the sum over shards.
//! Shapes: `y`, `dy` are `[rows, outputs]`; of a whole bias they are the rows that the rank has
//! ([`row_parts`](crate::row_parts)).

use std::ops::Range;

use sixfold_tensor::{Mat, MatMut, Segment, View, ViewMut};

use crate::linear::Gradients;
use crate::packed::shard_ranges;
use crate::pass::Pass;
use crate::unit::{Place, Tensor, UnitId};

/// Adds the biases of projections whose outputs are cut and lie side by side.
pub(crate) fn add(pass: &Pass<'_>, layer: usize, projections: &[Tensor], y: ViewMut<'_>) {
    let run = run(pass, layer, projections);
    if !run.is_empty() {
        pass.stream.add_bias(y, pass.parameters.plain().slice(run));
    }
}

/// The gradients of [`add`]'s biases.
pub(crate) fn backward(
    pass: &Pass<'_>,
    layer: usize,
    projections: &[Tensor],
    dy: View<'_>,
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
    let width = dy.len() / pass.rows();
    of_units(pass, units, (dy, width, &pass.segments()), gradients);
}

/// Where the biases of projections lie among the parameters.
fn run(pass: &Pass<'_>, layer: usize, projections: &[Tensor]) -> Range<usize> {
    let biases: Vec<Tensor> = projections.iter().filter_map(|tensor| tensor.bias()).collect();
    pass.parameters.plain().index().run(Place::Layer(layer as u32), &biases, &pass.slice.shards)
}

/// Adds the bias of a projection whose inputs are cut.
pub(crate) fn add_whole(pass: &Pass<'_>, bias: UnitId, y: ViewMut<'_>) {
    if let Some(bias) = pass.parameters.plain().get(bias) {
        pass.stream.add_bias(y, bias);
    }
}

/// The gradient of [`add_whole`]'s bias.
pub(crate) fn backward_whole(pass: &Pass<'_>, bias: UnitId, dy: View<'_>, gradients: &mut Gradients<'_>) {
    let width = pass.width();
    of_units(pass, vec![(bias, 0..width)], (dy, width, &pass.own_segments()), gradients);
}

/// The gradients of biases, each of given columns of `dy`, whose rows are `width` wide, by sequence block.
fn of_units(
    pass: &Pass<'_>,
    mut units: Vec<(UnitId, Range<usize>)>,
    (dy, width, segments): (View<'_>, usize, &[Segment]),
    gradients: &mut Gradients<'_>,
) {
    units.retain(|(unit, _)| gradients.wants(*unit));
    if units.is_empty() {
        return;
    }
    let (stream, leaves) = (pass.stream, pass.leaves());
    let mut sums = stream.zeros(leaves * width);
    stream.bias_gradient(dy, width, segments, sums.view_mut());
    for (unit, columns) in units {
        gradients.add_leaves(unit, |to| {
            let of_unit = Mat::row_major(sums.view(), leaves, width).columns(columns.clone());
            stream.add_matrix(MatMut::row_major(to, leaves, columns.len()), of_unit);
        });
    }
}
