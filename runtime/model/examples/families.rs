//! Writes a small model of every family, untrained, as Hugging Face's folders, with what this crate computes with each:
//! what `tests/golden/transformers_check.py` compares with `transformers`, and adapters of each, which
//! `tests/golden/peft_check.py` compares with `peft`.
//!
//! `cargo run --release -p sixfold-model --example families FOLDER`

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use sixfold_model::{
    Chunk, Decoder, Family, Geometry, Lora, ModelConfig, ModelSlice, Pooling, Projection, RopeScaling,
    Wanted, greedy, initialize, write_parameters,
};
use sixfold_tensor::Device;

const LOGICAL_SHARDS: usize = 4;
const PROMPT: usize = 40;
const GENERATED: usize = 64;

fn llama() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: 61,
        hidden_size: 32,
        intermediate_size: 44,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-6,
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

fn models() -> Vec<(&'static str, ModelConfig)> {
    let of = |family| ModelConfig { family, ..llama() };
    let scaled = |scaling| ModelConfig { rope_scaling: Some(scaling), ..llama() };
    let (sliding_window, original_max_position_embeddings) = (NonZeroUsize::new(7), 32);
    vec![
        ("llama", llama()),
        ("llama_biases", ModelConfig { attention_bias: true, ..llama() }),
        ("llama_linear", scaled(RopeScaling::Linear { factor: 4.0 })),
        (
            "llama_llama3",
            scaled(RopeScaling::Llama3 {
                factor: 4.0,
                low_freq_factor: 0.25,
                high_freq_factor: 2.0,
                original_max_position_embeddings,
            }),
        ),
        (
            "llama_yarn",
            scaled(RopeScaling::Yarn {
                factor: 4.0,
                original_max_position_embeddings,
                beta_fast: 4.0,
                beta_slow: 0.125,
                attention_factor: 1.25,
                truncate: false,
            }),
        ),
        (
            "smollm2",
            ModelConfig {
                num_attention_heads: 9,
                num_key_value_heads: 3,
                hidden_size: 36,
                head_dim: 4,
                rope_theta: 100_000.0,
                tie_word_embeddings: true,
                ..llama()
            },
        ),
        ("mistral", ModelConfig { sliding_window, ..llama() }),
        ("qwen2", of(Family::Qwen2)),
        (
            "qwen2_window",
            ModelConfig {
                sliding_window,
                full_attention_layers: 1,
                tie_word_embeddings: true,
                ..of(Family::Qwen2)
            },
        ),
        ("qwen3", ModelConfig { head_dim: 12, ..of(Family::Qwen3) }),
        (
            "qwen3_biases",
            ModelConfig { attention_bias: true, tie_word_embeddings: true, ..of(Family::Qwen3) },
        ),
        ("gpt2", ModelConfig { num_key_value_heads: 4, tie_word_embeddings: true, ..of(Family::Gpt2) }),
    ]
}

fn write(folder: &Path, config: ModelConfig) -> Result<(), Box<dyn Error>> {
    let geometry = Geometry::new(config, LOGICAL_SHARDS)?;
    let mut parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 1);
    let index = parameters.index().clone();
    for (unit, range) in index.iter() {
        for (at, value) in parameters.values_mut()[range].iter_mut().enumerate() {
            // Norms that differ from 1, biases from 0, and copies of a head alike.
            let step = (at * 7 % 11) as f32;
            *value = match (unit.tensor.is_norm(), unit.tensor.is_vector()) {
                (true, _) => 0.8 + step / 32.0,
                (_, true) => step / 16.0 - 0.3,
                _ => *value * 10.0,
            };
        }
    }
    std::fs::create_dir_all(folder)?;
    let config = geometry.config.to_hugging_face(LOGICAL_SHARDS);
    std::fs::write(folder.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
    std::fs::write(folder.join("model.safetensors"), write_parameters(&geometry, &parameters)?)?;

    let vocabulary = geometry.config.vocab_size;
    let prompt: Vec<u32> = (0..PROMPT).map(|i| ((i * i * 7 + i * 3 + 5) % vocabulary) as u32).collect();
    let decoder = Decoder::new(Device::cpu().stream(), geometry, &parameters);
    let pool = decoder.kv_pool(4);
    let mut sequence = pool.sequence();
    let chunk = Chunk { tokens: &prompt, sequence: &mut sequence, wanted: Wanted::All };
    let logits = decoder.forward(&mut [chunk])?;
    let mut generated = vec![greedy(logits.row(PROMPT - 1))];
    while generated.len() < GENERATED {
        let tokens = &generated[generated.len() - 1..];
        let chunk = Chunk { tokens, sequence: &mut sequence, wanted: Wanted::Last };
        generated.push(greedy(decoder.forward(&mut [chunk])?.row(0)));
    }
    let rows: Vec<&[f32]> = logits.rows().collect();
    let [mean, last] = [Pooling::Mean, Pooling::Last].map(|pooling| decoder.embed(&[&prompt], pooling));
    let computed = serde_json::json!({
        "prompt": prompt, "logits": rows, "generated": generated, "mean": mean?[0], "last": last?[0],
    });
    std::fs::write(folder.join("computed.json"), serde_json::to_vec(&computed)?)?;
    Ok(())
}

/// Adapters of some projections, none of whose factors is zero, as a folder of PEFT's.
fn write_adapter(folder: &Path, config: ModelConfig, some: &[Projection]) -> Result<(), Box<dyn Error>> {
    let projections = some.iter().copied().filter(|projection| projection.is_of(&config)).collect();
    let lora = Lora { rank: 3, alpha: 6.0, projections };
    std::fs::create_dir_all(folder)?;
    let peft = serde_json::to_vec_pretty(&lora.to_peft(&config, "base", 0.0))?;
    std::fs::write(folder.join("adapter_config.json"), peft)?;
    let geometry = Geometry::new(config, LOGICAL_SHARDS)?.with_lora(lora)?;
    let mut adapters = initialize(&geometry, &ModelSlice::whole(&geometry), 2);
    let index = adapters.index().clone();
    for (unit, range) in index.iter() {
        for (at, value) in adapters.values_mut()[range].iter_mut().enumerate() {
            if *value == 0.0 {
                *value = ((at * 5 + unit.tensor as usize) % 7) as f32 / 8.0 - 0.4;
            }
        }
    }
    std::fs::write(folder.join("adapter_model.safetensors"), write_parameters(&geometry, &adapters)?)?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: families FOLDER")?);
    for (name, config) in models() {
        let (folder, some) = (folder.join(name), [Projection::Query, Projection::Value, Projection::Up]);
        write(&folder, config.clone())?;
        write_adapter(&folder.join("adapter_of_all"), config.clone(), &Projection::ALL)?;
        write_adapter(&folder.join("adapter_of_some"), config, &some)?;
    }
    Ok(())
}
