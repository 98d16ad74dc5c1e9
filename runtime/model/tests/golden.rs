//! Logits, loss, every gradient and ten steps of training against PyTorch.
//!
//! `golden/llama.safetensors` was made by `golden/make.py` from a model that this crate exported, with
//! transformers' `LlamaForCausalLM`; the others by `golden/oracle.py` with PyTorch alone, from the papers' formulas, which
//! `golden/transformers_check.py` compares with transformers' classes.
//! After llm.c's `test_gpt2.c`.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::sync::Arc;

use safetensors::SafeTensors;
use sixfold_model::{
    Alone, Chunk, Decoder, DeviceUnits, Geometry, MicroBatch, ModelConfig, ModelSlice, Network, Onto,
    Optimizer, OptimizerOptions, Output, PackedWeights, SquareSums, StepSeed, Surroundings, UnitIndex,
    Wanted, Work, finish_gradients, gradient_index, gradient_of, read_parameters, write_parameters,
};
use sixfold_tensor::{Device, Stream};

const FILES: [&str; 10] = [
    "llama",
    "llama_untied",
    "llama_tied",
    "llama_linear",
    "llama_llama3",
    "llama_yarn",
    "qwen2",
    "qwen3",
    "gpt2_untied",
    "gpt2_tied",
];
/// Some with copies of key-value heads (4), some with empty shards (8).
const LOGICAL_SHARDS: [usize; 4] = [1, 2, 4, 8];

struct Golden {
    name: &'static str,
    file: Vec<u8>,
    config: ModelConfig,
    optimizer: OptimizerOptions,
}

impl Golden {
    fn all() -> impl Iterator<Item = Self> {
        FILES.into_iter().map(Self::read)
    }

    fn read(name: &'static str) -> Self {
        let path = format!("{}/tests/golden/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let file = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&file).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        let (config, _) = ModelConfig::from_hugging_face(metadata["config"].as_bytes()).unwrap();
        let optimizer = serde_json::from_str(&metadata["optimizer"]).unwrap();
        Self { name, config, optimizer, file }
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        numbers(&self.file, name)
    }

    fn integers(&self, name: &str) -> Vec<i32> {
        words(&self.file, name).into_iter().map(i32::from_le_bytes).collect()
    }

    /// The gradient norm of each step; the file made with transformers has none.
    fn norms(&self) -> Option<Vec<f32>> {
        (self.name != "llama").then(|| self.numbers("norms"))
    }

    /// The names of the tensors whose gradients the file has, in order.
    fn gradients(&self) -> Vec<String> {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
        let names = tensors.names().into_iter().filter_map(|name| name.strip_prefix("gradient."));
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    fn batch(&self) -> MicroBatch {
        // PyTorch's mark for a target that does not count, -100, becomes ours.
        let id = |target: i32| u32::try_from(target).unwrap_or(sixfold_tensor::IGNORED_TARGET);
        let tokens: Vec<u32> = self.integers("tokens").into_iter().map(id).collect();
        let targets = self.integers("targets").into_iter().map(id).collect();
        let document_starts: Vec<_> =
            self.integers("document_starts").into_iter().map(|row| row as usize).collect();
        let length = tokens.len() / 2;
        assert!(document_starts.len() > 2, "several documents");
        let batch = MicroBatch { document_starts, ..MicroBatch::of_documents(tokens, targets, length) };
        batch.validate(self.config.vocab_size, self.config.max_position_embeddings).unwrap();
        batch
    }

    fn model(&self, logical: usize) -> Model {
        let geometry = Geometry::new(self.config.clone(), logical).unwrap();
        let parameters = read_parameters(&geometry, &ModelSlice::whole(&geometry), &self.file).unwrap();
        // Strict: what is computed from memory that nothing was written to is not a number.
        let stream = Device::strict_cpu().stream();
        Model { parameters: DeviceUnits::upload(&stream, &parameters), geometry, stream }
    }
}

fn words(file: &[u8], name: &str) -> Vec<[u8; 4]> {
    SafeTensors::deserialize(file).unwrap().tensor(name).unwrap().data().as_chunks().0.to_vec()
}

fn numbers(file: &[u8], name: &str) -> Vec<f32> {
    words(file, name).into_iter().map(f32::from_le_bytes).collect()
}

struct Model {
    stream: Stream,
    geometry: Geometry,
    parameters: DeviceUnits,
}

impl Model {
    /// Mean loss and gradients.
    fn gradients(&self, batch: MicroBatch) -> (f32, DeviceUnits) {
        let stream = &self.stream;
        let slice = ModelSlice::whole(&self.geometry);
        let network = Network::new(stream.clone(), Arc::new(self.geometry.clone()), slice.clone());
        let seed = StepSeed { seed: 0, step: 0, dropout: 0.0, adapter_dropout: 0.0 };
        let work = &mut Work::default();
        let parameters = &self.parameters;
        let weights = &PackedWeights::new(&self.geometry, &slice, parameters.index(), None);
        let mut around = Surroundings {
            parameters: parameters.into(),
            adapters: None,
            weights,
            seed,
            group: &mut Alone,
            work,
        };
        let scale = 1.0 / batch.counted_targets() as f32;
        let (output, tape) = network.forward(&mut around, batch, None).unwrap();
        let Output::Losses(losses) = output else { panic!("the whole model ends with losses") };
        let losses = stream.to_vec(losses.view());
        let mut sums = DeviceUnits::zeros(stream, Arc::new(gradient_index(&self.geometry, &slice)));
        network.backward(&mut around, tape, None, scale, &mut sums, Onto::Nothing).unwrap();
        let index = Arc::new(UnitIndex::of_parameters(&self.geometry, &slice));
        finish_gradients(stream, &self.geometry, &slice, &mut sums, &mut Alone, false).unwrap();
        let mut gradients = DeviceUnits::zeros(stream, index);
        for unit in slice.units(&self.geometry) {
            stream.copy(gradient_of(&self.geometry, &sums, unit), gradients.unit_mut(unit));
        }
        (losses.iter().sum::<f32>() * scale, gradients)
    }
}

/// How far apart two tensors are, relative to the length of the second.
fn distance(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let length = |squares: &mut dyn Iterator<Item = f64>| squares.map(|x| x * x).sum::<f64>().sqrt();
    let differences = actual.iter().zip(expected).map(|(a, b)| f64::from(a - b));
    length(&mut { differences }) / length(&mut expected.iter().map(|x| f64::from(*x)))
}

/// Fails, and says where, if numbers are not as near to those of a golden file as they must be.
fn assert_near(golden: &Golden, logical: usize, what: &str, distance: f64, most: f64) {
    assert!(distance < most, "{}, {logical} shards, {what}: {distance:e}", golden.name);
}

#[test]
fn logits_agree_with_pytorch() {
    for golden in Golden::all() {
        let (batch, expected) = (golden.batch(), golden.numbers("logits"));
        for logical in LOGICAL_SHARDS {
            let Model { stream, geometry, parameters } = golden.model(logical);
            let decoder = Decoder::new(stream.clone(), geometry, &parameters.host(&stream));
            let pool = decoder.kv_pool(2);
            let mut logits = Vec::new();
            for rows in batch.documents() {
                let (tokens, mut sequence) = (&batch.tokens[rows], pool.sequence());
                let chunk = Chunk { tokens, sequence: &mut sequence, wanted: Wanted::All };
                decoder.forward(&mut [chunk]).unwrap().rows().for_each(|row| logits.extend_from_slice(row));
            }
            assert_near(&golden, logical, "logits", distance(&logits, &expected), 1e-5);
        }
    }
}

#[test]
fn loss_and_every_gradient_agree_with_pytorch() {
    for golden in Golden::all() {
        let mut worst = (0.0, String::new());
        for logical in LOGICAL_SHARDS {
            let model = golden.model(logical);
            let (loss, gradients) = model.gradients(golden.batch());
            assert_near(&golden, logical, "loss", distance(&[loss], &golden.numbers("losses")[..1]), 1e-5);
            // A file of gradients has the names of the weights, with the units put together.
            let file = write_parameters(&model.geometry, &gradients.host(&model.stream)).unwrap();
            let tensors = SafeTensors::deserialize(&file).unwrap();
            let mut names = tensors.names();
            names.sort_unstable();
            assert_eq!(names, golden.gradients(), "{}", golden.name);
            for name in names {
                let distance = distance(&numbers(&file, name), &golden.numbers(&format!("gradient.{name}")));
                assert_near(&golden, logical, name, distance, 1e-4);
                if distance > worst.0 {
                    worst = (distance, format!("{name}, {logical} shards"));
                }
            }
        }
        println!("{}: gradients differ by {:.1e} at most ({})", golden.name, worst.0, worst.1);
    }
}

#[test]
fn ten_steps_of_adamw_agree_with_pytorch() {
    for golden in Golden::all() {
        let (losses, norms) = (golden.numbers("losses"), golden.norms());
        assert!(losses.len() == 10 && losses[9] < losses[0] - 1.0, "{losses:?}");
        if let Some(norms) = &norms {
            let clipped = norms.iter().filter(|norm| **norm > golden.optimizer.clip_norm).count();
            assert!((1..10).contains(&clipped), "some steps are clipped and some are not: {norms:?}");
        }
        let mut worst = 0.0_f64;
        for logical in LOGICAL_SHARDS {
            let mut model = golden.model(logical);
            let whole = ModelSlice::whole(&model.geometry);
            let mut optimizer =
                Optimizer::new(model.stream.clone(), golden.optimizer.clone(), &model.parameters);
            for step in 0..losses.len() {
                let (loss, gradients) = model.gradients(golden.batch());
                let squares = SquareSums::of_slice(&model.stream, &model.geometry, &whole, &gradients, true);
                let norm = squares.norm(&model.geometry);
                let distance = distance(&[loss], &losses[step..=step]);
                assert_near(&golden, logical, &format!("loss of step {step}"), distance, 1e-3);
                worst = worst.max(distance);
                if let Some(norms) = &norms {
                    let distance = self::distance(&[norm], &norms[step..=step]);
                    assert_near(&golden, logical, &format!("gradient norm of step {step}"), distance, 1e-3);
                }
                optimizer.step(&mut model.parameters, &gradients, step as u64, norm);
            }
        }
        println!("{}: losses differ by {worst:.1e} at most", golden.name);
    }
}
