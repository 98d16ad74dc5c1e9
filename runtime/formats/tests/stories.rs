//! A model trained by others (stories260K of llama2.c) through import and export, against what `run.c` computes with it.
//!
//! Skips where the shared data folder is absent.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use sixfold_formats::{Encoding, FolderOptions, Model, OpenOptions, open, write_folder, write_gguf};
use sixfold_model::{
    Chunk, Decoder, Geometry, ModelConfig, ModelSlice, UnitBuffer, Wanted, greedy, read_sharded_parameters,
};
use sixfold_parallel::score;
use sixfold_tensor::{Device, Stream};
use tokenizers::Tokenizer;

const PLANS: [&str; 5] = ["tp1", "tp2", "tp4", "pp2", "tp2.pp2"];

fn stories() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/serving/stories260k");
    if !folder.exists() {
        eprintln!("skipped: {} is absent", folder.display());
        return None;
    }
    Some(folder)
}

fn opened(path: &Path) -> Model {
    open(path, &OpenOptions::default()).unwrap()
}

/// The model as it comes out of a folder that was imported from a file.
fn imported(file: &Path, folder: &Path) -> Model {
    write_folder(&opened(file), folder, FolderOptions::default(), |_| {}).unwrap();
    opened(folder)
}

fn stream() -> Stream {
    Device::cpu().stream()
}

fn whole(model: &Model, logical: usize) -> (Geometry, UnitBuffer) {
    let text = serde_json::to_vec(model.config()).unwrap();
    let (config, _) = ModelConfig::from_hugging_face(&text).unwrap();
    let geometry = Geometry::new(config, logical).unwrap();
    let whole = ModelSlice::whole(&geometry);
    let parameters = read_sharded_parameters(&geometry, &whole, &model.weight_bytes()).unwrap();
    (geometry, parameters)
}

fn decoder(model: &Model, logical: usize) -> Decoder {
    let (geometry, parameters) = whole(model, logical);
    Decoder::new(stream(), geometry, &parameters)
}

fn tokenizer(model: &Model) -> Tokenizer {
    Tokenizer::from_bytes(model.text("tokenizer.json").unwrap()).unwrap()
}

fn lines(folder: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// The largest difference of a log-probability of a story, and of a logit after it.
fn differences(decoder: &Decoder, folder: &Path) -> (f32, f32) {
    let pool = decoder.kv_pool(8);
    let mut worst = (0.0_f32, 0.0_f32);
    for story in lines(folder, "teacher-forced.jsonl") {
        let tokens: Vec<u32> = numbers(&story["tokens"]).into_iter().map(|token| token as u32).collect();
        let mut sequence = pool.sequence();
        let chunk = Chunk { tokens: &tokens, sequence: &mut sequence, wanted: Wanted::All };
        let logits = decoder.forward(&mut [chunk]).unwrap();
        for (row, expected) in numbers(&story["logprobs"]).into_iter().enumerate() {
            worst.0 = worst.0.max((logits.log_probability(row, tokens[row + 1]) - expected).abs());
        }
        for (ours, expected) in logits.row(tokens.len() - 1).iter().zip(numbers(&story["last_logits"])) {
            worst.1 = worst.1.max((ours - expected).abs());
        }
    }
    worst
}

#[test]
fn a_checkpoint_of_llama2_c_computes_what_it_computed() {
    let Some(folder) = stories() else { return };
    let place = tempfile::tempdir().unwrap();
    let model = imported(&folder.join("checkpoint_legacy.bin"), &place.path().join("legacy"));
    for logical in [1, 4] {
        let (logprob, logit) = differences(&decoder(&model, logical), &folder);
        println!("{logical} logical shards: log-probabilities differ by {logprob:e}, logits by {logit:e}");
        assert!(logprob < 1e-4 && logit < 1e-3, "{logprob} {logit}");
    }
    let newer = imported(&folder.join("checkpoint_v1.bin"), &place.path().join("v1"));
    assert_eq!(newer.config(), model.config());
    let bytes = |model: &Model| model.weight_bytes().concat();
    assert_eq!(bytes(&newer), bytes(&model));
}

#[test]
fn the_greedy_story_is_the_same_to_the_letter() {
    let Some(folder) = stories() else { return };
    let place = tempfile::tempdir().unwrap();
    let model = imported(&folder.join("checkpoint_legacy.bin"), &place.path().join("model"));
    let (decoder, tokenizer) = (decoder(&model, 4), tokenizer(&model));
    let pool = decoder.kv_pool(4);
    let (mut sequence, mut token, mut story) = (pool.sequence(), 1, Vec::new());
    for _ in 0..200 {
        let tokens = [token];
        let chunk = Chunk { tokens: &tokens, sequence: &mut sequence, wanted: Wanted::Last };
        token = greedy(decoder.forward(&mut [chunk]).unwrap().row(0));
        if token == 1 {
            break;
        }
        story.push(token);
    }
    let text = tokenizer.decode(&story, true).unwrap();
    let expected = lines(&folder, "greedy.jsonl")[0]["text"].as_str().unwrap().trim().to_owned();
    assert_eq!(text.trim(), expected);
}

fn teacher_forced(folder: &Path) -> Vec<(Vec<u32>, Vec<f32>)> {
    let story = |story: Value| {
        let tokens = numbers(&story["tokens"]).into_iter().map(|token| token as u32).collect();
        (tokens, numbers(&story["logprobs"]))
    };
    lines(folder, "teacher-forced.jsonl").into_iter().map(story).collect()
}

/// Log-probabilities to the bit of those of one rank, which are llama2.c's but for rounding.
#[test]
fn stories_have_the_same_log_probabilities_under_every_plan() {
    let Some(folder) = stories() else { return };
    let place = tempfile::tempdir().unwrap();
    let model = imported(&folder.join("checkpoint_legacy.bin"), &place.path().join("model"));
    let (geometry, parameters) = whole(&model, 4);
    let decoder = decoder(&model, 4);
    let pool = decoder.kv_pool(8);
    let stories = teacher_forced(&folder);
    let sequences: Vec<&[u32]> = stories.iter().map(|(tokens, _)| tokens.as_slice()).collect();
    for plan in PLANS {
        let scores = score(&stream(), &geometry, &parameters, &plan.parse().unwrap(), &sequences).unwrap();
        let mut worst = 0.0_f32;
        for (score, (tokens, expected)) in scores.iter().zip(&stories) {
            let mut sequence = pool.sequence();
            let chunk = Chunk { tokens, sequence: &mut sequence, wanted: Wanted::All };
            let logits = decoder.forward(&mut [chunk]).unwrap();
            assert_eq!((score.logprobs.len(), expected.len()), (tokens.len() - 1, tokens.len() - 1));
            for (row, (ours, expected)) in score.logprobs.iter().zip(expected).enumerate() {
                let decoded = logits.log_probability(row, tokens[row + 1]);
                assert_eq!(ours.to_bits(), decoded.to_bits(), "{plan}, token {row}");
                worst = worst.max((ours - expected).abs());
            }
            assert_eq!(score.next, greedy(logits.row(tokens.len() - 1)), "{plan}");
        }
        println!("{plan}: log-probabilities differ from llama2.c's by {worst:e}");
        assert!(worst < 1e-4, "{plan}: {worst}");
    }
}

/// Each token from a forward pass over all before it.
#[test]
fn the_greedy_story_is_the_same_to_the_letter_under_every_plan() {
    let Some(folder) = stories() else { return };
    let place = tempfile::tempdir().unwrap();
    let model = imported(&folder.join("checkpoint_legacy.bin"), &place.path().join("model"));
    let ((geometry, parameters), tokenizer) = (whole(&model, 4), tokenizer(&model));
    let expected = lines(&folder, "greedy.jsonl")[0]["text"].as_str().unwrap().trim().to_owned();
    for plan in PLANS {
        let mut story = vec![1];
        for _ in 0..200 {
            let plan = plan.parse().unwrap();
            let next = score(&stream(), &geometry, &parameters, &plan, &[&story]).unwrap()[0].next;
            if next == 1 {
                break;
            }
            story.push(next);
        }
        assert!(story.len() > 64, "{plan}: {} tokens", story.len());
        let text = tokenizer.decode(&story[1..], true).unwrap();
        assert_eq!(text.trim(), expected, "{plan}");
    }
}

#[test]
fn its_tokenizer_cuts_stories_as_run_c_does() {
    let Some(folder) = stories() else { return };
    let file = folder.join("checkpoint_legacy.bin");
    let tokenizer = tokenizer(&opened(&file));
    for story in lines(&folder, "teacher-forced.jsonl") {
        let expected: Vec<u32> = numbers(&story["tokens"]).into_iter().map(|token| token as u32).collect();
        let text = tokenizer.decode(&expected, true).unwrap();
        let ids = tokenizer.encode(text.as_str(), true).unwrap().get_ids().to_vec();
        assert_eq!(ids, expected);
    }
}

#[test]
fn it_is_the_same_model_after_a_way_through_gguf() {
    let Some(folder) = stories() else { return };
    let place = tempfile::tempdir().unwrap();
    let model = imported(&folder.join("checkpoint_legacy.bin"), &place.path().join("model"));
    let text = "Once upon a time, there was a girl named Lily. 你好 🦙\n";
    let ids = |model: &Model| tokenizer(model).encode(text, true).unwrap().get_ids().to_vec();
    for (encoding, most) in [(Encoding::F32, 0.0), (Encoding::F16, 0.02), (Encoding::Q8_0, 0.5)] {
        let file = place.path().join(format!("{}.gguf", encoding.name()));
        write_gguf(&model, &file, encoding, true, |_| {}).unwrap();
        let again = imported(&file, &place.path().join(encoding.name()));
        assert_eq!(ids(&again), ids(&model));
        let worst = differences(&decoder(&again, 4), &folder).0;
        let exact = differences(&decoder(&model, 4), &folder).0;
        println!("{}: log-probabilities differ by {worst:e}", encoding.name());
        assert!(worst <= exact + most, "{} {worst}", encoding.name());
        if encoding == Encoding::F32 {
            assert_eq!(again.weight_bytes(), model.weight_bytes());
        }
    }
}
