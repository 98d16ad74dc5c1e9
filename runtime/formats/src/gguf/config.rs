//! From GGUF's metadata to config.json.

use serde_json::{Map, Value, json};

use super::header::Header;
use super::{keys, rope};
use crate::architecture::Architecture;
use crate::error::Fault;
use crate::tokenizer::SpecialTokens;

/// What `transformers` calls the activations, by architecture.
const SILU: &str = "silu";
const GELU: &str = "gelu_new";

/// Makes config.json. Every size of the metadata is in it, so that tensors can be held against them.
///
/// # Errors
/// [`Fault`] names the key that is missing, of another type, or asks for what config.json has no word for.
pub(super) fn read(
    header: &Header<'_>,
    file: &[u8],
    name: &str,
    architecture: Architecture,
    special: &SpecialTokens,
) -> Result<Map<String, Value>, Fault> {
    let keyed = Keyed { header, name };
    let window = keyed.size(keys::SLIDING_WINDOW)?.filter(|window| *window > 0);
    let architecture = match (architecture, window) {
        (Architecture::Llama, Some(_)) => Architecture::Mistral,
        (other, _) => other,
    };
    let mut config = match architecture {
        Architecture::Gpt2 => keyed.gpt2()?,
        _ => keyed.llama(file, architecture, window)?,
    };
    config.insert("architectures".to_owned(), json!([architecture.class()]));
    config.insert("model_type".to_owned(), json!(architecture.model_type()));
    config.insert("vocab_size".to_owned(), json!(keyed.vocab_size()?));
    config.insert("tie_word_embeddings".to_owned(), json!(!keyed.has_tensor("output.weight")));
    if let Some(bos) = special.bos {
        config.insert("bos_token_id".to_owned(), json!(bos));
    }
    if let Some(ends) = special.ends() {
        config.insert("eos_token_id".to_owned(), ends);
    }
    Ok(config)
}

/// The metadata of an architecture.
pub(super) struct Keyed<'a> {
    pub(super) header: &'a Header<'a>,
    /// `general.architecture`, with which its keys begin.
    pub(super) name: &'a str,
}

impl Keyed<'_> {
    pub(super) fn key(&self, end: &str) -> String {
        format!("{}{end}", self.name)
    }

    pub(super) fn size(&self, end: &str) -> Result<Option<usize>, Fault> {
        self.header.size(&self.key(end))
    }

    pub(super) fn float(&self, end: &str) -> Result<Option<f64>, Fault> {
        self.header.float(&self.key(end))
    }

    pub(super) fn fault(&self, end: &str, problem: impl Into<String>) -> Fault {
        self.header.fault(&self.key(end), problem)
    }

    fn need<T>(&self, end: &str, value: Option<T>) -> Result<T, Fault> {
        value.ok_or_else(|| Fault::new(self.key(end), "is missing"))
    }

    fn need_size(&self, end: &str) -> Result<usize, Fault> {
        self.need(end, self.size(end)?)
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.header.tensors.iter().any(|tensor| tensor.name == name)
    }

    /// The rows of the embedding, which the metadata may say too.
    fn vocab_size(&self) -> Result<usize, Fault> {
        let embedding = self.header.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
        let embedding = embedding.ok_or_else(|| Fault::new("token_embd.weight", "is missing"))?;
        let rows = embedding.shape[0];
        match self.size(keys::VOCAB_SIZE)? {
            Some(size) if size != rows => {
                Err(self.fault(keys::VOCAB_SIZE, format!("is {size}, but token_embd.weight has {rows} rows")))
            }
            _ => Ok(rows),
        }
    }

    /// The width of a head: as said, else what the heads leave.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, Fault> {
        let head_dim = match self.size(keys::KEY_LENGTH)? {
            Some(head_dim) => head_dim,
            None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let problem = format!("is {heads}, into which a width of {hidden} does not divide");
                return Err(self.fault(keys::HEAD_COUNT, problem));
            }
        };
        for end in [keys::VALUE_LENGTH, keys::ROPE_DIMENSIONS] {
            if let Some(other) = self.size(end)?.filter(|other| *other != head_dim) {
                let problem =
                    format!("is {other}, but heads have {head_dim} numbers; known are models where all turn");
                return Err(self.fault(end, problem));
            }
        }
        Ok(head_dim)
    }

    fn llama(
        &self,
        file: &[u8],
        architecture: Architecture,
        window: Option<usize>,
    ) -> Result<Map<String, Value>, Fault> {
        let (hidden, heads) = (self.need_size(keys::EMBEDDING_LENGTH)?, self.need_size(keys::HEAD_COUNT)?);
        let head_dim = self.head_dim(hidden, heads)?;
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("hidden_act", json!(SILU));
        put("hidden_size", json!(hidden));
        put("intermediate_size", json!(self.need_size(keys::FEED_FORWARD_LENGTH)?));
        put("num_hidden_layers", json!(self.need_size(keys::BLOCK_COUNT)?));
        put("num_attention_heads", json!(heads));
        put("num_key_value_heads", json!(self.size(keys::HEAD_COUNT_KV)?.unwrap_or(heads)));
        put("head_dim", json!(head_dim));
        put("max_position_embeddings", json!(self.need_size(keys::CONTEXT_LENGTH)?));
        put("rms_norm_eps", json!(self.need(keys::RMS_EPSILON, self.float(keys::RMS_EPSILON)?)?));
        put("rope_theta", json!(self.float(keys::ROPE_BASE)?.unwrap_or(10_000.0)));
        if let Some(scaling) = rope::scaling(self, file, head_dim)? {
            put("rope_scaling", scaling);
        }
        match architecture {
            Architecture::Mistral => drop(put("sliding_window", json!(window))),
            Architecture::Qwen2 | Architecture::Qwen3 => drop(put("use_sliding_window", json!(false))),
            _ => {}
        }
        if architecture != Architecture::Qwen2 {
            put("attention_bias", json!(self.has_tensor("blk.0.attn_q.bias")));
        }
        if architecture == Architecture::Llama {
            put("mlp_bias", json!(self.has_tensor("blk.0.ffn_up.bias")));
        }
        Ok(config)
    }

    fn gpt2(&self) -> Result<Map<String, Value>, Fault> {
        let config = json!({
            "activation_function": GELU,
            "n_embd": self.need_size(keys::EMBEDDING_LENGTH)?,
            "n_inner": self.need_size(keys::FEED_FORWARD_LENGTH)?,
            "n_layer": self.need_size(keys::BLOCK_COUNT)?,
            "n_head": self.need_size(keys::HEAD_COUNT)?,
            "n_positions": self.need_size(keys::CONTEXT_LENGTH)?,
            "layer_norm_epsilon": self.need(keys::EPSILON, self.float(keys::EPSILON)?)?,
        });
        Ok(config.as_object().cloned().unwrap_or_default())
    }
}
