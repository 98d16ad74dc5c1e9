//! Mistral: a Llama whose `config.json` may have a window, and is of this name only where it has one.

use super::Family;
use super::llama::{BiasField, Dialect, WindowFields};

pub(super) const DIALECT: Dialect = Dialect {
    family: Family::Llama,
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    required: &["num_key_value_heads"],
    positions: 131_072,
    window: WindowFields::OfAllLayers,
    attention_bias: BiasField::Refused,
};
