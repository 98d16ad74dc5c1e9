//! The families of decoders, as data: which tensors a model has, in which order, and how its files name them.
//!
//! Each has a folder with a README; how another one is added says `families/README.md`. What a family has no tensor for, such
//! as biases, is not computed; what it computes in another way, norms and activations, stands with the kernels' calls.
//! Read [`Family`] first.

mod gpt2;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{ConfigError, ModelConfig};
use crate::hugging_face::FileTensor;
use crate::unit::{Place, Tensor};

/// A family of decoders. Mistral and SmolLM2 are Llamas, the former with a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// RMSNorm, rotary positions, grouped queries, SwiGLU, biases of attention's projections only where a configuration
    /// asks for them (Touvron et al., "LLaMA", 2023).
    #[default]
    Llama,
    /// LayerNorm, learned positions, GELU in its tanh form, biases (Radford et al., "Language Models are
    /// Unsupervised Multitask Learners", 2019).
    Gpt2,
    /// Llama with biases of queries, keys and values (Yang et al., "Qwen2 Technical Report", 2024).
    Qwen2,
    /// Llama with an RMSNorm of every query and key head before positions turn it (Yang et al., "Qwen3 Technical Report",
    /// 2025).
    Qwen3,
}

/// What a family is, for whoever does not know which one it is.
struct Description {
    /// Before the first layer, in canonical order.
    input: &'static [Tensor],
    /// Of every layer, in canonical order, those of [`Self::optional`] among them.
    layer: &'static [Tensor],
    /// What layers have only where [`ModelConfig::attention_bias`] is set.
    optional: &'static [Tensor],
    /// After the last layer, in canonical order, the head of its own that untied models have among them.
    output: &'static [Tensor],
    /// The projections into the feed-forward layer, side by side.
    feed_forward_inputs: &'static [Tensor],
    /// Where one of the tensors lies in Hugging Face's files.
    file_tensor: fn(Place, Tensor) -> FileTensor,
    /// Writes `config.json`.
    to_hugging_face: fn(&ModelConfig) -> Value,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Gpt2, Self::Qwen2, Self::Qwen3];

    fn description(self) -> &'static Description {
        match self {
            Self::Llama => &llama::DESCRIPTION,
            Self::Gpt2 => &gpt2::DESCRIPTION,
            Self::Qwen2 => &qwen2::DESCRIPTION,
            Self::Qwen3 => &qwen3::DESCRIPTION,
        }
    }

    /// The tensors before the first layer, in canonical order.
    pub fn input_tensors(self) -> &'static [Tensor] {
        self.description().input
    }

    /// The tensors that a layer may have, in canonical order; those of a model says [`ModelConfig::layer_tensors`].
    pub(crate) fn layer_tensors(self) -> &'static [Tensor] {
        self.description().layer
    }

    /// Those of [`Self::layer_tensors`] that a layer has only where [`ModelConfig::attention_bias`] is set.
    pub(crate) fn optional_tensors(self) -> &'static [Tensor] {
        self.description().optional
    }

    /// The tensors after the last layer, in canonical order; a tied head is none of them.
    pub fn output_tensors(self, tied: bool) -> impl Iterator<Item = Tensor> {
        self.description().output.iter().copied().filter(move |tensor| !(tied && *tensor == Tensor::Head))
    }

    /// The projections into the feed-forward layer, side by side.
    pub(crate) fn feed_forward_inputs(self) -> &'static [Tensor] {
        self.description().feed_forward_inputs
    }

    /// Whether gates go into the feed-forward layer (SwiGLU), and not a single projection (GELU).
    pub(crate) fn is_gated(self) -> bool {
        self.feed_forward_inputs().contains(&Tensor::Gate)
    }

    /// Whether queries and keys are turned by their positions; else the input has a table of positions.
    pub(crate) fn is_rotary(self) -> bool {
        !self.input_tensors().contains(&Tensor::PositionEmbedding)
    }

    /// Whether every head of queries and keys goes through a norm.
    pub(crate) fn norms_heads(self) -> bool {
        self.layer_tensors().contains(&Tensor::QueryNorm)
    }

    /// Where a tensor of the model lies in Hugging Face's files.
    pub(crate) fn file_tensor(self, place: Place, tensor: Tensor) -> FileTensor {
        (self.description().file_tensor)(place, tensor)
    }
}

/// Writes a `config.json` as the architecture of Hugging Face reads it that computes the same.
pub(crate) fn to_hugging_face(config: &ModelConfig) -> Value {
    (config.family.description().to_hugging_face)(config)
}

/// Reads a `config.json` of the given `model_type`.
pub(crate) fn from_hugging_face(model_type: Option<&str>, text: &[u8]) -> Result<ModelConfig, ConfigError> {
    match model_type {
        None | Some("llama") => llama::read(text, &llama::DIALECT),
        Some("mistral") => llama::read(text, &mistral::DIALECT),
        Some("qwen2") => llama::read(text, &qwen2::DIALECT),
        Some("qwen3") => llama::read(text, &qwen3::DIALECT),
        Some("gpt2") => gpt2::read(text),
        Some(other) => Err(ConfigError::Unsupported { field: "model_type", value: other.to_owned() }),
    }
}
