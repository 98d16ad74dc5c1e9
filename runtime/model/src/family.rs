//! The families of decoders, as data: which tensors a model has, and in which order.
//!
//! What a family has no tensor for, such as biases, is not computed; what it computes in another way,
//! norms and activations, stands with the kernels' calls. Read [`Family`] first.

use serde::{Deserialize, Serialize};

use crate::unit::Tensor;

/// A family of decoders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// RMSNorm, rotary positions, grouped queries, SwiGLU, no biases (Touvron et al., "LLaMA", 2023).
    #[default]
    Llama,
    /// LayerNorm, learned positions, GELU in its tanh form, biases (Radford et al., "Language Models are
    /// Unsupervised Multitask Learners", 2019).
    Gpt2,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Llama, Self::Gpt2];

    /// The tensors before the first layer, in canonical order.
    pub fn input_tensors(self) -> &'static [Tensor] {
        match self {
            Self::Llama => &[Tensor::Embedding],
            Self::Gpt2 => &[Tensor::Embedding, Tensor::PositionEmbedding],
        }
    }

    /// The tensors of every layer, in canonical order.
    pub fn layer_tensors(self) -> &'static [Tensor] {
        match self {
            Self::Llama => &[
                Tensor::AttentionNorm,
                Tensor::Query,
                Tensor::Key,
                Tensor::Value,
                Tensor::AttentionOutput,
                Tensor::FeedForwardNorm,
                Tensor::Gate,
                Tensor::Up,
                Tensor::Down,
            ],
            Self::Gpt2 => &[
                Tensor::AttentionNorm,
                Tensor::Query,
                Tensor::Key,
                Tensor::Value,
                Tensor::AttentionOutput,
                Tensor::FeedForwardNorm,
                Tensor::Up,
                Tensor::Down,
                Tensor::AttentionNormBias,
                Tensor::QueryBias,
                Tensor::KeyBias,
                Tensor::ValueBias,
                Tensor::AttentionOutputBias,
                Tensor::FeedForwardNormBias,
                Tensor::UpBias,
                Tensor::DownBias,
            ],
        }
    }

    /// The tensors after the last layer, in canonical order; a tied head is none of them.
    pub fn output_tensors(self, tied: bool) -> &'static [Tensor] {
        match (self, tied) {
            (Self::Llama, false) => &[Tensor::FinalNorm, Tensor::Head],
            (Self::Llama, true) => &[Tensor::FinalNorm],
            (Self::Gpt2, false) => &[Tensor::FinalNorm, Tensor::Head, Tensor::FinalNormBias],
            (Self::Gpt2, true) => &[Tensor::FinalNorm, Tensor::FinalNormBias],
        }
    }

    /// The projections into the feed-forward layer, side by side.
    pub(crate) fn feed_forward_inputs(self) -> &'static [Tensor] {
        match self {
            Self::Llama => &[Tensor::Gate, Tensor::Up],
            Self::Gpt2 => &[Tensor::Up],
        }
    }
}
