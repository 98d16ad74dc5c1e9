//! A model small enough to be computed by hand-written loops.

use crate::config::ModelConfig;
use crate::families::Family;
use crate::unit::Geometry;

pub(crate) fn tiny() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: 37,
        hidden_size: 16,
        intermediate_size: 22,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 4,
        max_position_embeddings: 256,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: false,
        tie_word_embeddings: false,
        dtype: Default::default(),
        bos_token_id: None,
        eos_token_id: Some(0),
    }
}

/// Four logical shards, as many as key-value heads.
pub(crate) fn geometry() -> Geometry {
    Geometry::new(ModelConfig { num_key_value_heads: 4, ..tiny() }, 4).unwrap()
}

/// The same of the GPT-2 family.
pub(crate) fn gpt2() -> Geometry {
    let config =
        ModelConfig { family: Family::Gpt2, num_key_value_heads: 4, tie_word_embeddings: true, ..tiny() };
    Geometry::new(config, 4).unwrap()
}

/// The same of the Qwen3 family, with heads of a width of their own, and all biases.
pub(crate) fn qwen3() -> Geometry {
    let config = ModelConfig {
        family: Family::Qwen3,
        num_key_value_heads: 4,
        head_dim: 6,
        attention_bias: true,
        ..tiny()
    };
    Geometry::new(config, 4).unwrap()
}
