//! A slice of the model, forwards and backwards, for one micro-batch at a time.
//!
//! Read [`Network`] first. It is single-device code: sums over ranks go through a
//! [`TensorGroup`], activations from and to other pipeline stages are arguments and results.

use std::ops::Range;
use std::sync::Arc;

use sixfold_tensor::{Buffer, RopeTable, Stream};

use crate::batch::{MicroBatch, StepSeed};
use crate::embedding;
use crate::frozen::Parameters;
use crate::head::{self, HeadTape};
use crate::layer::{self, LayerTape, Recompute};
use crate::linear::{Gradients, Onto};
use crate::packed::PackedWeights;
use crate::pass::{Pass, Work};
use crate::row_parts::RowParts;
use crate::site::Part;
use crate::tensor_group::{GroupError, TensorGroup};
use crate::unit::{Geometry, ModelSlice};
use crate::unit_buffer::DeviceUnits;

/// The layers and logical shards of a model that one rank computes.
#[derive(Clone, Debug)]
pub struct Network {
    stream: Stream,
    geometry: Arc<Geometry>,
    slice: ModelSlice,
    /// Of families with rotary positions.
    rope: Option<RopeTable>,
    /// What backward passes compute again.
    pub recompute: Recompute,
    /// Whether the ranks of the tensor-parallel group share the rows between products.
    pub sequence_parallel: bool,
}

/// What forward needs beside the parameters, for one micro-batch.
pub struct Surroundings<'a> {
    /// The parameters of the slice; where the model has adapters, those of [`Geometry::base`].
    pub parameters: Parameters<'a>,
    /// The adapters, where the model has any.
    pub adapters: Option<&'a DeviceUnits>,
    /// The same, packed.
    pub weights: &'a PackedWeights,
    /// What the step's random numbers follow from.
    pub seed: StepSeed,
    /// The ranks that own the other logical shards.
    pub group: &'a mut dyn TensorGroup,
    /// Counts what is computed.
    pub work: &'a mut Work,
}

/// What the backward pass needs of a forward pass. It lives from one to the other.
pub struct Tape {
    batch: MicroBatch,
    layers: Vec<LayerTape>,
    head: Option<HeadTape>,
}

impl Tape {
    /// The micro-batch.
    pub fn batch(&self) -> &MicroBatch {
        &self.batch
    }

    /// Data groups of the micro-batch.
    pub fn groups(&self) -> usize {
        self.batch.groups
    }
}

/// What a slice hands on.
#[derive(Debug)]
pub enum Output {
    /// Activations for the next pipeline stage, of the rows that the rank has: as many numbers as [`Network::numbers`] says.
    Activations(Buffer),
    /// The loss of each row (zero where it does not count), from the slice that holds the head.
    Losses(Buffer),
}

impl Network {
    /// The network of `slice`, computed on the device of `stream`.
    pub fn new(stream: Stream, geometry: Arc<Geometry>, slice: ModelSlice) -> Self {
        let rope = geometry.config.rotations(&stream);
        Self { stream, geometry, slice, rope, recompute: Recompute::None, sequence_parallel: false }
    }

    /// Where its operations are enqueued.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Sizes and shards of the whole model.
    pub fn geometry(&self) -> &Arc<Geometry> {
        &self.geometry
    }

    /// What the network computes.
    pub fn slice(&self) -> &ModelSlice {
        &self.slice
    }

    /// Numbers of the activations of `batch` that the rank has between layers, receives and hands on.
    pub fn numbers(&self, batch: &MicroBatch) -> usize {
        self.row_parts(batch).own_rows() * self.geometry.config.hidden_size
    }

    fn row_parts(&self, batch: &MicroBatch) -> RowParts {
        RowParts::new(batch, &self.slice, self.geometry.sharding.logical(), self.sequence_parallel)
    }

    /// Takes a micro-batch through the slice. `received` is the previous pipeline stage's output;
    /// the slice that holds the embedding has none. The batch has been validated.
    ///
    /// # Errors
    /// [`GroupError`] if the tensor-parallel group fails.
    ///
    /// # Panics
    /// If a slice without the embedding receives nothing.
    pub fn forward(
        &self,
        around: &mut Surroundings<'_>,
        batch: MicroBatch,
        received: Option<Buffer>,
    ) -> Result<(Output, Tape), GroupError> {
        let mut pass = self.pass(around, &batch);
        pass.enter(false, Part::Embedding);
        let mut x = if self.slice.input { embedding::forward(&mut pass)? } else { activations(received) };
        let mut layers = Vec::with_capacity(self.slice.layers.len());
        for layer in self.slice.layers.clone() {
            let (after, tape) = layer::forward(&mut pass, layer, x)?;
            layers.push(tape);
            x = after;
        }
        if !self.slice.output {
            return Ok((Output::Activations(x), Tape { batch, layers, head: None }));
        }
        pass.enter(false, Part::Head);
        let (losses, head) = head::forward(&mut pass, x)?;
        Ok((Output::Losses(losses), Tape { batch, layers, head: Some(head) }))
    }

    /// The likeliest token after each of some rows of a micro-batch that went forward, the first of equals. Every rank of the
    /// tensor-parallel group calls it, and hears the same.
    ///
    /// # Errors
    /// [`GroupError`] if the tensor-parallel group fails.
    ///
    /// # Panics
    /// If the slice does not hold the head, or the micro-batch has not so many rows.
    pub fn likeliest(
        &self,
        around: &mut Surroundings<'_>,
        tape: &Tape,
        rows: Range<usize>,
    ) -> Result<Vec<u32>, GroupError> {
        match &tape.head {
            Some(head) => head::likeliest(&mut self.pass(around, &tape.batch), head, rows),
            None => panic!("a slice without the head has no logits"),
        }
    }

    /// Takes the gradient back through the slice and into `sums` (laid out by [`gradient_index`]), where it meets what `onto`
    /// says. `received` is the gradient of the slice's output, which the slice that
    /// holds the head makes itself: there each row's loss counts `scale` times. Returns the
    /// gradient of the slice's input, or nothing from the slice that holds the embedding.
    ///
    /// # Errors
    /// [`GroupError`] if the tensor-parallel group fails.
    ///
    /// # Panics
    /// If a micro-batch of several groups is to continue sums, or a slice without the head receives nothing.
    ///
    /// [`gradient_index`]: crate::gradient::gradient_index
    pub fn backward(
        &self,
        around: &mut Surroundings<'_>,
        tape: Tape,
        received: Option<Buffer>,
        scale: f32,
        sums: &mut DeviceUnits,
        onto: Onto,
    ) -> Result<Option<Buffer>, GroupError> {
        let Tape { batch, layers, head } = tape;
        let gradients = &mut Gradients::new(&self.stream, sums, onto, &batch, self.geometry.config.dtype);
        let mut pass = self.pass(around, &batch);
        pass.enter(true, Part::Head);
        let mut dx = match head {
            Some(head) => head::backward(&mut pass, head, scale, gradients)?,
            None => activations(received),
        };
        for (layer, tape) in self.slice.layers.clone().zip(layers).rev() {
            dx = layer::backward(&mut pass, layer, tape, dx, gradients)?;
        }
        if !self.slice.input {
            return Ok(Some(dx));
        }
        pass.enter(true, Part::Embedding);
        embedding::backward(&mut pass, dx, gradients)?;
        Ok(None)
    }

    fn pass<'a>(&'a self, around: &'a mut Surroundings<'_>, batch: &'a MicroBatch) -> Pass<'a> {
        let stream = &self.stream;
        Pass {
            stream,
            geometry: &self.geometry,
            slice: &self.slice,
            rope: self.rope.as_ref(),
            recompute: self.recompute,
            parameters: around.parameters,
            adapters: around.adapters,
            weights: around.weights,
            batch,
            parts: self.row_parts(batch),
            tokens: stream.upload_indices(&batch.tokens),
            targets: stream.upload_indices(&batch.targets),
            positions: stream.upload_indices(&batch.positions()),
            seed: around.seed,
            group: &mut *around.group,
            work: around.work,
        }
    }
}

fn activations(received: Option<Buffer>) -> Buffer {
    match received {
        Some(activations) => activations,
        None => panic!("a slice in the middle of a model received nothing"),
    }
}
