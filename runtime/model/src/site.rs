//! Where in a pass through the model a sum over the tensor-parallel group belongs: [`Site`].

use std::fmt;

/// A part of the model whose partial results are summed over the tensor-parallel group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The embedding.
    Embedding,
    /// The attention of a layer.
    Attention(u32),
    /// The feed-forward layer of a layer.
    FeedForward(u32),
    /// The final norm, the head and the loss.
    Head,
}

/// A part of the pass of one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// The first sequence of the micro-batch, counted in the step.
    pub first_sample: u64,
    /// Whether gradients are on their way back.
    pub backward: bool,
    /// Where in the model.
    pub part: Part,
}

impl fmt::Display for Part {
    /// The module by its Hugging Face name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("model.embed_tokens"),
            Self::Attention(layer) => write!(f, "model.layers.{layer}.self_attn"),
            Self::FeedForward(layer) => write!(f, "model.layers.{layer}.mlp"),
            Self::Head => f.write_str("lm_head"),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first_sample, backward, part } = self;
        let pass = if *backward { "backward" } else { "forward" };
        write!(f, "the {pass} pass of {part}, micro-batch from sequence {first_sample}")
    }
}
