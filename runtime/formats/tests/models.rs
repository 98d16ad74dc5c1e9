//! Models of every format, opened, written and opened again.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::path::{Path, PathBuf};

use sixfold_formats::{
    Encoding, FolderOptions, FormatError, Model, OpenOptions, open, write_folder, write_gguf,
};
use tokenizers::Tokenizer;

const MODELS: [&str; 4] = ["llama", "qwen2", "qwen3", "gpt2"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.gguf"))
}

fn opened(path: &Path) -> Model {
    open(path, &OpenOptions::default()).unwrap()
}

/// Every tensor's name, shape and numbers.
fn content(model: &Model) -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let numbers = |tensor| {
        let rows = model.rows(tensor);
        let mut row = vec![0.0; rows.columns()];
        let read = |number| {
            rows.read(number, &mut row);
            row.iter().map(|number| number.to_bits()).collect::<Vec<_>>()
        };
        (0..rows.len()).flat_map(read).collect()
    };
    let tensors = model.tensors().iter();
    tensors.map(|tensor| (tensor.name.clone(), tensor.shape.clone(), numbers(tensor))).collect()
}

/// As golden/make.py numbers them.
fn number(tensor: usize, place: usize) -> u32 {
    let number = (place * 31 + tensor * 17) % 251;
    ((number as f32 - 125.0) / 64.0).to_bits()
}

#[test]
fn numbers_of_gguf_are_those_of_the_folder_it_was_made_from() {
    for name in MODELS {
        let model = opened(&golden(name));
        assert_eq!(model.config()["model_type"], name);
        assert_eq!(model.config()["tie_word_embeddings"], name != "llama");
        let content = content(&model);
        assert!(content.len() > 20);
        for (tensor, (name, shape, numbers)) in content.iter().enumerate() {
            assert_eq!(numbers.len(), shape.iter().product::<usize>(), "{name}");
            let right = numbers.iter().enumerate().all(|(place, bits)| *bits == number(tensor, place));
            assert!(right, "{name} {shape:?}");
        }
    }
}

#[test]
fn metadata_becomes_config_json() {
    let llama = opened(&golden("llama"));
    let config = llama.config();
    assert_eq!(config["rope_scaling"], serde_json::json!({"rope_type": "linear", "factor": 2.0}));
    assert_eq!((&config["rms_norm_eps"], &config["rope_theta"]), (&1e-5.into(), &10_000.0.into()));
    assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&1.into(), &2.into()));
    assert_eq!((&config["vocab_size"], &config["num_key_value_heads"]), (&48.into(), &2.into()));
    let qwen3 = opened(&golden("qwen3"));
    assert_eq!((&qwen3.config()["head_dim"], &qwen3.config()["attention_bias"]), (&4.into(), &false.into()));
    assert!(qwen3.text("tokenizer.json").is_none());
    let gpt2 = opened(&golden("gpt2"));
    assert_eq!((&gpt2.config()["n_inner"], &gpt2.config()["n_positions"]), (&24.into(), &32.into()));
    assert_eq!(gpt2.config()["eos_token_id"], serde_json::json!([0, 1]));
}

#[test]
fn tokenizers_of_gguf_cut_texts_as_llama_cpp_does() {
    let tokenizer =
        |name: &str| Tokenizer::from_bytes(opened(&golden(name)).text("tokenizer.json").unwrap()).unwrap();
    let spm = tokenizer("llama");
    let tokens =
        |tokenizer: &Tokenizer, text: &str| tokenizer.encode(text, true).unwrap().get_tokens().to_vec();
    assert_eq!(tokens(&spm, "hello abc"), ["<s>", "▁hello", "▁ab", "c"]);
    assert_eq!(tokens(&spm, "你"), ["<s>", "▁", "<0xE4>", "<0xBD>", "<0xA0>"]);
    let ids = spm.encode("ab 你hello", true).unwrap().get_ids().to_vec();
    assert_eq!(spm.decode(&ids, true).unwrap(), "ab 你hello");
    let bpe = tokenizer("gpt2");
    assert_eq!(tokens(&bpe, "abc AB<|user|>ab"), ["abc", "Ġ", "A", "B", "<|user|>", "ab"]);
}

#[test]
fn folders_and_gguf_files_hold_the_same_model() {
    let place = tempfile::tempdir().unwrap();
    for name in MODELS {
        let original = opened(&golden(name));
        let folder = place.path().join(name);
        let f32s = FolderOptions { encoding: Some(Encoding::F32), shard_bytes: None };
        write_folder(&original, &folder, f32s, |_| {}).unwrap();
        let folder = opened(&folder);
        assert_eq!(content(&folder), content(&original));
        let file = place.path().join(format!("{name}.gguf"));
        write_gguf(&folder, &file, Encoding::F32, true, |_| {}).unwrap();
        let file = opened(&file);
        assert_eq!(content(&file), content(&original));
        let again = place.path().join(format!("{name}-again"));
        write_folder(&file, &again, f32s, |_| {}).unwrap();
        let again = opened(&again);
        assert_eq!((content(&again), again.config()), (content(&original), folder.config()));
        // A tokenizer comes back as it was; the scores behind it may be others.
        let of = |model: &Model, name: &str| {
            model.text(name).map(|text| String::from_utf8(text.to_vec()).unwrap())
        };
        for text in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            assert_eq!(of(&again, text), of(&original, text), "{name} {text}");
        }
    }
}

#[test]
fn a_tokenizer_that_is_not_wanted_is_not_looked_at() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("model");
    write_folder(&opened(&golden("llama")), &folder, FolderOptions::default(), |_| {}).unwrap();
    std::fs::write(folder.join("tokenizer.json"), b"{}").unwrap();
    let error = open(&folder, &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    let without = OpenOptions { without_tokenizer: true, ..OpenOptions::default() };
    assert_eq!(open(&folder, &without).unwrap().text("tokenizer.json"), None);
    let file = place.path().join("model.gguf");
    write_gguf(&open(&golden("llama"), &without).unwrap(), &file, Encoding::F16, true, |_| {}).unwrap();
    assert_eq!(opened(&file).text("tokenizer.json"), None);
}

#[test]
fn what_gguf_has_no_word_for_is_not_written() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("model");
    write_folder(&opened(&golden("qwen2")), &folder, FolderOptions::default(), |_| {}).unwrap();
    let file = folder.join("config.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for (field, value) in [("hidden_act", "relu".into()), ("use_sliding_window", true.into())] {
        let mut config = config.clone();
        config[field] = value;
        std::fs::write(&file, config.to_string()).unwrap();
        let target = place.path().join("model.gguf");
        let error = write_gguf(&opened(&folder), &target, Encoding::F16, true, |_| {}).unwrap_err();
        assert!(error.to_string().contains(field) && !target.exists(), "{error}");
    }
}

#[test]
fn shards_hold_what_one_file_holds() {
    let place = tempfile::tempdir().unwrap();
    let original = opened(&golden("qwen2"));
    let target = place.path().join("shards");
    let options = FolderOptions { encoding: None, shard_bytes: Some(3000) };
    let mut written = 0;
    write_folder(&original, &target, options, |bytes| written += bytes).unwrap();
    let shards = opened(&target);
    assert!(shards.weight_files().count() > 3);
    assert_eq!(content(&shards), content(&original));
    assert_eq!(written, shards.tensors().iter().map(|tensor| tensor.stored_bytes() as u64).sum::<u64>());
    // F16 stays F16, and vectors F32.
    assert_eq!(shards.tensors()[0].encoding, Encoding::F16);
    assert_eq!(shards.tensors()[1].encoding, Encoding::F32);
}

#[test]
fn quantised_files_hold_what_was_rounded() {
    let place = tempfile::tempdir().unwrap();
    let original = opened(&golden("gpt2"));
    for encoding in Encoding::WRITTEN {
        let path = place.path().join(encoding.name());
        write_gguf(&original, &path, encoding, true, |_| {}).unwrap();
        let model = opened(&path);
        for (tensor, (_, shape, numbers)) in model.tensors().iter().zip(content(&model)) {
            // Rows of 16 and 24 numbers are no whole blocks.
            let expected = match shape.len() {
                1 => Encoding::F32,
                _ if encoding.is_plain() => encoding,
                _ => Encoding::F16,
            };
            assert_eq!(tensor.encoding, expected, "{}", tensor.name);
            assert!(!numbers.is_empty());
        }
    }
}

#[test]
fn nothing_is_overwritten_and_nothing_half_is_left() {
    let place = tempfile::tempdir().unwrap();
    let model = opened(&golden("qwen3"));
    let target = place.path().join("model");
    std::fs::create_dir(&target).unwrap();
    write_folder(&model, &target, FolderOptions::default(), |_| {}).unwrap();
    let twice = write_folder(&model, &target, FolderOptions::default(), |_| {});
    assert!(matches!(twice, Err(FormatError::Exists { .. })));
    let file = target.join("config.json");
    assert!(matches!(
        write_gguf(&model, &file, Encoding::F32, true, |_| {}),
        Err(FormatError::Exists { .. })
    ));
    let absent = place.path().join("no/such/folder/model.gguf");
    assert!(matches!(write_gguf(&model, &absent, Encoding::F32, true, |_| {}), Err(FormatError::Io { .. })));
    let left: Vec<_> =
        std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["model"]);
}

#[test]
fn what_is_no_model_is_refused_with_what_would_be_one() {
    let place = tempfile::tempdir().unwrap();
    let refused = |path: &Path| open(path, &OpenOptions::default()).unwrap_err().to_string();
    assert!(refused(place.path()).contains("config.json"));
    let file = place.path().join("file.bin");
    std::fs::write(&file, b"some bytes that are longer than a header of 28 bytes").unwrap();
    assert!(refused(&file).contains(".gguf"));
    std::fs::write(place.path().join("config.json"), br#"{"model_type": "llama"}"#).unwrap();
    std::fs::write(place.path().join("pytorch_model.bin"), b"").unwrap();
    assert!(refused(place.path()).contains("pickled"), "{}", refused(place.path()));
}
