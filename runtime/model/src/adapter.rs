//! Adapters of low rank beside the projections of a layer ([`Lora`](crate::Lora)), forwards and backwards.
//!
//! A factor on the side of a weight that shards cut is cut with it; the other is whole on every rank of a tensor-parallel group,
//! which computes with it what every rank does alike. What lies between the two is a sum over shards on the way
//! that crosses them (forwards where inputs are cut, backwards where outputs are), so it goes through the group: few
//! numbers a row. Then everything that follows from it is the same on every rank, and no gradient of a whole factor has to be
//! summed.
//!
//! Shapes: `low` is `[rows, rank]` for each adapter, side by side; `h` is `[rows, d]`, `x` is `[rows, the rank's inputs]`. All
//! rows of the micro-batch, but where it says that they are those that the rank has ([`row_parts`](crate::row_parts)).

use std::ops::Range;

use sixfold_tensor::{Buffer, Mat, MatMut, Purpose, View, ViewMut};

use crate::frozen::Parameters;
use crate::linear::Gradients;
use crate::lora::{Lora, Projection};
use crate::packed::{Packed, Packer, QUERY_KEY_VALUE, shard_ranges};
use crate::pass::Pass;
use crate::tensor_group::GroupError;
use crate::unit::{Place, Tensor, UnitId};

/// The adapters of one layer.
#[derive(Debug, Default)]
pub(crate) struct LayerAdapters {
    pub(crate) query_key_value: Option<OutputAdapters>,
    pub(crate) attention_output: Option<InputAdapter>,
    /// Of the projections into the feed-forward layer.
    pub(crate) inner: Option<OutputAdapters>,
    pub(crate) down: Option<InputAdapter>,
}

impl LayerAdapters {
    pub(crate) fn new(packer: &Packer<'_>) -> Self {
        let Some(lora) = &packer.geometry.lora else { return Self::default() };
        let inner = packer.geometry.config.family.feed_forward_inputs();
        Self {
            query_key_value: OutputAdapters::new(
                packer,
                lora,
                &QUERY_KEY_VALUE,
                Purpose::QKV_ADAPTER_DROPOUT,
            ),
            attention_output: InputAdapter::new(
                packer,
                lora,
                Projection::AttentionOutput,
                Purpose::ATTENTION_OUTPUT_ADAPTER_DROPOUT,
            ),
            inner: OutputAdapters::new(packer, lora, inner, Purpose::INNER_ADAPTER_DROPOUT),
            down: InputAdapter::new(packer, lora, Projection::Down, Purpose::DOWN_ADAPTER_DROPOUT),
        }
    }
}

/// The adapters of projections that read the same rows and whose outputs are cut.
#[derive(Debug)]
pub(crate) struct OutputAdapters {
    layer: usize,
    rank: usize,
    scale: f32,
    dropout: Purpose,
    /// `A` of each, side by side: `[adapters * rank, d]`.
    a: Packed,
    a_tensors: Vec<Tensor>,
    adapters: Vec<OutputAdapter>,
}

#[derive(Debug)]
struct OutputAdapter {
    /// Where the projection's outputs, of all of the rank's shards, lie among those of all projections.
    columns: Range<usize>,
    b: Packed,
    b_tensor: Tensor,
}

impl OutputAdapters {
    fn new(packer: &Packer<'_>, lora: &Lora, weights: &[Tensor], dropout: Purpose) -> Option<Self> {
        let ranges = shard_ranges(packer.geometry, packer.slice, packer.layer, weights);
        let (mut a_tensors, mut adapters) = (Vec::new(), Vec::new());
        for (at, weight) in weights.iter().enumerate().filter(|(_, weight)| lora.adapts(**weight)) {
            let Some([_, a, b_tensor]) = Projection::of_weight(*weight).map(Projection::tensors) else {
                continue;
            };
            let columns = ranges[0][at].start..ranges[ranges.len() - 1][at].end;
            a_tensors.push(a);
            adapters.push(OutputAdapter { columns, b: packer.by_outputs(&[b_tensor]), b_tensor });
        }
        (!adapters.is_empty()).then(|| Self {
            layer: packer.layer,
            rank: lora.rank,
            scale: lora.scale(),
            dropout,
            a: packer.whole(&a_tensors),
            a_tensors,
            adapters,
        })
    }

    /// The columns of `low` that belong to each adapter.
    fn lows(&self) -> impl Iterator<Item = (Range<usize>, &OutputAdapter)> {
        self.adapters.iter().enumerate().map(|(at, adapter)| (at * self.rank..(at + 1) * self.rank, adapter))
    }

    /// Adds what the adapters give to `y`, the outputs of all projections; returns `low`.
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, h: View<'_>, mut y: ViewMut<'_>) -> Buffer {
        let Some(parameters) = pass.adapters.map(Parameters::from) else { return pass.stream.uninit(0) };
        let (stream, rows) = (pass.stream, pass.rows());
        let dropped = self.dropped(pass, h);
        let h = dropped.as_ref().map_or(h, Buffer::view);
        let mut low = self.a.forward(stream, parameters, h, rows);
        stream.scale(low.view_mut(), self.scale);
        let (width, y_width) = (self.a.outputs(), y.len() / rows);
        for (columns, adapter) in self.lows() {
            let x = Mat::row_major(low.view(), rows, width).columns(columns);
            let to = MatMut::row_major(y.reborrow(), rows, y_width).columns(adapter.columns.clone());
            adapter.b.forward_onto(stream, parameters, x, to);
        }
        self.count(pass, 1);
        low
    }

    /// The part of the gradient of `h` that comes through the adapters, of the rows that the rank has; adds to the gradients of
    /// the factors.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        low: View<'_>,
        h: View<'_>,
        dy: View<'_>,
        gradients: &mut Gradients<'_>,
    ) -> Result<Buffer, GroupError> {
        let Some(parameters) = pass.adapters.map(Parameters::from) else { return Ok(pass.stream.uninit(0)) };
        let (stream, rows, dtype) = (pass.stream, pass.rows(), pass.geometry.config.dtype);
        let (place, width) = (Place::Layer(self.layer as u32), self.a.outputs());
        let (low, dy) = (Mat::row_major(low, rows, width), Mat::row_major(dy, rows, dy.len() / rows));
        let mut d_low = stream.uninit(rows * width);
        for (columns, adapter) in self.lows() {
            let dy = dy.columns(adapter.columns.clone());
            let run = gradients.run(place, &[adapter.b_tensor], &pass.slice.shards);
            if !run.is_empty() {
                gradients.of_outputs(run, dy, &stream.pack(low.columns(columns.clone()), dtype));
            }
            let to = MatMut::row_major(d_low.view_mut(), rows, width).columns(columns);
            adapter.b.backward_tree_into(stream, parameters, dy, to);
        }
        pass.group.sum(stream, d_low.view_mut())?;
        stream.scale(d_low.view_mut(), self.scale);
        let dropped = self.dropped(pass, h);
        let h = Mat::row_major(dropped.as_ref().map_or(h, Buffer::view), rows, pass.width());
        let run = gradients.run(place, &self.a_tensors, &(0..1));
        let of_rows = Mat::row_major(d_low.view(), rows, width);
        gradients.of_outputs(run, of_rows, &stream.pack(h, dtype));
        let own = pass.parts.take_own(stream, d_low, width);
        let mut dh = self.a.backward(stream, parameters, own.view(), pass.parts.own_rows());
        pass.adapter_dropout(dh.view_mut(), pass.parts.own().start, self.layer, self.dropout);
        self.count(pass, 2);
        Ok(dh)
    }

    /// The rows after dropout, where there is any.
    fn dropped(&self, pass: &Pass<'_>, h: View<'_>) -> Option<Buffer> {
        (pass.seed.adapter_dropout > 0.0).then(|| {
            let mut dropped = pass.stream.copy_of(h);
            pass.adapter_dropout(dropped.view_mut(), 0, self.layer, self.dropout);
            dropped
        })
    }

    fn count(&self, pass: &mut Pass<'_>, products: u64) {
        let b: u64 = self.adapters.iter().map(|adapter| adapter.b.flops(pass.rows())).sum();
        pass.work.adapters += products * (self.a.flops(pass.rows()) + b);
    }
}

/// The adapter of a projection whose inputs are cut.
#[derive(Debug)]
pub(crate) struct InputAdapter {
    layer: usize,
    scale: f32,
    dropout: Purpose,
    a: Packed,
    b: Packed,
    b_tensor: Tensor,
    /// For each of the rank's shards its unit of `A`, its columns of `x`, and the first of them among all inputs.
    inputs: Vec<(UnitId, Range<usize>, usize)>,
}

impl InputAdapter {
    fn new(packer: &Packer<'_>, lora: &Lora, projection: Projection, dropout: Purpose) -> Option<Self> {
        let [weight, a, b_tensor] = projection.tensors();
        let ranges = shard_ranges(packer.geometry, packer.slice, packer.layer, &[a]);
        let input = |(shard, columns): (usize, &Vec<Range<usize>>)| {
            let unit = UnitId::of_layer(packer.layer, a, shard);
            (unit, columns[0].clone(), packer.geometry.region(unit).columns.start)
        };
        lora.adapts(weight).then(|| Self {
            layer: packer.layer,
            scale: lora.scale(),
            dropout,
            a: packer.by_inputs(a),
            b: packer.whole(&[b_tensor]),
            b_tensor,
            inputs: packer.slice.shards.clone().zip(&ranges).map(input).collect(),
        })
    }

    /// `low`, the sum over the shards of all ranks.
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, x: View<'_>) -> Result<Buffer, GroupError> {
        let Some(parameters) = pass.adapters.map(Parameters::from) else { return Ok(pass.stream.uninit(0)) };
        let (stream, rows) = (pass.stream, pass.rows());
        let dropped = self.dropped(pass, x);
        let x = dropped.as_ref().map_or(x, Buffer::view);
        let mut low = self.a.forward_tree(stream, parameters, x, rows);
        pass.group.sum(stream, low.view_mut())?;
        stream.scale(low.view_mut(), self.scale);
        self.count(pass, 1);
        Ok(low)
    }

    /// Adds what the adapter gives to `y`, the rows that the rank has (`[own rows, d]`) of the sum over all ranks.
    pub(crate) fn add(&self, pass: &Pass<'_>, low: View<'_>, y: ViewMut<'_>) {
        let Some(parameters) = pass.adapters.map(Parameters::from) else { return };
        let (stream, rows) = (pass.stream, pass.parts.own_rows());
        let own = pass.parts.take_own(stream, stream.copy_of(low), self.b.inputs());
        let x = Mat::row_major(own.view(), rows, self.b.inputs());
        self.b.forward_onto(stream, parameters, x, MatMut::row_major(y, rows, self.b.outputs()));
    }

    /// Adds to `dx`, the gradient of `x`, what comes through the adapter, and to the gradients of the factors; `dy` is
    /// `[rows, d]`.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        low: View<'_>,
        x: View<'_>,
        dy: View<'_>,
        dx: ViewMut<'_>,
        gradients: &mut Gradients<'_>,
    ) {
        let Some(parameters) = pass.adapters.map(Parameters::from) else { return };
        let (stream, rows, dtype) = (pass.stream, pass.rows(), pass.geometry.config.dtype);
        let rank = self.b.inputs();
        let run = gradients.run(Place::Layer(self.layer as u32), &[self.b_tensor], &(0..1));
        let low = stream.pack(Mat::row_major(low, rows, rank), dtype);
        gradients.of_outputs(run, Mat::row_major(dy, rows, self.b.outputs()), &low);
        let mut d_low = self.b.backward(stream, parameters, dy, rows);
        stream.scale(d_low.view_mut(), self.scale);
        let dropped = self.dropped(pass, x);
        let x = dropped.as_ref().map_or(x, Buffer::view);
        let units: Vec<_> = self.inputs.iter().map(|(unit, columns, _)| (*unit, columns.clone())).collect();
        gradients.of_inputs(&units, d_low.view(), rank, x);
        let mut through = self.a.backward(stream, parameters, d_low.view(), rows);
        self.drop_columns(pass, through.view_mut());
        stream.add_assign(dx, through.view());
        self.count(pass, 2);
    }

    /// The rows after dropout, where there is any.
    fn dropped(&self, pass: &Pass<'_>, x: View<'_>) -> Option<Buffer> {
        (pass.seed.adapter_dropout > 0.0).then(|| {
            let mut dropped = pass.stream.copy_of(x);
            self.drop_columns(pass, dropped.view_mut());
            dropped
        })
    }

    /// Drops elements of `x`: those of a shard are counted one after another, so that it does not matter who has it.
    fn drop_columns(&self, pass: &Pass<'_>, mut x: ViewMut<'_>) {
        if pass.seed.adapter_dropout == 0.0 {
            return;
        }
        let (stream, rows, width) = (pass.stream, pass.rows(), self.a.inputs());
        for (_, columns, first) in self.inputs.iter().filter(|(_, columns, _)| !columns.is_empty()) {
            let mut of_shard = stream.uninit(rows * columns.len());
            let from = Mat::row_major(x.as_view(), rows, width).columns(columns.clone());
            stream.copy_matrix(from, MatMut::row_major(of_shard.view_mut(), rows, columns.len()));
            let (first, probability) = (first * pass.batch.length, pass.seed.adapter_dropout);
            pass.drop_elements(of_shard.view_mut(), first, (self.layer, self.dropout), probability);
            let to = MatMut::row_major(x.reborrow(), rows, width).columns(columns.clone());
            stream.copy_matrix(Mat::row_major(of_shard.view(), rows, columns.len()), to);
        }
    }

    fn count(&self, pass: &mut Pass<'_>, products: u64) {
        pass.work.adapters += products * (self.a.flops(pass.rows()) + self.b.flops(pass.rows()));
    }
}
