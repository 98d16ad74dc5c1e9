//! A rank's weights as products read them, packed once a step for all of its micro-batches.
//!
//! A projection is computed for all of the rank's logical shards at once. Where its outputs are cut
//! (queries, keys, values, gate, up), every output element is a sum of its own, so the shards of
//! several projections are one matrix. Where its inputs are cut, the sum is cut into the same
//! [`Leaves`] as if each shard were computed by itself. Backward, the roles are exchanged.
//!
//! Shapes: a weight is `[outputs, inputs]`; the shards of an input that is cut lie side by side.

use std::ops::Range;

use sixfold_tensor::{Buffer, Dtype, Leaves, Mat, MatMut, Panels, Start, Stream, View};

use crate::config::ModelConfig;
use crate::head::table;
use crate::unit::{Geometry, ModelSlice, Place, Tensor, UnitId};
use crate::unit_buffer::DeviceUnits;

/// Queries, keys and values, side by side.
pub(crate) const QUERY_KEY_VALUE: [Tensor; 3] = [Tensor::Query, Tensor::Key, Tensor::Value];

/// The weights of a slice, packed for forward and backward.
#[derive(Debug)]
pub struct PackedWeights {
    first_layer: usize,
    layers: Vec<PackedLayer>,
    /// For each of the rank's shards; of no size where the shard is empty or the head is elsewhere.
    pub(crate) head: Vec<Packed>,
}

/// The projections of one layer.
#[derive(Debug)]
pub(crate) struct PackedLayer {
    pub(crate) query_key_value: Packed,
    pub(crate) attention_output: Packed,
    /// The projections into the feed-forward layer, side by side.
    pub(crate) inner: Packed,
    pub(crate) down: Packed,
}

/// A weight as the right operand of both its products.
#[derive(Debug)]
pub(crate) struct Packed {
    /// `[inputs][outputs]`
    forward: Panels,
    /// `[outputs][inputs]`
    backward: Panels,
    /// The sum over the logical shards, over whichever dim they cut.
    leaves: Leaves,
}

impl PackedWeights {
    /// The weights of `slice` among `parameters`.
    pub fn new(stream: &Stream, geometry: &Geometry, slice: &ModelSlice, parameters: &DeviceUnits) -> Self {
        let layers = slice.layers.clone().map(|layer| PackedLayer::new(stream, geometry, slice, layer));
        let head = if slice.output { slice.shards.len() } else { 0 };
        let mut this = Self {
            first_layer: slice.layers.start,
            layers: layers.collect(),
            head: (0..head).map(|_| Packed::new(stream, Leaves::default())).collect(),
        };
        this.pack(stream, geometry, slice, parameters);
        this
    }

    /// Packs changed parameters into the memory of the former ones.
    pub fn pack(
        &mut self,
        stream: &Stream,
        geometry: &Geometry,
        slice: &ModelSlice,
        parameters: &DeviceUnits,
    ) {
        for (layer, packed) in slice.layers.clone().zip(&mut self.layers) {
            packed.pack(stream, geometry, slice, layer, parameters);
        }
        for (shard, packed) in slice.shards.clone().zip(&mut self.head) {
            let Some(unit) = parameters.get(table(geometry, shard)) else { continue };
            let ModelConfig { hidden_size: d, dtype, .. } = geometry.config;
            packed.pack(stream, unit, unit.len() / d, d, dtype);
        }
    }

    pub(crate) fn layer(&self, layer: usize) -> &PackedLayer {
        &self.layers[layer - self.first_layer]
    }
}

impl PackedLayer {
    fn new(stream: &Stream, geometry: &Geometry, slice: &ModelSlice, layer: usize) -> Self {
        let packed = |tensors: &[Tensor]| {
            Packed::new(stream, Leaves::new(shard_ranges(geometry, slice, layer, tensors)))
        };
        Self {
            query_key_value: packed(&QUERY_KEY_VALUE),
            attention_output: packed(&[Tensor::AttentionOutput]),
            inner: packed(geometry.config.family.feed_forward_inputs()),
            down: packed(&[Tensor::Down]),
        }
    }

    fn pack(
        &mut self,
        stream: &Stream,
        geometry: &Geometry,
        slice: &ModelSlice,
        layer: usize,
        parameters: &DeviceUnits,
    ) {
        let ModelConfig { hidden_size: d, dtype, .. } = geometry.config;
        let place = Place::Layer(layer as u32);
        let run = |tensors| parameters.slice(parameters.index().run(place, tensors, &slice.shards));
        let inner = geometry.config.family.feed_forward_inputs();
        for (tensors, packed) in [(&QUERY_KEY_VALUE[..], &mut self.query_key_value), (inner, &mut self.inner)]
        {
            let weight = run(tensors);
            packed.pack(stream, weight, weight.len() / d, d, dtype);
        }
        for (tensor, packed) in
            [(Tensor::AttentionOutput, &mut self.attention_output), (Tensor::Down, &mut self.down)]
        {
            let ranges = shard_ranges(geometry, slice, layer, &[tensor]);
            let width = ranges.iter().flatten().map(|range| range.len()).sum();
            let mut whole = stream.uninit(d * width);
            for (shard, columns) in slice.shards.clone().zip(ranges.iter().map(|ranges| &ranges[0])) {
                let Some(unit) = parameters.get(UnitId::of_layer(layer, tensor, shard)) else { continue };
                let to = MatMut::row_major(whole.view_mut(), d, width).columns(columns.clone());
                stream.copy_matrix(Mat::row_major(unit, d, columns.len()), to);
            }
            packed.pack(stream, whole.view(), d, width, dtype);
        }
    }
}

/// For each of the rank's logical shards where it lies in the dim that shards cut, in a matrix of
/// `tensors` side by side: a range in each of them.
pub(crate) fn shard_ranges(
    geometry: &Geometry,
    slice: &ModelSlice,
    layer: usize,
    tensors: &[Tensor],
) -> Vec<Vec<Range<usize>>> {
    let mut ranges = vec![Vec::new(); slice.shards.len()];
    let mut end = 0;
    for &tensor in tensors {
        for (shard, ranges) in slice.shards.clone().zip(&mut ranges) {
            let region = geometry.region(UnitId::of_layer(layer, tensor, shard));
            let is_input = matches!(tensor, Tensor::AttentionOutput | Tensor::Down);
            let len = if is_input { region.columns.len() } else { region.rows.len() };
            ranges.push(end..end + len);
            end += len;
        }
    }
    ranges
}

impl Packed {
    /// No weight yet.
    fn new(stream: &Stream, leaves: Leaves) -> Self {
        Self { forward: stream.no_panels(), backward: stream.no_panels(), leaves }
    }

    /// A weight of `[outputs, inputs]`.
    fn pack(&mut self, stream: &Stream, weight: View<'_>, outputs: usize, inputs: usize, dtype: Dtype) {
        let weight = Mat::row_major(weight, outputs, inputs);
        stream.pack_into(weight.transposed(), dtype, &mut self.forward);
        stream.pack_into(weight, dtype, &mut self.backward);
    }

    pub(crate) fn inputs(&self) -> usize {
        self.forward.rows()
    }

    pub(crate) fn outputs(&self) -> usize {
        self.forward.cols()
    }

    /// Operations of one product with so many rows.
    pub(crate) fn flops(&self, rows: usize) -> u64 {
        2 * rows as u64 * self.inputs() as u64 * self.outputs() as u64
    }

    /// `y = x W^T` for a weight whose outputs are cut.
    pub(crate) fn forward(&self, stream: &Stream, x: View<'_>, rows: usize) -> Buffer {
        product(stream, x, rows, &self.forward)
    }

    /// `dx = dy W`, the sum over the rank's shards, for a weight whose outputs are cut.
    pub(crate) fn backward_tree(&self, stream: &Stream, dy: View<'_>, rows: usize) -> Buffer {
        tree(stream, dy, rows, &self.backward, &self.leaves)
    }

    /// `y = x W^T`, the sum over the rank's shards, for a weight whose inputs are cut.
    pub(crate) fn forward_tree(&self, stream: &Stream, x: View<'_>, rows: usize) -> Buffer {
        tree(stream, x, rows, &self.forward, &self.leaves)
    }

    /// `dx = dy W` for a weight whose inputs are cut.
    pub(crate) fn backward(&self, stream: &Stream, dy: View<'_>, rows: usize) -> Buffer {
        product(stream, dy, rows, &self.backward)
    }
}

fn product(stream: &Stream, x: View<'_>, rows: usize, weight: &Panels) -> Buffer {
    let mut y = stream.uninit(rows * weight.cols());
    let out = MatMut::row_major(y.view_mut(), rows, weight.cols());
    stream.matmul_panels(Mat::row_major(x, rows, weight.rows()), weight, out, Start::Zero);
    y
}

fn tree(stream: &Stream, x: View<'_>, rows: usize, weight: &Panels, leaves: &Leaves) -> Buffer {
    let mut y = stream.uninit(rows * weight.cols());
    let out = MatMut::row_major(y.view_mut(), rows, weight.cols());
    stream.matmul_tree(Mat::row_major(x, rows, weight.rows()), weight, leaves, out);
    y
}
