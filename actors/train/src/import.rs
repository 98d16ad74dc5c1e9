//! The role `model`: a model's folder that lies on the node becomes an artefact of kind `model`.
//!
//! The folder has the form of Hugging Face's: `config.json`, `tokenizer.json` and the weights, in one file or in several with
//! an index, which become one. The weights are read once, layer by layer, so that what is not this model is refused here
//! and not by the stages that use it.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sixfold_artifact::FileEntry;
use sixfold_cluster::task::{Metric, TaskContext, TaskOutput, TaskResult};
use sixfold_cluster::work::Work;
use sixfold_model::{Geometry, ModelConfig, ModelSlice, read_parameters};
use tokio::runtime::Handle;

use crate::error::TrainError;
use crate::host::BlockingHost;
use crate::model_artifact::{KIND, TOKENIZER_EXTRAS};

mod weights;

const CONFIG_FILE: &str = "config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
/// Longer files beside the weights are refused.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Logical shards of models that do not say with how many they were trained, as evaluators and replicas have it.
const LOGICAL_SHARDS: usize = 4;

/// Options of a `model` stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelOptions {
    /// A folder with `config.json`, `tokenizer.json` and `model.safetensors` (or several such files and their index), as
    /// `sixfold model import` and Hugging Face's `save_pretrained` write it; on the node that runs the stage. A chat template is
    /// taken along.
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
    let ModelOptions { path: folder } = host.context().options()?;
    let config_path = folder.join(CONFIG_FILE);
    let config_json = read(&config_path)?;
    let config = ModelConfig::from_hugging_face(&config_json);
    let (config, logical) = config.map_err(|error| wrong(&config_path, error))?;
    let geometry = Geometry::new(config, logical.unwrap_or(LOGICAL_SHARDS))?;
    let store = host.store();
    let mut files = vec![store.put(CONFIG_FILE, &config_json)?];
    files.push(store.put(TOKENIZER_FILE, &read(&folder.join(TOKENIZER_FILE))?)?);
    for name in TOKENIZER_EXTRAS {
        let path = folder.join(name);
        if path.exists() {
            files.push(store.put(name, &read(&path)?)?);
        }
    }
    let weights = weights::copy(store, &folder)?;
    check(host, &geometry, &weights).map_err(|reason| wrong(&folder, reason))?;
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

fn read(path: &Path) -> Result<Vec<u8>, TrainError> {
    let bytes = std::fs::metadata(path).map_err(|error| wrong(path, error))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(wrong(path, format_args!("{bytes} bytes; at most {FILE_BYTES_MAX} are read")));
    }
    std::fs::read(path).map_err(|error| wrong(path, error))
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
