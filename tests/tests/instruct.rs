//! A model in a folder learns to answer, in real clusters: `model`, `instruct`, `train`, `evaluate`, `serve`; itself, or in
//! adapters for several tasks.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::path::Path;

use serde_json::{Map, Value, json};
use sixfold_tests::{Running, alone, refusal, result, stage};

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

/// Two task models on one base. The second one's dialogues are made with the first, so that it comes last.
const TASKS: &str = r#"name = "tasks-tiny"

[stage.base]
kind = "model"
path = "FOLDER/model"

[stage.dialogues]
kind = "instruct"
inputs = ["base"]
files = ["FOLDER/dialogues.jsonl"]
held_out = 0.2

[stage.first]
kind = "train"
inputs = ["dialogues", "base"]
lora_rank = 4
steps = 12
batch_sequences = 8
micro_batch_sequences = 1
learning_rate = 3e-2
warmup_steps = 2
evaluate_every_steps = 4

[stage.more]
kind = "instruct"
inputs = ["first"]
files = ["FOLDER/more.jsonl"]
held_out = 0.2

[stage.second]
kind = "train"
inputs = ["more", "base"]
lora_rank = 2
lora_projections = ["q_proj", "v_proj"]
steps = 4
batch_sequences = 8
micro_batch_sequences = 1
learning_rate = 3e-2
warmup_steps = 2

[stage.evaluate-base]
kind = "evaluate"
inputs = ["base", "dialogues"]

[stage.evaluate-first]
kind = "evaluate"
inputs = ["first", "dialogues"]

[stage.evaluate-second]
kind = "evaluate"
inputs = ["second", "more"]

[stage.serve]
kind = "serve"
inputs = ["second"]
replicas = 3
kv_cache_mib = 8
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

/// The `model` artefact of a stage.
fn model<'a>(artifacts: &'a Value, stage: &str) -> &'a Value {
    let mut made = artifacts.as_array().unwrap().iter();
    let model = made.find(|one| one["stage"] == stage && one["kind"] == "model");
    model.unwrap_or_else(|| panic!("{stage} made no model: {artifacts}"))
}

#[test]
fn two_task_models_share_a_base_that_a_node_without_it_gets_for_serving() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    write_model(&folder.path().join("model"));
    write_dialogues(folder.path());
    let more = |number: usize| json!({"instruction": format!("Is {number} even?"), "output": if number.is_multiple_of(2) { "yes" } else { "no" }});
    let lines: Vec<String> = (0..24).map(|number| more(number).to_string()).collect();
    std::fs::write(path("more.jsonl"), lines.join("\n")).unwrap();
    std::fs::write(path("job.toml"), TASKS.replace("FOLDER", folder.path().to_str().unwrap())).unwrap();
    let job = path("job.toml");
    let mut run = Running::start(&["run", &job, "--local", "3", "--cores", "8", "--keep"]);
    let job = run.wait_for("serving", |job| job["state"] == "serving");
    let perplexity = |name: &str| stage(&job, name)["metrics"]["perplexity"].as_f64().unwrap();
    assert!(perplexity("evaluate-first") < perplexity("evaluate-base") * 0.9, "{job}");
    assert!(perplexity("evaluate-second") > 1.0);

    // The base is there once, and both need it.
    let home = run.dir().join("coordinator");
    let home = ["--home", home.to_str().unwrap(), "--json"];
    let artifacts = result(&[&["artifacts"], home.as_slice()].concat());
    let base = model(&artifacts, "base");
    for name in ["first", "second"] {
        let task = model(&artifacts, name);
        assert_eq!(task["needs"], json!([base["id"]]), "{name}");
        let to = path(name);
        let fetch = ["artifacts", "--fetch", task["id"].as_str().unwrap(), "--to", &to];
        assert_eq!(result(&[&fetch, home.as_slice()].concat())["needs"], json!([base["id"]]), "{name}");
        assert!(folder.path().join(name).join("adapter_model.safetensors").exists());
        assert!(!folder.path().join(name).join("model.safetensors").exists());
    }
    assert_eq!(base["needs"], json!([]));

    // A replica on a node that had nothing to do with it before.
    let placements = result(&[&["job", "1", "--why"], home.as_slice()].concat());
    let nodes_of = |serving: bool| -> Vec<&str> {
        let placed = placements.as_array().unwrap().iter().filter(|one| (one["stage"] == "serve") == serving);
        placed.flat_map(|one| one["nodes"].as_array().unwrap()).map(|node| node.as_str().unwrap()).collect()
    };
    let holders = base["nodes"].as_array().unwrap();
    let (served, others) = (nodes_of(true), nodes_of(false));
    let is_new = |node: &&&str| !others.contains(*node) && !holders.contains(&json!(**node));
    let new = served.iter().find(is_new).unwrap_or_else(|| panic!("no node was left out: {placements}"));
    let manifest = format!("{new}/store/manifests/{}.json", base["id"].as_str().unwrap());
    assert!(run.dir().join(&manifest).exists(), "{manifest}");
    let ask = ["query", "Is 3 even?", "--max-tokens", "8"];
    let answers: Vec<Value> =
        (0..9).map(|_| result(&[&ask, home.as_slice()].concat())["answer"].clone()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    run.stop();

    // What was fetched is merged, beside the base, by one command, and is refused without it.
    let merge =
        ["model", "merge", &path("model"), "--adapter", &path("first"), "--to", &path("merged"), "--json"];
    result(&merge);
    let logprobs = |name: &str| result(&["model", "logprobs", &path(name), "--ids", "5,50,100", "--json"]);
    assert_ne!(logprobs("merged")["logprobs"], logprobs("model")["logprobs"]);
    let alone = refusal(&["model", "logprobs", &path("first"), "--ids", "5,50,100"]);
    assert!(alone.contains("model merge"), "{alone}");
}
