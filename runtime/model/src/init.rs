//! Initial parameters: a function of seed, tensor, layer and element, whatever the plan.

use std::sync::Arc;

use sixfold_tensor::{Counter, Purpose};

use crate::lora::Factor;
use crate::unit::{Geometry, ModelSlice, Place, Tensor, UnitId, UnitIndex};
use crate::unit_buffer::UnitBuffer;

/// Standard deviation of initial weights (GPT-2, section 2.3 of its paper).
const DEVIATION: f32 = 0.02;

/// The initial parameters of `slice`.
///
/// Norms are 1, biases 0. Weights are normal with deviation 0.02; the two projections that write to the
/// residual stream have it divided by the root of twice the layers, as in GPT-2. Of adapters, which begin by changing nothing,
/// `B` is 0 and `A` uniform up to the root of its columns' inverse, as in PEFT. An element's
/// number follows from its place in the whole tensor, so every plan begins with the same model.
pub fn initialize(geometry: &Geometry, slice: &ModelSlice, seed: u64) -> UnitBuffer {
    let mut parameters = UnitBuffer::zeros(Arc::new(UnitIndex::of_parameters(geometry, slice)));
    for unit in slice.units(geometry) {
        initialize_unit(geometry, unit, seed, parameters.unit_mut(unit));
    }
    parameters
}

/// The initial parameters of one unit; see [`initialize`].
///
/// # Panics
/// If `values` are not as many as the unit has.
pub fn initialize_unit(geometry: &Geometry, unit: UnitId, seed: u64, values: &mut [f32]) {
    match unit.tensor.adapts() {
        _ if unit.tensor.is_norm() => values.fill(1.0),
        Some((_, Factor::A)) => draw_factor(geometry, unit, seed, values),
        None if !unit.tensor.is_vector() => draw(geometry, unit, seed, values),
        _ => values.fill(0.0),
    }
}

fn draw(geometry: &Geometry, unit: UnitId, seed: u64, values: &mut [f32]) {
    let deviation = match unit.tensor {
        Tensor::AttentionOutput | Tensor::Down => {
            DEVIATION / (2.0 * geometry.config.num_hidden_layers as f32).sqrt()
        }
        _ => DEVIATION,
    };
    let (random, region) = (random(unit, seed), geometry.region(unit));
    for (row, place) in values.chunks_exact_mut(region.columns.len()).zip(region.row_ranges()) {
        random.fill_normal(place.start as u64, row);
    }
    values.iter_mut().for_each(|value| *value *= deviation);
}

fn draw_factor(geometry: &Geometry, unit: UnitId, seed: u64, values: &mut [f32]) {
    let (random, region) = (random(unit, seed), geometry.region(unit));
    let bound = 1.0 / (region.width as f32).sqrt();
    for (row, place) in values.chunks_exact_mut(region.columns.len()).zip(region.row_ranges()) {
        random.fill_uniform(place.start as u64, row);
        row.iter_mut().for_each(|value| *value = bound * (2.0 * *value - 1.0));
    }
}

/// The random numbers of a unit's tensor, by the place of an element in it.
fn random(unit: UnitId, seed: u64) -> Counter {
    let layer = match unit.place {
        Place::Layer(layer) => layer,
        Place::Input | Place::Output => 0,
    };
    Counter::new(seed, 0, unit.tensor as u64, layer, Purpose::INITIALISATION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::geometry;

    #[test]
    fn every_slice_begins_with_the_same_model() {
        let geometry = geometry();
        let whole = initialize(&geometry, &ModelSlice::whole(&geometry), 7);
        let slice = ModelSlice { layers: 1..2, input: false, output: true, shards: 2..4 };
        for (unit, values) in initialize(&geometry, &slice, 7).iter() {
            assert_eq!(values, whole.unit(unit), "{unit}");
        }
        assert_ne!(initialize(&geometry, &slice, 8).values(), initialize(&geometry, &slice, 7).values());
    }

    #[test]
    fn weights_have_the_stated_spread() {
        let geometry = geometry();
        let whole = initialize(&geometry, &ModelSlice::whole(&geometry), 1);
        let weights: Vec<f32> =
            (0..4).flat_map(|shard| whole.unit(UnitId::embedding(shard))).copied().collect();
        let count = weights.len() as f32;
        let mean = weights.iter().sum::<f32>() / count;
        let deviation = (weights.iter().map(|w| w * w).sum::<f32>() / count).sqrt();
        assert!(mean.abs() < 0.003, "{mean}");
        assert!((deviation - DEVIATION).abs() < 0.003, "{deviation}");
    }
}
