//! What config.json says of how a model computes, beside its sizes: [`Computation`].

use serde_json::{Map, Value};

use crate::architecture::{Architecture, Sizes, refuse_others};
use crate::error::Fault;
use crate::positions::Rotary;

/// What `transformers` takes for a missing epsilon of RMS norms, and of GPT-2's norms.
const RMS_EPSILON: f64 = 1e-6;
const LAYER_EPSILON: f64 = 1e-5;
/// What it takes for a missing window, and for the layers of a Qwen before the first that has it.
const WINDOW: usize = 4096;
const FULL_ATTENTION_LAYERS: usize = 28;

/// Fields with the values that are computed.
type Known = &'static [(&'static str, &'static [&'static str])];
const LLAMA: Known = &[("hidden_act", &["silu"]), ("rope_interleaved", &["false"])];
/// `transformers` computes a Mistral without biases, whatever its config.json says.
const MISTRAL: Known =
    &[("hidden_act", &["silu"]), ("rope_interleaved", &["false"]), ("attention_bias", &["false"])];
const GPT2: Known = &[
    ("activation_function", &["gelu_new", "gelu_pytorch_tanh"]),
    ("scale_attn_weights", &["true"]),
    ("scale_attn_by_inverse_layer_idx", &["false"]),
    ("add_cross_attention", &["false"]),
];

/// How a model computes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Computation {
    /// Added under the root of a norm.
    pub(super) epsilon: f32,
    /// Radians by which each pair of a head turns with a position, and what sines and cosines are multiplied by; not in
    /// models whose positions are learned.
    pub(super) rotary: Option<(Vec<f32>, f32)>,
    /// Of each layer the positions that a query sees, its own included, if they are not all before it.
    pub(super) windows: Vec<Option<usize>>,
}

impl Computation {
    /// Reads it from a config.json.
    ///
    /// # Errors
    /// [`Fault`] names the field that is of another type, or asks for what is not written as ONNX.
    pub(super) fn of(config: &Map<String, Value>, sizes: &Sizes) -> Result<Self, Fault> {
        let is_gpt2 = sizes.architecture == Architecture::Gpt2;
        let known = match sizes.architecture {
            Architecture::Gpt2 => GPT2,
            Architecture::Mistral => MISTRAL,
            Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3 => LLAMA,
        };
        refuse_others(config, known, "ONNX")?;
        let epsilon = match is_gpt2 {
            true => epsilon(config, "layer_norm_epsilon", LAYER_EPSILON)?,
            false => epsilon(config, "rms_norm_eps", RMS_EPSILON)?,
        };
        let rotary = match is_gpt2 {
            true => None,
            false => Some(Rotary::of(config)?.frequencies(sizes.head_dim, sizes.positions)?),
        };
        if !sizes.heads.is_multiple_of(sizes.kv_heads) {
            let problem = format!("is {}, which does not divide {} heads", sizes.kv_heads, sizes.heads);
            return Err(Fault::new("num_key_value_heads", problem));
        }
        Ok(Self { epsilon, rotary, windows: windows(config, sizes)? })
    }
}

fn epsilon(config: &Map<String, Value>, field: &str, usual: f64) -> Result<f32, Fault> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(usual as f32),
        Some(value) => match value.as_f64().map(|epsilon| epsilon as f32) {
            Some(epsilon) if epsilon >= 0.0 && epsilon.is_finite() => Ok(epsilon),
            _ => Err(Fault::new(field, format!("is {value}; it must be a number from 0"))),
        },
    }
}

fn windows(config: &Map<String, Value>, sizes: &Sizes) -> Result<Vec<Option<usize>>, Fault> {
    let layers = sizes.layers;
    match sizes.architecture {
        Architecture::Llama | Architecture::Gpt2 => Ok(vec![None; layers]),
        Architecture::Mistral => Ok(vec![window(config)?; layers]),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let is_used = config.get("use_sliding_window") == Some(&Value::Bool(true));
            let window = if is_used { window(config)? } else { None };
            if let Some(types) = config.get("layer_types").filter(|types| !types.is_null()) {
                return by_type(types, window, layers);
            }
            let full = size(config, "max_window_layers", 0)?.unwrap_or(FULL_ATTENTION_LAYERS);
            Ok((0..layers).map(|layer| window.filter(|_| layer >= full)).collect())
        }
    }
}

fn by_type(types: &Value, window: Option<usize>, layers: usize) -> Result<Vec<Option<usize>>, Fault> {
    let fault = |problem: String| Fault::new("layer_types", problem);
    let types = types.as_array().filter(|types| types.len() == layers);
    let types = types.ok_or_else(|| fault(format!("is not one of each of {layers} layers")))?;
    let of = |kind: &Value| match (kind.as_str(), window) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
        (Some("sliding_attention"), None) => {
            Err(fault("has `sliding_attention`, and no window is used".to_owned()))
        }
        _ => Err(fault(format!("has {kind}; known are full_attention and sliding_attention"))),
    };
    types.iter().map(of).collect()
}

/// `sliding_window`, of which null says that there is none.
fn window(config: &Map<String, Value>) -> Result<Option<usize>, Fault> {
    match config.contains_key("sliding_window") {
        true => size(config, "sliding_window", 1),
        false => Ok(Some(WINDOW)),
    }
}

fn size(config: &Map<String, Value>, field: &str, least: u64) -> Result<Option<usize>, Fault> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let size = value.as_u64().filter(|size| (least..=u64::from(u32::MAX)).contains(size));
            let size = size.and_then(|size| usize::try_from(size).ok());
            size.map(Some)
                .ok_or_else(|| Fault::new(field, format!("is {value}; it must be a number from {least}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: &Value) -> Result<Computation, Fault> {
        let config = config.as_object().unwrap();
        Computation::of(config, &Sizes::of(config).unwrap())
    }

    fn of(model_type: &str, more: Value) -> Value {
        let mut config = json!({"model_type": model_type, "vocab_size": 8, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "n_embd": 8, "n_head": 4,
            "n_layer": 3, "n_positions": 16});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    }

    #[test]
    fn windows_are_of_the_layers_that_the_family_gives_them_to() {
        let windows = |model_type: &str, more: Value| read(&of(model_type, more)).unwrap().windows;
        assert_eq!(windows("llama", json!({"sliding_window": 5})), [None; 3]);
        assert_eq!(windows("mistral", json!({"sliding_window": 5})), [Some(5); 3]);
        assert_eq!(windows("mistral", json!({"sliding_window": null})), [None; 3]);
        assert_eq!(windows("mistral", json!({})), [Some(4096); 3]);
        let qwen = json!({"sliding_window": 5, "use_sliding_window": true, "max_window_layers": 1});
        assert_eq!(windows("qwen2", qwen.clone()), [None, Some(5), Some(5)]);
        let mut unused = qwen.clone();
        unused["use_sliding_window"] = json!(false);
        assert_eq!(windows("qwen3", unused), [None; 3]);
        let mut typed = qwen;
        typed["layer_types"] = json!(["sliding_attention", "full_attention", "sliding_attention"]);
        assert_eq!(windows("qwen3", typed), [Some(5), None, Some(5)]);
    }

    #[test]
    fn what_is_not_computed_is_refused_with_the_field() {
        let refused = |model_type: &str, field: &str, value: Value| {
            let mut more = json!({});
            more[field] = value;
            let fault = read(&of(model_type, more)).unwrap_err();
            assert_eq!(fault.field, field, "{fault}");
        };
        refused("llama", "hidden_act", json!("relu"));
        refused("llama", "rope_interleaved", json!(true));
        refused("llama", "rms_norm_eps", json!("small"));
        refused("llama", "num_key_value_heads", json!(3));
        refused("mistral", "attention_bias", json!(true));
        refused("mistral", "sliding_window", json!(0));
        refused("qwen2", "layer_types", json!(vec!["sliding_attention"; 3]));
        refused("qwen2", "layer_types", json!(["full_attention"]));
        refused("qwen3", "layer_types", json!(vec!["linear_attention"; 3]));
        refused("gpt2", "activation_function", json!("gelu"));
        refused("gpt2", "scale_attn_weights", json!(false));
        refused("gpt2", "layer_norm_epsilon", json!(-1.0));
    }
}
