//! A model trained by others (260 k parameters, TinyStories) against what llama2.c computes with it.
//!
//! Skips where the shared data folder is absent. The expected numbers come from `run.c` in f32.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::path::PathBuf;
use std::sync::Arc;

use sixfold_model::{
    Chunk, Decoder, Geometry, ModelConfig, ModelSlice, Place, Tensor, UnitBuffer, UnitIndex, Wanted, greedy,
};

fn folder() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/serving/stories260k");
    if !folder.exists() {
        eprintln!("skipped: {} is absent", folder.display());
        return None;
    }
    Some(folder)
}

/// Reads llama2.c's first checkpoint format: seven i32, then the tensors of all layers, one kind after
/// another.
struct Checkpoint {
    geometry: Geometry,
    numbers: std::vec::IntoIter<f32>,
}

impl Checkpoint {
    fn open(folder: &std::path::Path, logical: usize) -> Self {
        let bytes = std::fs::read(folder.join("checkpoint_legacy.bin")).unwrap();
        let word = |at: usize| i32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap()) as usize;
        let config = ModelConfig {
            hidden_size: word(0),
            intermediate_size: word(1),
            num_hidden_layers: word(2),
            num_attention_heads: word(3),
            num_key_value_heads: word(4),
            family: sixfold_model::Family::Llama,
            vocab_size: word(5),
            max_position_embeddings: word(6),
            head_dim: word(0) / word(3),
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            sliding_window: None,
            full_attention_layers: 0,
            attention_bias: false,
            tie_word_embeddings: true,
            dtype: Default::default(),
            bos_token_id: Some(1),
            eos_token_id: Some(2),
        };
        let numbers =
            bytes[28..].chunks_exact(4).map(|number| f32::from_le_bytes(number.try_into().unwrap()));
        let numbers = numbers.collect::<Vec<_>>().into_iter();
        Self { geometry: Geometry::new(config, logical).unwrap(), numbers }
    }

    fn parameters(mut self) -> (Geometry, UnitBuffer) {
        let slice = ModelSlice::whole(&self.geometry);
        let mut parameters = UnitBuffer::zeros(Arc::new(UnitIndex::of_parameters(&self.geometry, &slice)));
        let layers = self.geometry.config.num_hidden_layers as u32;
        self.read(&mut parameters, Place::Input, Tensor::Embedding);
        use Tensor as T;
        for tensor in [
            T::AttentionNorm,
            T::Query,
            T::Key,
            T::Value,
            T::AttentionOutput,
            T::FeedForwardNorm,
            T::Gate,
            T::Down,
            T::Up,
        ] {
            (0..layers).for_each(|layer| self.read(&mut parameters, Place::Layer(layer), tensor));
        }
        self.read(&mut parameters, Place::Output, Tensor::FinalNorm);
        (self.geometry, parameters)
    }

    fn read(&mut self, parameters: &mut UnitBuffer, place: Place, tensor: Tensor) {
        let (rows, columns) = self.geometry.whole(tensor);
        let mut whole: Vec<f32> = self.numbers.by_ref().take(rows * columns).collect();
        if matches!(tensor, Tensor::Query | Tensor::Key) {
            whole = halves_from_pairs(&whole, self.geometry.config.head_dim, columns);
        }
        let units: Vec<_> = parameters.index().iter().map(|(unit, _)| unit).collect();
        for unit in units.into_iter().filter(|unit| (unit.place, unit.tensor) == (place, tensor)) {
            let places = self.geometry.region(unit);
            let values = parameters.unit_mut(unit).iter_mut();
            values.zip(places.row_ranges().flatten()).for_each(|(value, place)| *value = whole[place]);
        }
    }
}

/// llama2.c turns neighbouring elements of a head together, Hugging Face's layout the two halves.
fn halves_from_pairs(weight: &[f32], head_dim: usize, columns: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let source = |row: usize| {
        let (head, i) = (row / head_dim * head_dim, row % head_dim);
        head + if i < half { 2 * i } else { 2 * (i - half) + 1 }
    };
    let rows = 0..weight.len() / columns;
    rows.flat_map(|row| weight[source(row) * columns..(source(row) + 1) * columns].to_vec()).collect()
}

fn lines(folder: &std::path::Path, name: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(value: &serde_json::Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

#[test]
fn log_probabilities_of_stories_agree_with_llama2_c() {
    let Some(folder) = folder() else { return };
    let (geometry, parameters) = Checkpoint::open(&folder, 4).parameters();
    let decoder = Decoder::new(sixfold_tensor::Device::cpu().stream(), geometry, &parameters);
    let pool = decoder.kv_pool(8);
    for story in lines(&folder, "teacher-forced.jsonl") {
        let tokens: Vec<u32> = numbers(&story["tokens"]).into_iter().map(|token| token as u32).collect();
        let mut sequence = pool.sequence();
        let chunk = Chunk { tokens: &tokens, sequence: &mut sequence, wanted: Wanted::All };
        let logits = decoder.forward(&mut [chunk]).unwrap();
        for (row, expected) in numbers(&story["logprobs"]).into_iter().enumerate() {
            let ours = logits.log_probability(row, tokens[row + 1]);
            assert!((ours - expected).abs() < 1e-3, "token {row}: {ours} {expected}");
        }
        for (ours, expected) in logits.row(tokens.len() - 1).iter().zip(numbers(&story["last_logits"])) {
            assert!((ours - expected).abs() < 1e-3, "{ours} {expected}");
        }
    }
}

#[test]
fn the_greedy_story_is_llama2_cs_to_the_letter() {
    let Some(folder) = folder() else { return };
    let pieces = pieces(&folder);
    let expected = lines(&folder, "greedy.jsonl")[0]["text"].as_str().unwrap().to_owned();
    for logical in [1, 4] {
        let (geometry, parameters) = Checkpoint::open(&folder, logical).parameters();
        let decoder = Decoder::new(sixfold_tensor::Device::cpu().stream(), geometry, &parameters);
        let pool = decoder.kv_pool(4);
        let (mut sequence, mut token, mut text) = (pool.sequence(), 1, Vec::new());
        for _ in 0..200 {
            let tokens = [token];
            let chunk = Chunk { tokens: &tokens, sequence: &mut sequence, wanted: Wanted::Last };
            token = greedy(decoder.forward(&mut [chunk]).unwrap().row(0));
            if token == 1 {
                break;
            }
            text.extend(&pieces[token as usize]);
        }
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.trim(), expected.trim(), "{logical} logical shards");
    }
}

/// The bytes of each token in llama2.c's `tokenizer.bin`: (score f32, length i32, bytes) each.
fn pieces(folder: &std::path::Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(folder.join("tokenizer.bin")).unwrap();
    let (mut pieces, mut at) = (Vec::new(), 4);
    while at < bytes.len() {
        let len = i32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        let piece = &bytes[at + 8..at + 8 + len];
        let raw =
            std::str::from_utf8(piece).ok().and_then(|text| text.strip_prefix("<0x")?.strip_suffix('>'));
        match raw.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => pieces.push(vec![byte]),
            None => pieces.push(piece.to_vec()),
        }
        at += 8 + len;
    }
    pieces
}
