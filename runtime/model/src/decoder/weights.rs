//! A model's weights, packed once for many tokens, few and one alike.
//!
//! Projections whose outputs are cut (queries, gate, head) are one matrix, since every output
//! element is a sum of its own. Projections whose inputs are cut have sums that are cut into the
//! logical shards, and added in the tree.

use sixfold_tensor::{Leaves, Mat, Panels};

use crate::hugging_face::assemble;
use crate::unit::{Geometry, Place, Tensor, UnitBuffer, UnitId};

pub(crate) struct Weights {
    /// `[vocabulary, d]`
    pub(crate) embedding: Vec<f32>,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: Vec<f32>,
    pub(crate) head: Panels,
}

pub(crate) struct LayerWeights {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) query: Panels,
    pub(crate) key: Panels,
    pub(crate) value: Panels,
    /// Its sum is cut into the shards.
    pub(crate) output: (Panels, Leaves),
    pub(crate) feed_forward_norm: Vec<f32>,
    /// Gates, then ups.
    pub(crate) gate_up: Panels,
    /// Its sum is cut into the shards.
    pub(crate) down: (Panels, Leaves),
}

impl Weights {
    pub(crate) fn pack(geometry: &Geometry, parameters: &UnitBuffer) -> Self {
        let whole = |place, tensor| assemble(geometry, parameters, place, tensor);
        let embedding = whole(Place::Input, Tensor::Embedding);
        let head = if geometry.config.tie_word_embeddings {
            pack_rows(&embedding, geometry.config.hidden_size)
        } else {
            pack_rows(&whole(Place::Output, Tensor::Head), geometry.config.hidden_size)
        };
        let layers = (0..geometry.config.num_hidden_layers)
            .map(|layer| LayerWeights::pack(geometry, parameters, layer));
        let layers = layers.collect();
        Self { embedding, layers, final_norm: whole(Place::Output, Tensor::FinalNorm), head }
    }
}

impl LayerWeights {
    fn pack(geometry: &Geometry, parameters: &UnitBuffer, layer: usize) -> Self {
        let d = geometry.config.hidden_size;
        let whole = |tensor| assemble(geometry, parameters, Place::Layer(layer as u32), tensor);
        let panels = |tensor| pack_rows(&whole(tensor), d);
        let by_shard = |tensor| {
            let shards = 0..geometry.sharding.logical();
            let cut = |shard| vec![geometry.region(UnitId::of_layer(layer, tensor, shard)).columns];
            (pack_rows(&whole(tensor), geometry.whole(tensor).1), Leaves::new(shards.map(cut)))
        };
        let gate_up = [whole(Tensor::Gate), whole(Tensor::Up)].concat();
        Self {
            attention_norm: whole(Tensor::AttentionNorm),
            query: panels(Tensor::Query),
            key: panels(Tensor::Key),
            value: panels(Tensor::Value),
            output: by_shard(Tensor::AttentionOutput),
            feed_forward_norm: whole(Tensor::FeedForwardNorm),
            gate_up: pack_rows(&gate_up, d),
            down: by_shard(Tensor::Down),
        }
    }
}

/// Packs a weight of `[outputs, inputs]`.
fn pack_rows(weight: &[f32], inputs: usize) -> Panels {
    Panels::pack(Mat::row_major(weight, weight.len() / inputs, inputs).transposed())
}
