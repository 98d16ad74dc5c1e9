//! What is written is a sound graph over the numbers of the model, and computes what the model does.

mod computes;
mod interpreter;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use prost::Message;
use serde_json::json;
use tempfile::TempDir;

use super::proto::{self, DataType};
use super::write::{GRAPH, WEIGHTS};
use super::write_onnx;
use crate::{Encoding, FolderOptions, FormatError, Model, OpenOptions, open, write_folder};

const MODELS: [&str; 4] = ["llama", "qwen2", "qwen3", "gpt2"];

fn golden(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.gguf"));
    open(&path, &OpenOptions::default()).unwrap()
}

/// A folder that was written, and what is in it.
struct Written {
    _place: TempDir,
    folder: PathBuf,
    graph: proto::Graph,
    weights: Vec<u8>,
}

fn written(model: &Model, encoding: Encoding) -> Written {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("onnx");
    let mut bytes = 0;
    write_onnx(model, &folder, encoding, |more| bytes += more).unwrap();
    let file = proto::Model::decode(std::fs::read(folder.join(GRAPH)).unwrap().as_slice()).unwrap();
    assert_eq!((file.ir_version, file.opset_import[0].version, file.opset_import.len()), (8, 17, 1));
    let weights = std::fs::read(folder.join(WEIGHTS)).unwrap();
    let graph = file.graph.unwrap();
    let stored: u64 = graph.initializer.iter().filter_map(place_of).map(|(_, length)| length as u64).sum();
    assert_eq!(bytes, stored);
    Written { _place: place, folder, graph, weights }
}

/// Where an initializer's bytes lie in the other file, if they do.
fn place_of(tensor: &proto::Tensor) -> Option<(usize, usize)> {
    tensor.data_location.filter(|location| *location == proto::EXTERNAL)?;
    let entry = |key: &str| {
        let entry = tensor.external_data.iter().find(|entry| entry.key == key).unwrap();
        entry.value.clone()
    };
    assert_eq!((entry("location").as_str(), &tensor.raw_data), (WEIGHTS, &None));
    Some((entry("offset").parse().unwrap(), entry("length").parse().unwrap()))
}

fn numbers(model: &Model, tensor: &crate::Tensor) -> Vec<f32> {
    let rows = model.rows(tensor);
    let mut numbers = vec![0.0; tensor.numbers()];
    for (row, numbers) in numbers.chunks_exact_mut(rows.columns()).enumerate() {
        rows.read(row, numbers);
    }
    numbers
}

/// Names of inputs or outputs, and their dims as text.
fn described(values: &[proto::ValueInfo]) -> Vec<(String, i32, String)> {
    let dim =
        |dim: &proto::Dimension| dim.dim_param.clone().unwrap_or_else(|| dim.dim_value.unwrap().to_string());
    let of = |value: &proto::ValueInfo| {
        let tensor = value.r#type.clone().unwrap().tensor_type.unwrap();
        let dims: Vec<String> = tensor.shape.unwrap().dim.iter().map(dim).collect();
        (value.name.clone(), tensor.elem_type, dims.join(","))
    };
    values.iter().map(of).collect()
}

#[test]
fn every_value_of_an_onnx_graph_is_there_before_it_is_used_and_once() {
    for name in MODELS {
        for encoding in [Encoding::F32, Encoding::F16] {
            let Written { graph, .. } = written(&golden(name), encoding);
            let mut known = HashSet::new();
            let given = graph.input.iter().map(|value| &value.name);
            for value in given.chain(graph.initializer.iter().map(|tensor| &tensor.name)) {
                assert!(known.insert(value.clone()), "{name}: {value} is there twice");
            }
            let mut used = HashSet::new();
            let mut nodes = HashSet::new();
            for node in &graph.node {
                assert!(nodes.insert(&node.name), "{name}: two nodes are {}", node.name);
                for input in &node.input {
                    assert!(known.contains(input), "{name}: {} comes before {input}", node.name);
                    used.insert(input.clone());
                }
                for output in &node.output {
                    assert!(known.insert(output.clone()), "{name}: {output} is there twice");
                }
            }
            for output in &graph.output {
                assert!(known.contains(&output.name), "{name}: nothing computes {}", output.name);
                used.insert(output.name.clone());
            }
            let unused: Vec<_> = known.difference(&used).collect();
            assert!(unused.is_empty(), "{name}: nothing uses {unused:?}");
        }
    }
}

#[test]
fn weights_beside_an_onnx_graph_are_the_numbers_of_the_model_each_once() {
    for name in MODELS {
        let model = golden(name);
        let Written { graph, weights, .. } = written(&model, Encoding::F32);
        let external: Vec<_> = graph
            .initializer
            .iter()
            .filter_map(|tensor| place_of(tensor).map(|place| (tensor, place)))
            .collect();
        assert_eq!(external.len(), model.tensors().len());
        let mut end = 0;
        for (tensor, (initializer, (offset, length))) in model.tensors().iter().zip(external) {
            assert_eq!(initializer.name, tensor.name);
            let dims: Vec<i64> = tensor.shape.iter().map(|dim| *dim as i64).collect();
            assert_eq!((&initializer.dims, initializer.data_type), (&dims, DataType::Float as i32));
            assert!(offset >= end && offset.is_multiple_of(4096) && offset - end < 4096, "{}", tensor.name);
            end = offset + length;
            let stored = weights[offset..end].chunks_exact(4);
            let stored: Vec<u32> =
                stored.map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect();
            let ours: Vec<u32> = numbers(&model, tensor).iter().map(|number| number.to_bits()).collect();
            assert_eq!(stored, ours, "{name} {}", tensor.name);
        }
        assert_eq!(end, weights.len());
    }
}

#[test]
fn inputs_and_outputs_of_an_onnx_graph_are_those_of_optimum() {
    let model = golden("qwen3");
    let sizes = model.sizes().unwrap();
    let (layers, vocab) = (sizes.layers, sizes.vocab);
    let written = written(&model, Encoding::F32);
    let (int, float) = (DataType::Int64 as i32, DataType::Float as i32);
    let all = "past_sequence_length + sequence_length";
    let cache = |length: &str| format!("batch_size,{},{length},{}", sizes.kv_heads, sizes.head_dim);
    let named = |name: &str, kind, dims: String| (name.to_owned(), kind, dims);
    let mut inputs = vec![
        named("input_ids", int, "batch_size,sequence_length".to_owned()),
        named("attention_mask", int, format!("batch_size,{all}")),
        named("position_ids", int, "batch_size,sequence_length".to_owned()),
    ];
    let mut outputs = vec![named("logits", float, format!("batch_size,sequence_length,{vocab}"))];
    for layer in 0..layers {
        for kind in ["key", "value"] {
            let past = format!("past_key_values.{layer}.{kind}");
            inputs.push(named(&past, float, cache("past_sequence_length")));
            outputs.push(named(&format!("present.{layer}.{kind}"), float, cache(all)));
        }
    }
    assert_eq!(described(&written.graph.input), inputs);
    assert_eq!(described(&written.graph.output), outputs);
    let config = std::fs::read(written.folder.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["model_type"], &config["torch_dtype"]), (&json!("qwen3"), &json!("float32")));
}

#[test]
fn an_onnx_folder_has_the_tokenizer_and_half_the_bytes_in_f16() {
    let model = golden("gpt2");
    let [whole, halved] = [Encoding::F32, Encoding::F16].map(|encoding| written(&model, encoding));
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert_eq!(std::fs::read(halved.folder.join(name)).unwrap(), model.text(name).unwrap());
    }
    let bytes = |of: &Written, dims: usize| -> usize {
        let all = of.graph.initializer.iter().filter(|tensor| tensor.dims.len() == dims);
        all.filter_map(place_of).map(|(_, length)| length).sum()
    };
    assert_eq!((bytes(&halved, 2) * 2, bytes(&halved, 1)), (bytes(&whole, 2), bytes(&whole, 1)));
    let first = halved.graph.initializer.iter().find(|tensor| tensor.data_type == DataType::Float16 as i32);
    let (offset, length) = place_of(first.unwrap()).unwrap();
    let stored = halved.weights[offset..offset + length].chunks_exact(2);
    let stored: Vec<f32> =
        stored.map(|bytes| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()).collect();
    // F16 holds the numbers of this model.
    assert_eq!(stored, numbers(&model, &model.tensors()[0]));
}

#[test]
fn what_is_not_written_as_onnx_is_refused_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    write_folder(&golden("qwen2"), &source, FolderOptions::default(), |_| {}).unwrap();
    let target = place.path().join("target");
    let file = source.join("config.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for (field, value) in [
        ("hidden_act", json!("relu")),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0})),
        ("rope_theta", json!(0.0)),
        ("layer_types", json!(["linear_attention"])),
    ] {
        let mut config = config.clone();
        config[field] = value;
        std::fs::write(&file, config.to_string()).unwrap();
        let model = open(&source, &OpenOptions::default()).unwrap();
        let error = write_onnx(&model, &target, Encoding::F32, |_| {}).unwrap_err();
        let field = if field == "rope_theta" { "rope_parameters" } else { field };
        assert!(matches!(error, FormatError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
    let tensors = open(&source.join("model.safetensors"), &OpenOptions::default()).unwrap();
    let error = write_onnx(&tensors, &target, Encoding::F32, |_| {}).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    let taken = write_onnx(&golden("gpt2"), &source, Encoding::F32, |_| {});
    assert!(matches!(taken, Err(FormatError::Exists { .. })));
    let left: Vec<_> =
        std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["source"]);
}
