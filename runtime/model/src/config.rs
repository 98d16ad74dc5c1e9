//! The shape of a decoder, under the names of Hugging Face's `config.json` for Llama.
//!
//! Read [`ModelConfig`] first. How a model is cut for parallel training is [`Sharding`]'s
//! business; how it is trained (dropout, learning rate) is the trainer's.
//!
//! [`Sharding`]: crate::Sharding

mod gpt2;

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sixfold_tensor::{Dtype, RopeTable, Stream, visible_pairs};

use crate::attention::KEYS_PER_BLOCK;
use crate::family::Family;

/// Largest width, vocabulary or number of positions in a configuration that comes from outside. It
/// keeps every product of two sizes far from overflow.
const SIZE_MAX: usize = 1 << 20;
/// Most layers, heads of a layer, and elements of a head.
const COUNT_MAX: usize = 1 << 10;
/// Most sines and cosines of rotary positions, which are kept in memory.
const ROTATIONS_MAX: usize = 1 << 27;
/// What `MistralConfig` takes for a missing window.
const MISTRAL_WINDOW: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Shape of a decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// What the sizes are sizes of.
    #[serde(default)]
    pub family: Family,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer between its two projections.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads of a layer.
    pub num_attention_heads: usize,
    /// Key and value heads of a layer; divides the query heads, and is as many in the GPT-2 family.
    pub num_key_value_heads: usize,
    /// Width of one head; even, since rotary positions turn pairs. The heads are `hidden_size` wide together in the
    /// GPT-2 family.
    pub head_dim: usize,
    /// Positions that the model may be asked for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm, and to the variance in LayerNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies; not used where positions are learned.
    pub rope_theta: f32,
    /// Keys that a query sees at most, its own among them (Jiang et al., "Mistral 7B", 2023); without it, all of its
    /// document so far. Not in the GPT-2 family.
    #[serde(default)]
    pub sliding_window: Option<NonZeroUsize>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// What the operands of products with weights, and of those that make their gradients, are rounded to.
    #[serde(default)]
    pub dtype: Dtype,
    /// The token that begins a document, where the tokenizer has one.
    pub bos_token_id: Option<u32>,
    /// The token that ends a document, where the tokenizer has one.
    pub eos_token_id: Option<u32>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not JSON, or a field has another type.
    #[error("config.json is not readable: {0}")]
    Json(#[from] serde_json::Error),
    /// A required size is missing.
    #[error("config.json has no `{0}`")]
    Missing(&'static str),
    /// A size is zero or absurdly large.
    #[error("`{field}` is {value}; it must be from 1 to {max}")]
    Size {
        /// The field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// Largest value accepted.
        max: usize,
    },
    /// Two sizes do not fit each other.
    #[error("{0}")]
    Shape(String),
    /// The model needs something that this decoder does not do.
    #[error("`{field}` is {value}, which this decoder does not implement")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// The sums of the model were fixed in a way that this program does not compute.
    #[error("the model was trained with key blocks of {0} keys; this program uses {KEYS_PER_BLOCK}")]
    KeyBlock(usize),
}

impl ModelConfig {
    /// Checks that the sizes are sane and fit each other.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that does not fit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size, SIZE_MAX),
            ("hidden_size", self.hidden_size, SIZE_MAX),
            ("intermediate_size", self.intermediate_size, SIZE_MAX),
            ("num_hidden_layers", self.num_hidden_layers, COUNT_MAX),
            ("num_attention_heads", self.num_attention_heads, COUNT_MAX),
            ("num_key_value_heads", self.num_key_value_heads, COUNT_MAX),
            ("head_dim", self.head_dim, COUNT_MAX),
            ("max_position_embeddings", self.max_position_embeddings, SIZE_MAX),
        ];
        for (field, value, max) in sizes {
            if value == 0 || value > max {
                return Err(ConfigError::Size { field, value, max });
            }
        }
        let shape = |text: String| Err(ConfigError::Shape(text));
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return shape(format!(
                "{} query heads do not divide into {} key-value heads",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        let (heads, width) = (self.num_attention_heads, self.num_attention_heads * self.head_dim);
        if self.family == Family::Gpt2 && (heads, width) != (self.num_key_value_heads, self.hidden_size) {
            return shape(format!(
                "{heads} query heads and {} key-value heads of {}: the GPT-2 family has as many of both, together \
                 `hidden_size` wide, {}",
                self.num_key_value_heads, self.head_dim, self.hidden_size
            ));
        }
        if self.family == Family::Gpt2 && self.sliding_window.is_some() {
            return shape("the GPT-2 family has no `sliding_window`".to_owned());
        }
        if !self.head_dim.is_multiple_of(2) {
            return shape(format!("head_dim is {}; rotary positions need an even one", self.head_dim));
        }
        if self.max_position_embeddings * self.head_dim > ROTATIONS_MAX {
            return shape(format!("rotary positions of {} tokens do not fit", self.max_position_embeddings));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return shape(format!("rms_norm_eps is {}; it must be between 0 and 1", self.rms_norm_eps));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return shape(format!("rope_theta is {}; it must be at least 1", self.rope_theta));
        }
        Ok(())
    }

    /// Query heads that share one key-value head.
    pub fn heads_per_group(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Trainable numbers of the whole model.
    pub fn parameters(&self) -> usize {
        let d = self.hidden_size;
        let (heads, head) = (2 * self.num_attention_heads + 2 * self.num_key_value_heads, self.head_dim);
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        let (layer, outer) = match self.family {
            Family::Llama => (heads * head * d + 3 * self.intermediate_size * d + 2 * d, d),
            Family::Gpt2 => (
                heads * head * (d + 1) + self.intermediate_size * (2 * d + 1) + 5 * d,
                (2 + self.max_position_embeddings) * d,
            ),
        };
        self.num_hidden_layers * layer + tables * self.vocab_size * d + outer
    }

    /// Floating-point operations, two each multiply-add, that training takes for a token of a sequence of
    /// `tokens`: forward once, backward twice, nothing computed again.
    ///
    /// The products with weights and those of attention are counted, as in "PaLM: Scaling Language Modeling with
    /// Pathways" (Chowdhery et al. 2022), appendix B, but of attention only the pairs that a causal mask and a
    /// window leave: without a window half of the published `12 L H Q T`. Look-ups, norms and activations are not.
    pub fn training_flop_per_token(&self, tokens: usize) -> f64 {
        let d = self.hidden_size;
        let (heads, head) = (2 * self.num_attention_heads + 2 * self.num_key_value_heads, self.head_dim);
        let feed_forward = match self.family {
            Family::Llama => 3 * self.intermediate_size * d,
            Family::Gpt2 => 2 * self.intermediate_size * d,
        };
        let weights = self.num_hidden_layers * (heads * head * d + feed_forward) + self.vocab_size * d;
        let seen = visible_pairs(tokens, self.sliding_window) as f64 / tokens as f64;
        let attention = 2.0 * (self.num_hidden_layers * self.num_attention_heads * head) as f64 * seen;
        6.0 * (weights as f64 + attention)
    }

    /// Sines and cosines of the positions, in families where they are rotary.
    pub(crate) fn rotations(&self, stream: &Stream) -> Option<RopeTable> {
        let table = || stream.rope_table(self.head_dim, self.rope_theta, self.max_position_embeddings);
        (self.family == Family::Llama).then(table)
    }

    /// Writes `config.json` as Hugging Face's `LlamaForCausalLM`, with a window `MistralForCausalLM`, or
    /// `GPT2LMHeadModel` reads it, with the logical shards, the key block and the dtype of products under `sixfold`,
    /// so that every reader rounds as the trainer and adds in its order.
    pub fn to_hugging_face(&self, logical_shards: usize) -> Value {
        let mut value = match self.family {
            Family::Llama => self.to_llama(),
            Family::Gpt2 => gpt2::to_hugging_face(self),
        };
        value["sixfold"] = json!({
            "logical_shards": logical_shards,
            "keys_per_block": KEYS_PER_BLOCK,
            "dtype": self.dtype,
        });
        value
    }

    fn to_llama(&self) -> Value {
        let (architecture, model_type) = match self.sliding_window {
            None => ("LlamaForCausalLM", "llama"),
            Some(_) => ("MistralForCausalLM", "mistral"),
        };
        let mut value = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "torch_dtype": "float32",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        });
        if let Some(window) = self.sliding_window {
            value["sliding_window"] = json!(window);
        }
        value
    }

    /// Reads a `config.json` of either family, ours or one that `transformers` saved. Returns
    /// the logical shards too, where the file names them.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is broken or asks for something else than this decoder.
    pub fn from_hugging_face(text: &[u8]) -> Result<(Self, Option<usize>), ConfigError> {
        let Header { model_type, sixfold } = serde_json::from_slice(text)?;
        let mut config = match model_type.as_deref() {
            Some("gpt2") => gpt2::from_hugging_face(text)?,
            _ => Self::from_llama(text)?,
        };
        config.dtype = sixfold.as_ref().map(|ours| ours.dtype).unwrap_or_default();
        config.validate()?;
        match sixfold {
            Some(ours) if ours.keys_per_block != KEYS_PER_BLOCK => {
                Err(ConfigError::KeyBlock(ours.keys_per_block))
            }
            ours => Ok((config, ours.map(|ours| ours.logical_shards))),
        }
    }

    fn from_llama(text: &[u8]) -> Result<Self, ConfigError> {
        let raw: HuggingFaceConfig = serde_json::from_slice(text)?;
        raw.refuse_unsupported()?;
        let hidden_size = need(raw.hidden_size, "hidden_size")?;
        let heads = need(raw.num_attention_heads, "num_attention_heads")?;
        let rope = raw.rope_parameters.unwrap_or_default();
        let sliding_window = raw.sliding_window.filter(|_| raw.model_type.as_deref() == Some("mistral"));
        Ok(Self {
            family: Family::Llama,
            vocab_size: need(raw.vocab_size, "vocab_size")?,
            hidden_size,
            intermediate_size: need(raw.intermediate_size, "intermediate_size")?,
            num_hidden_layers: need(raw.num_hidden_layers, "num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim: raw.head_dim.unwrap_or(hidden_size / heads.max(1)),
            max_position_embeddings: raw.max_position_embeddings.unwrap_or(2048),
            rms_norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: raw.rope_theta.or(rope.rope_theta).unwrap_or(10_000.0),
            sliding_window,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            dtype: Dtype::F32,
            bos_token_id: first_token(raw.bos_token_id.as_ref()),
            eos_token_id: first_token(raw.eos_token_id.as_ref()),
        })
    }
}

fn need(value: Option<usize>, name: &'static str) -> Result<usize, ConfigError> {
    value.ok_or(ConfigError::Missing(name))
}

/// Refuses a value other than ours.
fn wants(field: &'static str, value: Option<&str>, ours: &[&str]) -> Result<(), ConfigError> {
    match value {
        Some(value) if !ours.contains(&value) => {
            Err(ConfigError::Unsupported { field, value: value.to_owned() })
        }
        _ => Ok(()),
    }
}

/// What the `config.json` of either family has.
#[derive(Deserialize)]
struct Header {
    model_type: Option<String>,
    sixfold: Option<FixedOrder>,
}

/// `eos_token_id` may be a number or a list of numbers; the first one is what a document ends with.
fn first_token(value: Option<&Value>) -> Option<u32> {
    let number = match value? {
        Value::Array(list) => list.first()?.as_u64()?,
        other => other.as_u64()?,
    };
    u32::try_from(number).ok()
}

#[derive(Deserialize)]
struct HuggingFaceConfig {
    model_type: Option<String>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    /// Of Mistral's; `null` for none.
    #[serde(default = "mistral_window")]
    sliding_window: Option<NonZeroUsize>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
}

fn mistral_window() -> Option<NonZeroUsize> {
    Some(MISTRAL_WINDOW)
}

#[derive(Default, Deserialize)]
struct RopeParameters {
    rope_theta: Option<f32>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

#[derive(Deserialize)]
struct FixedOrder {
    logical_shards: usize,
    keys_per_block: usize,
    #[serde(default)]
    dtype: Dtype,
}

impl HuggingFaceConfig {
    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        wants("model_type", self.model_type.as_deref(), &["llama", "mistral"])?;
        wants("hidden_act", self.hidden_act.as_deref(), &["silu"])?;
        for rope in [&self.rope_scaling, &self.rope_parameters].into_iter().flatten() {
            wants("rope_type", rope.rope_type.as_deref(), &["default"])?;
        }
        for (field, bias) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if bias == Some(true) {
                return Err(ConfigError::Unsupported { field, value: "true".into() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny;

    #[test]
    fn survives_a_round_trip_through_config_json() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let config = ModelConfig { dtype, ..tiny() };
            let text = serde_json::to_vec(&config.to_hugging_face(4)).unwrap();
            assert_eq!(ModelConfig::from_hugging_face(&text).unwrap(), (config, Some(4)));
        }
    }

    #[test]
    fn a_window_makes_a_mistral_and_only_a_mistral_has_one() {
        let window = NonZeroUsize::new(5);
        let config = ModelConfig { sliding_window: window, ..tiny() };
        let mut value = config.to_hugging_face(4);
        let read =
            |value: &Value| ModelConfig::from_hugging_face(&serde_json::to_vec(value).unwrap()).unwrap().0;
        assert_eq!((value["model_type"].as_str(), read(&value)), (Some("mistral"), config));
        value["sliding_window"] = Value::Null;
        assert_eq!(read(&value).sliding_window, None);
        value.as_object_mut().unwrap().remove("sliding_window");
        assert_eq!(read(&value).sliding_window, Some(MISTRAL_WINDOW));
        value["model_type"] = json!("llama");
        assert_eq!(read(&value), tiny());
        let gpt2 = ModelConfig { family: Family::Gpt2, sliding_window: window, ..tiny() };
        assert!(gpt2.validate().is_err());
    }

    #[test]
    fn reads_what_newer_transformers_write() {
        let text = br#"{"model_type":"llama","vocab_size":8,"hidden_size":16,"intermediate_size":32,
            "num_hidden_layers":1,"num_attention_heads":4,"dtype":"float32","eos_token_id":[3,4],
            "rope_parameters":{"rope_theta":500000.0,"rope_type":"default"}}"#;
        let (config, shards) = ModelConfig::from_hugging_face(text).unwrap();
        assert_eq!((config.num_key_value_heads, config.head_dim), (4, 4));
        assert_eq!((config.rope_theta, config.eos_token_id, shards), (500_000.0, Some(3), None));
    }

    #[test]
    fn names_what_it_cannot_do() {
        let refused = |edit: fn(&mut Value)| {
            let mut value = tiny().to_hugging_face(4);
            edit(&mut value);
            ModelConfig::from_hugging_face(&serde_json::to_vec(&value).unwrap()).unwrap_err().to_string()
        };
        assert!(refused(|v| v["rope_scaling"] = json!({"rope_type": "llama3"})).contains("llama3"));
        assert!(refused(|v| v["model_type"] = json!("bert")).contains("bert"));
        assert!(refused(|v| v["attention_bias"] = json!(true)).contains("attention_bias"));
        assert!(refused(|v| v["hidden_size"] = json!(0)).contains("hidden_size"));
        assert!(refused(|v| v["vocab_size"] = json!(1_u64 << 40)).contains("vocab_size"));
        assert!(refused(|v| v["num_key_value_heads"] = json!(3)).contains("key-value heads"));
        assert!(refused(|v| v["sixfold"]["keys_per_block"] = json!(32)).contains("32 keys"));
    }
}
