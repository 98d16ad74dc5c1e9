//! Loss and gradients of the network against a plain model in f64, differentiated numerically.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

#[path = "gradients/reference.rs"]
mod reference;

use std::num::NonZeroUsize;
use std::sync::Arc;

use reference::Reference;
use sixfold_model::{
    Alone, DeviceUnits, Dtype, Family, Geometry, MicroBatch, ModelConfig, ModelSlice, Network, Onto, Output,
    PackedWeights, Recompute, RopeScaling, SquareSums, StepSeed, Surroundings, Tensor, UnitBuffer, UnitIndex,
    Work, finish_gradients, gradient_index, gradient_of, initialize,
};
use sixfold_tensor::{Device, IGNORED_TARGET};

fn config() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: 23,
        hidden_size: 12,
        intermediate_size: 18,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 3,
        head_dim: 4,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 100.0,
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

fn geometry(config: ModelConfig, logical: usize) -> Geometry {
    Geometry::new(config, logical).unwrap()
}

/// Two sequences of 70 tokens: more than one block of keys.
fn batch() -> MicroBatch {
    let token = |i: usize| ((i * i * 7 + i * 3 + 5) % 23) as u32;
    MicroBatch::of_documents((0..140).map(token).collect(), (1..141).map(token).collect(), 70)
}

/// The same tokens as documents of 3, 66, 1, 69 and 1 tokens.
fn packed() -> MicroBatch {
    let mut batch = MicroBatch { document_starts: vec![0, 3, 69, 70, 139], ..batch() };
    for last in [2, 68, 69, 138] {
        batch.targets[last] = IGNORED_TARGET;
    }
    batch
}

/// Mean loss and the gradient of every parameter.
fn network(
    geometry: &Geometry,
    parameters: &UnitBuffer,
    batch: MicroBatch,
    dropout: f32,
    recompute: Recompute,
) -> (f32, UnitBuffer) {
    let (slice, stream) = (ModelSlice::whole(geometry), &Device::strict_cpu().stream());
    let mut network = Network::new(stream.clone(), Arc::new(geometry.clone()), slice.clone());
    network.recompute = recompute;
    let seed = StepSeed { seed: 1, step: 0, dropout, adapter_dropout: 0.0 };
    let mut work = Work::default();
    let parameters = &DeviceUnits::upload(stream, parameters);
    let weights = &PackedWeights::new(geometry, &slice, parameters.index(), None);
    let mut around = Surroundings {
        parameters: parameters.into(),
        adapters: None,
        weights,
        seed,
        group: &mut Alone,
        work: &mut work,
    };
    let scale = 1.0 / batch.counted_targets() as f32;
    let (output, tape) = network.forward(&mut around, batch, None).unwrap();
    let Output::Losses(losses) = output else { panic!("the whole model ends with losses") };
    let losses = stream.to_vec(losses.view());
    let mut sums = DeviceUnits::zeros(stream, Arc::new(gradient_index(geometry, &slice)));
    let before = network.backward(&mut around, tape, None, scale, &mut sums, Onto::Nothing).unwrap();
    assert!(before.is_none());
    let index = Arc::new(UnitIndex::of_parameters(geometry, &slice));
    finish_gradients(stream, geometry, &slice, &mut sums, &mut Alone, false).unwrap();
    let mut gradients = UnitBuffer::zeros(index);
    for unit in slice.units(geometry) {
        stream.to_host(gradient_of(geometry, &sums, unit), gradients.unit_mut(unit));
    }
    (losses.iter().sum::<f32>() * scale, gradients)
}

/// Parameters larger than the usual initial ones, so that no gradient vanishes.
fn parameters(geometry: &Geometry) -> UnitBuffer {
    let mut parameters = initialize(geometry, &ModelSlice::whole(geometry), 5);
    for value in parameters.values_mut() {
        *value = if *value == 1.0 { 0.9 } else { *value * 12.0 };
    }
    let index = parameters.index().clone();
    for (_, range) in index.iter().filter(|(unit, _)| unit.tensor.is_vector() && !unit.tensor.is_norm()) {
        let biases = parameters.values_mut()[range].iter_mut().enumerate();
        biases.for_each(|(at, bias)| *bias = (at * 5 % 7) as f32 / 16.0 - 0.2);
    }
    parameters
}

fn gpt2() -> ModelConfig {
    ModelConfig {
        family: Family::Gpt2,
        hidden_size: 12,
        num_attention_heads: 3,
        num_key_value_heads: 3,
        max_position_embeddings: 75,
        ..config()
    }
}

fn qwen2() -> ModelConfig {
    ModelConfig { family: Family::Qwen2, ..config() }
}

/// With heads wider than the stream together, and all biases.
fn qwen3() -> ModelConfig {
    ModelConfig { family: Family::Qwen3, head_dim: 6, attention_bias: true, ..config() }
}

fn check(config: ModelConfig, logical: usize) {
    check_batch(config, logical, &batch());
}

fn check_batch(config: ModelConfig, logical: usize, batch: &MicroBatch) {
    let geometry = geometry(config, logical);
    let parameters = parameters(&geometry);
    let (loss, gradients) = network(&geometry, &parameters, batch.clone(), 0.0, Recompute::None);
    let mut reference = Reference::new(&geometry, &parameters);
    let expected = reference.loss(batch);
    assert!((f64::from(loss) - expected).abs() < 2e-6 * expected, "{loss} {expected}");

    for (unit, gradient) in gradients.iter() {
        let region = geometry.region(unit);
        let places: Vec<usize> = region.row_ranges().flatten().collect();
        let largest = gradient.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
        let picks: &[usize] = match unit.tensor {
            Tensor::PositionEmbedding => &(0..places.len()).step_by(37).collect::<Vec<_>>(),
            Tensor::Key | Tensor::Value => &(0..places.len()).step_by(7).collect::<Vec<_>>(),
            _ => &[0, places.len() / 3, places.len() / 2, places.len() - 1],
        };
        for &pick in picks {
            let expected = reference.derivative(unit, places[pick], batch);
            let error = (f64::from(gradient[pick]) - expected).abs();
            // A key's bias adds the same to all scores of a query where positions are not rotary: its gradient is zero.
            let is_zero = unit.tensor == Tensor::KeyBias && geometry.config.family == Family::Gpt2;
            let largest = if is_zero { 1e-2 } else { largest };
            assert!(
                error < 1e-4 * f64::from(largest) + 1e-8,
                "{unit} element {pick}: {} but {expected}",
                gradient[pick]
            );
        }
    }
}

#[test]
fn four_shards_agree_with_the_plain_model() {
    check(config(), 4);
}

#[test]
fn one_shard_agrees_with_the_plain_model() {
    check(config(), 1);
}

#[test]
fn copies_of_key_value_heads_agree_with_the_plain_model() {
    check(ModelConfig { num_key_value_heads: 1, ..config() }, 4);
}

#[test]
fn more_shards_than_heads_agree_with_the_plain_model() {
    check(ModelConfig { num_attention_heads: 3, ..config() }, 8);
}

#[test]
fn a_tied_head_agrees_with_the_plain_model() {
    check(ModelConfig { tie_word_embeddings: true, ..config() }, 2);
}

#[test]
fn packed_documents_agree_with_documents_alone() {
    check_batch(config(), 4, &packed());
}

#[test]
fn a_gpt2_agrees_with_the_plain_model() {
    check(gpt2(), 1);
    check(gpt2(), 8);
    check_batch(ModelConfig { tie_word_embeddings: true, ..gpt2() }, 4, &packed());
}

#[test]
fn a_sliding_window_agrees_with_the_plain_model() {
    for window in [1, 5, 68] {
        let config = ModelConfig { sliding_window: NonZeroUsize::new(window), ..config() };
        check_batch(config.clone(), 4, &packed());
        check(config, 1);
    }
}

#[test]
fn a_qwen2_agrees_with_the_plain_model() {
    check(qwen2(), 1);
    check(qwen2(), 4);
    check_batch(ModelConfig { num_key_value_heads: 1, ..qwen2() }, 8, &packed());
}

#[test]
fn a_qwen3_agrees_with_the_plain_model() {
    check(ModelConfig { attention_bias: false, ..qwen3() }, 1);
    check(qwen3(), 4);
    check(ModelConfig { num_attention_heads: 3, ..qwen3() }, 8);
    check_batch(ModelConfig { num_key_value_heads: 1, tie_word_embeddings: true, ..qwen3() }, 4, &packed());
}

#[test]
fn a_window_of_the_last_layers_agrees_with_the_plain_model() {
    let sliding_window = NonZeroUsize::new(5);
    check_batch(ModelConfig { sliding_window, full_attention_layers: 1, ..qwen2() }, 2, &packed());
}

#[test]
fn a_llama_with_biases_agrees_with_the_plain_model() {
    check(ModelConfig { attention_bias: true, ..config() }, 4);
}

/// Numbers that put pairs on both sides of every border, and between.
#[test]
fn scaled_rotary_positions_agree_with_the_plain_model() {
    let original_max_position_embeddings = 24;
    for scaling in [
        RopeScaling::Linear { factor: 4.0 },
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 0.5,
            high_freq_factor: 2.0,
            original_max_position_embeddings,
        },
        RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings,
            beta_fast: 2.0,
            beta_slow: 0.25,
            attention_factor: 1.2,
            truncate: false,
        },
    ] {
        check(ModelConfig { rope_scaling: Some(scaling), head_dim: 8, ..config() }, 4);
    }
}

/// With dropout the loss still changes along the gradient as the gradient says.
///
/// Copies of a key-value head are one parameter: they move together, and the length of the
/// gradient counts them once.
#[test]
fn gradients_of_rounded_products_are_near_those_of_exact_ones() {
    for config in [config(), gpt2(), qwen2(), qwen3()] {
        let [exact, rounded] = [Dtype::F32, Dtype::Bf16].map(|dtype| {
            let geometry = geometry(ModelConfig { dtype, ..config.clone() }, 4);
            network(&geometry, &parameters(&geometry), batch(), 0.0, Recompute::None)
        });
        assert!((exact.0 - rounded.0).abs() < 0.02 * exact.0, "{} and {}", exact.0, rounded.0);
        for ((unit, exact), (_, rounded)) in exact.1.iter().zip(rounded.1.iter()) {
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
            let error = norm(&mut exact.iter().zip(rounded).map(|(exact, rounded)| exact - rounded));
            let size = norm(&mut exact.iter().copied());
            // A key's bias has a gradient of zero where positions are not rotary.
            let is_zero = unit.tensor == Tensor::KeyBias && config.family == Family::Gpt2;
            assert!(is_zero || error < 0.1 * size, "{unit}: off by {error} of {size}");
            println!("{unit}: {}", error / size);
        }
    }
}

fn check_dropout(config: ModelConfig, logical: usize) {
    let geometry = geometry(config, logical);
    let parameters = parameters(&geometry);
    let (without, _) = network(&geometry, &parameters, batch(), 0.0, Recompute::None);
    let (loss, gradients) = network(&geometry, &parameters, batch(), 0.5, Recompute::None);
    assert!((loss - without).abs() > 1e-3, "dropout changes nothing: {loss} {without}");
    let stream = &Device::cpu().stream();
    let (on_device, whole) = (DeviceUnits::upload(stream, &gradients), ModelSlice::whole(&geometry));
    let length = SquareSums::of_slice(stream, &geometry, &whole, &on_device, true).norm(&geometry);
    let loss_at = |distance: f32| {
        let mut moved = parameters.clone();
        let steps = moved.values_mut().iter_mut().zip(gradients.values());
        steps.for_each(|(value, gradient)| *value += distance * gradient / length);
        network(&geometry, &moved, batch(), 0.5, Recompute::None).0
    };
    let slope = (loss_at(0.005) - loss_at(-0.005)) / 0.01;
    assert!((slope / length - 1.0).abs() < 0.01, "{slope} {length}");
}

#[test]
fn gradients_with_dropout_agree_with_the_loss() {
    check_dropout(config(), 2);
    check_dropout(gpt2(), 2);
    check_dropout(qwen3(), 2);
}

#[test]
fn gradients_with_dropout_and_copies_agree_with_the_loss() {
    check_dropout(config(), 4);
    check_dropout(ModelConfig { num_key_value_heads: 1, ..config() }, 8);
}

/// More logits than are computed at a time.
#[test]
fn logits_that_are_computed_again_in_parts_keep_the_bits() {
    let geometry = geometry(ModelConfig { vocab_size: 70_000, ..config() }, 4);
    let parameters = parameters(&geometry);
    let bits = |recompute| {
        let (loss, gradients) = network(&geometry, &parameters, batch(), 0.0, recompute);
        (loss.to_bits(), gradients.values().iter().map(|value| value.to_bits()).collect::<Vec<_>>())
    };
    assert!(bits(Recompute::Full) == bits(Recompute::None));
}
