//! The result of a training job: the `model` artefact and its figures.
//!
//! What is trained is what is published: of a training with adapters these alone, and the manifest needs the model beside which
//! they lie.

use serde_json::{Value, json};
use sixfold_artifact::model::{ADAPTER_CONFIG, ADAPTERS, KIND, WEIGHTS};
use sixfold_cluster::task::{Metric, Metrics, TaskOutput};
use sixfold_model::{Geometry, weights_blake3, write_parameters};
use sixfold_wire::id::ArtifactId;

use crate::checkpoint::read_parameters_of;
use crate::error::TrainError;
use crate::evaluations::Evaluations;
use crate::host::BlockingHost;
use crate::options::TrainOptions;

const TOKENIZER_FILE: &str = "tokenizer.json";
/// Files of a tokens artefact that a model takes along where they are there.
pub(crate) const TOKENIZER_EXTRAS: [&str; 4] =
    ["tokenizer_config.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json"];

/// What the model came from.
pub(crate) struct Trained<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) options: &'a TrainOptions,
    /// The artefact with the tokenizer.
    pub(crate) tokens: ArtifactId,
    /// The model that training started from.
    pub(crate) base: Option<ArtifactId>,
    /// The loss of every step.
    pub(crate) losses: &'a [f32],
    pub(crate) evaluations: &'a Evaluations,
    /// Steps after which the model had the weights that it has.
    pub(crate) kept_step: u64,
}

/// Puts the model together from all ranks' final states, and publishes it.
pub(crate) fn publish(
    host: &BlockingHost,
    trained: &Trained<'_>,
    states: &[ArtifactId],
) -> Result<TaskOutput, TrainError> {
    let Trained { geometry, options, .. } = trained;
    let parameters = read_parameters_of(host, geometry, states)
        .map_err(|error| TrainError::FinalState(error.to_string()))?;
    let weights = weights_blake3(geometry, &parameters).to_hex().to_string();
    let losses = losses_blake3(trained.losses);
    let store = host.store();
    let mut manifest = host
        .context()
        .manifest(KIND)
        .with("parameters", geometry.config.parameters())
        .with("plan", options.plan().to_string())
        .with("tensor_shards", options.tensor_shards)
        .with("steps", trained.kept_step)
        .with("weights_blake3", weights.as_str())
        .with("loss_bits_blake3", losses.as_str());
    if let Some(base) = trained.base {
        manifest = manifest.with("base", base.to_string());
    }
    let config = to_json(&geometry.config.to_hugging_face(options.tensor_shards))?;
    let training = to_json(&training_record(trained, &weights, &losses))?;
    manifest.files.push(store.put("config.json", &config)?);
    let trained_file = match &geometry.lora {
        None => WEIGHTS,
        Some(lora) => {
            let base = trained.base.ok_or(TrainError::NoBase)?;
            manifest = manifest.with("lora_rank", lora.rank).with("lora_alpha", lora.alpha);
            manifest.needs.push(base);
            let peft = lora.to_peft(&geometry.config, &base.to_string(), options.lora_dropout);
            manifest.files.push(store.put(ADAPTER_CONFIG, &to_json(&peft)?)?);
            ADAPTERS
        }
    };
    manifest.files.push(store.put(trained_file, &write_parameters(geometry, &parameters)?)?);
    let tokens = store.manifest(trained.tokens)?;
    manifest.files.push(store.put(TOKENIZER_FILE, &store.read(trained.tokens, TOKENIZER_FILE)?)?);
    manifest.files.extend(TOKENIZER_EXTRAS.iter().filter_map(|name| tokens.file(name)).cloned());
    manifest.files.push(store.put("training.json", &training)?);
    let model = host.publish(manifest)?;
    Ok(TaskOutput { artifacts: vec![model], metrics: metrics(trained, weights, losses) })
}

fn to_json(value: &Value) -> Result<Vec<u8>, TrainError> {
    serde_json::to_vec_pretty(value).map_err(|error| TrainError::Thread(error.to_string()))
}

/// BLAKE3 over the little-endian bits of the losses, in the order of the steps.
fn losses_blake3(losses: &[f32]) -> String {
    let mut hasher = blake3::Hasher::new();
    losses.iter().for_each(|loss| {
        hasher.update(&loss.to_le_bytes());
    });
    hasher.finalize().to_hex().to_string()
}

/// The content of `training.json`: how the model was trained, and its loss curve, readable and to
/// the bit.
fn training_record(trained: &Trained<'_>, weights: &str, losses_hash: &str) -> Value {
    let options = trained.options;
    let bits = trained.losses.iter().map(|loss| format!("{:08x}", loss.to_bits()));
    json!({
        "steps": trained.kept_step,
        "steps_done": trained.losses.len(),
        "held_out_losses": trained.evaluations.done(),
        "batch_tokens": options.batch_tokens(),
        "plan": options.plan(),
        "tensor_shards": options.tensor_shards,
        "data_groups": options.data_groups(),
        "losses": trained.losses,
        "loss_bits": bits.collect::<Vec<_>>(),
        "loss_bits_blake3": losses_hash,
        "weights_blake3": weights,
        "options": options,
    })
}

/// The figures of the whole job. Only the first rank reports them, since counts of a stage's tasks
/// are added up.
fn metrics(trained: &Trained<'_>, weights: String, losses_hash: String) -> Metrics {
    let loss = |loss: Option<&f32>| Metric::Number(loss.copied().map_or(0.0, f64::from));
    let tokens = trained.losses.len() as u64 * trained.options.batch_tokens();
    let mut metrics = Metrics::from([
        ("weights_blake3".to_owned(), Metric::Text(weights)),
        ("loss_bits_blake3".to_owned(), Metric::Text(losses_hash)),
        ("loss_first".to_owned(), loss(trained.losses.first())),
        ("loss_last".to_owned(), loss(trained.losses.last())),
        ("steps".to_owned(), Metric::Count(trained.losses.len() as u64)),
        ("tokens".to_owned(), Metric::Count(tokens)),
    ]);
    let evaluations = trained.evaluations.done();
    let at = |step| evaluations.iter().find(|evaluation| evaluation.step == step).map(|found| &found.loss);
    if !evaluations.is_empty() {
        metrics.extend([
            ("held_out_loss_first".to_owned(), loss(at(0))),
            ("held_out_loss".to_owned(), loss(at(trained.kept_step))),
            ("kept_step".to_owned(), Metric::Count(trained.kept_step)),
        ]);
    }
    metrics
}
