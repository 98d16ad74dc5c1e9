//! A model in a folder learns to answer, in real clusters: `model`, `instruct`, `train`, `evaluate`.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::path::Path;

use serde_json::{Map, Value, json};
use sixfold_tests::{alone, refusal, result, stage};

const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
    + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
const HIDDEN: usize = 16;
const FEED_FORWARD: usize = 32;
const KEYS: usize = 8;
const LAYERS: usize = 2;

const JOB: &str = r#"name = "instruct-tiny"

[stage.base]
kind = "model"
path = "FOLDER/model"

[stage.dialogues]
kind = "instruct"
inputs = ["base"]
files = ["FOLDER/dialogues.jsonl", "FOLDER/more.json"]
held_out = 0.2

[stage.train]
kind = "train"
inputs = ["dialogues", "base"]
steps = 12
batch_sequences = 8
micro_batch_sequences = 1
learning_rate = 1e-2
warmup_steps = 2
evaluate_every_steps = 4

[stage.evaluate]
kind = "evaluate"
inputs = ["train", "dialogues"]
"#;

/// A decoder of the Llama family with random weights and a token a byte.
fn write_model(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let write = |name: &str, content: &[u8]| std::fs::write(folder.join(name), content).unwrap();
    let vocabulary = SPECIAL_TOKENS.len() + 256;
    let config = json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
        "tie_word_embeddings": true, "eos_token_id": 0,
    });
    write("config.json", config.to_string().as_bytes());
    write("tokenizer.json", tokenizer().to_string().as_bytes());
    let about = json!({"chat_template": TEMPLATE, "eos_token": SPECIAL_TOKENS[0]});
    write("tokenizer_config.json", about.to_string().as_bytes());
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KEYS, HIDDEN]),
            ("self_attn.v_proj", vec![KEYS, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![FEED_FORWARD, HIDDEN]),
            ("mlp.up_proj", vec![FEED_FORWARD, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FEED_FORWARD]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    write("model.safetensors", &safetensors(&tensors));
}

/// Norms of ones, and numbers that look random.
fn safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut data, mut state) = (Map::new(), Vec::new(), 1_u32);
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let random = f64::from(state >> 8) / f64::from(1 << 24) - 0.5;
            let value = if shape.len() == 1 { 1.0 } else { random as f32 * 0.5 };
            data.extend_from_slice(&value.to_le_bytes());
        }
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// Byte-level BPE without merges.
fn tokenizer() -> Value {
    // As GPT-2 writes bytes: printable ones as they are, the others from 256 on.
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let mut vocabulary = Map::new();
    for (id, token) in SPECIAL_TOKENS.iter().enumerate() {
        vocabulary.insert((*token).to_owned(), id.into());
    }
    for byte in 0..256_u32 {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        let id = SPECIAL_TOKENS.len() + byte as usize;
        vocabulary.insert(char::from_u32(code).unwrap().to_string(), id.into());
    }
    let added: Vec<Value> = (0..)
        .zip(SPECIAL_TOKENS)
        .map(|(id, content): (u32, _)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": bytes, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    })
}

/// Dialogues in all forms, in English and Chinese, short and long.
fn write_dialogues(folder: &Path) {
    let mut lines: Vec<String> = (0..24)
        .map(|number| match number % 3 {
            0 => json!({"instruction": format!("Double {number}."), "output": format!("{}", 2 * number)}),
            1 => json!({"conversations": [{"from": "human", "value": format!("{number}加一？")},
                {"from": "gpt", "value": format!("{}。", number + 1)},
                {"from": "human", "value": "再加一？"}, {"from": "gpt", "value": format!("{}。", number + 2)}]}),
            _ => json!({"messages": [{"role": "system", "content": "Be brief."},
                {"role": "user", "content": format!("Say a {number} times.")},
                {"role": "assistant", "content": "a".repeat(number)}]}),
        })
        .map(|row| row.to_string())
        .collect();
    lines.push("broken".to_owned());
    std::fs::write(folder.join("dialogues.jsonl"), lines.join("\n")).unwrap();
    let more = json!([{"instruction": "问", "input": "好", "output": "好"}, {"instruction": "no answer", "output": ""}]);
    std::fs::write(folder.join("more.json"), more.to_string()).unwrap();
}

#[test]
fn a_model_in_a_folder_learns_to_answer_with_the_same_bits_on_any_plan() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_model(&folder.path().join("model"));
    write_dialogues(folder.path());
    let path = folder.path().join("job.toml");
    std::fs::write(&path, JOB.replace("FOLDER", folder.path().to_str().unwrap())).unwrap();
    let path = path.to_str().unwrap();
    let run = |(data, tensor, pipeline): (usize, usize, usize)| {
        let degree = |name: &str, degree: usize| format!("train.{name}_parallel={degree}");
        let (data, tensor, pipeline) =
            (degree("data", data), degree("tensor", tensor), degree("pipeline", pipeline));
        let set = ["--set", &data, "--set", &tensor, "--set", &pipeline];
        result(&[&["run", path, "--json", "--local", "2"], set.as_slice()].concat())
    };
    let serial = run((1, 1, 1));
    let figure = |job: &Value, name: &str, figure: &str| stage(job, name)["metrics"][figure].clone();
    let dialogues = |name: &str| figure(&serial, "dialogues", name).as_u64();
    assert_eq!(
        (dialogues("rows"), dialogues("documents"), dialogues("rows_left_out")),
        (Some(27), Some(25), Some(2))
    );
    let loss = |name: &str| figure(&serial, "train", name).as_f64().unwrap();
    assert!(loss("held_out_loss") < loss("held_out_loss_first") - 0.5, "{}", stage(&serial, "train"));
    assert!(figure(&serial, "evaluate", "perplexity").as_f64().unwrap() > 1.0);
    for plan in [(2, 1, 1), (1, 2, 2)] {
        let job = run(plan);
        for name in ["loss_bits_blake3", "weights_blake3", "held_out_loss"] {
            assert_eq!(figure(&job, "train", name), figure(&serial, "train", name), "{plan:?}: {name}");
        }
    }
    let other = refusal(&["run", path, "--local", "1", "--set", "train.layers=3"]);
    assert!(other.contains("`layers` is 3; it must be 2"), "{other}");
}
