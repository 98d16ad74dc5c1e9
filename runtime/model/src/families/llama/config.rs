//! `config.json` of Llama and of the families that are built like it, under the names of Hugging Face's `LlamaConfig`.

use serde::Deserialize;
use serde_json::{Value, json};
use sixfold_tensor::Dtype;

use super::rope::{self, RopeFields};
use super::window::{self, WindowFields};
use crate::config::{ConfigError, ModelConfig, first_token, need, wants};
use crate::families::Family;

/// How the `config.json` of one `model_type` differs from that of another.
pub(in crate::families) struct Dialect {
    pub(in crate::families) family: Family,
    pub(in crate::families) model_type: &'static str,
    pub(in crate::families) architecture: &'static str,
    /// Fields without which Hugging Face takes the number of some model; they do not follow from others and must be there.
    pub(in crate::families) required: &'static [&'static str],
    /// What it takes for missing `max_position_embeddings`.
    pub(in crate::families) positions: usize,
    pub(in crate::families) window: WindowFields,
    pub(in crate::families) attention_bias: BiasField,
}

/// What `attention_bias` means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::families) enum BiasField {
    /// What it says.
    Read,
    /// Something that Hugging Face does not compute: it must be false.
    Refused,
    /// Nothing: the family has the biases that it has.
    Ignored,
}

/// Writes what `dialect` reads.
pub(in crate::families) fn write(config: &ModelConfig, dialect: &Dialect) -> Value {
    let mut value = json!({
        "architectures": [dialect.architecture],
        "model_type": dialect.model_type,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
    });
    if dialect.attention_bias != BiasField::Ignored {
        value["attention_bias"] = json!(config.attention_bias);
    }
    if dialect.family == Family::Llama {
        value["mlp_bias"] = json!(false);
    }
    window::write(config, dialect.window, &mut value);
    rope::write(config, &mut value);
    value
}

/// Reads what [`write`] or `transformers` wrote.
pub(in crate::families) fn read(text: &[u8], dialect: &Dialect) -> Result<ModelConfig, ConfigError> {
    let raw: Fields = serde_json::from_slice(text)?;
    raw.refuse_unsupported(dialect)?;
    let optional = |value: Option<usize>, name: &'static str| match value {
        None if dialect.required.contains(&name) => Err(ConfigError::Missing(name)),
        value => Ok(value),
    };
    let hidden_size = need(raw.hidden_size, "hidden_size")?;
    let heads = need(raw.num_attention_heads, "num_attention_heads")?;
    let layers = need(raw.num_hidden_layers, "num_hidden_layers")?;
    let positions = raw.max_position_embeddings.unwrap_or(dialect.positions);
    let (rope_theta, rope_scaling) = rope::read(&raw.rope, positions)?;
    let window = window::read(text, dialect.window, layers)?;
    Ok(ModelConfig {
        family: dialect.family,
        vocab_size: need(raw.vocab_size, "vocab_size")?,
        hidden_size,
        intermediate_size: need(raw.intermediate_size, "intermediate_size")?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: optional(raw.num_key_value_heads, "num_key_value_heads")?.unwrap_or(heads),
        head_dim: optional(raw.head_dim, "head_dim")?.unwrap_or(hidden_size / heads.max(1)),
        max_position_embeddings: positions,
        rms_norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        sliding_window: window.sliding_window,
        full_attention_layers: window.full_attention_layers,
        attention_bias: dialect.attention_bias == BiasField::Read && raw.attention_bias == Some(true),
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
        dtype: Dtype::F32,
        bos_token_id: first_token(raw.bos_token_id.as_ref()),
        eos_token_id: first_token(raw.eos_token_id.as_ref()),
    })
}

#[derive(Deserialize)]
struct Fields {
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    rope_interleaved: Option<bool>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    #[serde(flatten)]
    rope: RopeFields,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
}

impl Fields {
    fn refuse_unsupported(&self, dialect: &Dialect) -> Result<(), ConfigError> {
        wants("hidden_act", self.hidden_act.as_deref(), &["silu"])?;
        let has_no_bias = dialect.attention_bias == BiasField::Refused;
        for (field, value, is_refused) in [
            ("attention_bias", self.attention_bias, has_no_bias),
            ("mlp_bias", self.mlp_bias, true),
            ("rope_interleaved", self.rope_interleaved, true),
        ] {
            if is_refused && value == Some(true) {
                return Err(ConfigError::Unsupported { field, value: "true".into() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::rope::RopeScaling;
    use crate::testing::tiny;

    fn read(value: &Value) -> Result<ModelConfig, ConfigError> {
        ModelConfig::from_hugging_face(&serde_json::to_vec(value).unwrap()).map(|(config, _)| config)
    }

    fn of(family: Family) -> ModelConfig {
        ModelConfig { family, ..tiny() }
    }

    fn yarn() -> RopeScaling {
        RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: RopeScaling::yarn_attention_factor(4.0, None),
            truncate: true,
        }
    }

    #[test]
    fn every_model_survives_a_round_trip_under_the_architecture_that_computes_the_same() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let window = NonZeroUsize::new(5);
        let llama = |scaling| ModelConfig { rope_scaling: Some(scaling), ..tiny() };
        for (architecture, config) in [
            ("LlamaForCausalLM", ModelConfig { attention_bias: true, ..tiny() }),
            ("LlamaForCausalLM", llama(RopeScaling::Linear { factor: 2.5 })),
            ("LlamaForCausalLM", llama(llama3)),
            ("LlamaForCausalLM", llama(yarn())),
            ("MistralForCausalLM", ModelConfig { sliding_window: window, ..tiny() }),
            ("Qwen2ForCausalLM", of(Family::Qwen2)),
            ("Qwen2ForCausalLM", ModelConfig { sliding_window: window, ..of(Family::Qwen2) }),
            (
                "Qwen2ForCausalLM",
                ModelConfig { sliding_window: window, full_attention_layers: 1, ..of(Family::Qwen2) },
            ),
            ("Qwen3ForCausalLM", ModelConfig { head_dim: 6, tie_word_embeddings: true, ..of(Family::Qwen3) }),
            (
                "Qwen3ForCausalLM",
                ModelConfig { attention_bias: true, rope_scaling: Some(yarn()), ..of(Family::Qwen3) },
            ),
        ] {
            let value = config.to_hugging_face(4);
            assert_eq!(value["architectures"][0], architecture);
            assert_eq!(read(&value).unwrap(), config);
        }
    }

    #[test]
    fn either_form_of_rotary_positions_is_read() {
        let config = ModelConfig { rope_scaling: Some(yarn()), rope_theta: 1e6, ..tiny() };
        let value = config.to_hugging_face(4);
        let without = |names: &[&str]| {
            let mut value = value.clone();
            names.iter().for_each(|name| drop(value.as_object_mut().unwrap().remove(*name)));
            value
        };
        assert_eq!(read(&without(&["rope_parameters"])).unwrap(), config);
        assert_eq!(read(&without(&["rope_scaling", "rope_theta"])).unwrap(), config);
        // As Qwen's own files say it: the former name of the type, and what follows from the rest left out.
        let mut short = without(&["rope_parameters"]);
        short["rope_scaling"] =
            json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        assert_eq!(read(&short).unwrap(), config);
        short["rope_scaling"]["rope_type"] = json!("yarn");
        assert_eq!(read(&short).unwrap(), config);
        short["rope_scaling"] = Value::Null;
        assert_eq!(read(&short).unwrap(), ModelConfig { rope_scaling: None, ..config });
    }

    #[test]
    fn a_yarn_with_mscales_has_the_quotient_of_both() {
        let mut value = tiny().to_hugging_face(4);
        value.as_object_mut().unwrap().remove("rope_parameters");
        let scaling = json!({"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0});
        value["rope_scaling"] = scaling;
        let Some(RopeScaling::Yarn { attention_factor, original_max_position_embeddings, .. }) =
            read(&value).unwrap().rope_scaling
        else {
            panic!("not YaRN")
        };
        let growth = |mscale: f64| 0.1 * mscale * 40.0_f64.ln() + 1.0;
        assert!((attention_factor - growth(0.707) / growth(1.0)).abs() < 1e-12, "{attention_factor}");
        assert_eq!(original_max_position_embeddings, 256);
    }

    #[test]
    fn layers_with_a_window_come_last() {
        let window = NonZeroUsize::new(5);
        let config = ModelConfig { sliding_window: window, full_attention_layers: 1, ..of(Family::Qwen2) };
        let with = |names: [&str; 2]| {
            let mut value = config.to_hugging_face(4);
            value["layer_types"] = json!(names);
            read(&value)
        };
        let (full, sliding) = ("full_attention", "sliding_attention");
        assert_eq!(with([full, sliding]).unwrap(), config);
        assert_eq!(with([sliding; 2]).unwrap(), ModelConfig { full_attention_layers: 0, ..config.clone() });
        assert_eq!(with([full; 2]).unwrap(), of(Family::Qwen2));
        assert!(with([sliding, full]).unwrap_err().to_string().contains("layer_types"));
        assert!(with([full, "linear_attention"]).unwrap_err().to_string().contains("linear_attention"));
    }

    /// As `transformers` 4 saved Qwen2.5-0.5B.
    #[test]
    fn reads_a_qwen2_that_others_saved() {
        let text = br#"{"architectures":["Qwen2ForCausalLM"],"attention_dropout":0.0,"bos_token_id":151643,
            "eos_token_id":151645,"hidden_act":"silu","hidden_size":896,"initializer_range":0.02,
            "intermediate_size":4864,"max_position_embeddings":32768,"max_window_layers":21,"model_type":"qwen2",
            "num_attention_heads":14,"num_hidden_layers":24,"num_key_value_heads":2,"rms_norm_eps":1e-06,
            "rope_theta":1000000.0,"sliding_window":32768,"tie_word_embeddings":true,"torch_dtype":"bfloat16",
            "transformers_version":"4.43.1","use_cache":true,"use_sliding_window":false,"vocab_size":151936}"#;
        let (config, shards) = ModelConfig::from_hugging_face(text).unwrap();
        assert_eq!((config.head_dim, config.sliding_window, shards), (64, None, None));
        // As its authors count it, .49 billion.
        assert_eq!(config.parameters(), 494_032_768);
    }

    #[test]
    fn names_what_it_cannot_do() {
        let refused = |family, edit: &dyn Fn(&mut Value)| {
            let mut value = of(family).to_hugging_face(4);
            edit(&mut value);
            read(&value).unwrap_err().to_string()
        };
        let llama = |name: &str, new: Value| {
            refused(Family::Llama, &|value| {
                value.as_object_mut().unwrap().remove("rope_parameters");
                value[name] = new.clone();
            })
        };
        assert!(llama("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0})).contains("dynamic"));
        assert!(llama("rope_scaling", json!({"type": "longrope"})).contains("longrope"));
        assert!(llama("rope_scaling", json!({"type": "linear"})).contains("factor"));
        assert!(llama("rope_scaling", json!({"type": "linear", "factor": 0})).contains("factor of 0"));
        assert!(
            llama("rope_scaling", json!({"rope_type": "llama3", "factor": 2})).contains("low_freq_factor")
        );
        assert!(llama("rope_parameters", json!({"full_attention": {}})).contains("full_attention"));
        assert!(llama("rope_parameters", json!({"rope_theta": 7.0})).contains("rope_theta"));
        assert!(llama("rope_parameters", json!({"partial_rotary_factor": 0.5})).contains("partial_rotary"));
        assert!(llama("rope_interleaved", json!(true)).contains("rope_interleaved"));
        let both = refused(Family::Llama, &|v| v["rope_scaling"] = json!({"type": "linear", "factor": 2}));
        assert!(both.contains("rope_parameters"), "{both}");
        for (family, field) in [(Family::Qwen3, "head_dim"), (Family::Qwen2, "num_key_value_heads")] {
            let missing = refused(family, &|value| drop(value.as_object_mut().unwrap().remove(field)));
            assert!(missing.contains(field), "{missing}");
        }
    }
}
