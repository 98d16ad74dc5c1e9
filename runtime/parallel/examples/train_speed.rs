//! Prints how fast one rank on one thread, or as many as the argument says, trains and decodes a small model (1.3 M parameters: d 128,
//! 4 layers, 8 heads, vocabulary 2048, sequences of 128 tokens).
//!
//! `cargo run --release -p sixfold-parallel --example train_speed [THREADS]`

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use sixfold_model::{Chunk, Decoder, Geometry, MicroBatch, ModelConfig, OptimizerOptions, Wanted, greedy};
use sixfold_parallel::{RankLinks, StepBatch, Trainer, TrainingJob};
use sixfold_tensor::{Device, keep_freed_memory, set_threads};
use sixfold_topology::{ParallelPlan, Rank};

const LENGTH: usize = 128;
const VOCABULARY: usize = 2048;
const GROUPS: usize = 2;
const SEQUENCES_PER_GROUP: usize = 8;
const STEPS: u64 = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(1), |argument| argument.parse())?;
    set_threads(threads)?;
    keep_freed_memory();
    let config = ModelConfig {
        family: sixfold_model::Family::Llama,
        vocab_size: VOCABULARY,
        hidden_size: 128,
        intermediate_size: 344,
        num_hidden_layers: 4,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 16,
        max_position_embeddings: 256,
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
    };
    println!("{} parameters, {threads} threads", config.parameters());
    let geometry = Geometry::new(config, 4)?;
    let optimizer = OptimizerOptions::default();
    let job = TrainingJob {
        geometry: geometry.clone(),
        optimizer,
        seed: 1,
        dropout: 0.0,
        adapter_dropout: 0.0,
        base_compression: None,
    };
    let plan = ParallelPlan::SERIAL;
    let stream = Device::cpu().stream();
    let links = RankLinks::new(&plan, Rank(0), HashMap::new())?;
    let mut trainer = Trainer::new(&job, &plan, Rank(0), links, stream.clone())?;

    trainer.step(0, batch(0))?;
    let (start, flops) = (Instant::now(), trainer.work().flops());
    for step in 1..=STEPS {
        trainer.step(step, batch(step))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let tokens = (STEPS as usize * GROUPS * SEQUENCES_PER_GROUP * LENGTH) as f64;
    let gflops = (trainer.work().flops() - flops) as f64 / 1e9;
    println!("training: {:.0} tokens/s, {:.1} GFLOP/s", tokens / seconds, gflops / seconds);

    let decoder = Decoder::new(stream, geometry, &trainer.parameters());
    let pool = decoder.kv_pool(4);
    let (mut sequence, mut token) = (pool.sequence(), 1);
    let start = Instant::now();
    for _ in 0..LENGTH {
        let tokens = [token];
        let chunk = Chunk { tokens: &tokens, sequence: &mut sequence, wanted: Wanted::Last };
        token = greedy(decoder.forward(&mut [chunk])?.row(0));
    }
    println!("decoding one sequence: {:.0} tokens/s", LENGTH as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

/// A step of two groups, each one micro-batch.
fn batch(step: u64) -> StepBatch {
    let tokens = SEQUENCES_PER_GROUP * LENGTH;
    let token = |i: usize| ((i * 7 + step as usize * 13) % VOCABULARY) as u32;
    let group = |group: usize| {
        let first = group * tokens;
        let inputs = (first..first + tokens).map(token).collect();
        let targets = (first + 1..first + tokens + 1).map(token).collect();
        let first_sample = (group * SEQUENCES_PER_GROUP) as u64;
        vec![MicroBatch { first_sample, ..MicroBatch::of_documents(inputs, targets, LENGTH) }]
    };
    StepBatch { groups: (0..GROUPS).map(group).collect(), global_targets: (GROUPS * tokens) as u64 }
}
