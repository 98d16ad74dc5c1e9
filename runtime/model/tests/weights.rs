//! Weights to and from Hugging Face's format.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use sixfold_model::{
    Family, Geometry, ModelConfig, ModelSlice, Tensor, UnitId, WeightsError, initialize, read_parameters,
    read_sharded_parameters, weights_blake3, write_parameters,
};

fn config() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
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
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: false,
        tie_word_embeddings: false,
        dtype: Default::default(),
        bos_token_id: None,
        eos_token_id: None,
    }
}

fn gpt2() -> ModelConfig {
    ModelConfig { family: Family::Gpt2, num_key_value_heads: 4, tie_word_embeddings: true, ..config() }
}

fn qwen2() -> ModelConfig {
    ModelConfig { family: Family::Qwen2, ..config() }
}

fn qwen3() -> ModelConfig {
    ModelConfig { family: Family::Qwen3, head_dim: 6, attention_bias: true, ..config() }
}

fn geometry(config: ModelConfig, logical: usize) -> Geometry {
    Geometry::new(config, logical).unwrap()
}

#[test]
fn a_file_holds_the_model_whatever_the_shards() {
    let all = [config(), gpt2(), qwen2(), qwen3()];
    for (config, tied) in all.into_iter().flat_map(|config| [(config.clone(), false), (config, true)]) {
        let config = ModelConfig { tie_word_embeddings: tied, ..config };
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
fn what_the_qwens_have_beside_a_llama_has_hugging_faces_names_and_shapes() {
    for (config, own) in [
        (qwen2(), vec![("q_proj.bias", 16), ("k_proj.bias", 8), ("v_proj.bias", 8)]),
        (
            qwen3(),
            vec![
                ("q_proj.bias", 24),
                ("k_proj.bias", 12),
                ("v_proj.bias", 12),
                ("o_proj.bias", 16),
                ("q_norm.weight", 6),
                ("k_norm.weight", 6),
            ],
        ),
        (ModelConfig { attention_bias: false, ..qwen3() }, vec![("q_norm.weight", 6), ("k_norm.weight", 6)]),
    ] {
        let geometry = geometry(config, 4);
        let file = write_parameters(&geometry, &initialize(&geometry, &ModelSlice::whole(&geometry), 3));
        let file = file.unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(tensors.names().len(), 3 + 2 * (9 + own.len()));
        for (name, len) in own {
            let tensor = tensors.tensor(&format!("model.layers.1.self_attn.{name}")).unwrap();
            assert_eq!(tensor.shape(), [len], "{name}");
        }
    }
}

#[test]
fn a_gpt2_has_hugging_faces_names_and_transposed_projections() {
    let geometry = geometry(gpt2(), 4);
    let mut parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 3);
    parameters.unit_mut(UnitId::of_layer(1, Tensor::ValueBias, 2))[3] = 5.0;
    let file = write_parameters(&geometry, &parameters).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.names().len(), 4 + 2 * 12);
    let shape = |name: &str| tensors.tensor(&format!("transformer.{name}")).unwrap().shape().to_vec();
    assert_eq!((shape("wte.weight"), shape("wpe.weight")), (vec![31, 16], vec![64, 16]));
    assert_eq!((shape("h.1.attn.c_attn.weight"), shape("h.1.attn.c_attn.bias")), (vec![16, 48], vec![48]));
    assert_eq!((shape("h.0.mlp.c_fc.weight"), shape("h.0.mlp.c_proj.weight")), (vec![16, 22], vec![22, 16]));
    assert_eq!((shape("h.0.ln_2.bias"), shape("ln_f.bias")), (vec![16], vec![16]));
    let number = |name: &str, at: usize| {
        let tensor = tensors.tensor(name).unwrap();
        f32::from_le_bytes(tensor.data()[4 * at..][..4].try_into().unwrap())
    };
    // Element 3 of the third head of values, after 16 queries and 16 keys.
    assert_eq!(number("transformer.h.1.attn.c_attn.bias", 32 + 8 + 3), 5.0);
    // Output 2 and input 9 of the second head of keys, after 16 queries and a head of keys.
    let key = parameters.unit(UnitId::of_layer(0, Tensor::Key, 1))[2 * 16 + 9];
    assert_eq!(number("transformer.h.0.attn.c_attn.weight", 9 * 48 + 16 + 4 + 2), key);
}

/// As the files of GPT-2's authors have them.
#[test]
fn names_without_the_model_s_are_read_too() {
    let geometry = geometry(gpt2(), 4);
    let whole = ModelSlice::whole(&geometry);
    let parameters = initialize(&geometry, &whole, 3);
    let file = write_parameters(&geometry, &parameters).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let short = tensors.tensors().into_iter().map(|(name, view)| (name.replace("transformer.", ""), view));
    let short = safetensors::serialize(short, None).unwrap();
    assert_eq!(read_parameters(&geometry, &whole, &short).unwrap(), parameters);
}

#[test]
fn tensors_may_lie_in_several_files_but_once_each() {
    let geometry = geometry(config(), 4);
    let whole = ModelSlice::whole(&geometry);
    let parameters = initialize(&geometry, &whole, 3);
    let file = write_parameters(&geometry, &parameters).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let part = |odd: usize| {
        let views = tensors.tensors().into_iter().enumerate().filter(|(at, _)| at % 2 == odd);
        // As a model without a head is saved.
        let views = views.map(|(_, (name, view))| (name.replacen("model.", "", 1), view));
        safetensors::serialize(views, None).unwrap()
    };
    let parts = [part(0), part(1)];
    let files = [parts[0].as_slice(), parts[1].as_slice()];
    assert_eq!(read_sharded_parameters(&geometry, &whole, &files).unwrap(), parameters);
    let missing = read_sharded_parameters(&geometry, &whole, &files[..1]);
    assert!(matches!(missing, Err(WeightsError::Format(_))));
    let twice = read_sharded_parameters(&geometry, &whole, &[files[0], files[1], files[0]]);
    assert!(matches!(twice, Err(WeightsError::Twice(_))));
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
