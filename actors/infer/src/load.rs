//! From a `model` artefact to a running [`Replica`].

use std::sync::Arc;

use serde_json::Value;
use sixfold_artifact::model::{KIND, ModelFiles};
use sixfold_artifact::{Manifest, Store, StoreError};
use sixfold_model::{AdaptedWeights, Decoder, Geometry, ModelConfig, ModelSlice, UnitBuffer};
use sixfold_tensor::Device;
use sixfold_wire::id::ArtifactId;
use tokenizers::Tokenizer;

use crate::engine::{Decoder as _, Engine, ModelDecoder};
use crate::error::LoadError;
use crate::options::Options;
use crate::replica::Replica;
use crate::text::TextCodec;
use crate::text::chat::ChatTemplate;
use crate::thread::{self, EngineEnd};

/// Logical shards of models that do not say with how many they were trained.
const LOGICAL_SHARDS: usize = 4;

/// The one model among a stage's inputs.
///
/// # Errors
/// [`LoadError::Input`] where there is none, or several.
pub fn find_model(inputs: &[(ArtifactId, Manifest)]) -> Result<ArtifactId, LoadError> {
    let models: Vec<_> = inputs.iter().filter(|(_, manifest)| manifest.kind == KIND).collect();
    match models.as_slice() {
        [(id, _)] => Ok(*id),
        found => Err(LoadError::Input { found: found.len() }),
    }
}

/// Reads a model from the store and starts its engine. Takes long and computes: not for an async thread.
///
/// # Errors
/// [`LoadError`] says what of the artefact cannot be used.
pub fn load(store: &Store, model: ArtifactId, options: &Options) -> Result<(Replica, EngineEnd), LoadError> {
    let texts = ModelTexts {
        config: store.read(model, "config.json")?,
        tokenizer: store.read(model, "tokenizer.json")?,
        tokenizer_config: optional(store, model, "tokenizer_config.json")?,
        chat_template: optional(store, model, "chat_template.jinja")?,
    };
    start(&texts, options, |geometry| {
        let files = ModelFiles::open(store, model)?;
        let weights = AdaptedWeights::parse(geometry, &[files.weights()], files.adapters());
        let parameters =
            weights.and_then(|weights| weights.read_slice(geometry, &ModelSlice::whole(geometry)));
        parameters.map_err(|error| LoadError::Model(error.to_string()))
    })
}

/// The files of a model beside its weights, by Hugging Face's names.
#[derive(Debug, Clone, Default)]
pub struct ModelTexts {
    /// `config.json`
    pub config: Vec<u8>,
    /// `tokenizer.json`
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`
    pub tokenizer_config: Option<Vec<u8>>,
    /// `chat_template.jinja`
    pub chat_template: Option<Vec<u8>>,
}

/// Starts the engine of a model whose weights `read` gives once its geometry is known. Takes long and computes: not for an async
/// thread.
///
/// # Errors
/// [`LoadError`] says what of the model cannot be used.
pub fn start(
    texts: &ModelTexts,
    options: &Options,
    read: impl FnOnce(&Geometry) -> Result<UnitBuffer, LoadError>,
) -> Result<(Replica, EngineEnd), LoadError> {
    let unreadable = |error: &dyn std::fmt::Display| LoadError::Model(error.to_string());
    let (config, logical) =
        ModelConfig::from_hugging_face(&texts.config).map_err(|error| unreadable(&error))?;
    let text = Arc::new(read_text(texts, &config)?);
    let geometry =
        Geometry::new(config, logical.unwrap_or(LOGICAL_SHARDS)).map_err(|error| unreadable(&error))?;
    let parameters = read(&geometry)?;
    let decoder = ModelDecoder::new(
        Decoder::new(Device::cpu().stream(), geometry, &parameters),
        options.kv_bytes_max(),
    );
    drop(parameters);
    let limits = options.limits(decoder.shape());
    let whole = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let engine = Engine::new(decoder, Arc::clone(&text), limits, whole(options.output_tokens_max));
    let (engine, end) = thread::spawn(engine, whole(options.events_per_request))
        .map_err(|error| unreadable(&format_args!("no thread for its engine: {error}")))?;
    let replica = Replica::new(options.model_name.clone(), text, engine, whole(options.prompt_bytes_max));
    Ok((replica, end))
}

fn read_text(texts: &ModelTexts, config: &ModelConfig) -> Result<TextCodec, LoadError> {
    let unreadable = |error: &dyn std::fmt::Display| LoadError::Tokenizer(error.to_string());
    let tokenizer = Tokenizer::from_bytes(&texts.tokenizer).map_err(|error| unreadable(&error))?;
    let about: Value = match &texts.tokenizer_config {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?,
        None => Value::Null,
    };
    let template = texts.chat_template.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let template = template.or_else(|| about["chat_template"].as_str().map(str::to_owned));
    let template =
        ChatTemplate::new(template, special_token(&about["bos_token"]), special_token(&about["eos_token"]))?;
    Ok(TextCodec::new(Arc::new(tokenizer), template, config.bos_token_id, end_tokens(&texts.config)))
}

fn optional(store: &Store, model: ArtifactId, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    match store.read(model, name) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError::MissingFile { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A special token is written as a string, or as an object that holds it.
fn special_token(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// `eos_token_id` is a number or a list; each of them ends a text.
fn end_tokens(config_json: &[u8]) -> Vec<u32> {
    let config: Value = serde_json::from_slice(config_json).unwrap_or_default();
    let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
    match &config["eos_token_id"] {
        Value::Array(list) => list.iter().filter_map(token).collect(),
        one => token(one).into_iter().collect(),
    }
}
