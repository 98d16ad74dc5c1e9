//! Adapters in PEFT's files: what is written and read comes to the same weights, whatever the file has as one.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, View, serialize};
use serde_json::{Value, json};
use sixfold_model::{
    Family, Geometry, Lora, LoraError, ModelConfig, ModelSlice, PeftAdapter, Projection, UnitBuffer,
    WeightsError, initialize, merge_adapters, read_parameters, write_parameters,
};

const SHARDS: usize = 4;
const WIDTH: usize = 16;
const INNER: usize = 18;

fn config(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        vocab_size: 23,
        hidden_size: WIDTH,
        intermediate_size: INNER,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: if family == Family::Gpt2 { 4 } else { 2 },
        head_dim: 4,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 100.0,
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: false,
        tie_word_embeddings: true,
        dtype: Default::default(),
        bos_token_id: None,
        eos_token_id: None,
    }
}

fn base(family: Family) -> (Geometry, UnitBuffer) {
    let geometry = Geometry::new(config(family), SHARDS).unwrap();
    let weights = initialize(&geometry, &ModelSlice::whole(&geometry), 5);
    (geometry, weights)
}

fn lora(projections: impl IntoIterator<Item = Projection>) -> Lora {
    Lora { rank: 3, alpha: 6.0, projections: projections.into_iter().collect() }
}

fn all(family: Family) -> Lora {
    lora(Projection::ALL.into_iter().filter(|projection| projection.is_of(&config(family))))
}

/// Neither factor is zero.
fn adapters(geometry: &Geometry) -> UnitBuffer {
    let mut adapters = initialize(geometry, &ModelSlice::whole(geometry), 7);
    let index = adapters.index().clone();
    for (unit, range) in index.iter() {
        for (at, value) in adapters.values_mut()[range].iter_mut().enumerate() {
            if *value == 0.0 {
                *value = ((at * 5 + unit.tensor as usize) % 7) as f32 / 16.0 - 0.2;
            }
        }
    }
    adapters
}

/// What a folder of PEFT's comes to beside the weights.
fn merged(base: &(Geometry, UnitBuffer), peft: &Value, file: &[u8]) -> UnitBuffer {
    let peft = PeftAdapter::parse(peft.to_string().as_bytes(), &base.0.config).unwrap();
    let geometry = base.0.clone().with_lora(peft.lora().clone()).unwrap();
    merge_adapters(&geometry, &base.1, &peft.read(&geometry, file).unwrap())
}

#[test]
fn adapters_that_are_written_and_read_come_to_the_same_weights() {
    use Projection::{AttentionOutput, Down, Key, Query, Up, Value};
    for family in Family::ALL {
        let base = base(family);
        for some in [
            all(family),
            lora([Query]),
            lora([Value, Up]),
            lora([Query, Value]),
            lora([Key, Value, AttentionOutput]),
            lora([AttentionOutput, Down]),
        ] {
            let geometry = base.0.clone().with_lora(some.clone()).unwrap();
            let adapters = adapters(&geometry);
            let (peft, file) = (
                some.to_peft(&geometry.config, "base", 0.1),
                write_parameters(&geometry, &adapters).unwrap(),
            );
            let expected = merge_adapters(&geometry, &base.1, &adapters);
            assert_ne!(expected, base.1);
            assert!(merged(&base, &peft, &file) == expected, "{family:?} {some:?}");
            // What was written is read as it was, too, where the terms are known.
            let again = read_parameters(&geometry, &ModelSlice::whole(&geometry), &file).unwrap();
            assert!(again == adapters, "{family:?} {some:?}");
        }
    }
}

fn shapes(file: &[u8]) -> HashMap<String, Vec<usize>> {
    let file = SafeTensors::deserialize(file).unwrap();
    file.tensors().into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())).collect()
}

#[test]
fn a_gpt2_s_adapters_have_the_names_and_shapes_of_peft() {
    let (geometry, _) = base(Family::Gpt2);
    let write = |lora: &Lora| {
        let geometry = geometry.clone().with_lora(lora.clone()).unwrap();
        shapes(&write_parameters(&geometry, &adapters(&geometry)).unwrap())
    };
    let every = all(Family::Gpt2);
    let shapes = write(&every);
    let expected = [
        ("attn.c_attn", 9, WIDTH, 3 * WIDTH),
        ("attn.c_proj", 3, WIDTH, WIDTH),
        ("mlp.c_fc", 3, WIDTH, INNER),
        ("mlp.c_proj", 3, INNER, WIDTH),
    ];
    assert_eq!(shapes.len(), 2 * 2 * expected.len());
    for (layer, (module, rank, inputs, outputs)) in
        (0..2).flat_map(|layer| expected.into_iter().map(move |one| (layer, one)))
    {
        let name = |factor| format!("base_model.model.transformer.h.{layer}.{module}.lora_{factor}.weight");
        assert_eq!(shapes[&name("A")], [rank, inputs], "{module}");
        assert_eq!(shapes[&name("B")], [outputs, rank], "{module}");
    }
    let peft = every.to_peft(&geometry.config, "base", 0.0);
    assert_eq!(peft["target_modules"], json!(["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]));
    assert_eq!(
        (&peft["rank_pattern"], &peft["alpha_pattern"]),
        (&json!({"c_attn": 9}), &json!({"c_attn": 18.0}))
    );
    assert_eq!(peft["fan_in_fan_out"], true);

    let two = write(&lora([Projection::Query, Projection::Value]));
    assert_eq!(two["base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"], [6, WIDTH]);
    assert_eq!(two["base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"], [3 * WIDTH, 6]);
    let one = lora([Projection::Value]);
    assert_eq!(write(&one)["base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"], [3, WIDTH]);
    assert_eq!(one.to_peft(&geometry.config, "base", 0.0)["rank_pattern"], json!({}));

    let llama = all(Family::Llama).to_peft(&config(Family::Llama), "base", 0.0);
    assert_eq!((&llama["fan_in_fan_out"], &llama["target_modules"][0]), (&json!(false), &json!("q_proj")));
}

/// Numbers of a file that this test makes.
struct Numbers(Vec<usize>, Vec<f32>);

impl View for Numbers {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.1.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.1.len() * 4
    }
}

/// Modules by what they are called in layer `{}`, with rank, inputs and outputs, as PEFT saves them.
fn file(modules: &[(&str, usize, usize, usize)]) -> (Vec<u8>, HashMap<String, Vec<f32>>) {
    let mut tensors = Vec::new();
    for (layer, (module, rank, inputs, outputs)) in
        (0..2).flat_map(|layer| modules.iter().map(move |one| (layer, one)))
    {
        for (factor, shape) in [("A", [*rank, *inputs]), ("B", [*outputs, *rank])] {
            let module = module.replace("{}", &layer.to_string());
            let name = format!("base_model.model.{module}.lora_{factor}.weight");
            let number = |at: usize| ((at * 7 + layer * 3 + name.len()) % 13) as f32 / 8.0 - 0.7;
            let numbers = (0..shape[0] * shape[1]).map(number).collect();
            tensors.push((name, Numbers(shape.to_vec(), numbers)));
        }
    }
    let numbers = tensors.iter().map(|(name, numbers)| (name.clone(), numbers.1.clone())).collect();
    (serialize(tensors, None).unwrap(), numbers)
}

/// `scale * B A` of a module, in f64.
fn product(numbers: &HashMap<String, Vec<f32>>, module: &str, rank: usize, scale: f64) -> Vec<f64> {
    let [a, b] =
        ["A", "B"].map(|factor| &numbers[&format!("base_model.model.{module}.lora_{factor}.weight")]);
    let inputs = a.len() / rank;
    let element = |at: usize| {
        let term = |k: usize| f64::from(b[at / inputs * rank + k]) * f64::from(a[k * inputs + at % inputs]);
        scale * (0..rank).map(term).sum::<f64>()
    };
    (0..b.len() / rank * inputs).map(element).collect()
}

/// The numbers of a tensor of a model's file.
fn tensor(geometry: &Geometry, units: &UnitBuffer, name: &str) -> Vec<f32> {
    let bytes = write_parameters(geometry, units).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = file.tensor(name).unwrap().data().chunks_exact(4);
    numbers.map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn an_adapter_of_fused_weights_is_one_of_each_with_the_same_first_factor() {
    let base = base(Family::Gpt2);
    let (file, numbers) = file(&[("transformer.h.{}.attn.c_attn", 5, WIDTH, 3 * WIDTH)]);
    let peft = json!({"peft_type": "LORA", "r": 5, "lora_alpha": 10, "target_modules": ["c_attn"]});
    let merged = merged(&base, &peft, &file);
    let name = "transformer.h.1.attn.c_attn.weight";
    let [before, after] = [&base.1, &merged].map(|units| tensor(&base.0, units, name));
    let added = product(&numbers, "transformer.h.1.attn.c_attn", 5, 2.0);
    // The file of the model has inputs times outputs, PEFT's factors make outputs times inputs.
    for (at, (before, after)) in before.iter().zip(&after).enumerate() {
        let (input, output) = (at / (3 * WIDTH), at % (3 * WIDTH));
        let expected = f64::from(*before) + added[output * WIDTH + input];
        assert!((f64::from(*after) - expected).abs() < 1e-5, "{input} {output}");
    }
    let untouched = "transformer.h.1.mlp.c_fc.weight";
    assert_eq!(tensor(&base.0, &base.1, untouched), tensor(&base.0, &merged, untouched));
}

#[test]
fn modules_may_differ_in_rank_and_scale() {
    let base = base(Family::Llama);
    let (file, numbers) = file(&[
        ("model.layers.{}.self_attn.q_proj", 2, WIDTH, WIDTH),
        ("model.layers.{}.mlp.down_proj", 4, INNER, WIDTH),
    ]);
    let peft = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "mlp.down_proj"],
        "rank_pattern": {"down_proj": 4, "up_proj": 9}, "alpha_pattern": {"self_attn.q_proj": 5}, "use_rslora": true,
    });
    let merged = merged(&base, &peft, &file);
    for (module, rank, scale) in
        [("self_attn.q_proj", 2, 5.0 / 2.0_f64.sqrt()), ("mlp.down_proj", 4, 3.0 / 2.0)]
    {
        let module = format!("model.layers.1.{module}");
        let [before, after] =
            [&base.1, &merged].map(|units| tensor(&base.0, units, &format!("{module}.weight")));
        let added = product(&numbers, &module, rank, scale);
        for ((before, after), added) in before.iter().zip(&after).zip(added) {
            assert!((f64::from(*after) - f64::from(*before) - added).abs() < 1e-5, "{module}");
        }
    }
}

#[test]
fn configurations_of_peft_are_read_and_written() {
    let llama = config(Family::Llama);
    let lora = lora([Projection::Query, Projection::Down]);
    let parse = |peft: &Value| {
        PeftAdapter::parse(peft.to_string().as_bytes(), &llama).map(|peft| peft.lora().clone())
    };
    let peft = lora.to_peft(&llama, "base", 0.1);
    assert_eq!(parse(&peft), Ok(lora.clone()));
    let changed = |field: &str, value: Value| {
        let mut peft = peft.clone();
        peft[field] = value;
        parse(&peft)
    };
    assert_eq!(changed("target_modules", "all-linear".into()).unwrap().projections.len(), 7);
    let layers = json!(["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "down_proj"]);
    assert_eq!(changed("target_modules", layers), Ok(lora.clone()));
    let scale = changed("use_rslora", true.into()).unwrap().scale();
    assert!((scale - lora.alpha / 3.0_f32.sqrt()).abs() < 1e-6, "{scale}");
    for (field, value) in [
        ("peft_type", "IA3".into()),
        ("bias", "all".into()),
        ("use_dora", true.into()),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"q_proj": 2.5})),
        ("rank_pattern", json!({"layers.1.self_attn.q_proj": 8})),
        ("rank_pattern", json!({".*q_proj": 8})),
        ("alpha_pattern", json!({"q_proj": -1})),
        ("alpha_pattern", json!({"q_proj": 1e300})),
        ("alpha_pattern", json!({"q_proj": 1e-30, "down_proj": 1e30})),
        ("alpha_pattern", json!({"q_proj": 1e30, "down_proj": 1e-30})),
        ("modules_to_save", json!(["lm_head"])),
        ("exclude_modules", json!(["q_proj"])),
        ("target_modules", json!(["lm_head"])),
        ("target_modules", json!(["proj"])),
        ("target_modules", json!([])),
        ("target_modules", ".*_proj".into()),
        ("r", 0.into()),
        ("r", "many".into()),
    ] {
        assert!(changed(field, value.clone()).is_err(), "{field} {value}");
    }
    let both = json!({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["c_proj"]});
    let both = PeftAdapter::parse(both.to_string().as_bytes(), &config(Family::Gpt2)).unwrap();
    let expected = [Projection::AttentionOutput, Projection::Down].into();
    assert_eq!(both.lora().projections, expected);
    let of_another = PeftAdapter::parse(peft.to_string().as_bytes(), &config(Family::Gpt2));
    assert!(matches!(of_another, Err(LoraError::Peft(_))), "{of_another:?}");
}

#[test]
fn a_file_of_other_adapters_is_refused() {
    let base = base(Family::Gpt2);
    let peft = json!({"peft_type": "LORA", "r": 5, "lora_alpha": 10, "target_modules": ["c_attn"]});
    let peft = PeftAdapter::parse(peft.to_string().as_bytes(), &base.0.config).unwrap();
    let geometry = base.0.with_lora(peft.lora().clone()).unwrap();
    let read = |module: (&str, usize, usize, usize)| peft.read(&geometry, &file(&[module]).0).map(|_| ());
    let name = "transformer.h.{}.attn.c_attn";
    assert!(read((name, 5, WIDTH, 3 * WIDTH)).is_ok());
    for wrong in [(name, 4, WIDTH, 3 * WIDTH), (name, 5, WIDTH, WIDTH), (name, 5, 8, 3 * WIDTH)] {
        assert!(matches!(read(wrong), Err(WeightsError::Shape { .. })), "{wrong:?}");
    }
    let absent = read(("transformer.h.{}.attn.c_proj", 5, WIDTH, WIDTH));
    assert!(matches!(absent, Err(WeightsError::Format(_))), "{absent:?}");
    let (whole, _) = file(&[(name, 5, WIDTH, 3 * WIDTH)]);
    assert!(peft.read(&geometry, &whole[..whole.len() - 1]).is_err());
}
