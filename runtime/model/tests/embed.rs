//! Vectors of texts: the hidden states behind the logits, pooled, whatever a text goes together with.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use sixfold_model::{
    Chunk, DecodeError, Decoder, Dtype, Family, Geometry, ModelConfig, ModelSlice, Place, Pooling, Tensor,
    UnitBuffer, UnitId, Wanted, initialize,
};
use sixfold_tensor::Device;

const WIDTH: usize = 24;
const VOCABULARY: usize = 61;
const SHARDS: usize = 4;

fn config(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        vocab_size: VOCABULARY,
        hidden_size: WIDTH,
        intermediate_size: 37,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: if family == Family::Gpt2 { 6 } else { 3 },
        head_dim: 4,
        max_position_embeddings: 2500,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: false,
        tie_word_embeddings: family == Family::Qwen2,
        dtype: Default::default(),
        bos_token_id: None,
        eos_token_id: None,
    }
}

/// One of each family, and one that rounds operands.
fn models() -> Vec<(Geometry, UnitBuffer)> {
    let bf16 = ModelConfig { dtype: Dtype::Bf16, ..config(Family::Llama) };
    let models = Family::ALL.into_iter().map(config).chain([bf16]).map(|config| {
        let geometry = Geometry::new(config, SHARDS).unwrap();
        let mut parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 11);
        let index = parameters.index().clone();
        for (_, range) in index.iter() {
            for (at, value) in parameters.values_mut()[range].iter_mut().enumerate() {
                *value = if *value == 0.0 { (at * 5 % 7) as f32 / 16.0 - 0.2 } else { *value * 8.0 };
            }
        }
        (geometry, parameters)
    });
    models.collect()
}

fn decoder((geometry, parameters): &(Geometry, UnitBuffer)) -> Decoder {
    Decoder::new(Device::strict_cpu().stream(), geometry.clone(), parameters)
}

fn tokens(salt: usize, count: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 5 + i * salt + salt) % VOCABULARY) as u32).collect()
}

fn as_texts(texts: &[Vec<u32>]) -> Vec<&[u32]> {
    texts.iter().map(Vec::as_slice).collect()
}

/// The rows of the head, or of the embedding where they are tied.
fn head(geometry: &Geometry, parameters: &UnitBuffer) -> Vec<f32> {
    let tied = geometry.config.tie_word_embeddings;
    let (place, tensor) =
        if tied { (Place::Input, Tensor::Embedding) } else { (Place::Output, Tensor::Head) };
    let shards = (0..SHARDS).map(|shard| UnitId { place, tensor, shard: shard as u32 });
    shards.flat_map(|unit| parameters.unit(unit).to_vec()).collect()
}

#[test]
fn hidden_states_times_the_head_are_the_logits() {
    for model in models().iter().filter(|(geometry, _)| geometry.config.dtype == Dtype::default()) {
        let (decoder, head) = (decoder(model), head(&model.0, &model.1));
        let (pool, tokens) = (decoder.kv_pool(4), tokens(3, 90));
        let (mut one, mut other) = (pool.sequence(), pool.sequence());
        let chunk = Chunk { tokens: &tokens, sequence: &mut one, wanted: Wanted::All };
        let logits = decoder.forward(&mut [chunk]).unwrap();
        let chunk = Chunk { tokens: &tokens, sequence: &mut other, wanted: Wanted::All };
        let states = decoder.hidden_states(&mut [chunk]).unwrap();
        assert_eq!(states.rows().len(), tokens.len());
        for (state, logits) in states.rows().zip(logits.rows()) {
            for (row, logit) in head.chunks_exact(WIDTH).zip(logits) {
                let terms = row.iter().zip(state).map(|(a, b)| f64::from(*a) * f64::from(*b));
                let sum: f64 = terms.sum();
                assert!((sum - f64::from(*logit)).abs() < 1e-4, "{:?}: {sum} {logit}", model.0.config.family);
            }
        }
    }
}

#[test]
fn a_text_s_vector_is_the_mean_or_the_last_of_its_hidden_states() {
    for model in &models() {
        let decoder = decoder(model);
        let text = tokens(7, 70);
        let (pool, mut states) = (decoder.kv_pool(2), Vec::new());
        let mut sequence = pool.sequence();
        for tokens in text.chunks(1) {
            let chunk = Chunk { tokens, sequence: &mut sequence, wanted: Wanted::Last };
            states.extend(decoder.hidden_states(&mut [chunk]).unwrap().rows().map(<[f32]>::to_vec));
        }
        let last = decoder.embed(&[&text], Pooling::Last).unwrap();
        assert_eq!(last, states[69..]);
        let mean = decoder.embed(&[&text], Pooling::Mean).unwrap();
        for (column, value) in mean[0].iter().enumerate() {
            let exact = states.iter().map(|row| f64::from(row[column])).sum::<f64>() / 70.0;
            assert!((exact - f64::from(*value)).abs() < 1e-6, "{column}: {exact} {value}");
        }
        assert_ne!(mean, last);
    }
}

#[test]
fn a_text_has_the_same_vector_alone_and_among_any_others() {
    // One goes in three parts, and some share a pass.
    let lengths = [3, 64, 1, 2100, 65, 130, 700, 400, 5, 1024, 1025].into_iter().chain([2; 40]);
    let texts: Vec<Vec<u32>> = lengths.enumerate().map(|(salt, length)| tokens(salt + 1, length)).collect();
    let backwards: Vec<Vec<u32>> = texts.iter().rev().cloned().collect();
    for model in &models() {
        let decoder = decoder(model);
        for pooling in [Pooling::Mean, Pooling::Last] {
            let all = decoder.embed(&as_texts(&texts), pooling).unwrap();
            let mut reversed = decoder.embed(&as_texts(&backwards), pooling).unwrap();
            reversed.reverse();
            assert!(all == reversed, "{:?} {pooling:?}", model.0.config.family);
            for (text, vector) in texts.iter().zip(&all) {
                let alone = decoder.embed(&[text], pooling).unwrap();
                assert!(alone[0] == *vector, "{:?}, {} tokens", model.0.config.family, text.len());
            }
        }
    }
}

#[test]
fn a_text_that_does_not_fit_is_refused() {
    let decoder = decoder(&models()[0]);
    let (fits, long) = (tokens(1, 2500), tokens(1, 2501));
    assert_eq!(decoder.check(&fits), Ok(()));
    let too_long = DecodeError::Positions { tokens: 2501, positions: 2500 };
    assert_eq!(decoder.check(&long), Err(too_long));
    assert_eq!(decoder.check(&[]), Err(DecodeError::Empty));
    assert_eq!(decoder.check(&[1, 61]), Err(DecodeError::Token { token: 61, vocabulary: 61 }));
    for text in [&long[..], &[], &[61]] {
        assert!(decoder.embed(&[&fits[..3], text], Pooling::Mean).is_err());
    }
    assert_eq!(decoder.embed(&[], Pooling::Mean), Ok(Vec::new()));
}
