//! GPT-2.

mod config;
mod names;

pub(super) use config::read;

use super::Description;
use crate::unit::Tensor;

pub(super) const DESCRIPTION: Description = Description {
    input: &[Tensor::Embedding, Tensor::PositionEmbedding],
    layer: &[
        Tensor::AttentionNorm,
        Tensor::Query,
        Tensor::Key,
        Tensor::Value,
        Tensor::AttentionOutput,
        Tensor::FeedForwardNorm,
        Tensor::Up,
        Tensor::Down,
        Tensor::AttentionNormBias,
        Tensor::QueryBias,
        Tensor::KeyBias,
        Tensor::ValueBias,
        Tensor::AttentionOutputBias,
        Tensor::FeedForwardNormBias,
        Tensor::UpBias,
        Tensor::DownBias,
    ],
    optional: &[],
    output: &[Tensor::FinalNorm, Tensor::Head, Tensor::FinalNormBias],
    feed_forward_inputs: &[Tensor::Up],
    file_tensor: names::file_tensor,
    to_hugging_face: config::write,
};
