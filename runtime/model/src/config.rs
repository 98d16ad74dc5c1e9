//! The shape of a decoder, under the names of Hugging Face's `config.json` for Llama.
//!
//! Read [`ModelConfig`] first. How the file of each family is read and written is that [family](crate::families)'s business;
//! how a model is cut for parallel training is [`Sharding`]'s; how it is trained (dropout, learning rate) is the trainer's.
//!
//! [`Sharding`]: crate::Sharding

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sixfold_tensor::{Dtype, RopeTable, Stream, visible_pairs};

use crate::attention::KEYS_PER_BLOCK;
use crate::families::{self, Family};
use crate::rope::{self, RopeScaling};
use crate::unit::Tensor;

/// Largest width, vocabulary or number of positions in a configuration that comes from outside. It
/// keeps every product of two sizes far from overflow.
const SIZE_MAX: usize = 1 << 20;
/// Most layers, heads of a layer, and elements of a head.
const COUNT_MAX: usize = 1 << 10;
/// Most sines and cosines of rotary positions, which are kept in memory.
const ROTATIONS_MAX: usize = 1 << 27;

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
    /// GPT-2 family, and need not be in the others.
    pub head_dim: usize,
    /// Positions that the model may be asked for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm, and to the variance in LayerNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies; not used where positions are learned.
    pub rope_theta: f32,
    /// How the rotary frequencies are scaled, in models that were stretched to longer texts.
    #[serde(default)]
    pub rope_scaling: Option<RopeScaling>,
    /// Keys that a query sees at most, its own among them (Jiang et al., "Mistral 7B", 2023); without it, all of its
    /// document so far. Not in the GPT-2 family.
    #[serde(default)]
    pub sliding_window: Option<NonZeroUsize>,
    /// The layers before the first that has the window: 0 where there is none, and in the Llama family.
    #[serde(default)]
    pub full_attention_layers: usize,
    /// Whether attention's projections have biases, in families that leave it open (Llama, Qwen3); false in the others.
    #[serde(default)]
    pub attention_bias: bool,
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
        self.validate_attention()?;
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
        match self.rope_scaling.as_ref().and_then(|scaling| scaling.reason_against(self.rope_theta)) {
            Some(reason) => shape(reason),
            None => Ok(()),
        }
    }

    /// What families leave out, and what no architecture of Hugging Face has.
    fn validate_attention(&self) -> Result<(), ConfigError> {
        let (window, full) = (self.sliding_window.is_some(), self.full_attention_layers);
        let is_llama = self.family == Family::Llama;
        let refused = [
            (!self.family.is_rotary() && window, "the GPT-2 family has no `sliding_window`"),
            (
                !self.family.is_rotary() && self.rope_scaling.is_some(),
                "the GPT-2 family has no `rope_scaling`",
            ),
            (
                self.attention_bias && self.family.optional_tensors().is_empty(),
                "the family does not leave `attention_bias` open",
            ),
            (
                is_llama && window && self.attention_bias,
                "a Llama with a window, Mistral, has no `attention_bias`",
            ),
            (is_llama && full > 0, "the Llama family has a window in all layers or in none"),
            (
                full > 0 && !window,
                "`full_attention_layers` are those before the first with a `sliding_window`",
            ),
            (full > 0 && full >= self.num_hidden_layers, "all layers come before the first with a window"),
        ];
        match refused.into_iter().find(|(is_refused, _)| *is_refused) {
            Some((_, reason)) => Err(ConfigError::Shape(reason.to_owned())),
            None => Ok(()),
        }
    }

    /// Query heads that share one key-value head.
    pub fn heads_per_group(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// The tensors of every layer, in canonical order.
    pub fn layer_tensors(&self) -> impl Iterator<Item = Tensor> {
        let (family, has_all) = (self.family, self.attention_bias);
        let tensors = family.layer_tensors().iter().copied();
        tensors.filter(move |tensor| has_all || !family.optional_tensors().contains(tensor))
    }

    /// Rows and columns of a whole tensor.
    pub(crate) fn shape(&self, tensor: Tensor) -> (usize, usize) {
        let d = self.hidden_size;
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        match tensor {
            tensor if tensor.is_head_norm() => (1, self.head_dim),
            tensor if tensor.is_whole() => (1, d),
            Tensor::PositionEmbedding => (self.max_position_embeddings, d),
            Tensor::Query => (q, d),
            Tensor::Key | Tensor::Value => (kv, d),
            Tensor::AttentionOutput => (d, q),
            Tensor::Gate | Tensor::Up => (self.intermediate_size, d),
            Tensor::Down => (d, self.intermediate_size),
            Tensor::QueryBias => (q, 1),
            Tensor::KeyBias | Tensor::ValueBias => (kv, 1),
            Tensor::UpBias => (self.intermediate_size, 1),
            _ => (self.vocab_size, d),
        }
    }

    /// Keys that a query of `layer` sees at most.
    pub(crate) fn window(&self, layer: usize) -> Option<NonZeroUsize> {
        self.sliding_window.filter(|_| layer >= self.full_attention_layers)
    }

    /// Trainable numbers of the whole model.
    pub fn parameters(&self) -> usize {
        let numbers = |tensor| {
            let (rows, columns) = self.shape(tensor);
            rows * columns
        };
        let layer: usize = self.layer_tensors().map(numbers).sum();
        let outer = self.family.input_tensors().iter().copied();
        let outer = outer.chain(self.family.output_tensors(self.tie_word_embeddings));
        self.num_hidden_layers * layer + outer.map(numbers).sum::<usize>()
    }

    /// Floating-point operations, two each multiply-add, that training takes for a token of a sequence of
    /// `tokens`: forward once, backward twice, nothing computed again.
    ///
    /// The products with weights and those of attention are counted, as in "PaLM: Scaling Language Modeling with
    /// Pathways" (Chowdhery et al. 2022), appendix B, but of attention only the pairs that a causal mask and a
    /// window leave: without a window half of the published `12 L H Q T`. Look-ups, norms and activations are not.
    pub fn training_flop_per_token(&self, tokens: usize) -> f64 {
        let matrices = self.layer_tensors().filter(|tensor| !tensor.is_vector());
        let numbers = |tensor| {
            let (rows, columns) = self.shape(tensor);
            rows * columns
        };
        let layer: usize = matrices.map(numbers).sum();
        let weights = self.num_hidden_layers * layer + self.vocab_size * self.hidden_size;
        let seen = |window| visible_pairs(tokens, window) as f64 / tokens as f64;
        let full = self.full_attention_layers;
        let layers =
            full as f64 * seen(None) + (self.num_hidden_layers - full) as f64 * seen(self.sliding_window);
        let attention = 2.0 * (self.num_attention_heads * self.head_dim) as f64 * layers;
        6.0 * (weights as f64 + attention)
    }

    /// Sines and cosines of the positions, in families where they are rotary.
    pub(crate) fn rotations(&self, stream: &Stream) -> Option<RopeTable> {
        let table = || {
            let (frequencies, scale) =
                rope::frequencies(self.head_dim, self.rope_theta, self.rope_scaling.as_ref());
            stream.rope_table(&frequencies, scale, self.max_position_embeddings)
        };
        self.family.is_rotary().then(table)
    }

    /// Writes `config.json` as the architecture of Hugging Face's reads it that computes the same (`LlamaForCausalLM`,
    /// with a window `MistralForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM` or `GPT2LMHeadModel`), with the logical
    /// shards, the key block and the dtype of products under `sixfold`, so that every reader rounds as the trainer and
    /// adds in its order.
    pub fn to_hugging_face(&self, logical_shards: usize) -> Value {
        let mut value = families::to_hugging_face(self);
        value["sixfold"] = json!({
            "logical_shards": logical_shards,
            "keys_per_block": KEYS_PER_BLOCK,
            "dtype": self.dtype,
        });
        value
    }

    /// Reads a `config.json` of any family, ours or one that `transformers` saved. Returns
    /// the logical shards too, where the file names them.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is broken or asks for something else than this decoder.
    pub fn from_hugging_face(text: &[u8]) -> Result<(Self, Option<usize>), ConfigError> {
        let Header { model_type, sixfold } = serde_json::from_slice(text)?;
        let mut config = families::from_hugging_face(model_type.as_deref(), text)?;
        config.dtype = sixfold.as_ref().map(|ours| ours.dtype).unwrap_or_default();
        config.validate()?;
        match sixfold {
            Some(ours) if ours.keys_per_block != KEYS_PER_BLOCK => {
                Err(ConfigError::KeyBlock(ours.keys_per_block))
            }
            ours => Ok((config, ours.map(|ours| ours.logical_shards))),
        }
    }
}

pub(crate) fn need(value: Option<usize>, name: &'static str) -> Result<usize, ConfigError> {
    value.ok_or(ConfigError::Missing(name))
}

/// Refuses a value other than ours.
pub(crate) fn wants(field: &'static str, value: Option<&str>, ours: &[&str]) -> Result<(), ConfigError> {
    match value {
        Some(value) if !ours.contains(&value) => {
            Err(ConfigError::Unsupported { field, value: value.to_owned() })
        }
        _ => Ok(()),
    }
}

/// What the `config.json` of any family may have.
#[derive(Deserialize)]
struct Header {
    model_type: Option<String>,
    sixfold: Option<FixedOrder>,
}

/// `eos_token_id` may be a number or a list of numbers; the first one is what a document ends with.
pub(crate) fn first_token(value: Option<&Value>) -> Option<u32> {
    let number = match value? {
        Value::Array(list) => list.first()?.as_u64()?,
        other => other.as_u64()?,
    };
    u32::try_from(number).ok()
}

#[derive(Deserialize)]
struct FixedOrder {
    logical_shards: usize,
    keys_per_block: usize,
    #[serde(default)]
    dtype: Dtype,
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
        assert_eq!(read(&value).sliding_window, NonZeroUsize::new(4096));
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
    fn a_configuration_asks_for_what_its_family_has() {
        let window = NonZeroUsize::new(5);
        let of = |family| ModelConfig { family, ..tiny() };
        let refused = [
            ModelConfig { attention_bias: true, ..of(Family::Qwen2) },
            ModelConfig { attention_bias: true, ..of(Family::Gpt2) },
            ModelConfig { attention_bias: true, sliding_window: window, ..tiny() },
            ModelConfig { full_attention_layers: 1, sliding_window: window, ..tiny() },
            ModelConfig { full_attention_layers: 1, ..of(Family::Qwen3) },
            ModelConfig { full_attention_layers: 2, sliding_window: window, ..of(Family::Qwen3) },
            ModelConfig { rope_scaling: Some(RopeScaling::Linear { factor: 0.5 }), ..tiny() },
            ModelConfig { rope_scaling: Some(RopeScaling::Linear { factor: f64::NAN }), ..tiny() },
        ];
        for config in refused {
            assert!(matches!(config.validate(), Err(ConfigError::Shape(_))), "{config:?}");
        }
    }

    /// Values that no writer means, in every field and in every field of the fields.
    #[test]
    fn whatever_a_field_holds_is_refused_or_makes_a_model() {
        let wrong = [
            Value::Null,
            json!(true),
            json!("x"),
            json!([]),
            json!({}),
            json!([{}]),
            json!(-1),
            json!(0),
            json!(1),
            json!(0.3),
            json!(1e300),
            json!(u64::MAX),
        ];
        let scaling = Some(RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.1,
            truncate: true,
        });
        let (mut read, mut refused) = (0, 0);
        for family in Family::ALL {
            let rope_scaling = scaling.clone().filter(|_| family.is_rotary());
            let num_key_value_heads = if family == Family::Gpt2 { 4 } else { 2 };
            let whole =
                ModelConfig { family, rope_scaling, num_key_value_heads, ..tiny() }.to_hugging_face(4);
            let mut places: Vec<String> = Vec::new();
            for (name, value) in whole.as_object().unwrap() {
                places.push(format!("/{name}"));
                let inner = value.as_object().into_iter().flatten();
                places.extend(inner.map(|(inner, _)| format!("/{name}/{inner}")));
            }
            for (place, wrong) in
                places.iter().flat_map(|place| wrong.iter().map(move |wrong| (place, wrong)))
            {
                let mut value = whole.clone();
                *value.pointer_mut(place).unwrap() = wrong.clone();
                match ModelConfig::from_hugging_face(&serde_json::to_vec(&value).unwrap()) {
                    Err(_) => refused += 1,
                    Ok((config, _)) => {
                        let (frequencies, scale) = rope::frequencies(
                            config.head_dim,
                            config.rope_theta,
                            config.rope_scaling.as_ref(),
                        );
                        let finite = frequencies.iter().all(|frequency| frequency.is_finite());
                        assert!(finite && scale.is_finite(), "{place}: {wrong}");
                        assert!(config.parameters() > 0 && config.training_flop_per_token(8) > 0.0);
                        read += 1;
                    }
                }
            }
        }
        assert!(read > 100 && refused > 500, "{read} read, {refused} refused");
    }

    #[test]
    fn names_what_it_cannot_do() {
        let refused = |edit: fn(&mut Value)| {
            let mut value = tiny().to_hugging_face(4);
            edit(&mut value);
            ModelConfig::from_hugging_face(&serde_json::to_vec(&value).unwrap()).unwrap_err().to_string()
        };
        assert!(refused(|v| v["model_type"] = json!("bert")).contains("bert"));
        assert!(refused(|v| v["mlp_bias"] = json!(true)).contains("mlp_bias"));
        assert!(refused(|v| v["hidden_size"] = json!(0)).contains("hidden_size"));
        assert!(refused(|v| v["vocab_size"] = json!(1_u64 << 40)).contains("vocab_size"));
        assert!(refused(|v| v["num_key_value_heads"] = json!(3)).contains("key-value heads"));
        assert!(refused(|v| v["sixfold"]["keys_per_block"] = json!(32)).contains("32 keys"));
    }
}
