//! Names of the metadata (`gguf-py/gguf/constants.py`). Those that begin with a dot follow the name of the architecture.

pub(super) const ARCHITECTURE: &str = "general.architecture";
pub(super) const NAME: &str = "general.name";
pub(super) const FILE_TYPE: &str = "general.file_type";
pub(super) const QUANTISATION_VERSION: &str = "general.quantization_version";

pub(super) const VOCAB_SIZE: &str = ".vocab_size";
pub(super) const CONTEXT_LENGTH: &str = ".context_length";
pub(super) const EMBEDDING_LENGTH: &str = ".embedding_length";
pub(super) const BLOCK_COUNT: &str = ".block_count";
pub(super) const FEED_FORWARD_LENGTH: &str = ".feed_forward_length";
pub(super) const HEAD_COUNT: &str = ".attention.head_count";
pub(super) const HEAD_COUNT_KV: &str = ".attention.head_count_kv";
pub(super) const KEY_LENGTH: &str = ".attention.key_length";
pub(super) const VALUE_LENGTH: &str = ".attention.value_length";
pub(super) const SLIDING_WINDOW: &str = ".attention.sliding_window";
pub(super) const RMS_EPSILON: &str = ".attention.layer_norm_rms_epsilon";
pub(super) const EPSILON: &str = ".attention.layer_norm_epsilon";
pub(super) const ROPE_DIMENSIONS: &str = ".rope.dimension_count";
pub(super) const ROPE_BASE: &str = ".rope.freq_base";
pub(super) const ROPE_SCALE_LINEAR: &str = ".rope.scale_linear";
pub(super) const ROPE_SCALING: &str = ".rope.scaling.type";
pub(super) const ROPE_FACTOR: &str = ".rope.scaling.factor";
pub(super) const ROPE_ATTENTION_FACTOR: &str = ".rope.scaling.attn_factor";
pub(super) const ROPE_ORIGINAL_CONTEXT: &str = ".rope.scaling.original_context_length";
pub(super) const ROPE_BETA_FAST: &str = ".rope.scaling.yarn_beta_fast";
pub(super) const ROPE_BETA_SLOW: &str = ".rope.scaling.yarn_beta_slow";
/// A tensor: by how much each frequency of Llama 3.1 and later is divided.
pub(super) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

pub(super) const TOKENIZER: &str = "tokenizer.ggml.model";
pub(super) const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const BOS: &str = "tokenizer.ggml.bos_token_id";
pub(super) const EOS: &str = "tokenizer.ggml.eos_token_id";
pub(super) const EOT: &str = "tokenizer.ggml.eot_token_id";
pub(super) const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
pub(super) const PADDING: &str = "tokenizer.ggml.padding_token_id";
pub(super) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
pub(super) const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
pub(super) const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
pub(super) const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
