//! From the files of a folder to a [`Vocabulary`].

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{
    Algorithm, CHAT_TEMPLATE, GENERATION_CONFIG, PreTokenizer, SpecialTokens, TOKENIZER, TOKENIZER_CONFIG,
    Token, TokenKind, Vocabulary,
};
use crate::error::Fault;
use crate::folder::parse_object;
use crate::model::Model;

/// Why a tokenizer cannot be written in another format.
#[derive(Debug)]
pub(crate) struct ParseError {
    /// The file of the folder.
    pub(crate) file: &'static str,
    pub(crate) fault: Fault,
}

impl Vocabulary {
    /// The vocabulary of a model, if it has one; ids that no token has become unused tokens, up to `rows` of them.
    pub(crate) fn from_texts(model: &Model, rows: usize) -> Result<Option<Self>, ParseError> {
        let Some(text) = model.text(TOKENIZER) else { return Ok(None) };
        let object = |file: &'static str| -> Result<Map<String, Value>, ParseError> {
            let text = model.text(file).map_or(Ok(Map::new()), parse_object);
            text.map_err(|fault| ParseError { file, fault })
        };
        let tokenizer = parse_object(text).map_err(|fault| ParseError { file: TOKENIZER, fault })?;
        let reader = Reader { tokenizer: Value::Object(tokenizer) };
        let in_tokenizer = |fault| ParseError { file: TOKENIZER, fault };
        let tokens = reader.tokens(rows).map_err(in_tokenizer)?;
        let algorithm = reader.algorithm(&tokens).map_err(in_tokenizer)?;
        let (about, generation) = (object(TOKENIZER_CONFIG)?, object(GENERATION_CONFIG)?);
        let special = reader.special(&tokens, &about, &[&generation, model.config()]);
        let own_file = model.text(CHAT_TEMPLATE).map(|text| String::from_utf8_lossy(text).into_owned());
        let chat_template =
            own_file.or_else(|| about.get("chat_template").and_then(Value::as_str).map(str::to_owned));
        Ok(Some(Self { tokens, algorithm, special, chat_template }))
    }
}

struct Reader {
    tokenizer: Value,
}

impl Reader {
    fn model(&self) -> &Value {
        &self.tokenizer["model"]
    }

    fn tokens(&self, rows: usize) -> Result<Vec<Token>, Fault> {
        let vocab = self.model()["vocab"].as_object();
        let vocab = vocab.ok_or_else(|| Fault::new("model.vocab", "is no object: BPE has one"))?;
        let mut tokens: Vec<Option<Token>> = vec![None; rows];
        let mut put = |field: &str, id: &Value, text: &str, kind: TokenKind| {
            let place = id.as_u64().and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
            let fault =
                || Fault::new(field, format!("gives {text:?} the id {id}; the model has rows for {rows}"));
            *place.ok_or_else(fault)? = Some(Token { text: text.to_owned(), kind });
            Ok::<(), Fault>(())
        };
        for (text, id) in vocab {
            let is_byte = self.has_byte_fallback() && byte_of(text).is_some();
            put("model.vocab", id, text, if is_byte { TokenKind::Byte } else { TokenKind::Normal })?;
        }
        for added in self.tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let text = added["content"].as_str().unwrap_or_default();
            let unknown = self.model()["unk_token"].as_str() == Some(text);
            let kind = match added["special"].as_bool() {
                Some(true) if unknown => TokenKind::Unknown,
                Some(true) => TokenKind::Control,
                _ => TokenKind::UserDefined,
            };
            put("added_tokens", &added["id"], text, kind)?;
        }
        let unused = |id| Token { text: format!("[PAD{id}]"), kind: TokenKind::Unused };
        Ok(tokens.into_iter().enumerate().map(|(id, token)| token.unwrap_or_else(|| unused(id))).collect())
    }

    fn has_byte_fallback(&self) -> bool {
        self.model()["byte_fallback"] == true
    }

    fn algorithm(&self, tokens: &[Token]) -> Result<Algorithm, Fault> {
        if self.model()["type"].as_str().is_some_and(|kind| kind != "BPE") {
            return Err(Fault::new("model.type", format!("is {}; BPE is written", self.model()["type"])));
        }
        let merges = self.merges()?;
        if self.has_byte_fallback() {
            let normalizer = self.tokenizer["normalizer"].to_string();
            return Ok(Algorithm::SentencePiece {
                scores: scores(tokens, &merges),
                space_before: normalizer.contains("Prepend"),
            });
        }
        let pre_tokenizer = PreTokenizer::of_json(&self.tokenizer["pre_tokenizer"]).ok_or_else(|| {
            let problem =
                format!("cuts words as none of the kinds that GGUF names: {}", PreTokenizer::known());
            Fault::new("pre_tokenizer", problem)
        })?;
        Ok(Algorithm::ByteLevel { merges, pre_tokenizer })
    }

    fn merges(&self) -> Result<Vec<(String, String)>, Fault> {
        let merges = self.model()["merges"].as_array();
        let merges = merges.ok_or_else(|| Fault::new("model.merges", "is no list: BPE has one"))?;
        let pair = |(number, merge): (usize, &Value)| {
            let pair = match merge {
                Value::String(text) => text.split_once(' '),
                merge => merge[0].as_str().zip(merge[1].as_str()),
            };
            let pair = pair.map(|(left, right)| (left.to_owned(), right.to_owned()));
            pair.ok_or_else(|| Fault::new(format!("model.merges[{number}]"), "is no pair of tokens"))
        };
        merges.iter().enumerate().map(pair).collect()
    }

    /// Special tokens by their names in `about`, else by the ids that `configs` have.
    fn special(
        &self,
        tokens: &[Token],
        about: &Map<String, Value>,
        configs: &[&Map<String, Value>],
    ) -> SpecialTokens {
        let id_of = |text: &str| {
            let place = tokens.iter().position(|token| token.text == text);
            place.and_then(|place| u32::try_from(place).ok())
        };
        let named = |name: &str| {
            let value = about.get(name)?;
            id_of(value.as_str().or_else(|| value["content"].as_str())?)
        };
        let ids = |name: &str| -> Vec<u32> {
            let value = configs.iter().find_map(|config| config.get(name).filter(|value| !value.is_null()));
            let values = match value {
                Some(Value::Array(list)) => list.as_slice(),
                Some(one) => std::slice::from_ref(one),
                None => &[],
            };
            let ids = values.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok());
            ids.filter(|id| (*id as usize) < tokens.len()).collect()
        };
        let ends = ids("eos_token_id");
        let eos = named("eos_token").or(ends.first().copied());
        let processor = self.tokenizer["post_processor"].to_string();
        let adds = |key: &str, id: Option<u32>| {
            let text =
                id.and_then(|id| tokens.get(id as usize)).map(|token| Value::from(token.text.as_str()));
            let in_processor = text.is_some_and(|text| processor.contains(&format!("\"id\":{text}")));
            in_processor || (processor == "null" && about.get(key) == Some(&Value::Bool(true)))
        };
        let bos = named("bos_token").or(ids("bos_token_id").first().copied());
        SpecialTokens {
            add_bos: adds("add_bos_token", bos),
            add_eos: adds("add_eos_token", eos.filter(|eos| Some(*eos) != bos)),
            bos,
            eos,
            unknown: named("unk_token").or_else(|| self.model()["unk_token"].as_str().and_then(id_of)),
            padding: named("pad_token").or(ids("pad_token_id").first().copied()),
            also_ends: ends.into_iter().filter(|end| Some(*end) != eos).collect(),
        }
    }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(crate) fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// Scores by which the same pairs are merged first: a token's is higher the earlier it is made.
fn scores(tokens: &[Token], merges: &[(String, String)]) -> Vec<f32> {
    let mut order: HashMap<String, usize> = HashMap::new();
    for (place, (left, right)) in merges.iter().enumerate() {
        order.entry(format!("{left}{right}")).or_insert(place);
    }
    let score = |token: &Token| match order.get(&token.text) {
        Some(place) => -(*place as f32),
        None => -(merges.len() as f32),
    };
    tokens.iter().map(score).collect()
}
