//! Job files: good ones, and what the bad ones are answered.

use sixfold_coordinator::job::Fan;

use super::compile;

const GOOD: &str = r#"name = "small"

[stage.data]
kind = "import"
text = "/books/book.txt"

[stage.tokens]
kind = "tokenize"
inputs = ["data"]

[stage.train]
kind = "train"
inputs = ["tokens"]
steps = 7
"#;

fn refused(source: &str, settings: &[&str]) -> String {
    let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
    compile("job.toml", source, &settings).unwrap_err().to_string()
}

#[test]
fn a_job_file_becomes_stages_with_all_options() {
    let spec = compile("job.toml", GOOD, &["train.tensor_parallel=2".to_owned()]).unwrap();
    let names: Vec<&str> = spec.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["data", "tokens", "train"], "in the order of the file");
    assert_eq!(spec.stages[2].inputs, [1]);
    let options: serde_json::Value = serde_json::from_str(&spec.stages[2].options_json).unwrap();
    assert_eq!((options["steps"].as_u64(), options["tensor_parallel"].as_u64()), (Some(7), Some(2)));
    assert!(options["learning_rate"].is_number(), "defaults are written out");
    assert!(matches!(&spec.stages[2].phases[0].fan, Fan::Gang(plan) if plan.world_size() == 2));
}

#[test]
fn every_option_of_every_kind_is_explained() {
    for kind in super::kinds::all() {
        assert!(!kind.options.is_empty(), "{}", kind.name);
        for (option, about) in &kind.options {
            assert!(about.len() > 10, "{}.{option} says nothing of itself: {about:?}", kind.name);
        }
    }
}

/// Ways to get a job file wrong: each names the place and the way out.
#[test]
fn broken_job_files_point_at_the_line_and_name_the_way_out() {
    let with = |from: &str, to: &str| GOOD.replace(from, to);
    let cases: [(String, &[&str]); 21] = [
        (with("name = \"small\"", "name = small"), &["job.toml", "line 1"]),
        (with("name = \"small\"", ""), &["needs a name"]),
        ("name = \"x\"\n".into(), &["at least one stage"]),
        (
            with("[stage.data]", "[stages.data]"),
            &["job.toml:3", "unknown key `stages`", "did you mean `stage`?"],
        ),
        (with("[stage.data]", "[stage.\"da ta\"]"), &["letters, digits"]),
        (
            with("kind = \"train\"", "kind = \"trian\""),
            &["job.toml:12", "no stage kind", "did you mean `train`?"],
        ),
        (with("kind = \"train\"", "kind = 3"), &["job.toml:12", "`kind` is a text"]),
        (with("kind = \"train\"\n", ""), &["job.toml:11", "needs a kind"]),
        (with("steps = 7", "stepps = 7"), &["job.toml:14", "no option `stepps`", "did you mean `steps`?"]),
        (with("steps = 7", "steps = \"many\""), &["job.toml:14", "option `steps`"]),
        (with("steps = 7", "steps = -1"), &["job.toml:14", "option `steps`"]),
        (with("steps = 7", "steps = 0"), &["job.toml:14", "`steps` is 0"]),
        (with("steps = 7", "steps = 1\nsteps = 2"), &["job.toml", "duplicate key"]),
        (with("steps = 7", "heads = 7"), &["job.toml:14", "`heads` is 7", "divisor of hidden_size"]),
        (with("steps = 7", "tensor_parallel = 3"), &["job.toml:14", "power of two"]),
        (with("steps = 7", "seed = 2024-01-01"), &["job.toml:14", "no option takes a date"]),
        (with("inputs = [\"tokens\"]", "inputs = [\"token\"]"), &["job.toml:13", "did you mean `tokens`?"]),
        (with("inputs = [\"tokens\"]", "inputs = \"tokens\""), &["job.toml:13", "list of stage names"]),
        (
            with("inputs = [\"tokens\"]", "inputs = [\"data\"]"),
            &["job.toml:13", "takes tokenize", "`data` is a `import`"],
        ),
        (with("text = \"/books/book.txt\"\n", ""), &["job.toml:3", "one of `text` and `jsonl`"]),
        (
            format!("{GOOD}[stage.report]\nkind = \"evaluate\"\ninputs = [\"train\"]\n"),
            &["job.toml:17", "needs `inputs`", "kind tokenize"],
        ),
    ];
    for (source, words) in cases {
        let error = refused(&source, &[]);
        for word in words {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    }
}

#[test]
fn settings_are_checked_as_the_file_is() {
    for (setting, words) in [
        ("train.stepps=3", "did you mean `steps`?"),
        ("trian.steps=3", "did you mean `train`?"),
        ("train.steps", "expected KEY=VALUE"),
        ("steps=3", "expected STAGE.KEY=VALUE"),
        ("train.steps=x", "option `steps`"),
    ] {
        let error = refused(GOOD, &[setting]);
        assert!(error.contains(words) && error.contains("--set"), "{error}");
    }
}

#[test]
fn the_ready_jobs_are_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/jobs");
    let (base, mut count) = (tempfile::tempdir().unwrap(), 0);
    let config = r#"{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "rope_theta": 100000, "rms_norm_eps": 1e-05, "tie_word_embeddings": true}"#;
    std::fs::write(base.path().join("config.json"), config).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let source = std::fs::read_to_string(&path).unwrap();
        // Of a model that lies elsewhere, here is the shape.
        let base = source.contains("[stage.base]").then(|| format!("base.path={}", base.path().display()));
        let settings: Vec<String> = base.into_iter().collect();
        if let Err(error) = compile(&path.display().to_string(), &source, &settings) {
            panic!("{error}");
        }
        count += 1;
    }
    assert!(count >= 2, "config/jobs is empty");
}

/// A job whose training starts from a model in a folder, with more options of that training.
fn continued(folder: &std::path::Path, more: &str) -> String {
    format!(
        "name = \"continued\"\n[stage.base]\nkind = \"model\"\npath = \"{}\"\n\n[stage.data]\nkind = \"instruct\"\n\
         inputs = [\"base\"]\nfiles = [\"/data/dialogues.jsonl\"]\n\n[stage.second]\nkind = \"train\"\n\
         inputs = [\"data\", \"first\"]\nsteps = 3\n\n[stage.first]\nkind = \"train\"\ninputs = [\"data\", \"base\"]\n{more}\n",
        folder.display()
    )
}

#[test]
fn a_training_takes_the_shape_of_the_model_that_it_starts_from() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"model_type": "llama", "vocab_size": 90, "hidden_size": 48, "intermediate_size": 100,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 64, "rope_theta": 50000.0, "tie_word_embeddings": true}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let source = continued(folder.path(), "pipeline_parallel = 3");
    let spec = compile("job.toml", &source, &[]).unwrap();
    let options = |name: &str| -> serde_json::Value {
        let stage = spec.stages.iter().find(|stage| stage.name == name).unwrap();
        serde_json::from_str(&stage.options_json).unwrap()
    };
    for name in ["first", "second"] {
        let options = options(name);
        assert_eq!((&options["layers"], &options["kv_heads"]), (&3.into(), &2.into()), "{name}");
        assert_eq!(options["base"]["head_dim"], 16, "{name}");
        assert_eq!(options["rope_theta"], 50_000.0, "{name}");
    }
    assert_eq!(options("first")["pipeline_parallel"], 3);
    assert_eq!(options("second")["pipeline_parallel"], 1, "what is no part of the shape is not taken over");

    let other = refused(&source, &["first.layers=4"]);
    assert!(other.contains("`layers` is 4; it must be 3, as in the model"), "{other}");
    let other = refused(&source, &["second.context_length=128"]);
    assert!(other.contains("`context_length` is 128; it must be 64"), "{other}");
    let plan = refused(&source, &["first.pipeline_parallel=4"]);
    assert!(plan.contains("only 3 layers"), "{plan}");
    let missing = refused(&continued(std::path::Path::new("/no/such/folder"), ""), &[]);
    assert!(
        missing.contains("/no/such/folder/config.json") && missing.contains("have its config.json"),
        "{missing}"
    );
    let no_tokens = refused(&source.replace("[\"data\", \"base\"]", "[\"base\"]"), &[]);
    assert!(
        no_tokens.contains("needs `inputs` that name a stage of kind tokenize or instruct"),
        "{no_tokens}"
    );
}
