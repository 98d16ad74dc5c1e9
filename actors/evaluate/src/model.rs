//! From a `model` artefact to a decoder, its tokenizer and the record of its training.

use serde::Deserialize;
use sixfold_artifact::model::ModelFiles;
use sixfold_artifact::{Store, StoreError};
use sixfold_model::{AdaptedWeights, Decoder, Geometry, ModelConfig, ModelSlice};
use sixfold_tensor::Device;
use sixfold_wire::id::ArtifactId;
use tokenizers::Tokenizer;

use crate::error::EvaluateError;

/// Logical shards of models that do not say with how many they were trained.
const LOGICAL_SHARDS: usize = 4;

/// A model that is ready to be evaluated.
pub(crate) struct Model {
    pub(crate) decoder: Decoder,
    tokenizer: Tokenizer,
    /// The training loss of every step, in nats per token; none of a model that was imported.
    pub(crate) losses: Vec<f32>,
}

/// What is read of `training.json`.
#[derive(Deserialize)]
struct TrainingRecord {
    losses: Vec<f32>,
}

impl Model {
    /// Reads a model from the store. Takes long and computes: not for an async thread.
    pub(crate) fn load(store: &Store, id: ArtifactId) -> Result<Self, EvaluateError> {
        let losses = match store.read(id, "training.json") {
            Ok(record) => read_losses(&record)?,
            // It was trained elsewhere.
            Err(StoreError::MissingFile { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let tokenizer = Tokenizer::from_bytes(store.read(id, "tokenizer.json")?)
            .map_err(|error| EvaluateError::Model(format!("tokenizer.json: {error}")))?;
        Ok(Self { decoder: read_decoder(store, id)?, tokenizer, losses })
    }

    /// Positions that the model was trained for.
    pub(crate) fn positions(&self) -> usize {
        self.config().max_position_embeddings
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.decoder.geometry().config
    }

    /// A prompt as text, and the text that follows it.
    pub(crate) fn text(&self, prompt: &[u32], tokens: &[u32]) -> Result<(String, String), EvaluateError> {
        let decode = |ids: &[u32]| {
            self.tokenizer.decode(ids, false).map_err(|error| EvaluateError::Text(error.to_string()))
        };
        let begin = decode(prompt)?;
        let whole = decode(&[prompt, tokens].concat())?;
        // A character that is cut between prompt and answer has no text on either side.
        match whole.strip_prefix(&begin) {
            Some(rest) => Ok((begin, rest.to_owned())),
            None => Ok((begin, decode(tokens)?)),
        }
    }
}

fn read_losses(training: &[u8]) -> Result<Vec<f32>, EvaluateError> {
    let record: TrainingRecord = serde_json::from_slice(training)
        .map_err(|error| EvaluateError::Model(format!("training.json: {error}")))?;
    match record.losses.is_empty() {
        true => Err(EvaluateError::Model("training.json has no losses".to_owned())),
        false => Ok(record.losses),
    }
}

fn read_decoder(store: &Store, id: ArtifactId) -> Result<Decoder, EvaluateError> {
    let unreadable = |error: &dyn std::fmt::Display| EvaluateError::Model(error.to_string());
    let config = ModelConfig::from_hugging_face(&store.read(id, "config.json")?);
    let (config, logical) = config.map_err(|error| unreadable(&error))?;
    let geometry = Geometry::new(config, logical.unwrap_or(LOGICAL_SHARDS));
    let geometry = geometry.map_err(|error| unreadable(&error))?;
    let files = ModelFiles::open(store, id)?;
    let weights = AdaptedWeights::parse(&geometry, &[files.weights()], files.adapters());
    let parameters = weights.and_then(|weights| weights.read_slice(&geometry, &ModelSlice::whole(&geometry)));
    Ok(Decoder::new(Device::cpu().stream(), geometry, &parameters.map_err(|error| unreadable(&error))?))
}
