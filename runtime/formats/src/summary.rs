//! What a model is, for people and programs: [`Summary`].

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::architecture::Sizes;
use crate::error::FormatError;
use crate::folder::parse_object;
use crate::model::{Model, Tensor};
use crate::tokenizer::{CHAT_TEMPLATE, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG};

/// What a model is. Reads no weights.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Where it lies.
    pub path: String,
    /// What kind of files it is in.
    pub format: &'static str,
    /// `model_type` of config.json, where it is known.
    pub family: Option<&'static str>,
    /// Why nothing can be done with it, if that is so.
    pub unsupported: Option<String>,
    /// How many numbers its tensors have.
    pub parameters: u64,
    /// Bytes of its files with tensors.
    pub file_bytes: u64,
    /// How many such files there are.
    pub files: usize,
    /// Sizes by their names in config.json.
    pub sizes: BTreeMap<&'static str, u64>,
    /// Whether the head is the embedding.
    pub tied: Option<bool>,
    /// How positions are scaled: `rope_theta`, `rope_scaling` or `rope_parameters` of config.json.
    pub positions: BTreeMap<&'static str, Value>,
    /// What of it is encoded how, by the encoding's name.
    pub encodings: BTreeMap<&'static str, Share>,
    /// Every tensor.
    pub tensors: Vec<TensorSummary>,
    /// Its tokenizer, if it has one.
    pub tokenizer: Option<TokenizerSummary>,
    /// Its chat template, if it has one.
    pub chat_template: Option<String>,
}

/// What of a model has an encoding.
#[derive(Debug, Default, Serialize)]
pub struct Share {
    /// Tensors.
    pub tensors: u64,
    /// Numbers.
    pub numbers: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A tensor of a model.
#[derive(Debug, Serialize)]
pub struct TensorSummary {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How its numbers are encoded.
    pub dtype: &'static str,
}

/// A tokenizer.
#[derive(Debug, Serialize)]
pub struct TokenizerSummary {
    /// Its algorithm, as tokenizer.json calls it.
    pub kind: String,
    /// Whether what no token has becomes a token a byte, as with SentencePiece.
    pub byte_fallback: bool,
    /// Tokens.
    pub tokens: usize,
    /// Tokens that no text can produce.
    pub special: Vec<String>,
    /// Tokens with a meaning: `bos_token`, `eos_token` and so on, with their texts.
    pub named: BTreeMap<&'static str, String>,
    /// Ids that end an answer.
    pub ends: Vec<u64>,
}

impl Model {
    /// What the model is.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] where one of its texts is no JSON.
    pub fn summary(&self) -> Result<Summary, FormatError> {
        let sizes = self.sizes.as_ref();
        let mut encodings: BTreeMap<&'static str, Share> = BTreeMap::new();
        for tensor in self.tensors() {
            let share = encodings.entry(tensor.encoding.name()).or_default();
            share.tensors += 1;
            share.numbers += tensor.numbers() as u64;
            share.bytes += tensor.stored_bytes() as u64;
        }
        let positions = ["rope_theta", "rope_scaling", "rope_parameters", "sliding_window"];
        let position = |key: &'static str| {
            self.config.get(key).filter(|value| !value.is_null()).map(|value| (key, value.clone()))
        };
        let about = self.object(TOKENIZER_CONFIG)?;
        let own_file = self.text(CHAT_TEMPLATE).map(|text| String::from_utf8_lossy(text).into_owned());
        Ok(Summary {
            path: self.path.display().to_string(),
            format: self.format.name(),
            family: sizes.ok().map(|sizes| sizes.architecture.model_type()),
            unsupported: sizes.err().map(ToString::to_string),
            parameters: self.tensors().iter().map(|tensor| tensor.numbers() as u64).sum(),
            file_bytes: self.file_bytes(),
            files: self.files.len(),
            sizes: sizes.map(Sizes::by_name).unwrap_or_default(),
            tied: sizes.ok().map(|sizes| sizes.tied),
            positions: positions.into_iter().filter_map(position).collect(),
            encodings,
            tensors: self.tensors().iter().map(TensorSummary::of).collect(),
            tokenizer: self.tokenizer_summary(&about)?,
            chat_template: own_file.or_else(|| about["chat_template"].as_str().map(str::to_owned)),
        })
    }

    /// A text that is a JSON object, or an empty one.
    fn object(&self, name: &str) -> Result<Value, FormatError> {
        let object = self.text(name).map(parse_object).transpose();
        let object = object.map_err(|fault| fault.in_file(&self.path.join(name)))?;
        Ok(Value::Object(object.unwrap_or_default()))
    }

    fn tokenizer_summary(&self, about: &Value) -> Result<Option<TokenizerSummary>, FormatError> {
        if self.text(TOKENIZER).is_none() {
            return Ok(None);
        }
        let tokenizer = self.object(TOKENIZER)?;
        let model = &tokenizer["model"];
        let vocab = &model["vocab"];
        let added: Vec<&Value> = tokenizer["added_tokens"].as_array().into_iter().flatten().collect();
        let text = |added: &&Value| added["content"].as_str().map(str::to_owned);
        let more = added.iter().filter_map(text).filter(|text| vocab.get(text).is_none()).count();
        let special = added.iter().filter(|added| added["special"] == true).filter_map(text).collect();
        let names = ["bos_token", "eos_token", "unk_token", "pad_token"];
        let named = names.into_iter().filter_map(|name| {
            let value = &about[name];
            Some((name, value.as_str().or_else(|| value["content"].as_str())?.to_owned()))
        });
        let generation = self.object(GENERATION_CONFIG)?;
        let ends = match &generation["eos_token_id"] {
            Value::Null => self.config.get("eos_token_id").cloned().unwrap_or_default(),
            ends => ends.clone(),
        };
        let ends = match &ends {
            Value::Array(list) => list.iter().filter_map(Value::as_u64).collect(),
            one => one.as_u64().into_iter().collect(),
        };
        let in_vocab = vocab.as_object().map(serde_json::Map::len).or(vocab.as_array().map(Vec::len));
        Ok(Some(TokenizerSummary {
            kind: model["type"].as_str().unwrap_or("unknown").to_owned(),
            byte_fallback: model["byte_fallback"] == true,
            tokens: in_vocab.unwrap_or_default() + more,
            special,
            named: named.collect(),
            ends,
        }))
    }
}

impl TensorSummary {
    fn of(tensor: &Tensor) -> Self {
        Self { name: tensor.name.clone(), shape: tensor.shape.clone(), dtype: tensor.encoding.name() }
    }
}

impl Sizes {
    fn by_name(&self) -> BTreeMap<&'static str, u64> {
        let sizes = [
            ("vocab_size", self.vocab),
            ("hidden_size", self.hidden),
            ("intermediate_size", self.inner),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.positions),
        ];
        sizes.map(|(name, size)| (name, size as u64)).into()
    }
}
