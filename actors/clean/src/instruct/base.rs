//! The tokenizer of a model that is among a stage's inputs: [`BaseTokenizer`].

use serde::Deserialize;
use sixfold_artifact::{FileEntry, Manifest, Store, StoreError};
use sixfold_chat::ChatSource;
use sixfold_wire::id::ArtifactId;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::error::CleanError;

/// Kind of an artefact that is a model.
pub const MODEL: &str = "model";
const TOKENIZER_FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "config.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Files beside the tokenizer that belong to it.
const EXTRAS: [&str; 4] =
    [TOKENIZER_CONFIG_FILE, TEMPLATE_FILE, "special_tokens_map.json", "generation_config.json"];

/// What is read of a model's `config.json`.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    eos_token_id: Option<TokenIds>,
    #[serde(default)]
    max_position_embeddings: Option<usize>,
    #[serde(default)]
    n_positions: Option<usize>,
}

/// A token, or several of which the first counts.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Several(Vec<u32>),
}

/// The tokenizer and the chat template of a model.
pub struct BaseTokenizer {
    /// Knows special tokens where they stand.
    pub tokenizer: Tokenizer,
    /// One more than the greatest id.
    pub vocabulary: u32,
    /// Special tokens as they are written.
    pub special_tokens: Vec<String>,
    /// What ends a document.
    pub end_of_text: Option<u32>,
    /// Positions that the model may be asked for, where it says so.
    pub positions: Option<usize>,
    /// Its chat template and the names of its tokens.
    pub chat: ChatSource,
    /// The files that make it up, for artefacts of tokens and models made with it.
    pub files: Vec<FileEntry>,
}

/// The tokenizer of the input that is a model, if one is.
///
/// # Errors
/// [`CleanError::Input`] if several are, or its files are not readable.
pub fn load(store: &Store, inputs: &[(ArtifactId, Manifest)]) -> Result<Option<BaseTokenizer>, CleanError> {
    let mut models = inputs.iter().filter(|(_, manifest)| manifest.kind == MODEL);
    let Some((id, manifest)) = models.next() else { return Ok(None) };
    let wrong = |reason: String| CleanError::Input { artifact: id.to_string(), reason };
    if models.next().is_some() {
        return Err(wrong("there is another model beside it".to_owned()));
    }
    let optional = |name: &str| match store.read(*id, name) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError::MissingFile { .. }) => Ok(None),
        Err(error) => Err(CleanError::Store(error)),
    };
    let json = store.read(*id, TOKENIZER_FILE)?;
    let tokenizer = Tokenizer::from_bytes(&json).map_err(|error| CleanError::Tokenizer(error.to_string()))?;
    let config: Config = serde_json::from_slice(&store.read(*id, CONFIG_FILE)?)
        .map_err(|error| wrong(format!("{CONFIG_FILE}: {error}")))?;
    let chat =
        ChatSource::new(optional(TOKENIZER_CONFIG_FILE)?.as_deref(), optional(TEMPLATE_FILE)?.as_deref());
    let chat = chat.map_err(|error| wrong(error.to_string()))?;
    let of_config = match config.eos_token_id {
        Some(TokenIds::One(token)) => Some(token),
        Some(TokenIds::Several(tokens)) => tokens.first().copied(),
        None => None,
    };
    let named = || tokenizer.token_to_id(chat.tokens.get("eos_token")?);
    let added = tokenizer.get_added_tokens_decoder();
    let special = added.values().filter(|token| token.special).map(|token| token.content.clone());
    let greatest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
    let files = [TOKENIZER_FILE].into_iter().chain(EXTRAS).filter_map(|name| manifest.file(name)).cloned();
    Ok(Some(BaseTokenizer {
        vocabulary: greatest + 1,
        special_tokens: special.collect(),
        end_of_text: of_config.or_else(named),
        positions: config.max_position_embeddings.or(config.n_positions),
        files: files.collect(),
        tokenizer,
        chat,
    }))
}

impl BaseTokenizer {
    /// For text that says itself where its special tokens are: none is added, and the places of tokens are exact.
    #[must_use]
    pub fn for_rendered_text(&self) -> Tokenizer {
        let mut tokenizer = self.tokenizer.clone();
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        tokenizer
    }
}
