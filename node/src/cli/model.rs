//! What people type after `sixfold model`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use sixfold_formats::Encoding;
use sixfold_model::Pooling;
use sixfold_topology::ParallelPlan;

#[derive(Subcommand)]
pub(crate) enum ModelCommand {
    /// Make a model folder of a model in any format.
    ///
    /// A model folder has Hugging Face's form: config.json, model.safetensors (or several files and their index),
    /// tokenizer.json and its templates. It is what everything else in Sixfold reads. SOURCE is such a folder, a GGUF
    /// file (version 2 or 3; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K), whose tokenizer and chat
    /// template come along, or a checkpoint of llama2.c with the tokenizer.bin beside it. Families: llama, mistral,
    /// qwen2, qwen3, gpt2.
    ///
    /// Every length in the file is checked before it is believed, and every tensor against the sizes of the model.
    /// Tensors are converted one after another, so that memory does not grow with the model.
    ///
    /// Example: sixfold model import SmolLM2-135M-Instruct.Q4_1.gguf --to smollm2
    Import(ImportArgs),
    /// Write a model as GGUF, for llama.cpp, as ONNX, for onnxruntime, or as safetensors, for everything that reads Hugging
    /// Face's folders.
    ///
    /// A GGUF file has the tokenizer and the chat template inside. With --quant, matrices are quantised as ggml's
    /// reference does it; vectors stay f32, and matrices whose rows are no whole blocks of 32 become f16. What was
    /// quantised before is exported as the numbers that it says.
    ///
    /// ONNX is a folder: model.onnx (operator set 17), its weights in model.onnx_data (f32, or f16 with --dtype f16; it
    /// computes in f32 either way), config.json and the tokenizer's files. Inputs and outputs have the names of a decoder
    /// with past that optimum exports: input_ids, attention_mask, position_ids, past_key_values.N.key and .value; logits,
    /// present.N.key and .value. Checked with onnxruntime; TensorRT reads ONNX too, which was not tried.
    ///
    /// Example: sixfold model export smollm2 --format gguf --quant q8_0 --to smollm2.gguf
    ///
    /// Example: sixfold model export smollm2 --format onnx --to smollm2-onnx
    Export(ExportArgs),
    /// Say what a model is: family, sizes, parameters, encodings, tokenizer, template, hash. Loads no weights.
    ///
    /// MODEL is a model folder, a .gguf file, a .safetensors file or a checkpoint of llama2.c. All of it is checked as
    /// for an import, but for its numbers, of which all can be.
    Inspect(InspectArgs),
    /// Print the log-probability of each given token after those before it, and the likeliest token after the last.
    ///
    /// The plainest check that a model is computed as others compute it. It needs no tokenizer.
    ///
    /// Without --plan the decoder computes it, which answers requests. With it the forward pass of a training does, cut over so
    /// many ranks, which are threads of this process. The numbers have the same bits.
    ///
    /// Example: sixfold model logprobs smollm2 --ids 1,15,7 --plan tp2.pp2
    Logprobs(LogprobsArgs),
    /// Make a vector of each text, by which texts are compared, searched or sorted.
    ///
    /// A text's vector is the mean of its tokens' hidden states after the final norm (the
    /// `last_hidden_state` of Hugging Face's models), or that of its last token, divided by its length,
    /// so that the scalar product of two is their cosine. It does not depend on the other texts. Tokens
    /// are those of the model's tokenizer, with the special ones that its post-processor adds; a text
    /// that is longer than the model's positions is refused and not cut.
    ///
    /// Texts come in this order: --text, --file, --ids. Without --json a table is printed, of few texts
    /// with their cosines; with it a line a text, as soon as it is computed: text, tokens, embedding.
    ///
    /// Examples: sixfold model embed smollm2 --text "A cat sleeps." --text "The kitten naps."
    ///           sixfold model embed smollm2 --file lines.txt --pooling last --to lines.safetensors
    #[command(verbatim_doc_comment)]
    Embed(EmbedArgs),
    /// Put an adapter (LoRA) into the weights of the model beside which it was trained.
    ///
    /// The adapter is a folder as PEFT writes it, with adapter_config.json and adapter_model.safetensors; a training with
    /// `lora_rank` makes both files (`sixfold artifacts --fetch ID --to DIR` gets them, and their base, whose id the first
    /// names). The weights become W + alpha / rank * B A, computed in f32.
    ///
    /// Example: sixfold model merge smollm2 --adapter my-adapter --to my-model
    Merge(MergeArgs),
}

/// How a model in one of several formats is opened.
#[derive(Args, Clone)]
pub(crate) struct SourceArgs {
    /// The tokenizer.bin of a llama2.c checkpoint; without it the one that lies beside it, if any.
    #[arg(long, value_name = "FILE", conflicts_with = "no_tokenizer")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Leave the tokenizer out, which may be of a kind that is not known.
    #[arg(long)]
    pub(crate) no_tokenizer: bool,
}

/// Which numbers a folder is written with.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlainArg {
    F32,
    F16,
    Bf16,
}

impl From<PlainArg> for Encoding {
    fn from(plain: PlainArg) -> Self {
        match plain {
            PlainArg::F32 => Self::F32,
            PlainArg::F16 => Self::F16,
            PlainArg::Bf16 => Self::Bf16,
        }
    }
}

/// How a GGUF file is quantised.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuantArg {
    /// 8 bits and a scale for 32 numbers.
    #[value(name = "q8_0")]
    Q8,
    /// 4 bits and a scale for 32 numbers.
    #[value(name = "q4_0")]
    Q4,
}

impl From<QuantArg> for Encoding {
    fn from(quant: QuantArg) -> Self {
        match quant {
            QuantArg::Q8 => Self::Q8_0,
            QuantArg::Q4 => Self::Q4_0,
        }
    }
}

/// What is written.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FormatArg {
    /// One file for llama.cpp.
    Gguf,
    /// A folder with a graph and its weights, for onnxruntime.
    Onnx,
    /// A folder in Hugging Face's form.
    Safetensors,
}

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// A GGUF file, a model folder, or a checkpoint of llama2.c.
    #[arg(value_name = "SOURCE")]
    pub(crate) source: PathBuf,
    /// The folder to make; it must not exist, or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// What numbers are rounded to; without it they stay what they are, and quantised ones become f32, exactly.
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<PlainArg>,
    /// Begin another file of weights before one has more than so many MiB.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub(crate) shard_mib: Option<u64>,
    #[command(flatten)]
    pub(crate) opened: SourceArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ExportArgs {
    /// A model folder, or a file of any format that can be imported.
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// What to write.
    #[arg(long, value_enum)]
    pub(crate) format: FormatArg,
    /// The file, or the folder, to make.
    #[arg(long, value_name = "PATH")]
    pub(crate) to: PathBuf,
    /// What numbers are rounded to; without it: safetensors stay what they are, a GGUF file has f16, ONNX f32.
    #[arg(long, value_enum, conflicts_with = "quant")]
    pub(crate) dtype: Option<PlainArg>,
    /// Quantise the matrices of a GGUF file.
    #[arg(long, value_enum)]
    pub(crate) quant: Option<QuantArg>,
    /// Begin another file of safetensors before one has more than so many MiB.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub(crate) shard_mib: Option<u64>,
    #[command(flatten)]
    pub(crate) opened: SourceArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// A model folder, or a file: .gguf, .safetensors, or a checkpoint of llama2.c.
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// List every tensor; with --json they are there anyway.
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Do not read the files to hash them.
    #[arg(long)]
    pub(crate) no_hash: bool,
    #[command(flatten)]
    pub(crate) opened: SourceArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct LogprobsArgs {
    /// A model folder, or a file of any format that can be imported.
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Ids of the tokens, in their order.
    #[arg(long, value_name = "ID,ID,...", required = true, value_delimiter = ',')]
    pub(crate) ids: Vec<u32>,
    /// Ranks that compute it as they would in a training: tp4, pp2, tp2.pp2. tp has to be a power of two up to the model's
    /// logical shards (4 unless it was trained with another number), pp may be as large as it has layers.
    #[arg(long, value_name = "PLAN")]
    pub(crate) plan: Option<ParallelPlan>,
    /// Compute threads.
    #[arg(long, default_value_t = 2)]
    pub(crate) threads: usize,
    /// Print JSON: `logprobs`, and `next` with the likeliest token.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which vector stands for a text.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolingArg {
    /// The mean over its tokens.
    Mean,
    /// That of its last token.
    Last,
}

impl From<PoolingArg> for Pooling {
    fn from(pooling: PoolingArg) -> Self {
        match pooling {
            PoolingArg::Mean => Self::Mean,
            PoolingArg::Last => Self::Last,
        }
    }
}

#[derive(Args)]
#[command(group(ArgGroup::new("texts").args(["text", "file", "ids"]).required(true).multiple(true)))]
pub(crate) struct EmbedArgs {
    /// A model folder, or a file of any format that can be imported.
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// A text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Vec<String>,
    /// A text a line; of a .jsonl file each line is a string, or an object whose `text` is one.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// A text as ids of its tokens, which need no tokenizer.
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',')]
    pub(crate) ids: Vec<u32>,
    /// Which vector stands for a text.
    #[arg(long, value_enum, default_value_t = PoolingArg::Mean)]
    pub(crate) pooling: PoolingArg,
    /// Leave vectors as they are, instead of dividing them by their length.
    #[arg(long)]
    pub(crate) no_normalize: bool,
    /// An adapter as PEFT writes it, or as a training with `lora_rank` makes it.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Write the vectors to a safetensors file, as the tensor `embeddings` of [texts, hidden_size] in f32; it must not exist.
    #[arg(long, value_name = "FILE")]
    pub(crate) to: Option<PathBuf>,
    /// Compute threads.
    #[arg(long, default_value_t = 2)]
    pub(crate) threads: usize,
    /// Print JSON, a line a text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct MergeArgs {
    /// A model folder, or a file of any format that can be imported.
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// The adapter's folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// The folder to make; it must not exist, or be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// What numbers are rounded to; without it they are f32.
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<PlainArg>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
