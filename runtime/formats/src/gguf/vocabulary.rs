//! The tokenizer inside of a GGUF file.

use std::collections::HashSet;

use super::header::Header;
use super::keys;
use super::value::Value;
use crate::error::Fault;
use crate::tokenizer::{Algorithm, PreTokenizer, SpecialTokens, Token, TokenKind, Vocabulary};

/// What `tokenizer.ggml.model` says of a file without a tokenizer.
const NO_VOCABULARY: &str = "no_vocab";
/// Most bytes of a token that is put together from others.
const TOKEN_BYTES_MAX: usize = 512;

/// The tokenizer, if the file has one.
///
/// # Errors
/// [`Fault`] names the key that is missing, does not fit the others, or asks for a tokenizer that is not known.
pub(super) fn read(header: &Header<'_>, special: SpecialTokens) -> Result<Option<Vocabulary>, Fault> {
    let model = match header.text(keys::TOKENIZER)? {
        None | Some(NO_VOCABULARY) => return Ok(None),
        Some(model) => model,
    };
    let tokens = tokens(header, &special)?;
    let algorithm = match model {
        "gpt2" => byte_level(header, &tokens)?,
        "llama" => sentence_piece(header, &tokens)?,
        other => {
            let problem = format!("is `{other}`; known are gpt2 (byte-level BPE) and llama (SentencePiece)");
            return Err(header.fault(keys::TOKENIZER, problem));
        }
    };
    let mut special = special;
    // llama.cpp's defaults where the file says nothing.
    special.add_bos = header.flag(keys::ADD_BOS)?.unwrap_or(match &algorithm {
        Algorithm::SentencePiece { .. } => true,
        Algorithm::ByteLevel { pre_tokenizer, .. } => pre_tokenizer.takes_whole_words,
    });
    special.add_eos = header.flag(keys::ADD_EOS)?.unwrap_or(false);
    let chat_template = header.text(keys::CHAT_TEMPLATE)?.map(str::to_owned);
    Ok(Some(Vocabulary { tokens, algorithm, special, chat_template }))
}

/// The ids of tokens with a meaning, which config.json has too.
pub(super) fn special_tokens(header: &Header<'_>) -> Result<SpecialTokens, Fault> {
    let tokens = match header.value(keys::TOKENS) {
        Some(Value::List(list)) => list.len(),
        _ => u32::MAX as usize,
    };
    let id = |key: &str| -> Result<Option<u32>, Fault> {
        match header.size(key)? {
            None => Ok(None),
            Some(id) if id < tokens => Ok(u32::try_from(id).ok()),
            Some(id) => Err(header.fault(key, format!("is {id}; there are {tokens} tokens"))),
        }
    };
    Ok(SpecialTokens {
        bos: id(keys::BOS)?,
        eos: id(keys::EOS)?,
        unknown: id(keys::UNKNOWN)?,
        padding: id(keys::PADDING)?,
        also_ends: id(keys::EOT)?.into_iter().collect(),
        add_bos: false,
        add_eos: false,
    })
}

fn text(value: Value<'_>) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn tokens(header: &Header<'_>, special: &SpecialTokens) -> Result<Vec<Token>, Fault> {
    let texts = header.list(keys::TOKENS, "text", text)?;
    let texts = texts.ok_or_else(|| Fault::new(keys::TOKENS, "is missing"))?;
    let kinds =
        header.list(keys::TOKEN_TYPES, "a number from 1 to 6", |value| TokenKind::of(value.size()?))?;
    if let Some(kinds) = kinds.as_ref().filter(|kinds| kinds.len() != texts.len()) {
        return Err(header.fault(keys::TOKEN_TYPES, format!("has {} of {} tokens", kinds.len(), texts.len())));
    }
    let mut seen = HashSet::with_capacity(texts.len());
    if let Some((id, twice)) = texts.iter().enumerate().find(|(_, text)| !seen.insert(**text)) {
        return Err(header.fault(keys::TOKENS, format!("has {twice:?} twice, again with the id {id}")));
    }
    let ids = [special.bos, special.eos, special.unknown, special.padding];
    let is_special =
        |id: usize| ids.iter().flatten().chain(&special.also_ends).any(|special| *special as usize == id);
    let kind = |id: usize| match &kinds {
        Some(kinds) => kinds[id],
        None if is_special(id) => TokenKind::Control,
        None => TokenKind::Normal,
    };
    let tokens =
        texts.iter().enumerate().map(|(id, text)| Token { text: (*text).to_owned(), kind: kind(id) });
    Ok(tokens.collect())
}

fn byte_level(header: &Header<'_>, tokens: &[Token]) -> Result<Algorithm, Fault> {
    let known: HashSet<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
    let name = header.text(keys::PRE_TOKENIZER)?.unwrap_or("default");
    let pre_tokenizer = PreTokenizer::named(name).ok_or_else(|| {
        header.fault(keys::PRE_TOKENIZER, format!("is `{name}`; known are {}", PreTokenizer::known()))
    })?;
    let merges = header.list(keys::MERGES, "text", text)?;
    let merges = merges.ok_or_else(|| Fault::new(keys::MERGES, "is missing"))?;
    let pair = |(number, merge): (usize, &&str)| {
        // A token may begin with the space that it is merged after.
        let space = merge.char_indices().skip(1).find(|(_, letter)| *letter == ' ');
        let (left, right) = space.map(|(at, _)| (&merge[..at], &merge[at + 1..]))?;
        let whole = format!("{left}{right}");
        let made = [left, right, whole.as_str()].iter().all(|part| known.contains(part));
        made.then(|| (left.to_owned(), right.to_owned())).ok_or(number).ok()
    };
    let pairs = merges.iter().enumerate().map(|merge| {
        let problem = || format!("has {:?} as number {}: no two tokens that make one", merge.1, merge.0);
        pair(merge).ok_or_else(|| header.fault(keys::MERGES, problem()))
    });
    Ok(Algorithm::ByteLevel { merges: pairs.collect::<Result<_, _>>()?, pre_tokenizer })
}

fn sentence_piece(header: &Header<'_>, tokens: &[Token]) -> Result<Algorithm, Fault> {
    if let Some(long) = tokens.iter().position(|token| token.text.len() > TOKEN_BYTES_MAX) {
        let problem =
            format!("has {} bytes as token {long}; {TOKEN_BYTES_MAX} are the most", tokens[long].text.len());
        return Err(header.fault(keys::TOKENS, problem));
    }
    let scores = header.list(keys::SCORES, "a number", |value| match value {
        Value::Single(score) if !score.is_nan() => Some(score),
        _ => None,
    })?;
    let scores = scores.ok_or_else(|| Fault::new(keys::SCORES, "is missing"))?;
    if scores.len() != tokens.len() {
        return Err(header.fault(keys::SCORES, format!("has {} of {} tokens", scores.len(), tokens.len())));
    }
    let space_before = header.flag(keys::ADD_SPACE)?.unwrap_or(true);
    Ok(Algorithm::SentencePiece { scores, space_before })
}
