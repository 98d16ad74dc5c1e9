//! A graph computes what this project's decoder computes, with keys and values of the past and with padding.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use sixfold_model::{Chunk, Decoder, Geometry, ModelConfig, ModelSlice, Wanted, read_sharded_parameters};

use super::interpreter::{Array, run};
use super::{Written, golden, written};
use crate::{Encoding, FolderOptions, Model, OpenOptions, open, write_folder};

/// A model of a golden file, in f32, whose config.json says something else.
fn variant(place: &Path, name: &str, more: &Value) -> Model {
    let f32s = FolderOptions { encoding: Some(Encoding::F32), shard_bytes: None };
    let folder = place.join("model");
    write_folder(&golden(name), &folder, f32s, |_| {}).unwrap();
    let file = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    std::fs::write(&file, config.to_string()).unwrap();
    let model = open(&folder, &OpenOptions::default()).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    model
}

/// The logits after each token.
fn decoded(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let (config, _) = ModelConfig::from_hugging_face(&serde_json::to_vec(model.config()).unwrap()).unwrap();
    let geometry = Geometry::new(config, 1).unwrap();
    let whole = ModelSlice::whole(&geometry);
    let parameters = read_sharded_parameters(&geometry, &whole, &model.weight_bytes()).unwrap();
    let decoder = Decoder::new(sixfold_tensor::Device::cpu().stream(), geometry, &parameters);
    let pool = decoder.kv_pool(4);
    let mut sequence = pool.sequence();
    let chunk = Chunk { tokens, sequence: &mut sequence, wanted: Wanted::All };
    decoder.forward(&mut [chunk]).unwrap().rows().map(<[f32]>::to_vec).collect()
}

/// The sequences that a graph has seen, padded on the left to the same length.
struct Running<'a> {
    written: &'a Written,
    past: HashMap<String, Array>,
    /// Of each sequence, for each token whether it is one and no padding.
    seen: Vec<Vec<f64>>,
}

impl<'a> Running<'a> {
    fn new(written: &'a Written, model: &Model, batch: usize) -> Self {
        let sizes = model.sizes().unwrap();
        let past = (0..sizes.layers).flat_map(|layer| {
            ["key", "value"].map(|kind| {
                let empty = Array::new(&[batch, sizes.kv_heads, 0, sizes.head_dim], Vec::new());
                (format!("past_key_values.{layer}.{kind}"), empty)
            })
        });
        Self { written, past: past.collect(), seen: vec![Vec::new(); batch] }
    }

    /// Logits of each sequence's last token.
    fn take(&mut self, tokens: &[Vec<Option<u32>>]) -> Vec<Vec<f64>> {
        let (batch, new) = (tokens.len(), tokens[0].len());
        let mut positions = Vec::new();
        for (seen, tokens) in self.seen.iter_mut().zip(tokens) {
            for token in tokens {
                positions.push(seen.iter().sum::<f64>());
                seen.push(f64::from(u8::from(token.is_some())));
            }
        }
        let ids = tokens.iter().flatten().map(|token| f64::from(token.unwrap_or(0))).collect();
        let mut inputs = std::mem::take(&mut self.past);
        inputs.insert("input_ids".to_owned(), Array::new(&[batch, new], ids));
        inputs.insert("position_ids".to_owned(), Array::new(&[batch, new], positions));
        let mask = Array::new(&[batch, self.seen[0].len()], self.seen.concat());
        inputs.insert("attention_mask".to_owned(), mask);
        let mut outputs = run(&self.written.graph, &self.written.weights, inputs);
        let logits = outputs.remove("logits").unwrap();
        let vocab = logits.dims[2];
        assert_eq!(logits.dims, [batch, new, vocab]);
        let past = |name: String| name.replace("present.", "past_key_values.");
        self.past = outputs.into_iter().map(|(name, value)| (past(name), value)).collect();
        (0..batch)
            .map(|sequence| logits.numbers[(sequence * new + new - 1) * vocab..][..vocab].to_vec())
            .collect()
    }
}

/// The same graph twice: with its weights, and with each third of them off by a unit in the last place.
struct Compared<'a>([Running<'a>; 2]);

impl<'a> Compared<'a> {
    fn new(written: &'a [Written; 2], model: &Model, batch: usize) -> Self {
        Self(written.each_ref().map(|written| Running::new(written, model, batch)))
    }

    /// Takes tokens, after which the decoder has the logits `expected`, a row for each sequence. A row may be so near to zero before
    /// its norm that rounding moves what comes of it; so it may be as far off as a few times what the other weights make of it.
    fn take(&mut self, tokens: &[Vec<Option<u32>>], expected: &[&[f32]], of: &str) {
        let [graph, nudged] = self.0.each_mut().map(|running| running.take(tokens));
        for ((expected, graph), nudged) in expected.iter().zip(graph).zip(nudged) {
            let largest = graph.iter().fold(1.0_f64, |most, logit| most.max(logit.abs()));
            let moved = graph.iter().zip(nudged).map(|(logit, nudged)| (logit - nudged).abs());
            let allowed = 1e-5 * largest + 10.0 * moved.fold(0.0, f64::max);
            for (expected, logit) in expected.iter().zip(graph) {
                assert!((f64::from(*expected) - logit).abs() < allowed, "{of}: {expected} and {logit}");
            }
        }
    }
}

/// What a graph has beside other weights.
fn nudged(written: &Written) -> Vec<u8> {
    let mut weights = written.weights.clone();
    for bytes in weights.as_chunks_mut::<4>().0.iter_mut().step_by(3) {
        *bytes = f32::from_le_bytes(*bytes).next_up().to_le_bytes();
    }
    weights
}

#[test]
fn an_onnx_graph_computes_what_the_decoder_computes() {
    let window = json!({"sliding_window": 3, "use_sliding_window": true, "max_window_layers": 1});
    let scaled = |scaling: Value| json!({ "rope_scaling": scaling });
    for (name, more) in [
        ("llama", json!({})),
        ("llama", json!({"model_type": "mistral", "sliding_window": 3, "rope_scaling": null})),
        (
            "llama",
            scaled(json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.25,
                "high_freq_factor": 2.0, "original_max_position_embeddings": 8})),
        ),
        (
            "llama",
            scaled(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8,
                "beta_fast": 4.0, "beta_slow": 0.125, "truncate": false})),
        ),
        ("qwen2", window.clone()),
        ("qwen3", window),
        ("qwen3", json!({})),
        ("gpt2", json!({})),
    ] {
        let of = format!("{name} {more}");
        let place = tempfile::tempdir().unwrap();
        let model = variant(place.path(), name, &more);
        let mut graphs = [(); 2].map(|()| written(&model, Encoding::F32));
        graphs[1].weights = nudged(&graphs[0]);
        let tokens: Vec<u32> = (0..9).map(|at| (at * at * 7 + at * 3 + 5) % 48).collect();
        let all = |tokens: &[u32]| tokens.iter().copied().map(Some).collect::<Vec<_>>();
        let expected = decoded(&model, &tokens);

        let mut one = Compared::new(&graphs, &model, 1);
        one.take(&[all(&tokens[..6])], &[&expected[5]], &of);
        one.take(&[all(&tokens[6..7])], &[&expected[6]], &of);
        one.take(&[all(&tokens[7..])], &[&expected[8]], &of);

        // The second sequence is shorter, and padded.
        let short = &tokens[4..8];
        let expected_short = decoded(&model, short);
        let padded = [vec![None; 2], all(&short[..3])].concat();
        let mut two = Compared::new(&graphs, &model, 2);
        two.take(&[all(&tokens[..5]), padded], &[&expected[4], &expected_short[2]], &of);
        two.take(&[all(&tokens[5..6]), all(&short[3..])], &[&expected[5], &expected_short[3]], &of);
    }
}
