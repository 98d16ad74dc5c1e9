//! Qwen3: a Llama that norms every query and key head, whose heads have a width of their own.

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
        Tensor::AttentionOutputBias,
        Tensor::QueryNorm,
        Tensor::KeyNorm,
    ],
    optional: llama::ATTENTION_BIASES,
    output: llama::OUTPUT,
    feed_forward_inputs: llama::FEED_FORWARD_INPUTS,
    file_tensor: llama::file_tensor,
    to_hugging_face: |config| llama::write(config, &DIALECT),
};

pub(super) const DIALECT: Dialect = Dialect {
    family: Family::Qwen3,
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    required: &["num_key_value_heads", "head_dim"],
    positions: 32_768,
    window: WindowFields::OfLastLayers,
    attention_bias: BiasField::Read,
};
