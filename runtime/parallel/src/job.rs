//! What goes into a training step and what comes of it.

use sixfold_model::{Compression, Geometry, MicroBatch, OptimizerOptions, Recompute};

/// How a step is computed: choices between time and memory that change no bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execution {
    /// What backward passes compute again instead of keeping it.
    pub recompute: Recompute,
    /// How many tokens go through the model together, at most, where a data group is one micro-batch of
    /// fewer.
    pub pass_tokens: usize,
    /// Whether the ranks of a tensor-parallel group share what lies between products (norms, residuals, dropout, biases
    /// after sums), each doing it for the rows of its sequence blocks. Without such a group it changes nothing.
    pub sequence_parallel: bool,
}

impl Default for Execution {
    fn default() -> Self {
        // Enough rows for products near the machine's speed.
        Self { recompute: Recompute::None, pass_tokens: 1024, sequence_parallel: true }
    }
}

/// What is the same on every rank and for every plan.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingJob {
    /// Sizes, logical shards, and the adapters, if they are what is trained.
    pub geometry: Geometry,
    /// Optimizer and learning rate.
    pub optimizer: OptimizerOptions,
    /// What all random numbers follow from.
    pub seed: u64,
    /// Probability of dropout on the embedding and on every residual branch.
    pub dropout: f32,
    /// Probability of dropout before adapters.
    pub adapter_dropout: f32,
    /// How the weights beside adapters are kept.
    pub base_compression: Option<Compression>,
}

/// A rank's input of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepBatch {
    /// Micro-batches of each of the rank's data groups, in order: the same for all ranks with the
    /// same data coordinate. Every group of the step has as many.
    pub groups: Vec<Vec<MicroBatch>>,
    /// Targets of the whole step that count in the loss, over all groups and ranks: what the sum
    /// of losses is divided by.
    pub global_targets: u64,
}

/// What a step came to. Equal on all ranks, to the bit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean loss of the step's targets that count, before the update.
    pub loss: f32,
    /// Global norm of the gradient, before clipping.
    pub gradient_norm: f32,
    /// Learning rate of the step.
    pub learning_rate: f32,
    /// Ranks whose flag ([`Trainer::flag`](crate::Trainer::flag)) was up when the step's sums were exchanged.
    pub flags: u32,
}
