//! Weights to and from Hugging Face's format.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use sixfold_model::{
    Geometry, ModelConfig, ModelSlice, WeightsError, initialize, read_parameters, weights_blake3,
    write_parameters,
};

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 31,
        hidden_size: 16,
        intermediate_size: 22,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 4,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_id: None,
    }
}

fn geometry(config: ModelConfig, logical: usize) -> Geometry {
    Geometry::new(config, logical).unwrap()
}

#[test]
fn a_file_holds_the_model_whatever_the_shards() {
    for tied in [false, true] {
        let config = ModelConfig { tie_word_embeddings: tied, ..config() };
        let four = geometry(config.clone(), 4);
        let parameters = initialize(&four, &ModelSlice::whole(&four), 3);
        let file = write_parameters(&four, &parameters).unwrap();
        assert_eq!(read_parameters(&four, &ModelSlice::whole(&four), &file).unwrap(), parameters);

        let one = geometry(config, 1);
        let same = read_parameters(&one, &ModelSlice::whole(&one), &file).unwrap();
        assert_eq!(write_parameters(&one, &same).unwrap(), file);
        assert_eq!(weights_blake3(&one, &same), weights_blake3(&four, &parameters));
    }
}

#[test]
fn a_slice_reads_only_its_units() {
    let geometry = geometry(config(), 4);
    let parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 3);
    let file = write_parameters(&geometry, &parameters).unwrap();
    let slice = ModelSlice { layers: 1..2, input: false, output: true, shards: 2..4 };
    let part = read_parameters(&geometry, &slice, &file).unwrap();
    assert_eq!(part.iter().map(|(unit, _)| unit).collect::<Vec<_>>(), slice.units(&geometry));
    assert!(part.iter().all(|(unit, values)| values == parameters.unit(unit)));
}

#[test]
fn tensors_have_hugging_faces_names_and_shapes() {
    let geometry = geometry(config(), 4);
    let parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 3);
    let file = write_parameters(&geometry, &parameters).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.names().len(), 3 + 2 * 9);
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("model.embed_tokens.weight"), [31, 16]);
    assert_eq!(shape("model.layers.1.self_attn.k_proj.weight"), [8, 16]);
    assert_eq!(shape("model.layers.0.mlp.down_proj.weight"), [16, 22]);
    assert_eq!(shape("model.layers.0.input_layernorm.weight"), [16]);
    assert_eq!(shape("model.norm.weight"), [16]);
    assert_eq!(shape("lm_head.weight"), [31, 16]);
}

#[test]
fn one_changed_bit_changes_the_hash() {
    let geometry = geometry(config(), 4);
    let mut parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 3);
    let before = weights_blake3(&geometry, &parameters);
    let last = parameters.values_mut().last_mut().unwrap();
    *last = f32::from_bits(last.to_bits() ^ 1);
    assert_ne!(weights_blake3(&geometry, &parameters), before);
}

#[test]
fn broken_files_are_refused() {
    let geometry = geometry(config(), 4);
    let whole = ModelSlice::whole(&geometry);
    let file = write_parameters(&geometry, &initialize(&geometry, &whole, 3)).unwrap();
    for cut in [0, 4, 100, file.len() - 1] {
        assert!(matches!(read_parameters(&geometry, &whole, &file[..cut]), Err(WeightsError::Format(_))));
    }
    let mut claims_much = file.clone();
    claims_much[..8].fill(0xff);
    assert!(matches!(read_parameters(&geometry, &whole, &claims_much), Err(WeightsError::Format(_))));
    let wider = self::geometry(ModelConfig { intermediate_size: 24, ..config() }, 4);
    let shape = read_parameters(&wider, &ModelSlice::whole(&wider), &file).unwrap_err();
    assert!(shape.to_string().contains("mlp.gate_proj.weight"), "{shape}");
    let deeper = self::geometry(ModelConfig { num_hidden_layers: 3, ..config() }, 4);
    assert!(read_parameters(&deeper, &ModelSlice::whole(&deeper), &file).is_err());
}
