//! One forward: what the ranks of any plan say of tokens has the bits of what the decoder says.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::num::NonZeroUsize;

use sixfold_model::{
    Chunk, Decoder, Dtype, Family, Geometry, ModelConfig, ModelSlice, Tensor, UnitBuffer, Wanted, greedy,
    initialize,
};
use sixfold_parallel::{Score, ScoreError, score};
use sixfold_tensor::{Device, Stream};

const PLANS: [&str; 8] = ["tp1", "tp2", "tp4", "pp2", "pp3", "tp2.pp2", "tp4.pp3", "dp1.tp2.pp3"];
const VOCABULARY: usize = 41;

fn config() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: VOCABULARY,
        hidden_size: 16,
        intermediate_size: 40,
        num_hidden_layers: 3,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        head_dim: 4,
        max_position_embeddings: 50,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: false,
        tie_word_embeddings: false,
        dtype: Dtype::default(),
        bos_token_id: None,
        eos_token_id: None,
    }
}

/// Weights that make a model sure of something, and biases by their place in a unit, so that copies of a head have the same.
fn parameters(geometry: &Geometry) -> UnitBuffer {
    let mut parameters = initialize(geometry, &ModelSlice::whole(geometry), 11);
    let index = parameters.index().clone();
    for (_, range) in index.iter() {
        for (at, value) in parameters.values_mut()[range].iter_mut().enumerate() {
            *value = if *value == 0.0 { (at * 5 % 7) as f32 / 16.0 - 0.2 } else { *value * 8.0 };
        }
    }
    parameters
}

/// Of several lengths: one token, fewer than there are blocks of rows, as many as the model has positions.
fn sequences() -> Vec<Vec<u32>> {
    let token = |salt: usize, at: usize| ((at * at * 5 + at * salt + salt) % VOCABULARY) as u32;
    [1, 3, 19, 50, 8].into_iter().map(|length| (0..length).map(|at| token(length, at)).collect()).collect()
}

/// Of the decoder: every row's likeliest token beside the score.
fn decoded(decoder: &Decoder, tokens: &[u32]) -> (Score, Vec<u32>) {
    let pool = decoder.kv_pool(8);
    let mut sequence = pool.sequence();
    let chunk = Chunk { tokens, sequence: &mut sequence, wanted: Wanted::All };
    let logits = decoder.forward(&mut [chunk]).unwrap();
    let logprobs = (1..tokens.len()).map(|row| logits.log_probability(row - 1, tokens[row])).collect();
    let likeliest: Vec<u32> = logits.rows().map(greedy).collect();
    (Score { logprobs, next: likeliest[tokens.len() - 1] }, likeliest)
}

fn bits(score: &Score) -> (Vec<u32>, u32) {
    (score.logprobs.iter().map(|logprob| logprob.to_bits()).collect(), score.next)
}

fn under(plan: &str, geometry: &Geometry, parameters: &UnitBuffer, sequences: &[&[u32]]) -> Vec<Score> {
    let stream: Stream = Device::strict_cpu().stream();
    score(&stream, geometry, parameters, &plan.parse().unwrap(), sequences).unwrap()
}

fn assert_plans_agree(config: ModelConfig) {
    let geometry = Geometry::new(config, 4).unwrap();
    let parameters = parameters(&geometry);
    let decoder = Decoder::new(Device::strict_cpu().stream(), geometry.clone(), &parameters);
    let sequences = sequences();
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let expected: Vec<_> = sequences.iter().map(|tokens| bits(&decoded(&decoder, tokens).0)).collect();
    for plan in PLANS {
        let together: Vec<_> = under(plan, &geometry, &parameters, &sequences).iter().map(bits).collect();
        assert_eq!(together, expected, "{plan}");
        let alone = under(plan, &geometry, &parameters, &sequences[2..3]);
        assert_eq!(bits(&alone[0]), expected[2], "{plan}, one sequence");
    }
}

#[test]
fn every_plan_scores_with_the_bits_of_the_decoder() {
    assert_plans_agree(config());
    assert_plans_agree(ModelConfig { tie_word_embeddings: true, num_key_value_heads: 1, ..config() });
    assert_plans_agree(ModelConfig { dtype: Dtype::Bf16, ..config() });
    assert_plans_agree(ModelConfig { sliding_window: NonZeroUsize::new(7), ..config() });
    let gpt2 = ModelConfig { family: Family::Gpt2, hidden_size: 32, ..config() };
    assert_plans_agree(ModelConfig { num_key_value_heads: 8, ..gpt2 });
    assert_plans_agree(ModelConfig { family: Family::Qwen2, num_key_value_heads: 2, ..config() });
    let qwen3 = ModelConfig { family: Family::Qwen3, head_dim: 6, attention_bias: true, ..config() };
    assert_plans_agree(ModelConfig { num_key_value_heads: 2, ..qwen3 });
}

/// Some logical shards have no word at all.
#[test]
fn the_lowest_of_equals_is_the_likeliest_wherever_its_shard_is() {
    for vocab_size in [VOCABULARY, 3] {
        let geometry = Geometry::new(ModelConfig { vocab_size, ..config() }, 4).unwrap();
        let mut parameters = parameters(&geometry);
        // The rows of the head's first half are alike, and so are those of the second.
        let index = parameters.index().clone();
        let rows: Vec<_> = index.iter().filter(|(unit, _)| unit.tensor == Tensor::Head).collect();
        let d = geometry.config.hidden_size;
        let mut seen = 0;
        for (_, range) in rows {
            for row in parameters.values_mut()[range].chunks_exact_mut(d) {
                for (at, value) in row.iter_mut().enumerate() {
                    *value = match at % 2 {
                        _ if seen < vocab_size / 2 => 0.0,
                        0 => 3.0,
                        _ => -1.5,
                    };
                }
                seen += 1;
            }
        }
        assert_eq!(seen, vocab_size);
        let decoder = Decoder::new(Device::strict_cpu().stream(), geometry.clone(), &parameters);
        let tokens: Vec<u32> = (0..40).map(|at| at * 7 % vocab_size as u32).collect();
        let prefixes: Vec<&[u32]> = (1..=tokens.len()).map(|length| &tokens[..length]).collect();
        let expected = decoded(&decoder, &tokens).1;
        // Both kinds of rows are the likeliest somewhere.
        let firsts = [0, vocab_size as u32 / 2];
        assert!(firsts.iter().all(|first| expected.contains(first)), "{expected:?}");
        assert!(expected.iter().all(|next| firsts.contains(next)), "{expected:?}");
        for plan in ["tp1", "tp2", "tp4", "tp2.pp2"] {
            let scores = under(plan, &geometry, &parameters, &prefixes);
            let next: Vec<u32> = scores.iter().map(|score| score.next).collect();
            assert_eq!(next, expected, "{vocab_size} words, {plan}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let geometry = Geometry::new(config(), 4).unwrap();
    let (parameters, stream) = (parameters(&geometry), Device::strict_cpu().stream());
    let refused = |plan: &str, tokens: &[u32]| {
        let plan = plan.parse().unwrap();
        score(&stream, &geometry, &parameters, &plan, &[&[1, 2], tokens]).unwrap_err()
    };
    assert!(matches!(refused("dp2", &[1]), ScoreError::Replicas { degree: 2 }));
    for plan in ["tp3", "tp8", "pp4"] {
        assert!(matches!(refused(plan, &[1]), ScoreError::Plan(_)), "{plan}");
    }
    for tokens in [&[][..], &[41], &[1, 41], &[1; 51]] {
        assert!(matches!(refused("tp2", tokens), ScoreError::Sequence(_)), "{tokens:?}");
    }
    assert!(score(&stream, &geometry, &parameters, &"tp2".parse().unwrap(), &[]).unwrap().is_empty());
}
