//! What people type after `sixfold bench`.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// Whole training steps of a Llama-style decoder on random tokens: forward, backward, AdamW.
    Train(TrainBenchArgs),
    /// Matrix products C = A B of the given sizes.
    Gemm(GemmBenchArgs),
    /// Causal attention over one document, forward and backward.
    Attention(AttentionBenchArgs),
}

/// What every benchmark is told.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Compute threads.
    #[arg(long, default_value_t = 2)]
    pub(crate) threads: usize,
    /// Keep each compute thread on a core of its own, as `sixfold node --pin-threads` does.
    #[arg(long)]
    pub(crate) pin_threads: bool,
    /// What operands of products are rounded to; attention and all sums are in f32.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    pub(crate) dtype: DtypeArg,
    /// Print one line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DtypeArg {
    F32,
    Bf16,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceArg {
    Cpu,
    Cuda,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BaseFormatArg {
    F32,
    Bf16,
    Int8,
    Nf4,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FamilyArg {
    Llama,
    Qwen2,
    Qwen3,
    Gpt2,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecomputeArg {
    None,
    Selective,
    Full,
}

#[derive(Args)]
pub(crate) struct TrainBenchArgs {
    /// Width of the residual stream.
    #[arg(long, default_value_t = 384)]
    pub(crate) dim: usize,
    /// Decoder layers.
    #[arg(long, default_value_t = 6)]
    pub(crate) layers: usize,
    /// Query heads.
    #[arg(long, default_value_t = 6)]
    pub(crate) heads: usize,
    /// Key and value heads; 0: as many as query heads.
    #[arg(long, default_value_t = 0)]
    pub(crate) kv_heads: usize,
    /// Width of the feed-forward layer.
    #[arg(long, default_value_t = 1024)]
    pub(crate) hidden: usize,
    /// Words of the vocabulary.
    #[arg(long, default_value_t = 8192)]
    pub(crate) vocab: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    pub(crate) seq: usize,
    /// Sequences of a step.
    #[arg(long, default_value_t = 8)]
    pub(crate) batch: usize,
    /// Sequences that go through the model together; 0: as the job's default.
    #[arg(long, default_value_t = 0)]
    pub(crate) micro_batch: usize,
    /// Family of the model.
    #[arg(long, value_enum, default_value_t = FamilyArg::Llama)]
    pub(crate) family: FamilyArg,
    /// Keys that a query sees at most; 0: all before it.
    #[arg(long, default_value_t = 0)]
    pub(crate) window: usize,
    /// Logical tensor shards: what exactness on any plan is paid with.
    #[arg(long, default_value_t = 4)]
    pub(crate) shards: usize,
    /// Data groups, whose gradients are summed in a tree: paid for the same; 0: as the job's default.
    #[arg(long, default_value_t = 0)]
    pub(crate) groups: usize,
    /// What backward passes compute again: none, selective or full.
    #[arg(long, value_enum, default_value_t = RecomputeArg::None)]
    pub(crate) recompute: RecomputeArg,
    /// Tokens that go through the model together; 0: as the job's default.
    #[arg(long, default_value_t = 0)]
    pub(crate) pass_tokens: usize,
    /// The head is the embedding.
    #[arg(long)]
    pub(crate) tied: bool,
    /// Rank of adapters of all projections, which are trained in place of the weights; 0: the weights are trained.
    #[arg(long, default_value_t = 0)]
    pub(crate) lora_rank: usize,
    /// How the weights beside adapters are kept: f32, bf16, int8 or nf4.
    #[arg(long, value_enum, default_value_t = BaseFormatArg::F32, requires = "lora_rank")]
    pub(crate) base_format: BaseFormatArg,
    /// Tensor-parallel ranks; every rank is in this process.
    #[arg(long, default_value_t = 1)]
    pub(crate) tensor: usize,
    /// Whether tensor-parallel ranks share the rows between products.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) sequence_parallel: bool,
    /// Pipeline stages; every rank is in this process.
    #[arg(long, default_value_t = 1)]
    pub(crate) pipeline: usize,
    /// Runs of layers of each pipeline stage (interleaved 1F1B).
    #[arg(long, default_value_t = 1)]
    pub(crate) virtual_stages: usize,
    /// Layers of each run, in the order of the model; as evenly as possible if left out.
    #[arg(long, value_delimiter = ',')]
    pub(crate) stage_layers: Vec<usize>,
    /// What computes: the CPU, or the first GPU, all ranks in one queue. In f32 both have the same bits.
    #[arg(long, value_enum, default_value_t = DeviceArg::Cpu)]
    pub(crate) device: DeviceArg,
    /// Steps that are timed.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: u64,
    /// Steps before them, besides the very first.
    #[arg(long, default_value_t = 2)]
    pub(crate) warmup: u64,
    #[command(flatten)]
    pub(crate) bench: BenchArgs,
}

#[derive(Args)]
pub(crate) struct GemmBenchArgs {
    /// Sizes M,N,K: C is M x N, the sum goes over K.
    #[arg(value_name = "M,N,K", required = true)]
    pub(crate) shapes: Vec<String>,
    #[command(flatten)]
    pub(crate) bench: BenchArgs,
}

#[derive(Args)]
pub(crate) struct AttentionBenchArgs {
    /// Tokens of the document; several are measured one after another.
    #[arg(value_name = "TOKENS", required = true)]
    pub(crate) lengths: Vec<usize>,
    /// Query heads.
    #[arg(long, default_value_t = 6)]
    pub(crate) heads: usize,
    /// Key and value heads; 0: as many as query heads.
    #[arg(long, default_value_t = 0)]
    pub(crate) kv_heads: usize,
    /// Elements of a head.
    #[arg(long, default_value_t = 64)]
    pub(crate) head_dim: usize,
    /// Keys that a query sees at most, its own among them; 0: its whole document so far.
    #[arg(long, default_value_t = 0)]
    pub(crate) window: usize,
    #[command(flatten)]
    pub(crate) bench: BenchArgs,
}
