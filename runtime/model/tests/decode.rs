//! One forward: whatever way tokens go through the decoder, the bits are those of the trainer.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use sixfold_model::{
    Alone, Chunk, DecodeError, Decoder, DeviceUnits, Dtype, Family, Geometry, KvSequence, MicroBatch,
    ModelConfig, ModelSlice, Network, OutOfBlocks, Output, PackedWeights, RopeScaling, SamplingOptions,
    StepSeed, Surroundings, UnitBuffer, Wanted, Work, initialize, sample,
};
use sixfold_tensor::{Device, IGNORED_TARGET};

const TOKENS: usize = 150;

fn geometry(kv_heads: usize, logical: usize) -> Geometry {
    let config = ModelConfig {
        family: Family::Llama,
        vocab_size: 61,
        hidden_size: 24,
        intermediate_size: 37,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: kv_heads,
        head_dim: 4,
        max_position_embeddings: 200,
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
    Geometry::new(config, logical).unwrap()
}

/// Of the GPT-2 family.
fn gpt2(logical: usize) -> Geometry {
    Geometry::new(ModelConfig { family: Family::Gpt2, ..geometry(6, 1).config }, logical).unwrap()
}

/// With operands of products rounded.
fn bf16(logical: usize) -> Geometry {
    Geometry::new(ModelConfig { dtype: Dtype::Bf16, ..geometry(3, 1).config }, logical).unwrap()
}

/// With a window, in which keys of two blocks lie.
fn windowed(logical: usize) -> Geometry {
    let sliding_window = NonZeroUsize::new(20);
    Geometry::new(ModelConfig { sliding_window, ..geometry(3, 1).config }, logical).unwrap()
}

/// Of the Qwen2 family, with a window in the last layer.
fn qwen2(logical: usize) -> Geometry {
    let (sliding_window, full_attention_layers) = (NonZeroUsize::new(20), 1);
    let llama = geometry(3, 1).config;
    let config = ModelConfig { family: Family::Qwen2, sliding_window, full_attention_layers, ..llama };
    Geometry::new(config, logical).unwrap()
}

/// Of the Qwen3 family, with all biases, heads wider than the stream together, and stretched positions.
fn qwen3(logical: usize) -> Geometry {
    let rope_scaling = Some(RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 50,
        beta_fast: 8.0,
        beta_slow: 1.0,
        attention_factor: 1.1,
        truncate: true,
    });
    let llama = geometry(3, 1).config;
    let config =
        ModelConfig { family: Family::Qwen3, head_dim: 6, attention_bias: true, rope_scaling, ..llama };
    Geometry::new(config, logical).unwrap()
}

fn parameters(geometry: &Geometry) -> UnitBuffer {
    let mut parameters = initialize(geometry, &ModelSlice::whole(geometry), 11);
    // Biases by their place in a unit, so that copies of a head have the same.
    let index = parameters.index().clone();
    for (_, range) in index.iter() {
        for (at, value) in parameters.values_mut()[range].iter_mut().enumerate() {
            *value = if *value == 0.0 { (at * 5 % 7) as f32 / 16.0 - 0.2 } else { *value * 8.0 };
        }
    }
    parameters
}

fn tokens(salt: usize, count: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 5 + i * salt + salt) % 61) as u32).collect()
}

fn decoder(geometry: &Geometry) -> Decoder {
    Decoder::new(Device::strict_cpu().stream(), geometry.clone(), &parameters(geometry))
}

fn logits(decoder: &Decoder, sequence: &mut KvSequence, tokens: &[u32]) -> Vec<Vec<f32>> {
    let chunk = Chunk { tokens, sequence, wanted: Wanted::All };
    decoder.forward(&mut [chunk]).unwrap().rows().map(<[f32]>::to_vec).collect()
}

/// The loss of each row in training.
fn training_losses(geometry: &Geometry, batch: MicroBatch) -> Vec<f32> {
    let stream = &Device::strict_cpu().stream();
    let parameters = DeviceUnits::upload(stream, &parameters(geometry));
    let slice = ModelSlice::whole(geometry);
    let weights = &PackedWeights::new(geometry, &slice, parameters.index(), None);
    let network = Network::new(stream.clone(), Arc::new(geometry.clone()), slice);
    let seed = StepSeed { seed: 0, step: 0, dropout: 0.0, adapter_dropout: 0.0 };
    let (parameters, work) = (&parameters, &mut Work::default());
    let mut around = Surroundings {
        parameters: parameters.into(),
        adapters: None,
        weights,
        seed,
        group: &mut Alone,
        work,
    };
    let (Output::Losses(losses), _) = network.forward(&mut around, batch, None).unwrap() else {
        panic!("the whole model ends with losses")
    };
    stream.to_vec(losses.view())
}

fn assert_training_agrees(geometry: &Geometry) {
    let tokens = tokens(3, TOKENS + 1);
    let batch = MicroBatch::of_documents(tokens[..TOKENS].to_vec(), tokens[1..].to_vec(), TOKENS);
    let losses = training_losses(geometry, batch);
    let decoder = decoder(geometry);
    let pool = decoder.kv_pool(8);
    let mut sequence = pool.sequence();
    let chunk = Chunk { tokens: &tokens[..TOKENS], sequence: &mut sequence, wanted: Wanted::All };
    let logits = decoder.forward(&mut [chunk]).unwrap();
    for (row, loss) in losses.iter().enumerate() {
        let log_probability = logits.log_probability(row, tokens[row + 1]);
        assert_eq!(log_probability.to_bits(), (-loss).to_bits(), "row {row}");
    }
}

#[test]
fn log_probabilities_have_the_bits_of_the_training_loss() {
    assert_training_agrees(&geometry(3, 4));
    assert_training_agrees(&geometry(6, 1));
    assert_training_agrees(&geometry(1, 8));
    assert_training_agrees(&gpt2(4));
    assert_training_agrees(&gpt2(8));
    assert_training_agrees(&bf16(4));
    assert_training_agrees(&windowed(4));
    assert_training_agrees(&qwen2(4));
    assert_training_agrees(&qwen2(8));
    assert_training_agrees(&qwen3(1));
    assert_training_agrees(&qwen3(4));
}

/// Two sequences of 120 tokens: documents of 9, 88 and 23 tokens, and of 1 and 119.
fn packed() -> MicroBatch {
    let all = tokens(5, 241);
    let batch = MicroBatch::of_documents(all[..240].to_vec(), all[1..].to_vec(), 120);
    let mut batch = MicroBatch { document_starts: vec![0, 9, 97, 120, 121], ..batch };
    for last in [8, 96, 119, 120] {
        batch.targets[last] = IGNORED_TARGET;
    }
    batch
}

#[test]
fn a_packed_document_has_the_bits_of_its_own_prefill_and_decode() {
    for geometry in [geometry(3, 4), geometry(1, 8), gpt2(4), bf16(4), windowed(4), qwen2(4), qwen3(4)] {
        let batch = packed();
        let losses = training_losses(&geometry, batch.clone());
        let decoder = decoder(&geometry);
        let pool = decoder.kv_pool(8);
        for rows in batch.documents() {
            let document = &batch.tokens[rows.clone()];
            let (mut prefilled, mut decoded) = (pool.sequence(), pool.sequence());
            let chunk = Chunk { tokens: document, sequence: &mut prefilled, wanted: Wanted::All };
            let prefill = decoder.forward(&mut [chunk]).unwrap();
            for (position, row) in rows.enumerate() {
                let tokens = &document[position..=position];
                let chunk = Chunk { tokens, sequence: &mut decoded, wanted: Wanted::Last };
                assert_eq!(decoder.forward(&mut [chunk]).unwrap().row(0), prefill.row(position));
                let loss = match batch.targets[row] {
                    IGNORED_TARGET => 0.0,
                    target => -prefill.log_probability(position, target),
                };
                assert_eq!(losses[row].to_bits(), loss.to_bits(), "row {row}");
            }
        }
    }
}

#[test]
fn the_loss_of_a_document_does_not_depend_on_what_it_is_packed_with() {
    let geometry = geometry(3, 4);
    let batch = packed();
    let before = training_losses(&geometry, batch.clone());
    let mut other = batch;
    other.tokens[..9].fill(60);
    other.tokens[97..].fill(59);
    let after = training_losses(&geometry, other);
    assert_eq!(before[9..97], after[9..97]);
    assert_ne!(before[..9], after[..9]);
}

#[test]
fn prefill_in_parts_and_decode_have_the_bits_of_one_prefill() {
    assert_parts_have_the_bits_of_the_whole(&geometry(3, 4));
    assert_parts_have_the_bits_of_the_whole(&gpt2(4));
    assert_parts_have_the_bits_of_the_whole(&bf16(4));
    assert_parts_have_the_bits_of_the_whole(&windowed(4));
    assert_parts_have_the_bits_of_the_whole(&qwen2(4));
    assert_parts_have_the_bits_of_the_whole(&qwen3(4));
}

fn assert_parts_have_the_bits_of_the_whole(geometry: &Geometry) {
    let decoder = decoder(geometry);
    let pool = decoder.kv_pool(100);
    let tokens = tokens(7, TOKENS);
    let whole = logits(&decoder, &mut pool.sequence(), &tokens);
    for parts in [&[TOKENS][..], &[64, 64, 22], &[1, 63, 70, 16], &[100, 50]] {
        let (mut sequence, mut rows, mut at) = (pool.sequence(), Vec::new(), 0);
        for part in parts {
            rows.extend(logits(&decoder, &mut sequence, &tokens[at..at + part]));
            at += part;
        }
        assert_eq!(rows, whole, "{parts:?}");
    }
    let mut sequence = pool.sequence();
    for (token, row) in tokens.chunks(1).zip(&whole) {
        assert_eq!(&logits(&decoder, &mut sequence, token)[0], row);
    }
}

#[test]
fn a_window_hides_what_is_before_it() {
    let geometry = Geometry::new(ModelConfig { num_hidden_layers: 1, ..windowed(4).config }, 4).unwrap();
    let decoder = decoder(&geometry);
    let pool = decoder.kv_pool(100);
    let tokens = tokens(7, TOKENS);
    let mut other = tokens.clone();
    other[..100].fill(60);
    let [seen, changed] = [&tokens, &other].map(|tokens| logits(&decoder, &mut pool.sequence(), tokens));
    assert_eq!(seen[119..], changed[119..]);
    assert_ne!(seen[118], changed[118]);
}

#[test]
fn a_sequence_does_not_notice_its_batch() {
    let decoder = decoder(&geometry(3, 4));
    let pool = decoder.kv_pool(100);
    let prompts = [tokens(1, 90), tokens(2, 5), tokens(3, 64)];
    let alone: Vec<Vec<Vec<f32>>> =
        prompts.iter().map(|prompt| logits(&decoder, &mut pool.sequence(), prompt)).collect();

    let mut sequences = [pool.sequence(), pool.sequence(), pool.sequence()];
    let cuts = [(0, 80), (0, 4), (0, 63)];
    let mut chunks: Vec<Chunk<'_>> = sequences
        .iter_mut()
        .zip(&prompts)
        .zip(cuts)
        .map(|((sequence, prompt), (from, to))| Chunk {
            tokens: &prompt[from..to],
            sequence,
            wanted: Wanted::Last,
        })
        .collect();
    let first = decoder.forward(&mut chunks).unwrap();
    for (row, (alone, (_, to))) in alone.iter().zip(cuts).enumerate() {
        assert_eq!(first.row(row), alone[to - 1]);
    }

    let [a, b, c] = &mut sequences;
    let mut chunks = [
        Chunk { tokens: &prompts[0][80..], sequence: a, wanted: Wanted::Last },
        Chunk { tokens: &prompts[1][4..], sequence: b, wanted: Wanted::Last },
        Chunk { tokens: &prompts[2][63..], sequence: c, wanted: Wanted::Nothing },
    ];
    let second = decoder.forward(&mut chunks).unwrap();
    assert_eq!(second.rows().len(), 2);
    assert_eq!(second.row(0), alone[0][89]);
    assert_eq!(second.row(1), alone[1][4]);
}

/// A prompt among `size` sequences, at `place`, prefilled with them but for its last token, which is decoded with theirs:
/// the logits of all of its rows.
fn among_others(decoder: &Decoder, prompt: &[u32], size: usize, place: usize) -> Vec<Vec<f32>> {
    let pool = decoder.kv_pool(size + 2);
    let mut sequences: Vec<KvSequence> = (0..size).map(|_| pool.sequence()).collect();
    let prompts: Vec<Vec<u32>> = (0..size)
        .map(|index| if index == place { prompt.to_vec() } else { tokens(index + 1, 2 + index % 3) })
        .collect();
    let mut rows = Vec::new();
    for decodes in [false, true] {
        let chunks = sequences.iter_mut().zip(&prompts).map(|(sequence, prompt)| {
            let cut = prompt.len() - 1;
            let tokens = if decodes { &prompt[cut..] } else { &prompt[..cut] };
            Chunk { tokens, sequence, wanted: Wanted::All }
        });
        let mut chunks: Vec<Chunk<'_>> = chunks.collect();
        let before: usize = chunks[..place].iter().map(|chunk| chunk.tokens.len()).sum();
        let own = before..before + chunks[place].tokens.len();
        let logits = decoder.forward(&mut chunks).unwrap();
        rows.extend(own.map(|row| logits.row(row).to_vec()));
    }
    rows
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_batches_of_2_16_and_512_in_prefill_and_in_decode() {
    for geometry in [geometry(3, 4), gpt2(4), bf16(4), qwen3(4)] {
        let decoder = decoder(&geometry);
        // More than a block of the KV cache.
        let prompt = tokens(7, 70);
        let alone = logits(&decoder, &mut decoder.kv_pool(2).sequence(), &prompt);
        for size in [1, 2, 16, 512] {
            for place in BTreeSet::from([0, size / 2, size - 1]) {
                assert_eq!(among_others(&decoder, &prompt, size, place), alone, "{place} of {size}");
            }
        }
    }
}

#[test]
fn a_request_continued_elsewhere_gets_the_same_tokens() {
    let decoder = decoder(&geometry(3, 4));
    let options = SamplingOptions { temperature: 0.8, top_k: 20, top_p: 0.95, seed: 42 };
    let generate = |prompt: &[u32], until: usize| {
        let pool = decoder.kv_pool(4);
        let (mut sequence, mut all, mut next) = (pool.sequence(), prompt.to_vec(), prompt.to_vec());
        while all.len() < until {
            let row = logits(&decoder, &mut sequence, &next).pop().unwrap();
            next = vec![sample(&row, &options, all.len() as u64)];
            all.extend(&next);
        }
        all
    };
    let whole = generate(&tokens(4, 10), 80);
    assert_eq!(generate(&whole[..37], 80), whole);
}

#[test]
fn a_refused_call_changes_nothing() {
    let decoder = decoder(&geometry(3, 4));
    let pool = decoder.kv_pool(2);
    let mut sequence = pool.sequence();
    let prompt = tokens(1, 100);
    let before = logits(&decoder, &mut sequence, &prompt);
    let mut refused = |tokens: &[u32]| {
        let chunk = Chunk { tokens, sequence: &mut sequence, wanted: Wanted::Last };
        decoder.forward(&mut [chunk]).unwrap_err()
    };
    assert_eq!(refused(&[]), DecodeError::Empty);
    assert_eq!(refused(&[61]), DecodeError::Token { token: 61, vocabulary: 61 });
    assert_eq!(refused(&prompt), DecodeError::OutOfBlocks(OutOfBlocks { wanted: 2, free: 0 }));
    assert!(matches!(refused(&tokens(1, 101)), DecodeError::Positions { tokens: 201, positions: 200 }));
    assert_eq!((sequence.tokens(), pool.blocks_in_use()), (100, 2));

    drop(sequence);
    assert_eq!(pool.blocks_in_use(), 0);
    assert_eq!(logits(&decoder, &mut pool.sequence(), &prompt), before);
}
