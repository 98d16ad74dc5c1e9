//! Which options a training takes, and which it refuses.

use super::*;

fn refused(edit: impl Fn(&mut TrainOptions)) -> String {
    let mut options = TrainOptions::default();
    edit(&mut options);
    options.validate().unwrap_err().to_string()
}

/// A model whose heads are wider than `hidden_size` divided by them.
fn base() -> ModelConfig {
    let config = TrainOptions { layers: 3, ..TrainOptions::default() }.geometry(90, None).unwrap().config;
    ModelConfig { head_dim: 32, rms_norm_eps: 1e-6, ..config }
}

#[test]
fn a_base_fixes_the_shape_and_only_the_shape() {
    let config = serde_json::to_vec(&base().to_hugging_face(4)).unwrap();
    let mut options = Value::Object(crate::options_of_base(&config).unwrap());
    options["dtype"] = json!("bf16");
    let options: TrainOptions = serde_json::from_value(options).unwrap();
    options.validate().unwrap();
    let expected = ModelConfig { dtype: Dtype::Bf16, ..base() };
    assert_eq!(options.geometry(4000, Some(3)).unwrap().config, expected);
    let other = TrainOptions { layers: 4, ..options.clone() }.validate().unwrap_err().to_string();
    assert_eq!(other, "`layers` is 4; it must be 3, as in the model that training starts from");
    let trained = serde_json::to_value(&options).unwrap();
    let next = crate::options_of_trained_base(trained.as_object().unwrap());
    let next: TrainOptions = serde_json::from_value(Value::Object(next)).unwrap();
    assert_eq!(next, options);
}

#[test]
fn defaults_are_valid_and_round_trip() {
    let options = TrainOptions::default();
    options.validate().unwrap();
    let text = serde_json::to_string(&options).unwrap();
    assert_eq!(serde_json::from_str::<TrainOptions>(&text).unwrap(), options);
    assert_eq!(serde_json::from_str::<TrainOptions>("{}").unwrap(), options);
    assert!(serde_json::from_str::<TrainOptions>(r#"{"layer": 3}"#).is_err());
}

#[test]
fn names_the_option_that_does_not_fit() {
    assert_eq!(refused(|o| o.heads = 7), "`heads` is 7; it must be a divisor of hidden_size, 128");
    assert_eq!(refused(|o| o.heads = 0), "`heads` is 0; it must be at least 1");
    assert_eq!(refused(|o| o.dropout = 1.0), "`dropout` is 1; it must be at least 0 and below 1");
    assert!(refused(|o| o.learning_rate = f32::NAN).contains("`learning_rate` is NaN"));
    assert!(refused(|o| o.min_learning_rate = 1.0).contains("`min_learning_rate`"));
    assert!(refused(|o| o.sequence_length = 129).contains("at most context_length, 128"));
    assert!(refused(|o| o.micro_batch_sequences = 3).contains("`micro_batch_sequences` is 3"));
    assert!(refused(|o| o.batch_sequences = 0).contains("`batch_sequences`"));
    assert!(refused(|o| o.kv_heads = 3).contains("key-value heads"));
    assert!(refused(|o| o.tensor_parallel = 8).contains("only 4 logical tensor shards"));
    assert!(refused(|o| o.tensor_shards = 3).contains("power of two"));
    assert!(refused(|o| o.pipeline_parallel = 5).contains("only 4 layers"));
    assert!(refused(|o| o.virtual_stages = 2).contains("with one pipeline stage it must be 1"));
    assert!(refused(|o| (o.pipeline_parallel, o.virtual_stages) = (2, 3)).contains("there are 4"));
    assert!(refused(|o| (o.pipeline_parallel, o.stage_layers) = (2, vec![4])).contains("has 1 numbers"));
    assert!(refused(|o| (o.pipeline_parallel, o.stage_layers) = (2, vec![1, 2])).contains("has 3 layers"));
    for (name, edit) in [
        ("steps", (|o| o.steps = 0) as fn(&mut TrainOptions)),
        ("checkpoint_every_steps", |o| o.checkpoint_every_steps = 0),
        ("threads", |o| o.threads = 0),
        ("peak_gflops", |o| o.peak_gflops = -1.0),
        ("zero_stage", |o| o.zero_stage = 2),
        ("evaluate_tokens", |o| o.evaluate_tokens = 0),
        ("early_stop_evaluations", |o| o.early_stop_evaluations = 2),
        ("layers", |o| o.layers = 0),
    ] {
        assert!(!refused(edit).is_empty(), "{name}");
    }
}

#[test]
fn a_layout_is_left_where_a_smaller_plan_has_no_use_for_it() {
    let wanted = TrainOptions {
        pipeline_parallel: 2,
        virtual_stages: 2,
        stage_layers: vec![1, 1, 1, 1],
        ..TrainOptions::default()
    };
    assert_eq!(wanted.clone().under_smaller_plan(), wanted);
    let smaller = TrainOptions { pipeline_parallel: 1, ..wanted }.under_smaller_plan();
    assert_eq!((smaller.virtual_stages, smaller.stage_layers.len()), (1, 0));
    smaller.validate().unwrap();
}

#[test]
fn plan_threads_and_checkpoints_are_not_part_of_the_job() {
    let options = TrainOptions {
        tensor_parallel: 2,
        pipeline_parallel: 2,
        virtual_stages: 2,
        stage_layers: vec![1, 1, 1, 1],
        threads: 3,
        zero_stage: 0,
        sequence_parallel: !TrainOptions::default().sequence_parallel,
        commit_every_steps: 0,
        verify_plan: false,
        ..TrainOptions::default()
    };
    assert_eq!(options.without_plan(), TrainOptions::default());
    assert_ne!(TrainOptions { seed: 2, ..options }.without_plan(), TrainOptions::default());
}

/// Each option in turn gets another value.
#[test]
fn the_options_that_may_change_are_those_that_are_not_part_of_the_job() {
    let defaults = serde_json::to_value(TrainOptions::default()).unwrap();
    for (name, value) in defaults.as_object().unwrap() {
        let other = match value {
            serde_json::Value::Bool(flag) => (!flag).into(),
            serde_json::Value::String(_) => match name.as_str() {
                "recompute" => "full".into(),
                "dtype" | "base_format" => "bf16".into(),
                _ => "gpt2".into(),
            },
            serde_json::Value::Array(_) if name == "lora_projections" => json!(["q_proj"]),
            serde_json::Value::Array(_) => vec![1].into(),
            serde_json::Value::Null => json!(base()),
            number => number.as_u64().map_or(0.25.into(), |number| (number + 1).into()),
        };
        let mut changed = defaults.clone();
        changed[name] = other;
        let changed: TrainOptions = serde_json::from_value(changed).unwrap();
        let same = changed.without_plan() == TrainOptions::default();
        assert_eq!(same, TrainOptions::FREE.contains(&name.as_str()), "{name}");
    }
    assert!(TrainOptions::FREE.iter().all(|name| defaults.get(name).is_some()));
}

#[test]
fn zeros_are_filled_in() {
    let options = TrainOptions { batch_sequences: 24, ..TrainOptions::default() };
    assert_eq!((options.micro_batch(), options.sequence(), options.batch_tokens()), (3, 128, 24 * 128));
    assert_eq!(options.geometry(300, None).unwrap().config.intermediate_size, 344);
    let gpt2: TrainOptions = serde_json::from_str(r#"{"family": "gpt2"}"#).unwrap();
    gpt2.validate().unwrap();
    let config = gpt2.geometry(300, None).unwrap().config;
    assert_eq!((config.intermediate_size, config.num_key_value_heads), (512, 8));
    for family in ["qwen2", "qwen3"] {
        let text = format!(r#"{{"family": "{family}"}}"#);
        let config = serde_json::from_str::<TrainOptions>(&text).unwrap().geometry(300, None).unwrap().config;
        assert_eq!((config.intermediate_size, config.num_key_value_heads), (344, 4));
        assert_eq!(config.to_hugging_face(4)["model_type"], family);
    }
}
