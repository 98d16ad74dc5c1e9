//! Writes the model of the golden test, untrained, as `config.json` and `model.safetensors` into a folder:
//! what `tests/golden/make.py` gives to PyTorch.
//!
//! `cargo run --release -p sixfold-model --example golden_model FOLDER`

use std::error::Error;
use std::path::PathBuf;

use sixfold_model::{Geometry, ModelConfig, ModelSlice, initialize, write_parameters};

/// More logical shards than key-value heads, so that heads are copied.
const LOGICAL_SHARDS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: golden_model FOLDER")?);
    let config = ModelConfig {
        family: sixfold_model::Family::Llama,
        vocab_size: 48,
        hidden_size: 32,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: false,
        tie_word_embeddings: false,
        dtype: Default::default(),
        bos_token_id: None,
        eos_token_id: Some(0),
    };
    let geometry = Geometry::new(config, LOGICAL_SHARDS)?;
    let mut parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 1);
    for (index, value) in parameters.values_mut().iter_mut().enumerate() {
        // Norms that differ from 1 and weights so large that no gradient vanishes.
        *value = if *value == 1.0 { 0.8 + (index * 7 % 11) as f32 / 32.0 } else { *value * 8.0 };
    }
    std::fs::create_dir_all(&folder)?;
    let config = serde_json::to_vec_pretty(&geometry.config.to_hugging_face(LOGICAL_SHARDS))?;
    std::fs::write(folder.join("config.json"), config)?;
    std::fs::write(folder.join("model.safetensors"), write_parameters(&geometry, &parameters)?)?;
    Ok(())
}
