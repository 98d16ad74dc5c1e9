//! Llama, and with it SmolLM2 and Mistral; the other families that are built like it begin from its data.

mod config;
mod rope;
mod window;

pub(super) use config::{BiasField, Dialect, read, write};
pub(super) use window::WindowFields;

use super::{Description, Family, mistral};
use crate::hugging_face::FileTensor;
use crate::unit::{Place, Tensor, UnitId};

pub(super) const INPUT: &[Tensor] = &[Tensor::Embedding];
pub(super) const OUTPUT: &[Tensor] = &[Tensor::FinalNorm, Tensor::Head];
pub(super) const FEED_FORWARD_INPUTS: &[Tensor] = &[Tensor::Gate, Tensor::Up];
/// Of attention's projections, where a configuration asks for them.
pub(super) const ATTENTION_BIASES: &[Tensor] =
    &[Tensor::QueryBias, Tensor::KeyBias, Tensor::ValueBias, Tensor::AttentionOutputBias];

pub(super) const DESCRIPTION: Description = Description {
    input: INPUT,
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
    ],
    optional: ATTENTION_BIASES,
    output: OUTPUT,
    feed_forward_inputs: FEED_FORWARD_INPUTS,
    file_tensor,
    to_hugging_face: |config| {
        write(config, if config.sliding_window.is_some() { &mistral::DIALECT } else { &DIALECT })
    },
};

/// SmolLM2's files are of this one too.
pub(super) const DIALECT: Dialect = Dialect {
    family: Family::Llama,
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    required: &[],
    positions: 2048,
    window: WindowFields::None,
    attention_bias: BiasField::Read,
};

/// Every tensor is one of the file, under the name by which people are told of it.
pub(super) fn file_tensor(place: Place, tensor: Tensor) -> FileTensor {
    let name = UnitId { place, tensor, shard: 0 }.tensor_name();
    FileTensor { name, place, parts: vec![tensor], transposed: false, diagonal: Vec::new() }
}
