//! A model's weights, packed once for many tokens, few and one alike.
//!
//! Projections whose outputs are cut (queries, gate, head) are one matrix, since every output
//! element is a sum of its own. Projections whose inputs are cut have sums that are cut into the
//! logical shards, and added in the tree.

use sixfold_tensor::{Buffer, Dtype, Leaves, Mat, Panels, Stream};

use crate::config::ModelConfig;
use crate::hugging_face::assemble;
use crate::norm::Norm;
use crate::unit::{Geometry, Place, Tensor, UnitId};
use crate::unit_buffer::HostUnits;

pub(crate) struct Weights {
    /// `[vocabulary, d]`
    pub(crate) embedding: Buffer,
    /// `[positions, d]`, where positions are learned.
    pub(crate) positions: Option<Buffer>,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: NormWeights,
    pub(crate) head: Panels,
}

pub(crate) struct LayerWeights {
    pub(crate) attention_norm: NormWeights,
    pub(crate) query: Projection,
    pub(crate) key: Projection,
    pub(crate) value: Projection,
    /// Of every query head, where there is one.
    pub(crate) query_norm: Option<NormWeights>,
    /// Of every key head, where there is one.
    pub(crate) key_norm: Option<NormWeights>,
    pub(crate) output: TreeProjection,
    pub(crate) feed_forward_norm: NormWeights,
    /// All projections into the feed-forward layer: gates, then ups.
    pub(crate) inner: Projection,
    pub(crate) down: TreeProjection,
}

/// A norm's weight, and its bias where it has one.
pub(crate) struct NormWeights {
    weight: Buffer,
    bias: Option<Buffer>,
}

impl NormWeights {
    pub(crate) fn norm(&self) -> Norm<'_> {
        Norm { weight: self.weight.view(), bias: self.bias.as_ref().map(Buffer::view) }
    }
}

/// A projection, with its bias where it has one.
pub(crate) struct Projection {
    pub(crate) weight: Panels,
    pub(crate) bias: Option<Buffer>,
}

/// As [`Projection`], with a sum that is cut into the shards.
pub(crate) struct TreeProjection {
    pub(crate) weight: Panels,
    pub(crate) leaves: Leaves,
    pub(crate) bias: Option<Buffer>,
}

impl Weights {
    pub(crate) fn pack(stream: &Stream, geometry: &Geometry, parameters: &HostUnits<'_>) -> Self {
        let whole = |place, tensor| assemble(geometry, parameters, place, tensor);
        let ModelConfig { hidden_size: d, dtype, .. } = geometry.config;
        let family = geometry.config.family;
        let has_positions = family.input_tensors().contains(&Tensor::PositionEmbedding);
        let has_bias = family.output_tensors(false).any(|tensor| tensor == Tensor::FinalNormBias);
        let embedding = whole(Place::Input, Tensor::Embedding);
        let head = if geometry.config.tie_word_embeddings {
            pack_rows(stream, &embedding, d, dtype)
        } else {
            pack_rows(stream, &whole(Place::Output, Tensor::Head), d, dtype)
        };
        let layers = (0..geometry.config.num_hidden_layers)
            .map(|layer| LayerWeights::pack(stream, geometry, parameters, layer));
        let upload = |place, tensor| stream.upload(&whole(place, tensor));
        let layers = layers.collect();
        Self {
            embedding: stream.upload(&embedding),
            positions: has_positions.then(|| upload(Place::Input, Tensor::PositionEmbedding)),
            layers,
            final_norm: NormWeights {
                weight: upload(Place::Output, Tensor::FinalNorm),
                bias: has_bias.then(|| upload(Place::Output, Tensor::FinalNormBias)),
            },
            head,
        }
    }
}

impl LayerWeights {
    fn pack(stream: &Stream, geometry: &Geometry, parameters: &HostUnits<'_>, layer: usize) -> Self {
        let ModelConfig { hidden_size: d, dtype, .. } = geometry.config;
        let whole = |tensor| assemble(geometry, parameters, Place::Layer(layer as u32), tensor);
        let family = geometry.config.family;
        let has = |tensor: &Tensor| geometry.config.layer_tensors().any(|other| other == *tensor);
        let bias = |tensor: Tensor| tensor.bias().filter(has).map(whole);
        let upload = |values: Vec<f32>| stream.upload(&values);
        let norm = |tensor| NormWeights { weight: upload(whole(tensor)), bias: bias(tensor).map(upload) };
        let norm_of_heads = |tensor| has(&tensor).then(|| norm(tensor));
        let projection = |tensors: &[Tensor]| {
            let weight: Vec<f32> = tensors.iter().flat_map(|tensor| whole(*tensor)).collect();
            let biases: Option<Vec<_>> = tensors.iter().map(|tensor| bias(*tensor)).collect();
            Projection {
                weight: pack_rows(stream, &weight, d, dtype),
                bias: biases.map(|biases| upload(biases.concat())),
            }
        };
        let by_shard = |tensor| {
            let shards = 0..geometry.sharding.logical();
            let cut = |shard| vec![geometry.region(UnitId::of_layer(layer, tensor, shard)).columns];
            TreeProjection {
                weight: pack_rows(stream, &whole(tensor), geometry.whole(tensor).1, dtype),
                leaves: Leaves::new(shards.map(cut)),
                bias: bias(tensor).map(upload),
            }
        };
        Self {
            attention_norm: norm(Tensor::AttentionNorm),
            query: projection(&[Tensor::Query]),
            key: projection(&[Tensor::Key]),
            value: projection(&[Tensor::Value]),
            query_norm: norm_of_heads(Tensor::QueryNorm),
            key_norm: norm_of_heads(Tensor::KeyNorm),
            output: by_shard(Tensor::AttentionOutput),
            feed_forward_norm: norm(Tensor::FeedForwardNorm),
            inner: projection(family.feed_forward_inputs()),
            down: by_shard(Tensor::Down),
        }
    }
}

/// Packs a weight of `[outputs, inputs]`.
fn pack_rows(stream: &Stream, weight: &[f32], inputs: usize, dtype: Dtype) -> Panels {
    let weight = stream.upload(weight);
    stream.pack(Mat::row_major(weight.view(), weight.len() / inputs, inputs).transposed(), dtype)
}
