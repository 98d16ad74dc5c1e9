//! The model that a training starts from instead of random weights: [`Base`].
//!
//! It is an artefact of kind `model` among the task's inputs, imported or trained; one that is adapters alone stands for what
//! they and the model that it needs come to. Its weights are read where a training has no state of its own to go on from: by
//! each rank its own units, under any plan.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use sixfold_artifact::model::{KIND, ModelFiles};
use sixfold_artifact::{Manifest, StoreError};
use sixfold_model::{AdaptedWeights, ConfigError, FrozenUnits, Geometry, ModelConfig, UnitBuffer};
use sixfold_parallel::{RankSlice, TrainingJob};
use sixfold_tensor::Device;
use sixfold_wire::id::ArtifactId;

use crate::error::TrainError;
use crate::host::BlockingHost;
use crate::options::{SHAPE, TrainOptions, shape_options};

const CONFIG_FILE: &str = "config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";

/// The options of a `train` stage whose base has this `config.json`, as far as the base fixes or suggests them.
///
/// # Errors
/// [`ConfigError`] if the text is not the configuration of a model that can be trained.
pub fn options_of_base(config: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    let (config, _) = ModelConfig::from_hugging_face(config)?;
    let shape = shape_options(&config).map(|(option, value)| (option.to_owned(), value));
    let more = [("base", json!(config)), ("dtype", json!(config.dtype))];
    Ok(shape.into_iter().chain(more.map(|(option, value)| (option.to_owned(), value))).collect())
}

/// The options of a `train` stage whose base is made by a `train` stage with `options`.
pub fn options_of_trained_base(options: &Map<String, Value>) -> Map<String, Value> {
    let taken = |option: &str| Some((option.to_owned(), options.get(option)?.clone()));
    SHAPE.into_iter().chain(["base", "dtype"]).filter_map(taken).collect()
}

/// The options that a stage's base fixes: any other value is an error.
pub const FIXED_BY_BASE: [&str; SHAPE.len()] = SHAPE;

/// A model to start from, on this node.
pub(crate) struct Base {
    pub(crate) id: ArtifactId,
    config: ModelConfig,
    files: ModelFiles,
}

impl Base {
    /// The one input that is a model, or none.
    ///
    /// # Errors
    /// [`TrainError::Base`] if there are several, if it is not readable, or if its tokens are not those of `tokens`.
    pub(crate) fn find(
        host: &BlockingHost,
        inputs: &[(ArtifactId, Manifest)],
        tokens: &Manifest,
    ) -> Result<Option<Self>, TrainError> {
        let mut models = inputs.iter().filter(|(_, manifest)| manifest.kind == KIND);
        let Some((id, manifest)) = models.next() else { return Ok(None) };
        if models.next().is_some() {
            return Err(TrainError::Base("several inputs are models; training starts from one".to_owned()));
        }
        let tokenizer = |manifest: &Manifest| manifest.file(TOKENIZER_FILE).map(|file| file.hash);
        if tokenizer(manifest).is_some_and(|own| tokenizer(tokens) != Some(own)) {
            let reason = "its tokenizer is not the one that made the tokens; name it among the inputs of the stage \
                          that makes them";
            return Err(TrainError::Base(reason.to_owned()));
        }
        let files = ModelFiles::open(host.store(), *id).map_err(|error| match error {
            StoreError::MissingFile { name, .. } => TrainError::Base(format!("it has no {name}")),
            error => error.into(),
        })?;
        let config = ModelConfig::from_hugging_face(&host.store().read(*id, CONFIG_FILE)?);
        let (config, _) = config.map_err(|error| TrainError::Base(error.to_string()))?;
        Ok(Some(Self { id: *id, config, files }))
    }

    /// The model that is trained: the base's, with the operands and shards of `options`.
    ///
    /// # Errors
    /// [`TrainError::Base`] if it is not the one that the options were made for, or has fewer tokens than there are.
    pub(crate) fn geometry(&self, options: &TrainOptions, vocabulary: usize) -> Result<Geometry, TrainError> {
        let config = ModelConfig { dtype: options.dtype, ..self.config.clone() };
        let expected = ModelConfig {
            vocab_size: config.vocab_size,
            bos_token_id: config.bos_token_id,
            eos_token_id: config.eos_token_id,
            ..options.geometry(vocabulary, None)?.config
        };
        if expected != config {
            return Err(TrainError::Base(format!(
                "it is {}, and the stage's options are for {}; submit the job again",
                json!(config),
                json!(expected)
            )));
        }
        if vocabulary > config.vocab_size {
            let own = config.vocab_size;
            return Err(TrainError::Base(format!("it has {own} tokens, and the text has {vocabulary}")));
        }
        Ok(Geometry::new(config, options.tensor_shards)?)
    }

    /// The weights, where those of `geometry` can be read.
    fn weights(&self, geometry: &Geometry) -> Result<AdaptedWeights<'_>, TrainError> {
        Ok(AdaptedWeights::parse(geometry, &[self.files.weights()], self.files.adapters())?)
    }

    /// The weights of a rank's units.
    ///
    /// # Errors
    /// [`TrainError::Weights`] if the files lack some.
    pub(crate) fn parameters(
        &self,
        geometry: &Geometry,
        slice: &RankSlice,
    ) -> Result<UnitBuffer, TrainError> {
        let (weights, units) = (self.weights(geometry)?, slice.units(geometry));
        let mut parameters = UnitBuffer::zeros(Arc::new(slice.parameter_index(geometry)));
        units.iter().try_for_each(|unit| weights.read(geometry, *unit, parameters.unit_mut(*unit)))?;
        Ok(parameters)
    }

    /// The weights of a rank's units, kept as `job` says, beside which adapters lie.
    ///
    /// # Errors
    /// As [`Self::parameters`].
    pub(crate) fn frozen(&self, job: &TrainingJob, slice: &RankSlice) -> Result<FrozenUnits, TrainError> {
        let base = job.geometry.base();
        let weights = self.weights(&base)?;
        let (stream, units) = (Device::cpu().stream(), slice.units(&base));
        Ok(FrozenUnits::new(&stream, &base, &units, job.base_compression, |unit, values| {
            weights.read(&base, unit, values)
        })?)
    }
}
