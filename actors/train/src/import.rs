//! The role `model`: a model that lies on the node, in any format, becomes an artefact of kind `model`.
//!
//! What is not a Hugging Face folder with one file of weights is written as one first. The weights are read once, layer by
//! layer, so that what is not this model is refused here and not by the stages that use it.

use std::fs::File;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sixfold_artifact::model::{KIND, WEIGHTS};
use sixfold_artifact::{FileEntry, Store};
use sixfold_cluster::task::{Metric, TaskContext, TaskOutput, TaskResult};
use sixfold_cluster::work::Work;
use sixfold_formats::{FolderOptions, Format, Model, OpenOptions, open, write_folder};
use sixfold_model::{Geometry, ModelConfig, ModelSlice, read_parameters};
use tokio::runtime::Handle;

use crate::error::TrainError;
use crate::host::BlockingHost;
use crate::model_artifact::TOKENIZER_EXTRAS;

const CONFIG_FILE: &str = "config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
/// Where a folder of another model is written, in the task's scratch folder.
const WRITTEN: &str = "model";
/// Logical shards of models that do not say with how many they were trained, as evaluators and replicas have it.
const LOGICAL_SHARDS: usize = 4;

/// Options of a `model` stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelOptions {
    /// A folder with `config.json`, `tokenizer.json` and `model.safetensors` (or several such files and their index), as
    /// `sixfold model import` and Hugging Face's `save_pretrained` write it, or a file that `sixfold model import` reads, such as a
    /// GGUF; on the node that runs the stage. A chat template is taken along.
    pub path: PathBuf,
}

/// The work of the `model` role.
pub struct ModelImporter;

impl Work for ModelImporter {
    fn name(&self) -> &'static str {
        "model"
    }

    fn run(&self, context: &TaskContext, runtime: &Handle) -> TaskResult {
        let host = BlockingHost::new(context.clone(), runtime.clone());
        Ok(import(&host)?)
    }
}

/// Something is wrong with a file of the folder.
fn wrong(path: &Path, reason: impl std::fmt::Display) -> TrainError {
    TrainError::Import { path: path.to_owned(), reason: reason.to_string() }
}

fn import(host: &BlockingHost) -> Result<TaskOutput, TrainError> {
    let ModelOptions { path } = host.context().options()?;
    let refuse = |error: &dyn std::fmt::Display| wrong(&path, error);
    let model = open(&path, &OpenOptions::default()).map_err(|error| refuse(&error))?;
    let config_json = serde_json::to_vec_pretty(model.config()).map_err(|error| refuse(&error))?;
    let config = ModelConfig::from_hugging_face(&config_json);
    let (config, logical) = config.map_err(|error| wrong(&path.join(CONFIG_FILE), error))?;
    let geometry = Geometry::new(config, logical.unwrap_or(LOGICAL_SHARDS))?;
    let tokenizer = model.text(TOKENIZER_FILE);
    let tokenizer = tokenizer.ok_or_else(|| refuse(&format_args!("it has no {TOKENIZER_FILE}")))?;
    let store = host.store();
    let mut files = vec![store.put(CONFIG_FILE, &config_json)?, store.put(TOKENIZER_FILE, tokenizer)?];
    for name in TOKENIZER_EXTRAS {
        if let Some(text) = model.text(name) {
            files.push(store.put(name, text)?);
        }
    }
    let weights = put_weights(store, &model, &host.context().scratch)?;
    check(host, &geometry, &weights).map_err(|reason| refuse(&reason))?;
    files.push(weights);
    let parameters = geometry.config.parameters();
    let mut manifest = host.context().manifest(KIND).with("parameters", parameters);
    manifest.files = files;
    let bytes = manifest.bytes();
    let metrics = [
        ("parameters".to_owned(), Metric::Count(parameters as u64)),
        ("bytes".to_owned(), Metric::Count(bytes)),
    ];
    Ok(TaskOutput { artifacts: vec![host.publish(manifest)?], metrics: metrics.into() })
}

/// The weights as one file of safetensors in the store.
fn put_weights(store: &Store, model: &Model, scratch: &Path) -> Result<FileEntry, TrainError> {
    if let (Format::Folder, &[whole]) = (model.format(), model.weight_bytes().as_slice()) {
        return Ok(store.put_reader(WEIGHTS, whole)?);
    }
    let folder = scratch.join(WRITTEN);
    let failed = |error: &dyn std::fmt::Display| wrong(model.path(), error);
    write_folder(model, &folder, FolderOptions::default(), |_| {}).map_err(|error| failed(&error))?;
    let file = File::open(folder.join(WEIGHTS)).map_err(|error| failed(&error))?;
    let weights = store.put_reader(WEIGHTS, file)?;
    std::fs::remove_dir_all(&folder).map_err(|error| failed(&error))?;
    Ok(weights)
}

/// Reads all weights, a layer at a time.
fn check(host: &BlockingHost, geometry: &Geometry, weights: &FileEntry) -> Result<(), String> {
    let mapped = host.store().map_entry(weights).map_err(|error| error.to_string())?;
    let layers = geometry.config.num_hidden_layers;
    for layer in 0..layers {
        let slice = ModelSlice {
            layers: layer..layer + 1,
            input: layer == 0,
            output: layer + 1 == layers,
            shards: 0..geometry.sharding.logical(),
        };
        let read = read_parameters(geometry, &slice, mapped.bytes()).map_err(|error| error.to_string())?;
        let broken = read.iter().find(|(_, values)| values.iter().any(|value| !value.is_finite()));
        if let Some((unit, _)) = broken {
            return Err(format!("{} has numbers that are not finite", unit.tensor_name()));
        }
    }
    Ok(())
}
