//! A model's weights, packed once for many tokens, few and one alike.
//!
//! Projections whose outputs are cut (queries, gate, head) are one matrix, since every output
//! element is a sum of its own. Projections whose inputs are cut have sums that are cut into the
//! logical shards, and added in the tree.

use sixfold_tensor::{Dtype, Leaves, Mat, Panels};

use crate::config::ModelConfig;
use crate::hugging_face::assemble;
use crate::norm::Norm;
use crate::unit::{Geometry, Place, Tensor, UnitBuffer, UnitId};

pub(crate) struct Weights {
    /// `[vocabulary, d]`
    pub(crate) embedding: Vec<f32>,
    /// `[positions, d]`, where positions are learned.
    pub(crate) positions: Option<Vec<f32>>,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: NormWeights,
    pub(crate) head: Panels,
}

pub(crate) struct LayerWeights {
    pub(crate) attention_norm: NormWeights,
    pub(crate) query: Projection,
    pub(crate) key: Projection,
    pub(crate) value: Projection,
    pub(crate) output: TreeProjection,
    pub(crate) feed_forward_norm: NormWeights,
    /// All projections into the feed-forward layer: gates, then ups.
    pub(crate) inner: Projection,
    pub(crate) down: TreeProjection,
}

/// A norm's weight, and its bias where it has one.
pub(crate) struct NormWeights {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl NormWeights {
    pub(crate) fn norm(&self) -> Norm<'_> {
        Norm { weight: &self.weight, bias: self.bias.as_deref() }
    }
}

/// A projection, with its bias where it has one.
pub(crate) struct Projection {
    pub(crate) weight: Panels,
    pub(crate) bias: Option<Vec<f32>>,
}

/// As [`Projection`], with a sum that is cut into the shards.
pub(crate) struct TreeProjection {
    pub(crate) weight: Panels,
    pub(crate) leaves: Leaves,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Weights {
    pub(crate) fn pack(geometry: &Geometry, parameters: &UnitBuffer) -> Self {
        let whole = |place, tensor| assemble(geometry, parameters, place, tensor);
        let ModelConfig { hidden_size: d, dtype, .. } = geometry.config;
        let family = geometry.config.family;
        let has_positions = family.input_tensors().contains(&Tensor::PositionEmbedding);
        let has_bias = family.output_tensors(false).contains(&Tensor::FinalNormBias);
        let embedding = whole(Place::Input, Tensor::Embedding);
        let head = if geometry.config.tie_word_embeddings {
            pack_rows(&embedding, d, dtype)
        } else {
            pack_rows(&whole(Place::Output, Tensor::Head), d, dtype)
        };
        let layers = (0..geometry.config.num_hidden_layers)
            .map(|layer| LayerWeights::pack(geometry, parameters, layer));
        let layers = layers.collect();
        Self {
            embedding,
            positions: has_positions.then(|| whole(Place::Input, Tensor::PositionEmbedding)),
            layers,
            final_norm: NormWeights {
                weight: whole(Place::Output, Tensor::FinalNorm),
                bias: has_bias.then(|| whole(Place::Output, Tensor::FinalNormBias)),
            },
            head,
        }
    }
}

impl LayerWeights {
    fn pack(geometry: &Geometry, parameters: &UnitBuffer, layer: usize) -> Self {
        let ModelConfig { hidden_size: d, dtype, .. } = geometry.config;
        let whole = |tensor| assemble(geometry, parameters, Place::Layer(layer as u32), tensor);
        let family = geometry.config.family;
        let bias =
            |tensor: Tensor| tensor.bias().filter(|bias| family.layer_tensors().contains(bias)).map(whole);
        let norm = |tensor| NormWeights { weight: whole(tensor), bias: bias(tensor) };
        let projection = |tensors: &[Tensor]| {
            let weight: Vec<f32> = tensors.iter().flat_map(|tensor| whole(*tensor)).collect();
            let biases: Option<Vec<_>> = tensors.iter().map(|tensor| bias(*tensor)).collect();
            Projection { weight: pack_rows(&weight, d, dtype), bias: biases.map(|biases| biases.concat()) }
        };
        let by_shard = |tensor| {
            let shards = 0..geometry.sharding.logical();
            let cut = |shard| vec![geometry.region(UnitId::of_layer(layer, tensor, shard)).columns];
            TreeProjection {
                weight: pack_rows(&whole(tensor), geometry.whole(tensor).1, dtype),
                leaves: Leaves::new(shards.map(cut)),
                bias: bias(tensor),
            }
        };
        Self {
            attention_norm: norm(Tensor::AttentionNorm),
            query: projection(&[Tensor::Query]),
            key: projection(&[Tensor::Key]),
            value: projection(&[Tensor::Value]),
            output: by_shard(Tensor::AttentionOutput),
            feed_forward_norm: norm(Tensor::FeedForwardNorm),
            inner: projection(family.feed_forward_inputs()),
            down: by_shard(Tensor::Down),
        }
    }
}

/// Packs a weight of `[outputs, inputs]`.
fn pack_rows(weight: &[f32], inputs: usize, dtype: Dtype) -> Panels {
    Panels::pack(Mat::row_major(weight, weight.len() / inputs, inputs).transposed(), dtype)
}
