//! A rank's weights as products read them: packed, for each product anew or once for several.
//!
//! A projection is computed for all of the rank's logical shards at once. Where its outputs are cut
//! (queries, keys, values, gate, up), every output element is a sum of its own, so the shards of
//! several projections are one matrix. Where its inputs are cut, the sum is cut into the same
//! [`Leaves`] as if each shard were computed by itself. Backward, the roles are exchanged.
//!
//! Shapes: a weight is `[outputs, inputs]`; the shards of an input that is cut lie side by side.

use std::ops::{Deref, Range};

use sixfold_tensor::{Buffer, Dtype, Leaves, Mat, MatMut, Panels, Start, Stream, View};

use crate::adapter::LayerAdapters;
use crate::frozen::Parameters;
use crate::head::table;
use crate::unit::{Geometry, ModelSlice, Place, Tensor, UnitId, UnitIndex};

/// Queries, keys and values, side by side.
pub(crate) const QUERY_KEY_VALUE: [Tensor; 3] = [Tensor::Query, Tensor::Key, Tensor::Value];

/// The weights of a slice as operands of products.
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
    pub(crate) adapters: LayerAdapters,
}

/// A weight as the right operand of both its products.
#[derive(Debug)]
pub(crate) struct Packed {
    place: InParameters,
    outputs: usize,
    inputs: usize,
    /// What operands are rounded to.
    dtype: Dtype,
    /// The sum over the logical shards, over whichever dim they cut.
    leaves: Leaves,
    kept: Option<Kept>,
    /// Whether what is kept is the weight as it is now.
    is_current: bool,
}

/// Where a weight lies among the parameters of its slice.
#[derive(Debug)]
enum InParameters {
    /// In units that lie side by side.
    Run(Vec<UnitId>, Range<usize>),
    /// In units that have some of its columns each.
    Columns(Vec<(UnitId, Range<usize>)>),
}

/// A weight packed for both products.
#[derive(Debug)]
struct Kept {
    /// `[inputs][outputs]`
    forward: Panels,
    /// `[outputs][inputs]`
    backward: Panels,
}

/// A packed weight for one product.
enum Lent<'a> {
    Kept(&'a Panels),
    Fresh(Panels),
}

impl Deref for Lent<'_> {
    type Target = Panels;

    fn deref(&self) -> &Panels {
        match self {
            Self::Kept(panels) => panels,
            Self::Fresh(panels) => panels,
        }
    }
}

impl PackedWeights {
    /// The weights of `slice` among parameters that lie as `index` says, and its adapters, which lie as `adapters` says
    /// where the model has any. They are packed for each product anew, which costs
    /// no more than packing all of them, and no memory, where a step has one micro-batch; for more see [`Self::keep`].
    pub fn new(
        geometry: &Geometry,
        slice: &ModelSlice,
        index: &UnitIndex,
        adapters: Option<&UnitIndex>,
    ) -> Self {
        let layers = slice.layers.clone().map(|layer| {
            let packer = Packer { geometry, slice, index, layer };
            let adapters = adapters.map(|index| LayerAdapters::new(&Packer { index, ..packer }));
            PackedLayer::new(&packer, adapters.unwrap_or_default())
        });
        let (d, dtype) = (geometry.config.hidden_size, geometry.config.dtype);
        let of_shard = |shard| {
            let unit = table(geometry, shard);
            let range = index.range(unit).unwrap_or_default();
            Packed::new(range.len() / d, d, InParameters::Run(vec![unit], range), dtype, Leaves::default())
        };
        Self {
            first_layer: slice.layers.start,
            layers: layers.collect(),
            head: slice.shards.clone().filter(|_| slice.output).map(of_shard).collect(),
        }
    }

    /// Packs all weights but adapters, which are small, for several micro-batches, until [`Self::outdate`].
    pub fn keep(&mut self, stream: &Stream, parameters: Parameters<'_>) {
        self.each(|packed| packed.keep(stream, parameters));
    }

    /// To be called when the parameters change.
    pub fn outdate(&mut self) {
        self.each(|packed| packed.is_current = false);
    }

    fn each(&mut self, mut work: impl FnMut(&mut Packed)) {
        for PackedLayer { query_key_value, attention_output, inner, down, .. } in &mut self.layers {
            [query_key_value, attention_output, inner, down].into_iter().for_each(&mut work);
        }
        self.head.iter_mut().for_each(work);
    }

    pub(crate) fn layer(&self, layer: usize) -> &PackedLayer {
        &self.layers[layer - self.first_layer]
    }
}

impl PackedLayer {
    fn new(packer: &Packer<'_>, adapters: LayerAdapters) -> Self {
        let family = packer.geometry.config.family;
        Self {
            query_key_value: packer.by_outputs(&QUERY_KEY_VALUE),
            attention_output: packer.by_inputs(Tensor::AttentionOutput),
            inner: packer.by_outputs(family.feed_forward_inputs()),
            down: packer.by_inputs(Tensor::Down),
            adapters,
        }
    }
}

/// Where the weights of one layer lie.
#[derive(Clone, Copy)]
pub(crate) struct Packer<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) slice: &'a ModelSlice,
    pub(crate) index: &'a UnitIndex,
    pub(crate) layer: usize,
}

impl Packer<'_> {
    /// Weights that are cut by outputs, side by side.
    pub(crate) fn by_outputs(&self, tensors: &[Tensor]) -> Packed {
        let run = self.run(tensors, &self.slice.shards);
        let leaves = Leaves::new(shard_ranges(self.geometry, self.slice, self.layer, tensors));
        let inputs = self.geometry.whole(tensors[0]).1;
        let outputs = run.1.len() / inputs;
        Packed::new(outputs, inputs, InParameters::Run(run.0, run.1), self.dtype(), leaves)
    }

    /// A weight that is cut by inputs.
    pub(crate) fn by_inputs(&self, tensor: Tensor) -> Packed {
        let ranges = shard_ranges(self.geometry, self.slice, self.layer, &[tensor]);
        let width = ranges.iter().flatten().map(|range| range.len()).sum();
        let units = self.slice.shards.clone().zip(ranges.iter().map(|ranges| &ranges[0]));
        let unit = |shard| UnitId::of_layer(self.layer, tensor, shard);
        let units = units.map(|(shard, columns)| (unit(shard), columns.clone()));
        let units = units.filter(|(_, columns)| !columns.is_empty());
        let place = InParameters::Columns(units.collect());
        Packed::new(self.geometry.whole(tensor).0, width, place, self.dtype(), Leaves::new(ranges))
    }

    /// Weights that are not cut, side by side.
    pub(crate) fn whole(&self, tensors: &[Tensor]) -> Packed {
        let (run, inputs) = (self.run(tensors, &(0..1)), self.geometry.whole(tensors[0]).1);
        let outputs = run.1.len() / inputs;
        Packed::new(outputs, inputs, InParameters::Run(run.0, run.1), self.dtype(), Leaves::default())
    }

    fn run(&self, tensors: &[Tensor], shards: &Range<usize>) -> (Vec<UnitId>, Range<usize>) {
        let unit = |tensor| shards.clone().map(move |shard| UnitId::of_layer(self.layer, tensor, shard));
        let units = tensors.iter().flat_map(|&tensor| unit(tensor));
        let units = units.filter(|unit| self.index.range(*unit).is_some()).collect();
        (units, self.index.run(Place::Layer(self.layer as u32), tensors, shards))
    }

    fn dtype(&self) -> Dtype {
        self.geometry.config.dtype
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
            let len = if tensor.is_cut_by_inputs() { region.columns.len() } else { region.rows.len() };
            ranges.push(end..end + len);
            end += len;
        }
    }
    ranges
}

impl Packed {
    fn new(outputs: usize, inputs: usize, place: InParameters, dtype: Dtype, leaves: Leaves) -> Self {
        Self { place, outputs, inputs, dtype, leaves, kept: None, is_current: false }
    }

    fn keep(&mut self, stream: &Stream, parameters: Parameters<'_>) {
        if self.is_current {
            return;
        }
        let former = self.kept.take();
        let mut kept =
            former.unwrap_or_else(|| Kept { forward: stream.no_panels(), backward: stream.no_panels() });
        self.with_weight(stream, parameters, |weight| {
            stream.pack_into(weight.transposed(), self.dtype, &mut kept.forward);
            stream.pack_into(weight, self.dtype, &mut kept.backward);
        });
        (self.kept, self.is_current) = (Some(kept), true);
    }

    fn panels(&self, stream: &Stream, parameters: Parameters<'_>, forward: bool) -> Lent<'_> {
        match &self.kept {
            Some(kept) if self.is_current => Lent::Kept(if forward { &kept.forward } else { &kept.backward }),
            _ => Lent::Fresh(self.with_weight(stream, parameters, |weight| {
                stream.pack(if forward { weight.transposed() } else { weight }, self.dtype)
            })),
        }
    }

    /// Hands `work` the weight in one piece.
    fn with_weight<R>(
        &self,
        stream: &Stream,
        parameters: Parameters<'_>,
        work: impl FnOnce(Mat<'_>) -> R,
    ) -> R {
        let (outputs, inputs) = (self.outputs, self.inputs);
        match &self.place {
            InParameters::Run(units, run) => parameters
                .with_run(stream, units, run, |weight| work(Mat::row_major(weight, outputs, inputs))),
            InParameters::Columns(units) => {
                let mut whole = stream.uninit(outputs * inputs);
                for (unit, columns) in units {
                    let len = outputs * columns.len();
                    let whole = MatMut::row_major(whole.view_mut(), outputs, inputs).columns(columns.clone());
                    parameters.with_run(stream, &[*unit], &(0..len), |unit| {
                        stream.copy_matrix(Mat::row_major(unit, outputs, columns.len()), whole);
                    });
                }
                work(Mat::row_major(whole.view(), outputs, inputs))
            }
        }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Operations of one product with so many rows.
    pub(crate) fn flops(&self, rows: usize) -> u64 {
        2 * rows as u64 * self.inputs as u64 * self.outputs as u64
    }

    /// `y = x W^T` for a weight whose outputs are cut.
    pub(crate) fn forward(
        &self,
        stream: &Stream,
        parameters: Parameters<'_>,
        x: View<'_>,
        rows: usize,
    ) -> Buffer {
        product(stream, x, rows, &self.panels(stream, parameters, true))
    }

    /// `y += x W^T`.
    pub(crate) fn forward_onto(
        &self,
        stream: &Stream,
        parameters: Parameters<'_>,
        x: Mat<'_>,
        y: MatMut<'_>,
    ) {
        stream.matmul_panels(x, &self.panels(stream, parameters, true), y, Start::FromC);
    }

    /// `dx = dy W` into `dx`, the sum over the rank's shards, for a weight whose outputs are cut.
    pub(crate) fn backward_tree_into(
        &self,
        stream: &Stream,
        parameters: Parameters<'_>,
        dy: Mat<'_>,
        dx: MatMut<'_>,
    ) {
        let weight = self.panels(stream, parameters, false);
        stream.matmul_tree(dy, &weight, &self.leaves, dx, Start::Zero);
    }

    /// `dx = dy W`, the sum over the rank's shards, for a weight whose outputs are cut.
    pub(crate) fn backward_tree(
        &self,
        stream: &Stream,
        parameters: Parameters<'_>,
        dy: View<'_>,
        rows: usize,
    ) -> Buffer {
        tree(stream, dy, rows, &self.panels(stream, parameters, false), &self.leaves)
    }

    /// `y = x W^T`, the sum over the rank's shards, for a weight whose inputs are cut.
    pub(crate) fn forward_tree(
        &self,
        stream: &Stream,
        parameters: Parameters<'_>,
        x: View<'_>,
        rows: usize,
    ) -> Buffer {
        tree(stream, x, rows, &self.panels(stream, parameters, true), &self.leaves)
    }

    /// `dx = dy W` for a weight whose inputs are cut.
    pub(crate) fn backward(
        &self,
        stream: &Stream,
        parameters: Parameters<'_>,
        dy: View<'_>,
        rows: usize,
    ) -> Buffer {
        product(stream, dy, rows, &self.panels(stream, parameters, false))
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
    stream.matmul_tree(Mat::row_major(x, rows, weight.rows()), weight, leaves, out, Start::Zero);
    y
}
