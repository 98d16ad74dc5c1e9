//! What tensors a model of a family has, by its config.json: [`Sizes`] and [`Expected`].
//!
//! One table says a tensor's name in Hugging Face's folders and in GGUF (llama.cpp's `convert_hf_to_gguf.py` and
//! `gguf-py/gguf/tensor_mapping.py`), and its shape. Whatever format a file has, its tensors are held against it.

use serde_json::{Map, Value};

use crate::error::Fault;

/// Largest width, vocabulary or number of positions.
const SIZE_MAX: usize = 1 << 24;
/// Most layers, heads of a layer, and numbers of a head.
const COUNT_MAX: usize = 1 << 12;

/// A family of models whose tensors are known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Qwen2: biases on queries, keys and values.
    Qwen2,
    /// Qwen3: norms of queries and keys.
    Qwen3,
    /// GPT-2.
    Gpt2,
}

/// A family, its `model_type` in config.json, and its `general.architecture` in GGUF.
const NAMES: [(Architecture, &str, &str); 5] = [
    (Architecture::Llama, "llama", "llama"),
    (Architecture::Mistral, "mistral", "llama"),
    (Architecture::Qwen2, "qwen2", "qwen2"),
    (Architecture::Qwen3, "qwen3", "qwen3"),
    (Architecture::Gpt2, "gpt2", "gpt2"),
];

impl Architecture {
    /// Its `model_type` in config.json.
    pub fn model_type(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// Its `general.architecture` in GGUF.
    pub(crate) fn in_gguf(self) -> &'static str {
        NAMES[self as usize].2
    }

    pub(crate) fn of_model_type(name: &str) -> Option<Self> {
        NAMES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    pub(crate) fn of_gguf(name: &str) -> Option<Self> {
        NAMES.iter().find(|row| row.2 == name || row.1 == name).map(|row| row.0)
    }

    /// The class in `transformers` that reads it.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gpt2 => "GPT2LMHeadModel",
        }
    }

    /// Whether llama.cpp turns neighbouring numbers of a head together, and not the halves of the head.
    pub(crate) fn is_interleaved_in_gguf(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral)
    }

    /// The families, for messages.
    pub(crate) fn known() -> String {
        NAMES.map(|row| row.1).join(", ")
    }
}

/// The sizes of a model, as its config.json has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key and value heads of a layer.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Positions that the model may be asked for.
    pub positions: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether queries, keys and values have biases.
    qkv_bias: bool,
    /// Whether the attention's output has one.
    output_bias: bool,
    /// Whether the feed-forward projections have.
    mlp_bias: bool,
}

/// A tensor that a model must have.
#[derive(Debug)]
pub(crate) struct Expected {
    /// In Hugging Face's folders.
    pub(crate) name: String,
    /// In GGUF.
    pub(crate) gguf: String,
    /// In Hugging Face's folders.
    pub(crate) shape: Vec<usize>,
    pub(crate) role: Role,
}

/// What formats treat apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// As it is everywhere.
    Plain,
    /// Queries or keys that are turned by their positions.
    Rotated,
    /// A projection that GPT-2's folders have as `[inputs, outputs]`, GGUF as `[outputs, inputs]`.
    Transposed,
}

impl Sizes {
    /// Reads them from a config.json.
    ///
    /// # Errors
    /// [`Fault`] names the field that is missing, of another type or too large, or the family that is not known.
    pub(crate) fn of(config: &Map<String, Value>) -> Result<Self, Fault> {
        let name = config.get("model_type").and_then(Value::as_str);
        let name = name.ok_or_else(|| Fault::new("model_type", "is missing"))?;
        let Some(architecture) = Architecture::of_model_type(name) else {
            return Err(Fault::new(
                "model_type",
                format!("is `{name}`; known are {}", Architecture::known()),
            ));
        };
        let fields = Fields(config);
        match architecture {
            Architecture::Gpt2 => fields.gpt2(),
            other => fields.llama(other),
        }
    }

    /// Whether a fault of [`Self::of`] says that the family is not known.
    pub(crate) fn is_unknown(fault: &Fault) -> bool {
        fault.field == "model_type"
    }

    /// The tensors that the model must have, in the order in which it uses them.
    pub(crate) fn expected(&self) -> Vec<Expected> {
        match self.architecture {
            Architecture::Gpt2 => self.expected_of_gpt2(),
            _ => self.expected_of_llama(),
        }
    }

    fn expected_of_llama(&self) -> Vec<Expected> {
        use Role::{Plain, Rotated};
        let (d, inner) = (self.hidden, self.inner);
        let (query, kv, head) = (self.heads * self.head_dim, self.kv_heads * self.head_dim, self.head_dim);
        let mut list = Listing::default();
        list.add("model.embed_tokens.weight", "token_embd.weight", &[self.vocab, d], Plain);
        for layer in 0..self.layers {
            list.prefixes = [format!("model.layers.{layer}."), format!("blk.{layer}.")];
            list.add("input_layernorm.weight", "attn_norm.weight", &[d], Plain);
            for (name, gguf, rows, role) in
                [("q", "attn_q", query, Rotated), ("k", "attn_k", kv, Rotated), ("v", "attn_v", kv, Plain)]
            {
                list.projection(&format!("self_attn.{name}_proj"), gguf, [rows, d], role, self.qkv_bias);
            }
            if self.architecture == Architecture::Qwen3 {
                list.add("self_attn.q_norm.weight", "attn_q_norm.weight", &[head], Plain);
                list.add("self_attn.k_norm.weight", "attn_k_norm.weight", &[head], Plain);
            }
            list.projection("self_attn.o_proj", "attn_output", [d, query], Plain, self.output_bias);
            list.add("post_attention_layernorm.weight", "ffn_norm.weight", &[d], Plain);
            for (name, gguf, shape) in [
                ("mlp.gate_proj", "ffn_gate", [inner, d]),
                ("mlp.up_proj", "ffn_up", [inner, d]),
                ("mlp.down_proj", "ffn_down", [d, inner]),
            ] {
                list.projection(name, gguf, shape, Plain, self.mlp_bias);
            }
        }
        list.prefixes = Default::default();
        list.add("model.norm.weight", "output_norm.weight", &[d], Plain);
        list.head(self);
        list.tensors
    }

    fn expected_of_gpt2(&self) -> Vec<Expected> {
        use Role::{Plain, Transposed};
        let (d, inner) = (self.hidden, self.inner);
        let mut list = Listing::default();
        list.add("transformer.wte.weight", "token_embd.weight", &[self.vocab, d], Plain);
        list.add("transformer.wpe.weight", "position_embd.weight", &[self.positions, d], Plain);
        for layer in 0..self.layers {
            list.prefixes = [format!("transformer.h.{layer}."), format!("blk.{layer}.")];
            list.projection("ln_1", "attn_norm", [d], Plain, true);
            list.projection("attn.c_attn", "attn_qkv", [d, 3 * d], Transposed, true);
            list.projection("attn.c_proj", "attn_output", [d, d], Transposed, true);
            list.projection("ln_2", "ffn_norm", [d], Plain, true);
            list.projection("mlp.c_fc", "ffn_up", [d, inner], Transposed, true);
            list.projection("mlp.c_proj", "ffn_down", [inner, d], Transposed, true);
        }
        list.prefixes = Default::default();
        list.projection("transformer.ln_f", "output_norm", [d], Plain, true);
        list.head(self);
        list.tensors
    }
}

#[derive(Default)]
struct Listing {
    tensors: Vec<Expected>,
    /// Of Hugging Face's names, and of GGUF's.
    prefixes: [String; 2],
}

impl Listing {
    fn add(&mut self, name: &str, gguf: &str, shape: &[usize], role: Role) {
        let [before_name, before_gguf] = &self.prefixes;
        self.tensors.push(Expected {
            name: format!("{before_name}{name}"),
            gguf: format!("{before_gguf}{gguf}"),
            shape: shape.to_vec(),
            role,
        });
    }

    /// A weight, and its bias if it has one.
    fn projection<const N: usize>(
        &mut self,
        name: &str,
        gguf: &str,
        shape: [usize; N],
        role: Role,
        bias: bool,
    ) {
        self.add(&format!("{name}.weight"), &format!("{gguf}.weight"), &shape, role);
        if bias {
            let outputs = if role == Role::Transposed { shape[N - 1] } else { shape[0] };
            let role = if role == Role::Transposed { Role::Plain } else { role };
            self.add(&format!("{name}.bias"), &format!("{gguf}.bias"), &[outputs], role);
        }
    }

    fn head(&mut self, sizes: &Sizes) {
        if !sizes.tied {
            self.add("lm_head.weight", "output.weight", &[sizes.vocab, sizes.hidden], Role::Plain);
        }
    }
}

struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn llama(&self, architecture: Architecture) -> Result<Sizes, Fault> {
        let heads = self.need("num_attention_heads", COUNT_MAX)?;
        let hidden = self.need("hidden_size", SIZE_MAX)?;
        let attention_bias = self.flag("attention_bias")?;
        let head_dim = match self.size("head_dim", COUNT_MAX)? {
            Some(head_dim) => head_dim,
            None => divided(hidden, heads, "hidden_size")?,
        };
        if !head_dim.is_multiple_of(2) {
            return Err(Fault::new(
                "head_dim",
                format!("is {head_dim}; positions turn pairs of its numbers"),
            ));
        }
        Ok(Sizes {
            architecture,
            vocab: self.need("vocab_size", SIZE_MAX)?,
            hidden,
            inner: self.need("intermediate_size", SIZE_MAX)?,
            layers: self.need("num_hidden_layers", COUNT_MAX)?,
            heads,
            kv_heads: self.size("num_key_value_heads", COUNT_MAX)?.unwrap_or(heads),
            head_dim,
            positions: self.size("max_position_embeddings", SIZE_MAX)?.unwrap_or(2048),
            tied: self.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: attention_bias.unwrap_or(architecture == Architecture::Qwen2),
            output_bias: attention_bias.unwrap_or(false) && architecture != Architecture::Qwen2,
            mlp_bias: self.flag("mlp_bias")?.unwrap_or(false),
        })
    }

    fn gpt2(&self) -> Result<Sizes, Fault> {
        let (hidden, heads) = (self.need("n_embd", SIZE_MAX)?, self.need("n_head", COUNT_MAX)?);
        Ok(Sizes {
            architecture: Architecture::Gpt2,
            vocab: self.need("vocab_size", SIZE_MAX)?,
            hidden,
            inner: self.size("n_inner", SIZE_MAX)?.unwrap_or(4 * hidden),
            layers: self.need("n_layer", COUNT_MAX)?,
            heads,
            kv_heads: heads,
            head_dim: divided(hidden, heads, "n_embd")?,
            positions: self.need("n_positions", SIZE_MAX)?,
            tied: self.flag("tie_word_embeddings")?.unwrap_or(true),
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
        })
    }

    fn need(&self, field: &str, max: usize) -> Result<usize, Fault> {
        self.size(field, max)?.ok_or_else(|| Fault::new(field, "is missing"))
    }

    fn size(&self, field: &str, max: usize) -> Result<Option<usize>, Fault> {
        let value = match self.0.get(field) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        match size.filter(|size| (1..=max).contains(size)) {
            Some(size) => Ok(Some(size)),
            None => Err(Fault::new(field, format!("is {value}; it must be a number from 1 to {max}"))),
        }
    }

    fn flag(&self, field: &str) -> Result<Option<bool>, Fault> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(Fault::new(field, format!("is {value}; it must be true or false"))),
        }
    }
}

/// Refuses values that a format has no words for, so that nobody would know of them: of each field that is there, all but
/// those that are `written`.
///
/// # Errors
/// [`Fault`] names the field and what it may say.
pub(crate) fn refuse_others(
    config: &Map<String, Value>,
    written: &[(&str, &[&str])],
    format: &str,
) -> Result<(), Fault> {
    for (field, values) in written {
        let value = match config.get(*field) {
            None | Some(Value::Null) => continue,
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        if !values.contains(&value.as_str()) {
            let problem =
                format!("is {value}; {format} is written of models that have {}", values.join(" or "));
            return Err(Fault::new(*field, problem));
        }
    }
    Ok(())
}

fn divided(hidden: usize, heads: usize, field: &str) -> Result<usize, Fault> {
    let fits = hidden.is_multiple_of(heads);
    let fault = || Fault::new(field, format!("is {hidden}, which does not divide into {heads} heads"));
    fits.then_some(hidden / heads).ok_or_else(fault)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sizes(value: &Value) -> Result<Sizes, Fault> {
        Sizes::of(value.as_object().unwrap())
    }

    #[test]
    fn names_are_those_of_the_families_they_stand_for() {
        for (architecture, model_type, _) in NAMES {
            assert_eq!(architecture.model_type(), model_type);
            assert_eq!(Architecture::of_model_type(model_type), Some(architecture));
        }
        assert_eq!(Architecture::of_gguf("llama"), Some(Architecture::Llama));
        assert_eq!(Architecture::of_gguf("mistral"), Some(Architecture::Mistral));
    }

    #[test]
    fn a_family_has_its_biases_and_norms() {
        let config = json!({"model_type": "qwen2", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": true});
        let names = |value: &Value| -> Vec<String> {
            sizes(value).unwrap().expected().into_iter().map(|expected| expected.name).collect()
        };
        let qwen2 = names(&config);
        assert!(qwen2.iter().any(|name| name.ends_with("k_proj.bias")));
        assert!(!qwen2.iter().any(|name| name.ends_with("o_proj.bias") || name == "lm_head.weight"));
        let mut qwen3 = config.clone();
        qwen3["model_type"] = json!("qwen3");
        let qwen3 = names(&qwen3);
        assert!(qwen3.iter().any(|name| name.ends_with("q_norm.weight")));
        assert!(!qwen3.iter().any(|name| name.ends_with(".bias")));
    }

    #[test]
    fn fields_that_cannot_be_are_named() {
        let config = json!({"model_type": "gpt2", "vocab_size": 8, "n_embd": 10, "n_layer": 1, "n_head": 3,
            "n_positions": 4});
        assert_eq!(sizes(&config).unwrap_err().field, "n_embd");
        let mut huge = config.clone();
        huge["n_head"] = json!(1_u64 << 40);
        assert_eq!(sizes(&huge).unwrap_err().field, "n_head");
        let mut unknown = config;
        unknown["model_type"] = json!("t5");
        assert!(Sizes::is_unknown(&sizes(&unknown).unwrap_err()));
    }
}
