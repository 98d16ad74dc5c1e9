//! Vocabularies of other formats as `tokenizer.json` and back: [`Vocabulary`].
//!
//! Other formats hold a list of tokens with their kinds and either merges of byte-level BPE or the scores of a
//! SentencePiece model. Read [`Vocabulary::to_texts`] and [`Vocabulary::from_texts`] first.

mod byte_level;
mod parse;
mod pre_tokenizer;
mod sentence_piece;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::error::{Fault, FormatError};
use crate::folder::parse_object;
use crate::model::Model;

pub(crate) use parse::byte_of;
pub(crate) use pre_tokenizer::PreTokenizer;

pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// What a token is, by its number in GGUF and SentencePiece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenKind {
    pub(crate) fn of(number: usize) -> Option<Self> {
        use TokenKind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
        [Normal, Unknown, Control, UserDefined, Unused, Byte]
            .into_iter()
            .find(|kind| *kind as usize == number)
    }
}

/// A token of a vocabulary; its id is its place there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) kind: TokenKind,
}

/// How words become tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Algorithm {
    /// Byte-level BPE: pairs in the order in which they are merged.
    ByteLevel { merges: Vec<(String, String)>, pre_tokenizer: &'static PreTokenizer },
    /// SentencePiece's BPE: of two tokens the one with the higher score is merged first.
    SentencePiece {
        /// One a token.
        scores: Vec<f32>,
        /// Whether a text begins as if a space stood before it.
        space_before: bool,
    },
}

/// A vocabulary with all that belongs to it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Vocabulary {
    pub(crate) tokens: Vec<Token>,
    pub(crate) algorithm: Algorithm,
    pub(crate) special: SpecialTokens,
    pub(crate) chat_template: Option<String>,
}

/// Ids of tokens with a meaning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SpecialTokens {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) padding: Option<u32>,
    /// What else ends an answer: the end of a turn.
    pub(crate) also_ends: Vec<u32>,
    /// Whether a text begins with `bos`, and ends with `eos`.
    pub(crate) add_bos: bool,
    pub(crate) add_eos: bool,
}

impl Vocabulary {
    /// The files of a folder that say the same.
    pub(crate) fn to_texts(&self) -> BTreeMap<String, Vec<u8>> {
        let mut texts = BTreeMap::from([
            (TOKENIZER.to_owned(), self.tokenizer_json().to_string().into_bytes()),
            (TOKENIZER_CONFIG.to_owned(), format!("{:#}\n", self.tokenizer_config()).into_bytes()),
        ]);
        let special = &self.special;
        let ids = [("bos_token_id", special.bos), ("pad_token_id", special.padding)];
        let ids = ids.into_iter().filter_map(|(key, id)| Some((key.to_owned(), json!(id?))));
        let mut generation: Map<String, Value> = ids.collect();
        if let Some(ends) = self.special.ends() {
            generation.insert("eos_token_id".to_owned(), ends);
        }
        let generation = format!("{:#}\n", Value::Object(generation));
        texts.insert(GENERATION_CONFIG.to_owned(), generation.into_bytes());
        texts
    }

    fn text(&self, id: u32) -> Option<&str> {
        self.tokens.get(usize::try_from(id).ok()?).map(|token| token.text.as_str())
    }

    fn tokenizer_json(&self) -> Value {
        let added = self.tokens.iter().enumerate().filter_map(|(id, token)| {
            let special = matches!(token.kind, TokenKind::Control | TokenKind::Unknown);
            (special || token.kind == TokenKind::UserDefined).then(|| {
                json!({"id": id, "content": token.text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special})
            })
        });
        let ids = self.tokens.iter().enumerate().map(|(id, token)| (token.text.clone(), json!(id)));
        let vocab: Map<String, Value> = ids.collect();
        let mut tokenizer = match &self.algorithm {
            Algorithm::ByteLevel { merges, pre_tokenizer } => byte_level::parts(vocab, merges, pre_tokenizer),
            Algorithm::SentencePiece { scores, space_before } => {
                let unknown = self.special.unknown.and_then(|id| self.text(id));
                let merges = sentence_piece::merges(&self.tokens, scores);
                sentence_piece::parts(vocab, &merges, unknown, *space_before)
            }
        };
        tokenizer["version"] = json!("1.0");
        tokenizer["truncation"] = Value::Null;
        tokenizer["padding"] = Value::Null;
        tokenizer["added_tokens"] = added.collect();
        tokenizer["post_processor"] = self.post_processor();
        tokenizer
    }

    /// What puts `bos` before a text and `eos` after it.
    fn post_processor(&self) -> Value {
        let added = |wanted: bool, id: Option<u32>| {
            let id = id.filter(|_| wanted)?;
            Some((id, self.text(id)?))
        };
        let before = added(self.special.add_bos, self.special.bos);
        let after = added(self.special.add_eos, self.special.eos);
        if before.is_none() && after.is_none() {
            return Value::Null;
        }
        let token = |text: &str, sequence: u32| json!({"SpecialToken": {"id": text, "type_id": sequence}});
        let sequence = |name: &str, number: u32| {
            let begin = before.map(|(_, text)| token(text, number));
            let end = after.map(|(_, text)| token(text, number));
            let middle = json!({"Sequence": {"id": name, "type_id": number}});
            begin.into_iter().chain([middle]).chain(end).collect::<Vec<_>>()
        };
        let tokens: Map<String, Value> = [before, after]
            .into_iter()
            .flatten()
            .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        json!({
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": ([sequence("A", 0), sequence("B", 1)].concat()),
            "special_tokens": tokens,
        })
    }

    fn tokenizer_config(&self) -> Value {
        let special = &self.special;
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "add_bos_token": special.add_bos,
            "add_eos_token": special.add_eos,
        });
        for (key, id) in [
            ("bos_token", special.bos),
            ("eos_token", special.eos),
            ("unk_token", special.unknown),
            ("pad_token", special.padding),
        ] {
            if let Some(text) = id.and_then(|id| self.text(id)) {
                config[key] = json!(text);
            }
        }
        if let Some(template) = &self.chat_template {
            config["chat_template"] = json!(template);
        }
        config
    }
}

impl SpecialTokens {
    /// Every token that ends an answer: an id or a list of them, as config.json has it.
    pub(crate) fn ends(&self) -> Option<Value> {
        let mut ends: Vec<u32> = self.eos.into_iter().chain(self.also_ends.iter().copied()).collect();
        ends.dedup();
        match ends.as_slice() {
            [] => None,
            [one] => Some(json!(one)),
            several => Some(json!(several)),
        }
    }
}

/// Checks what a model has of a tokenizer: that it can be used, and knows no token that the model has no row for.
pub(crate) fn check(model: &Model) -> Result<(), FormatError> {
    let in_file = |name: &str, fault: Fault| fault.in_file(&model.path().join(name));
    for name in [TOKENIZER_CONFIG, GENERATION_CONFIG] {
        if let Some(text) = model.text(name) {
            parse_object(text).map_err(|fault| in_file(name, fault))?;
        }
    }
    let Some(text) = model.text(TOKENIZER) else { return Ok(()) };
    let tokenizer = load(text).map_err(|fault| in_file(TOKENIZER, fault))?;
    let Ok(sizes) = model.sizes() else { return Ok(()) };
    match tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id) {
        Some((token, id)) if id as usize >= sizes.vocab => {
            let problem = format!("has {token:?} with the id {id}; the model has rows for {}", sizes.vocab);
            Err(in_file(TOKENIZER, Fault::new("vocab", problem)))
        }
        _ => Ok(()),
    }
}

/// Reads a tokenizer.json. The library that does so expects some things of a file that it does not check.
fn load(text: &[u8]) -> Result<Tokenizer, Fault> {
    let json = Value::Object(parse_object(text)?);
    if let Some(fault) = unexpected(&json) {
        return Err(fault);
    }
    Tokenizer::from_bytes(text).map_err(|error| Fault::new("text", format!("is no tokenizer: {error}")))
}

fn unexpected(tokenizer: &Value) -> Option<Fault> {
    let normalizer = &tokenizer["normalizer"];
    let steps = normalizer["normalizers"].as_array().map_or(std::slice::from_ref(normalizer), Vec::as_slice);
    if steps.iter().any(|step| step["type"] == "Precompiled" || step.get("precompiled_charsmap").is_some()) {
        let problem = "has a table of SentencePiece that is not checked here; no known family has one";
        return Some(Fault::new("normalizer", problem));
    }
    let prefix = tokenizer["model"]["continuing_subword_prefix"].as_str().unwrap_or_default();
    let continues = |merge: &Value| match merge {
        Value::String(text) => text.split(' ').nth(1).is_some_and(|right| right.starts_with(prefix)),
        merge => merge[1].as_str().is_some_and(|right| right.starts_with(prefix)),
    };
    let merges = tokenizer["model"]["merges"].as_array().into_iter().flatten();
    let cut = merges.enumerate().find(|(_, merge)| !continues(merge));
    cut.filter(|_| !prefix.is_empty()).map(|(number, _)| {
        Fault::new(format!("model.merges[{number}]"), format!("does not go on with {prefix:?}, as it should"))
    })
}
