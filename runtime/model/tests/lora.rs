//! Adapters: their gradients by the chain rule from those of the weights that they come to.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::collections::BTreeMap;
use std::sync::Arc;

use sixfold_model::{
    AdaptedWeights, Alone, DeviceUnits, Family, Geometry, Lora, LoraError, MicroBatch, ModelConfig,
    ModelSlice, Network, Onto, Output, PackedWeights, Place, Projection, Recompute, StepSeed, Surroundings,
    Tensor, UnitBuffer, UnitId, UnitIndex, Work, finish_gradients, gradient_index, gradient_of, initialize,
    merge_adapters, write_parameters,
};
use sixfold_tensor::Device;

const SHARDS: usize = 4;

fn config(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        vocab_size: 23,
        hidden_size: 16,
        intermediate_size: 18,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: if family == Family::Gpt2 { 4 } else { 2 },
        head_dim: 4,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 100.0,
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: family == Family::Qwen3,
        tie_word_embeddings: true,
        dtype: Default::default(),
        bos_token_id: None,
        eos_token_id: None,
    }
}

fn all(family: Family) -> Lora {
    let has_gate = |projection: &Projection| family != Family::Gpt2 || *projection != Projection::Gate;
    Lora { rank: 3, alpha: 6.0, projections: Projection::ALL.into_iter().filter(has_gate).collect() }
}

fn batch() -> MicroBatch {
    let token = |i: usize| ((i * i * 7 + i * 3 + 5) % 23) as u32;
    MicroBatch::of_documents((0..60).map(token).collect(), (1..61).map(token).collect(), 30)
}

/// Weights larger than the usual initial ones, and adapters of which neither factor is zero.
fn parameters(geometry: &Geometry) -> UnitBuffer {
    let mut parameters = initialize(geometry, &ModelSlice::whole(geometry), 5);
    let index = parameters.index().clone();
    for (unit, range) in index.iter() {
        let is_factor = geometry.lora.is_some();
        for (at, value) in parameters.values_mut()[range].iter_mut().enumerate() {
            *value = match *value {
                1.0 => 0.9,
                0.0 => ((at * 5 + unit.tensor as usize) % 7) as f32 / 16.0 - 0.2,
                value if is_factor => value,
                value => value * 12.0,
            };
        }
    }
    parameters
}

/// Losses and the gradient of every parameter that is trained.
fn network(
    geometry: &Geometry,
    base: &UnitBuffer,
    adapters: Option<&UnitBuffer>,
    adapter_dropout: f32,
    recompute: Recompute,
) -> (Vec<f32>, UnitBuffer) {
    let (slice, stream) = (ModelSlice::whole(geometry), &Device::strict_cpu().stream());
    let mut network = Network::new(stream.clone(), Arc::new(geometry.clone()), slice.clone());
    network.recompute = recompute;
    let seed = StepSeed { seed: 1, step: 0, dropout: 0.0, adapter_dropout };
    let parameters = &DeviceUnits::upload(stream, base);
    let adapters = adapters.map(|adapters| DeviceUnits::upload(stream, adapters));
    let adapters = adapters.as_ref();
    let lie = adapters.map(|adapters| &**adapters.index());
    let weights = &PackedWeights::new(geometry, &slice, parameters.index(), lie);
    let work = &mut Work::default();
    let mut around =
        Surroundings { parameters: parameters.into(), adapters, weights, seed, group: &mut Alone, work };
    let (output, tape) = network.forward(&mut around, batch(), None).unwrap();
    let Output::Losses(losses) = output else { panic!("the whole model ends with losses") };
    let losses = stream.to_vec(losses.view());
    let mut sums = DeviceUnits::zeros(stream, Arc::new(gradient_index(geometry, &slice)));
    network.backward(&mut around, tape, None, 1.0, &mut sums, Onto::Nothing).unwrap();
    finish_gradients(stream, geometry, &slice, &mut sums, &mut Alone, false).unwrap();
    let mut gradients = UnitBuffer::zeros(Arc::new(UnitIndex::of_parameters(geometry, &slice)));
    for unit in slice.units(geometry) {
        stream.to_host(gradient_of(geometry, &sums, unit), gradients.unit_mut(unit));
    }
    (losses, gradients)
}

/// A whole tensor of a layer, row after row. Of key-value heads with copies it is what the copies hold alike.
fn whole(geometry: &Geometry, units: &UnitBuffer, layer: usize, tensor: Tensor) -> Vec<f32> {
    let (rows, columns) = geometry.whole(tensor);
    let mut whole = vec![f32::NAN; rows * columns];
    for shard in 0..SHARDS {
        let unit = UnitId::of_layer(layer, tensor, shard);
        let Some(values) = units.get(unit) else { continue };
        let places = geometry.region(unit).row_ranges().flatten().collect::<Vec<_>>();
        places.into_iter().zip(values).for_each(|(place, value)| whole[place] = *value);
    }
    assert!(whole.iter().all(|value| !value.is_nan()), "{tensor:?}");
    whole
}

/// `scale * a b`, of `[m, k]` and `[k, n]`, in f64.
fn product(scale: f32, a: &[f32], b: &[f32], k: usize) -> Vec<f64> {
    let (m, n) = (a.len() / k, b.len() / k);
    let element = |at: usize| {
        let term = |k_at: usize| f64::from(a[at / n * k + k_at]) * f64::from(b[k_at * n + at % n]);
        f64::from(scale) * (0..k).map(term).sum::<f64>()
    };
    (0..m * n).map(element).collect()
}

fn transposed(a: &[f32], columns: usize) -> Vec<f32> {
    let rows = a.len() / columns;
    (0..a.len()).map(|at| a[at % rows * columns + at / rows]).collect()
}

fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    let largest = expected.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    assert!(largest > 1e-3, "{what} is nothing");
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-4 * largest, "{what}: {found} {expected}");
    }
}

#[test]
fn gradients_of_adapters_follow_from_those_of_the_weights_they_come_to() {
    for family in Family::ALL {
        let base = Geometry::new(config(family), SHARDS).unwrap();
        let geometry = base.clone().with_lora(all(family)).unwrap();
        let (weights, adapters) = (parameters(&base), parameters(&geometry));
        let merged = merge_adapters(&geometry, &weights, &adapters);
        let (expected, of_weights) = network(&base, &merged, None, 0.0, Recompute::None);
        let (losses, gradients) = network(&geometry, &weights, Some(&adapters), 0.0, Recompute::None);
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        assert_close(&losses, &expected, "the loss");

        let lora = geometry.lora.as_ref().unwrap();
        for (layer, projection) in
            (0..2).flat_map(|layer| lora.projections.iter().map(move |one| (layer, one)))
        {
            let [weight, a, b] = projection.tensors();
            let (outputs, inputs) = geometry.whole(weight);
            let of_weight = whole(&base, &of_weights, layer, weight);
            let [of_a, of_b] = [a, b].map(|tensor| whole(&geometry, &adapters, layer, tensor));
            let scale = lora.scale();
            // dA = s B^T dW, dB = s dW A^T.
            let d_a = product(scale, &transposed(&of_b, lora.rank), &of_weight, outputs);
            let d_b = product(scale, &of_weight, &transposed(&of_a, inputs), inputs);
            let name = |factor| format!("{family:?} {layer} {projection:?} {factor}");
            assert_close(&whole(&geometry, &gradients, layer, a), &d_a, &name("A"));
            assert_close(&whole(&geometry, &gradients, layer, b), &d_b, &name("B"));
        }
        for recompute in [Recompute::Selective, Recompute::Full] {
            let again = network(&geometry, &weights, Some(&adapters), 0.25, recompute);
            assert!(
                again == network(&geometry, &weights, Some(&adapters), 0.25, Recompute::None),
                "{recompute:?}"
            );
        }
    }
}

#[test]
fn new_adapters_change_no_bit_of_the_model() {
    let base = Geometry::new(config(Family::Llama), SHARDS).unwrap();
    let geometry = base.clone().with_lora(all(Family::Llama)).unwrap();
    let weights = parameters(&base);
    let adapters = initialize(&geometry, &ModelSlice::whole(&geometry), 3);
    let (expected, _) = network(&base, &weights, None, 0.0, Recompute::None);
    let (losses, _) = network(&geometry, &weights, Some(&adapters), 0.5, Recompute::None);
    assert_eq!(losses, expected);
    assert_eq!(merge_adapters(&geometry, &weights, &adapters).values(), weights.values());
}

#[test]
fn weights_in_files_with_adapters_in_files_are_those_that_merging_gives_in_any_slice() {
    for family in Family::ALL {
        let base = Geometry::new(config(family), SHARDS).unwrap();
        let twice = [all(family), Lora { rank: 2, projections: [Projection::Value].into(), ..all(family) }];
        let (mut expected, mut files) = (parameters(&base), Vec::new());
        let weights = write_parameters(&base, &expected).unwrap();
        for lora in twice {
            let geometry = base.clone().with_lora(lora.clone()).unwrap();
            let adapters = parameters(&geometry);
            expected = merge_adapters(&geometry, &expected, &adapters);
            let config = lora.to_peft(&base.config, "base", 0.0).to_string().into_bytes();
            files.push((config, write_parameters(&geometry, &adapters).unwrap()));
        }
        let both = || files.iter().map(|(config, adapters)| (config.as_slice(), adapters.as_slice()));
        let adapted = AdaptedWeights::parse(&base, &[&weights], both()).unwrap();
        let part = ModelSlice { layers: 1..2, input: false, output: true, shards: 1..3 };
        for slice in [ModelSlice::whole(&base), part] {
            let read = adapted.read_slice(&base, &slice).unwrap();
            for (unit, values) in read.iter() {
                assert_eq!(values, expected.unit(unit), "{family:?} {}", unit.tensor_name());
                let mut alone = vec![f32::NAN; values.len()];
                adapted.read(&base, unit, &mut alone).unwrap();
                assert_eq!(alone, values, "{family:?} {}", unit.tensor_name());
            }
        }
        let without = AdaptedWeights::parse(&base, &[&weights], []).unwrap();
        assert!(without.read_slice(&base, &ModelSlice::whole(&base)).unwrap() != expected);
        let (config, adapters) = &files[0];
        let broken = AdaptedWeights::parse(&base, &[&weights], [(config.as_slice(), &adapters[..99])]);
        assert!(broken.is_err());
        let other = AdaptedWeights::parse(&base, &[&weights], [(&b"{}"[..], adapters.as_slice())]);
        assert!(other.unwrap_err().to_string().contains("adapter_config.json"));
    }
}

/// The loss is differentiated along a direction, with the masks of dropout held.
#[test]
fn gradients_with_dropout_are_those_of_the_masked_model() {
    let base = Geometry::new(config(Family::Llama), SHARDS).unwrap();
    let geometry = base.clone().with_lora(all(Family::Llama)).unwrap();
    let (weights, adapters) = (parameters(&base), parameters(&geometry));
    let loss = |adapters: &UnitBuffer| {
        let (losses, _) = network(&geometry, &weights, Some(adapters), 0.3, Recompute::None);
        losses.into_iter().map(f64::from).sum::<f64>()
    };
    let (_, gradients) = network(&geometry, &weights, Some(&adapters), 0.3, Recompute::None);
    // Copies of a key-value head are one parameter, so they go one way.
    let sizes: BTreeMap<UnitId, f64> = gradients
        .iter()
        .map(|(unit, values)| (unit, values.iter().map(|g| f64::from(g * g)).sum()))
        .collect();
    for layer in 0..2 {
        for tensor in Projection::ALL.into_iter().flat_map(|one| one.tensors().into_iter().skip(1)) {
            let of_tensor = |unit: &UnitId| (unit.place, unit.tensor) == (Place::Layer(layer), tensor);
            let units: Vec<UnitId> = sizes.keys().copied().filter(of_tensor).collect();
            let original = |unit: &&UnitId| {
                !tensor.is_key_value()
                    || geometry.sharding.kv_original(unit.shard as usize) == unit.shard as usize
            };
            let size = units.iter().filter(original).map(|unit| sizes[unit]).sum::<f64>().sqrt();
            let moved = |by: f64| {
                let mut moved = adapters.clone();
                for unit in &units {
                    let values = moved.unit_mut(*unit).iter_mut().zip(gradients.unit(*unit));
                    values.for_each(|(value, g)| *value += (by / size * f64::from(*g)) as f32);
                }
                loss(&moved)
            };
            let slope = (moved(4e-3) - moved(-4e-3)) / 8e-3;
            assert!((slope - size).abs() < 0.02 * size, "{layer} {tensor:?}: {slope} and {size}");
        }
    }
}

#[test]
fn adapters_that_make_no_sense_are_refused() {
    let gpt2 = config(Family::Gpt2);
    let refused = |lora: Lora| lora.validate(&gpt2).unwrap_err();
    let lora = all(Family::Gpt2);
    assert_eq!(lora.validate(&gpt2), Ok(()));
    assert_eq!(refused(Lora { rank: 0, ..lora.clone() }), LoraError::Rank(0));
    assert_eq!(refused(Lora { alpha: -1.0, ..lora.clone() }), LoraError::Alpha(-1.0));
    assert_eq!(refused(Lora { projections: [].into(), ..lora.clone() }), LoraError::Nothing);
    let gate = Lora { projections: [Projection::Gate].into(), ..lora };
    assert_eq!(refused(gate), LoraError::Missing(Projection::Gate));
}
