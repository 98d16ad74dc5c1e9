//! `config.json` of the GPT-2 family, under the names of Hugging Face's `GPT2Config`.

use serde::Deserialize;
use serde_json::{Value, json};
use sixfold_tensor::Dtype;

use crate::config::{ConfigError, ModelConfig, first_token, need, wants};
use crate::families::Family;

/// The activation that is GELU in its tanh form, by both of its names.
const ACTIVATIONS: [&str; 2] = ["gelu_new", "gelu_pytorch_tanh"];
/// What `GPT2Config` takes for a missing epsilon.
const EPSILON: f32 = 1e-5;

pub(super) fn write(config: &ModelConfig) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": ACTIVATIONS[0],
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "layer_norm_epsilon": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
    })
}

pub(in crate::families) fn read(text: &[u8]) -> Result<ModelConfig, ConfigError> {
    let raw: Gpt2Config = serde_json::from_slice(text)?;
    raw.refuse_unsupported()?;
    let hidden_size = need(raw.n_embd, "n_embd")?;
    let heads = need(raw.n_head, "n_head")?;
    Ok(ModelConfig {
        family: Family::Gpt2,
        vocab_size: need(raw.vocab_size, "vocab_size")?,
        hidden_size,
        intermediate_size: raw.n_inner.unwrap_or(hidden_size.saturating_mul(4)),
        num_hidden_layers: need(raw.n_layer, "n_layer")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden_size / heads.max(1),
        max_position_embeddings: need(raw.n_positions, "n_positions")?,
        rms_norm_eps: raw.layer_norm_epsilon.unwrap_or(EPSILON),
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: false,
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(true),
        dtype: Dtype::F32,
        bos_token_id: first_token(raw.bos_token_id.as_ref()),
        eos_token_id: first_token(raw.eos_token_id.as_ref()),
    })
}

#[derive(Deserialize)]
struct Gpt2Config {
    activation_function: Option<String>,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    add_cross_attention: Option<bool>,
    vocab_size: Option<usize>,
    n_embd: Option<usize>,
    n_inner: Option<usize>,
    n_layer: Option<usize>,
    n_head: Option<usize>,
    n_positions: Option<usize>,
    layer_norm_epsilon: Option<f32>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
}

impl Gpt2Config {
    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        wants("activation_function", self.activation_function.as_deref(), &ACTIVATIONS)?;
        let fixed = [
            ("scale_attn_weights", self.scale_attn_weights, true),
            ("scale_attn_by_inverse_layer_idx", self.scale_attn_by_inverse_layer_idx, false),
            ("add_cross_attention", self.add_cross_attention, false),
        ];
        match fixed.into_iter().find(|(_, value, ours)| value.is_some_and(|value| value != *ours)) {
            Some((field, _, ours)) => Err(ConfigError::Unsupported { field, value: (!ours).to_string() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpt2;

    #[test]
    fn survives_a_round_trip_through_config_json() {
        let config = gpt2().config;
        let text = serde_json::to_vec(&config.to_hugging_face(4)).unwrap();
        assert_eq!(ModelConfig::from_hugging_face(&text).unwrap(), (config, Some(4)));
    }

    #[test]
    fn reads_what_transformers_write() {
        let text = br#"{"model_type":"gpt2","activation_function":"gelu_new","vocab_size":50257,"n_embd":768,
            "n_head":12,"n_inner":null,"n_layer":12,"n_positions":1024,"layer_norm_epsilon":1e-05,"n_ctx":1024,
            "scale_attn_weights":true,"bos_token_id":50256,"eos_token_id":50256}"#;
        let (config, shards) = ModelConfig::from_hugging_face(text).unwrap();
        assert_eq!((config.intermediate_size, config.head_dim, shards), (3072, 64, None));
        // The smallest GPT-2, as its authors count it.
        assert_eq!((config.tie_word_embeddings, config.parameters()), (true, 124_439_808));
    }

    #[test]
    fn names_what_it_cannot_do() {
        let refused = |edit: fn(&mut Value)| {
            let mut value = gpt2().config.to_hugging_face(4);
            edit(&mut value);
            ModelConfig::from_hugging_face(&serde_json::to_vec(&value).unwrap()).unwrap_err().to_string()
        };
        assert!(refused(|v| v["activation_function"] = json!("relu")).contains("relu"));
        assert!(refused(|v| v["add_cross_attention"] = json!(true)).contains("add_cross_attention"));
        assert!(refused(|v| v["scale_attn_weights"] = json!(false)).contains("scale_attn_weights"));
        assert!(refused(|v| v["n_embd"] = json!(18)).contains("`hidden_size` wide, 18"));
        assert!(refused(|v| v["n_embd"] = Value::Null).contains("n_embd"));
    }
}
