//! Options of a `train` stage, with everything that is fixed for the job whatever its plan.

use std::fmt;
use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sixfold_model::{
    Compression, Dtype, Family, Geometry, GeometryError, Lora, ModelConfig, OptimizerOptions, Projection,
    Recompute,
};
use sixfold_parallel::{Execution, balanced_layout};
use sixfold_topology::{JobShape, LayoutError, ParallelPlan, PipelineLayout, PlanError, data_groups};

/// Vocabulary that stands in for the real one, which only the tokens know, while options are checked.
const VOCABULARY_STAND_IN: usize = 4096;

const THREADS_MAX: usize = 256;
const ZERO_STAGE_MAX: u8 = 1;
const RMS_NORM_EPSILON: f32 = 1e-5;

/// The options that the shape of a model fixes.
pub(crate) const SHAPE: [&str; 10] = [
    "family",
    "layers",
    "hidden_size",
    "heads",
    "kv_heads",
    "feed_forward_size",
    "context_length",
    "rope_theta",
    "sliding_window",
    "tie_embeddings",
];

/// Options of a `train` stage, as written in a job file.
///
/// Loss and weights have the same bits whatever the options of [`TrainOptions::FREE`] are, and those may change
/// while the job runs; every other option changes the bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// Family of the model: `llama` (RMSNorm, rotary positions, grouped queries, SwiGLU), `qwen2` (the same with biases of
    /// queries, keys and values), `qwen3` (the same with a norm of every query and key head) or `gpt2` (LayerNorm, learned
    /// positions, GELU, biases; `kv_heads` and `rope_theta` are not used).
    #[schemars(with = "String")]
    pub family: Family,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads of a layer; divides `hidden_size` into heads of even width.
    pub heads: usize,
    /// Key and value heads of a layer; divides `heads`.
    pub kv_heads: usize,
    /// Width of the feed-forward layer; 0 for 8/3 of `hidden_size`, rounded up to a multiple of 8, or in the `gpt2`
    /// family for 4 of them.
    pub feed_forward_size: usize,
    /// Positions that the model may be asked for, in tokens.
    pub context_length: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Keys that a query sees at most, its own among them, as in Mistral 7B; 0 for all of its document so far. Attention
    /// then costs time by the window and not by the document. Not in the `gpt2` family.
    pub sliding_window: usize,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
    /// What the operands of matrix products are rounded to, when trained and when served: `f32` (not at all) or `bf16`.
    /// Parameters, moments, sums and all other operations are in `f32` in any case.
    #[schemars(with = "String")]
    pub dtype: Dtype,

    /// The shape of the model that training starts from, where an input is one. It is filled in from that model's
    /// `config.json` or stage when the job is submitted, and with it all options above that a job file leaves out; what
    /// a job file says must agree with it, but for `dtype`.
    #[schemars(with = "String")]
    pub base: Option<ModelConfig>,
    /// Rank of the adapters that are trained in place of the base's weights (LoRA); 0 to train the weights. The model then is
    /// the adapters alone, in PEFT's files, and is read with its base by whatever takes it as an input.
    pub lora_rank: usize,
    /// What an adapter adds is scaled by this over `lora_rank`.
    pub lora_alpha: f32,
    /// Probability of dropout before adapters.
    pub lora_dropout: f32,
    /// Projections that have adapters, such as `["q_proj", "v_proj"]`; empty for all of the base's layers.
    #[schemars(with = "Vec<String>")]
    pub lora_projections: Vec<Projection>,
    /// How the base's weights are kept beside adapters: `f32`, `bf16`, `int8` (8.5 bits a number) or `nf4` (4.5 bits a number:
    /// QLoRA); tables of tokens in `bf16` in the last two. They are expanded for each product. Changes what is trained.
    #[schemars(with = "String")]
    pub base_format: BaseFormat,

    /// Ways that the batch is split over ranks; a power of two.
    pub data_parallel: usize,
    /// Ways that every layer is split over ranks; a power of two of at most `tensor_shards`.
    pub tensor_parallel: usize,
    /// Pipeline stages: parts of the layers, each on ranks of its own.
    pub pipeline_parallel: usize,
    /// Runs of layers of each pipeline stage. With more than one, stages take turns with them (interleaved 1F1B): they
    /// wait less for each other at the ends of a step, by as many times, and send as many times as much.
    pub virtual_stages: usize,
    /// Layers of each run, in the order of the model, such as `[7, 8, 8, 5]`: the first runs of all stages, then their
    /// second ones. Empty for stages that have about as much to do, the head included.
    pub stage_layers: Vec<usize>,
    /// What data-parallel ranks share instead of each having a copy: 0 for nothing, 1 for the optimizer (stage 1 of ZeRO:
    /// a rank keeps the moments of its part of the parameters and updates that part). Changes no bit.
    pub zero_stage: u8,
    /// Whether tensor-parallel ranks share what lies between products (norms, residuals, dropout, biases after sums)
    /// instead of each doing all of it: each does it for its part of every sequence, and keeps that part only for the
    /// backward pass. Has a meaning where `tensor_parallel` is more than 1. Changes no bit.
    pub sequence_parallel: bool,
    /// Whether the plan is tried before the job starts: a small model with the same choices is trained under
    /// it and by one rank, and the bits must be the same. Takes about a second.
    pub verify_plan: bool,
    /// Whether the job goes on under a smaller plan when nodes leave and too few are left for a rank each, and goes
    /// back when they return: the bits are the same. Else it crowds its ranks onto the nodes that are left.
    pub elastic: bool,
    /// How long a node that is lost is waited for before a smaller plan is taken: longer than it takes to start
    /// a daemon again.
    pub shrink_after_seconds: u64,
    /// Least time after such a change before the plan is widened again; 60 keeps a node that comes and goes from
    /// causing more than two changes a minute.
    pub widen_after_seconds: u64,
    /// Logical tensor shards: the most that `tensor_parallel` can be. A power of two. Fixes the
    /// order of sums, so it is part of the model.
    pub tensor_shards: usize,

    /// Optimizer steps.
    pub steps: u64,
    /// Sequences of a step, over all ranks. The largest power of two up to 8 that divides it is
    /// the most that `data_parallel` can be.
    pub batch_sequences: usize,
    /// Sequences that go through the model together; 0 for as many as the batch allows. Fewer need
    /// less memory, and let more pipeline stages work at a time.
    pub micro_batch_sequences: usize,
    /// Tokens of a training sequence; 0 for `context_length`.
    pub sequence_length: usize,

    /// Highest learning rate, reached at the end of the warm-up.
    pub learning_rate: f32,
    /// Learning rate at the last step; in between it falls as a cosine.
    pub min_learning_rate: f32,
    /// Steps in which the learning rate grows to its highest.
    pub warmup_steps: u64,
    /// Decoupled weight decay of AdamW; norms and biases are exempt.
    pub weight_decay: f32,
    /// Decay of AdamW's first moment.
    pub beta1: f32,
    /// Decay of AdamW's second moment.
    pub beta2: f32,
    /// Added to the root of AdamW's second moment.
    pub epsilon: f32,
    /// Largest global gradient norm; larger gradients are scaled down to it. 0 turns it off.
    pub clip_norm: f32,
    /// Probability of dropout on the embedding and on every residual branch.
    pub dropout: f32,
    /// What initial weights, dropout and the order of the sequences follow from.
    pub seed: u64,

    /// Steps between two evaluations of the held-out split by the ranks of the plan; there is one before the first step and one
    /// after the last, too. 0 for none.
    pub evaluate_every_steps: u64,
    /// Held-out tokens that an evaluation takes at most, the first ones.
    pub evaluate_tokens: u64,
    /// Evaluations one after another without a lower held-out loss that end the training. The model then has the weights of the
    /// best evaluation. 0 to train all steps, and keep the last weights.
    pub early_stop_evaluations: u64,

    /// Steps between two durable checkpoints: the most that a fault makes the job do again where no states are
    /// held in memory.
    pub checkpoint_every_steps: u64,
    /// Steps between two commits: states held in the memory of a rank's own node and of one of another failure
    /// domain, beside the computation. A commit that is still under way delays the next, not the training.
    /// Larger for big models; 0 turns it off, and leaves checkpoints.
    pub commit_every_steps: u64,
    /// What backward passes compute again instead of keeping it: `none`, `selective` (norms and activations,
    /// a quarter of what is kept, at little cost) or `full` (all but a layer's
    /// input: little is kept, for a third more products).
    #[schemars(with = "String")]
    pub recompute: Recompute,
    /// Tokens that go through the model together, where data groups are smaller: more are faster and take
    /// more memory.
    pub pass_tokens: usize,
    /// Compute threads of a rank.
    pub threads: usize,
    /// What a rank's machine can do at best with its threads, in GFLOP/s: beside it the utilization (MFU) is
    /// set. 0 to measure it: the best of some products of matrices by the training's own kernel, while the job starts.
    pub peak_gflops: f64,
}

/// How weights beside adapters are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseFormat {
    /// As they are.
    F32,
    /// Rounded to bfloat16.
    Bf16,
    /// In eight bits and a scale a block.
    Int8,
    /// In four bits and a scale a block.
    Nf4,
}

impl BaseFormat {
    /// How they are compressed.
    pub(crate) fn compression(self) -> Option<Compression> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(Compression::Bf16),
            Self::Int8 => Some(Compression::Int8),
            Self::Nf4 => Some(Compression::Nf4),
        }
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            family: Family::Llama,
            layers: 4,
            hidden_size: 128,
            heads: 8,
            kv_heads: 4,
            feed_forward_size: 0,
            context_length: 128,
            rope_theta: 10_000.0,
            sliding_window: 0,
            tie_embeddings: false,
            dtype: Dtype::F32,
            base: None,
            lora_rank: 0,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            lora_projections: Vec::new(),
            base_format: BaseFormat::F32,
            data_parallel: 1,
            tensor_parallel: 1,
            pipeline_parallel: 1,
            virtual_stages: 1,
            stage_layers: Vec::new(),
            zero_stage: 1,
            sequence_parallel: Execution::default().sequence_parallel,
            verify_plan: true,
            elastic: true,
            shrink_after_seconds: 3,
            widen_after_seconds: 60,
            tensor_shards: 4,
            steps: 200,
            batch_sequences: 8,
            micro_batch_sequences: 0,
            sequence_length: 0,
            learning_rate: 1e-3,
            min_learning_rate: 1e-4,
            warmup_steps: 20,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            clip_norm: 1.0,
            dropout: 0.0,
            seed: 1,
            evaluate_every_steps: 0,
            evaluate_tokens: 1 << 16,
            early_stop_evaluations: 0,
            checkpoint_every_steps: 10,
            commit_every_steps: 1,
            recompute: Execution::default().recompute,
            pass_tokens: Execution::default().pass_tokens,
            threads: 1,
            peak_gflops: 0.0,
        }
    }
}

/// The options that the shape of a model fixes, as that model has them.
pub(crate) fn shape_options(base: &ModelConfig) -> [(&'static str, Value); SHAPE.len()] {
    let [family, layers, hidden, heads, kv_heads, feed_forward, context, theta, window, tied] = SHAPE;
    [
        (family, json!(base.family)),
        (layers, json!(base.num_hidden_layers)),
        (hidden, json!(base.hidden_size)),
        (heads, json!(base.num_attention_heads)),
        (kv_heads, json!(base.num_key_value_heads)),
        (feed_forward, json!(base.intermediate_size)),
        (context, json!(base.max_position_embeddings)),
        (theta, json!(base.rope_theta)),
        (window, json!(base.sliding_window.map_or(0, NonZeroUsize::get))),
        (tied, json!(base.tie_word_embeddings)),
    ]
}

/// The options contradict each other or ask for something that is not done.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// One option is out of range.
    #[error("`{option}` is {value}; it must be {must}")]
    Range {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is accepted.
        must: String,
    },
    /// The model's sizes do not fit each other.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The plan does not fit the model or the batch.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The layers cannot be laid out over the plan's stages.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

fn require(
    holds: bool,
    option: &'static str,
    value: impl fmt::Display,
    must: impl fmt::Display,
) -> Result<(), OptionsError> {
    let refuse = || OptionsError::Range { option, value: value.to_string(), must: must.to_string() };
    if holds { Ok(()) } else { Err(refuse()) }
}

impl TrainOptions {
    /// The options that change no bit of loss and weights, see [`TrainOptions::without_plan`].
    pub const FREE: [&str; 17] = [
        "data_parallel",
        "tensor_parallel",
        "pipeline_parallel",
        "virtual_stages",
        "stage_layers",
        "zero_stage",
        "sequence_parallel",
        "verify_plan",
        "elastic",
        "shrink_after_seconds",
        "widen_after_seconds",
        "checkpoint_every_steps",
        "commit_every_steps",
        "recompute",
        "pass_tokens",
        "threads",
        "peak_gflops",
    ];

    /// Checks everything that can be checked without the tokens.
    ///
    /// # Errors
    /// [`OptionsError`] names the first option that does not fit.
    pub fn validate(&self) -> Result<(), OptionsError> {
        self.validate_steps()?;
        self.validate_optimizer()?;
        require(self.heads > 0, "heads", self.heads, "at least 1")?;
        match &self.base {
            Some(base) => self.validate_base(base)?,
            None => {
                let must = format_args!("a divisor of hidden_size, {}", self.hidden_size);
                require(self.hidden_size.is_multiple_of(self.heads), "heads", self.heads, must)?;
            }
        }
        self.validate_lora()?;
        require(self.pass_tokens > 0, "pass_tokens", self.pass_tokens, "at least 1")?;
        self.plan().validate(&self.shape())?;
        self.usual_layout()?;
        Ok(())
    }

    /// Adapters have weights that they lie beside, and are what that model can have.
    fn validate_lora(&self) -> Result<(), OptionsError> {
        let (rank, dropout) = (self.lora_rank, self.lora_dropout);
        require(rank == 0 || self.base.is_some(), "lora_rank", rank, "0 where no input is a model")?;
        require((0.0..1.0).contains(&dropout), "lora_dropout", dropout, "at least 0 and below 1")?;
        let plain = rank > 0 || self.base_format == BaseFormat::F32;
        let format = json!(self.base_format);
        require(
            plain,
            "base_format",
            format,
            "f32 where lora_rank is 0, since the weights themselves are trained",
        )?;
        match (&self.base, self.lora()) {
            (Some(base), Some(lora)) => Ok(lora.validate(base).map_err(GeometryError::from)?),
            _ => Ok(()),
        }
    }

    /// The adapters that are trained, if any are.
    pub(crate) fn lora(&self) -> Option<Lora> {
        let base = self.base.as_ref()?;
        let all = || Projection::ALL.into_iter().filter(|projection| projection.is_of(base)).collect();
        (self.lora_rank > 0).then(|| Lora {
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            projections: match self.lora_projections.as_slice() {
                [] => all(),
                some => some.iter().copied().collect(),
            },
        })
    }

    /// A model with the adapters that are trained, or as it is.
    ///
    /// # Errors
    /// [`GeometryError`] if they do not fit it.
    pub(crate) fn with_lora(&self, geometry: Geometry) -> Result<Geometry, GeometryError> {
        match self.lora() {
            Some(lora) => Ok(geometry.with_lora(lora)?),
            None => Ok(geometry),
        }
    }

    /// Each option that the base has fixed is as it is there.
    fn validate_base(&self, base: &ModelConfig) -> Result<(), OptionsError> {
        let own = serde_json::to_value(self).unwrap_or_default();
        for (option, wanted) in shape_options(base) {
            let must = format_args!("{wanted}, as in the model that training starts from");
            require(own[option] == wanted, option, &own[option], must)?;
        }
        Ok(())
    }

    fn validate_steps(&self) -> Result<(), OptionsError> {
        require(self.steps > 0, "steps", self.steps, "at least 1")?;
        require(self.zero_stage <= ZERO_STAGE_MAX, "zero_stage", self.zero_stage, "0 or 1")?;
        let every = self.checkpoint_every_steps;
        require(every > 0, "checkpoint_every_steps", every, "at least 1")?;
        require(self.evaluate_tokens > 0, "evaluate_tokens", self.evaluate_tokens, "at least 1")?;
        let patience = self.early_stop_evaluations;
        let evaluates = patience == 0 || self.evaluate_every_steps > 0;
        require(evaluates, "early_stop_evaluations", patience, "0 where evaluate_every_steps is 0")?;
        let threads = (1..=THREADS_MAX).contains(&self.threads);
        require(threads, "threads", self.threads, format_args!("from 1 to {THREADS_MAX}"))?;
        let peak = self.peak_gflops;
        require(peak >= 0.0 && peak.is_finite(), "peak_gflops", peak, "at least 0")?;
        let batch = self.batch_sequences;
        require((1..=1 << 20).contains(&batch), "batch_sequences", batch, "from 1 to 1048576")?;
        let (length, context) = (self.sequence_length, self.context_length);
        require(
            length <= context,
            "sequence_length",
            length,
            format_args!("at most context_length, {context}"),
        )?;
        let (group, micro) = (batch / self.data_groups(), self.micro_batch());
        let must = format_args!(
            "a divisor of {group}, the sequences of one of the {} data groups",
            self.data_groups()
        );
        require(group.is_multiple_of(micro), "micro_batch_sequences", micro, must)
    }

    fn validate_optimizer(&self) -> Result<(), OptionsError> {
        let positive = [("learning_rate", self.learning_rate), ("epsilon", self.epsilon)];
        for (option, value) in positive {
            require(value > 0.0 && value.is_finite(), option, value, "a positive number")?;
        }
        let low = self.min_learning_rate;
        let within = (0.0..=self.learning_rate).contains(&low);
        require(within, "min_learning_rate", low, "from 0 to learning_rate")?;
        for (option, value) in [("beta1", self.beta1), ("beta2", self.beta2), ("dropout", self.dropout)] {
            require((0.0..1.0).contains(&value), option, value, "at least 0 and below 1")?;
        }
        for (option, value) in [("weight_decay", self.weight_decay), ("clip_norm", self.clip_norm)] {
            require(value >= 0.0 && value.is_finite(), option, value, "at least 0")?;
        }
        Ok(())
    }

    /// The parallel plan.
    pub fn plan(&self) -> ParallelPlan {
        ParallelPlan {
            data_parallel: self.data_parallel,
            tensor_parallel: self.tensor_parallel,
            pipeline_parallel: self.pipeline_parallel,
        }
    }

    /// Which layers each pipeline stage holds of a model of these sizes.
    ///
    /// # Errors
    /// [`LayoutError`] if the lengths do not fit the layers or the plan.
    pub fn layout(&self, geometry: &Geometry) -> Result<PipelineLayout, LayoutError> {
        let (plan, stages) = (self.plan(), self.virtual_stages);
        if self.stage_layers.is_empty() {
            return balanced_layout(geometry, &plan, stages);
        }
        PipelineLayout::new(plan.pipeline_parallel, stages, &self.stage_layers, self.layers)
    }

    /// As [`Self::layout`], for a vocabulary of usual size: the real one, which only the tokens know, may move a layer.
    pub(crate) fn usual_layout(&self) -> Result<PipelineLayout, OptionsError> {
        Ok(self.layout(&self.geometry(VOCABULARY_STAND_IN, None)?)?)
    }

    /// The options for a plan that was chosen where there is not enough room for the wanted one. It may have no use for the
    /// layout that was asked for; then its stages have about as much to do each.
    pub(crate) fn under_smaller_plan(mut self) -> Self {
        if self.usual_layout().is_err() {
            (self.virtual_stages, self.stage_layers) = (1, Vec::new());
        }
        self
    }

    /// Whether data-parallel ranks share the optimizer.
    pub fn shares_optimizer(&self) -> bool {
        self.zero_stage > 0
    }

    /// The counts that the plan has to fit.
    pub fn shape(&self) -> JobShape {
        JobShape { layers: self.layers, tensor_shards: self.tensor_shards, data_groups: self.data_groups() }
    }

    /// Logical data groups of a step.
    pub fn data_groups(&self) -> usize {
        data_groups(self.batch_sequences)
    }

    /// Sequences that go through the model together.
    pub fn micro_batch(&self) -> usize {
        match self.micro_batch_sequences {
            0 => (self.batch_sequences / self.data_groups()).max(1),
            sequences => sequences,
        }
    }

    /// How steps are computed.
    pub fn execution(&self) -> Execution {
        Execution {
            recompute: self.recompute,
            pass_tokens: self.pass_tokens,
            sequence_parallel: self.sequence_parallel,
        }
    }

    /// Tokens of a training sequence.
    pub fn sequence(&self) -> usize {
        if self.sequence_length == 0 { self.context_length } else { self.sequence_length }
    }

    /// Tokens of a step, over all ranks.
    pub fn batch_tokens(&self) -> u64 {
        self.batch_sequences as u64 * self.sequence() as u64
    }

    /// The model for a vocabulary whose documents end with `end_of_text`. One that training starts from has a vocabulary
    /// of its own.
    ///
    /// # Errors
    /// [`GeometryError`] if the sizes do not fit each other.
    pub fn geometry(&self, vocabulary: usize, end_of_text: Option<u32>) -> Result<Geometry, GeometryError> {
        if let Some(base) = &self.base {
            return Geometry::new(ModelConfig { dtype: self.dtype, ..base.clone() }, self.tensor_shards);
        }
        let width = self.hidden_size.min(1 << 20);
        let (usual_feed_forward, kv_heads) = match self.family {
            Family::Gpt2 => (4 * width, self.heads),
            _ => ((8 * width).div_ceil(3).next_multiple_of(8), self.kv_heads),
        };
        let feed_forward = match self.feed_forward_size {
            0 => usual_feed_forward,
            size => size,
        };
        let config = ModelConfig {
            family: self.family,
            vocab_size: vocabulary,
            hidden_size: self.hidden_size,
            intermediate_size: feed_forward,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: kv_heads,
            head_dim: self.hidden_size / self.heads.max(1),
            max_position_embeddings: self.context_length,
            rms_norm_eps: RMS_NORM_EPSILON,
            rope_theta: self.rope_theta,
            rope_scaling: None,
            sliding_window: NonZeroUsize::new(self.sliding_window),
            full_attention_layers: 0,
            attention_bias: false,
            tie_word_embeddings: self.tie_embeddings,
            dtype: self.dtype,
            bos_token_id: None,
            eos_token_id: end_of_text,
        };
        Geometry::new(config, self.tensor_shards)
    }

    /// Optimizer and learning rate.
    pub fn optimizer(&self) -> OptimizerOptions {
        OptimizerOptions {
            learning_rate: self.learning_rate,
            final_learning_rate_ratio: self.min_learning_rate / self.learning_rate,
            warmup_steps: self.warmup_steps,
            steps: self.steps,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            clip_norm: self.clip_norm,
        }
    }

    /// The options without those that leave loss and weights alone: two runs whose results here
    /// are equal may go on from each other's checkpoints.
    pub fn without_plan(&self) -> Self {
        let Self {
            data_parallel,
            tensor_parallel,
            pipeline_parallel,
            virtual_stages,
            stage_layers,
            zero_stage,
            sequence_parallel,
            verify_plan,
            elastic,
            shrink_after_seconds,
            widen_after_seconds,
            checkpoint_every_steps,
            commit_every_steps,
            recompute,
            pass_tokens,
            threads,
            peak_gflops,
            ..
        } = Self::default();
        Self {
            data_parallel,
            tensor_parallel,
            pipeline_parallel,
            virtual_stages,
            stage_layers,
            zero_stage,
            sequence_parallel,
            verify_plan,
            elastic,
            shrink_after_seconds,
            widen_after_seconds,
            checkpoint_every_steps,
            commit_every_steps,
            recompute,
            pass_tokens,
            threads,
            peak_gflops,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests;
