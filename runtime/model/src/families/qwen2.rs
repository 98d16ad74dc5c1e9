//! Qwen2 and Qwen2.5: a Llama with biases of queries, keys and values.

use super::llama::{self, BiasField, Dialect, WindowFields};
use super::{Description, Family};
use crate::unit::Tensor;

pub(super) const DESCRIPTION: Description = Description {
    input: llama::INPUT,
    layer: &[
        Tensor::AttentionNorm,
        Tensor::Query,
        Tensor::Key,
        Tensor::Value,
        Tensor::AttentionOutput,
        Tensor::FeedForwardNorm,
        Tensor::Gate,
        Tensor::Up,
        Tensor::Down,
        Tensor::QueryBias,
        Tensor::KeyBias,
        Tensor::ValueBias,
    ],
    optional: &[],
    output: llama::OUTPUT,
    feed_forward_inputs: llama::FEED_FORWARD_INPUTS,
    file_tensor: llama::file_tensor,
    to_hugging_face: |config| llama::write(config, &DIALECT),
};

pub(super) const DIALECT: Dialect = Dialect {
    family: Family::Qwen2,
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    required: &["num_key_value_heads"],
    positions: 32_768,
    window: WindowFields::OfLastLayers,
    attention_bias: BiasField::Ignored,
};
