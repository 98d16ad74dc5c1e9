//! The end of a step: global gradient norm, clipping, learning rate, AdamW.
//!
//! Read [`Optimizer`] first. It owns the moments of a slice; the norm needs one number of every
//! unit of the whole model, which ranks exchange as a [`SquareSums`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sixfold_tensor::math::cos;
use sixfold_tensor::{AdamW, NORM_BLOCK, Stream, View, tree_sum_scalars};

use crate::gradient::{of_parameter, of_unit};
use crate::tensor_group::sum_shards;
use crate::unit::{Geometry, ModelSlice, Place, UnitId, UnitIndex};
use crate::unit_buffer::DeviceUnits;

/// AdamW (Loshchilov and Hutter, 2019), its learning rate and clipping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerOptions {
    /// Highest learning rate, reached at the end of the warm-up.
    pub learning_rate: f32,
    /// Learning rate at the last step, as a part of the highest.
    pub final_learning_rate_ratio: f32,
    /// Steps in which the learning rate grows from zero to its highest.
    pub warmup_steps: u64,
    /// Steps of the whole training; the cosine ends there.
    pub steps: u64,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay; norms and biases are exempt.
    pub weight_decay: f32,
    /// Largest global gradient norm; larger gradients are scaled down to it. 0 turns it off.
    pub clip_norm: f32,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            final_learning_rate_ratio: 0.1,
            warmup_steps: 20,
            steps: 200,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }
}

impl OptimizerOptions {
    /// The learning rate of a step (counted from 0): linear warm-up, then a cosine.
    pub fn learning_rate_at(&self, step: u64) -> f32 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f32 / self.warmup_steps as f32;
        }
        let span = self.steps.saturating_sub(self.warmup_steps).max(1);
        let done = ((step - self.warmup_steps) as f32 / span as f32).min(1.0);
        let low = self.learning_rate * self.final_learning_rate_ratio;
        low + (self.learning_rate - low) * 0.5 * (1.0 + cos(std::f32::consts::PI * done))
    }

    /// By what gradients are multiplied when their global norm is `norm`.
    pub fn clip_scale(&self, norm: f32) -> f32 {
        if self.clip_norm > 0.0 && norm > self.clip_norm { self.clip_norm / norm } else { 1.0 }
    }
}

/// The sum of squares of the gradients of every unit of the whole model, in canonical order.
///
/// A rank fills in its own units and leaves zeros elsewhere; since every number is filled in by
/// one rank of a data-parallel replica, adding the tables of all ranks is exact in any order.
#[derive(Debug, Clone, PartialEq)]
pub struct SquareSums {
    units: Vec<UnitId>,
    /// One number for each unit.
    pub values: Vec<f32>,
}

impl SquareSums {
    /// The table with the units of `slice` filled in, from finished gradients. `whole` says whether this rank counts what
    /// every rank of a tensor-parallel group holds: norms, and biases after a sum over shards.
    pub fn of_slice(
        stream: &Stream,
        geometry: &Geometry,
        slice: &ModelSlice,
        gradients: &DeviceUnits,
        whole: bool,
    ) -> Self {
        let (units, holds) = (slice.units(geometry), |unit| slice.holds(unit));
        Self::of_units(stream, geometry, &units, gradients, holds, whole)
    }

    /// As [`Self::of_slice`], from these units, with those that `holds` is true of: a table of a tied head at the end of a
    /// pipeline has a gradient, and is counted where the embedding is.
    pub fn of_units(
        stream: &Stream,
        geometry: &Geometry,
        units: &[UnitId],
        gradients: &DeviceUnits,
        holds: impl Fn(UnitId) -> bool,
        whole: bool,
    ) -> Self {
        let of_units = units.iter().map(|unit| of_parameter(geometry, gradients, *unit));
        let blocks: BTreeMap<_, _> = units.iter().zip(square_sums(stream, of_units)).collect();
        let of_unit = |unit| blocks.get(&unit).cloned().unwrap_or_default();
        Self::of_blocks(geometry, holds, whole, of_unit)
    }

    /// As [`Self::of_slice`], with the units that `holds` is true of, from the square sums of the
    /// [`NORM_BLOCK`](sixfold_tensor::NORM_BLOCK)s of each.
    pub fn of_blocks(
        geometry: &Geometry,
        holds: impl Fn(UnitId) -> bool,
        whole: bool,
        blocks: impl Fn(UnitId) -> Vec<f32>,
    ) -> Self {
        let units = ModelSlice::whole(geometry).units(geometry);
        let counted = |unit: &UnitId| {
            let copied = unit.tensor.is_key_value()
                && geometry.sharding.kv_original(unit.shard as usize) != unit.shard as usize;
            holds(*unit) && !copied && (whole || !unit.tensor.is_whole())
        };
        let of_unit = |unit: &UnitId| match counted(unit) {
            true => tree_sum_scalars(&blocks(*unit)),
            false => 0.0,
        };
        let values = units.iter().map(of_unit).collect();
        Self { units, values }
    }

    /// The first unit, in canonical order, whose sum of squares is not finite.
    pub fn first_not_finite(&self) -> Option<UnitId> {
        self.units.iter().zip(&self.values).find(|(_, sum)| !sum.is_finite()).map(|(unit, _)| *unit)
    }

    /// The global norm, once the whole table is filled in: shards of a tensor in the tree, then
    /// tensors of a layer, then layers, in canonical order.
    pub fn norm(&self, geometry: &Geometry) -> f32 {
        let mut total = 0.0;
        let mut place_sum = 0.0;
        let mut place = Place::Input;
        let units = self.units.chunk_by(|a, b| (a.place, a.tensor) == (b.place, b.tensor));
        let mut values = self.values.as_slice();
        for units in units {
            let (of_tensor, rest) = values.split_at(units.len());
            values = rest;
            if units[0].place != place {
                total += place_sum;
                (place, place_sum) = (units[0].place, 0.0);
            }
            place_sum += sum_tensor(geometry, units, of_tensor);
        }
        (total + place_sum).sqrt()
    }
}

/// The sums of squares of the [`NORM_BLOCK`]s of each of `parts`: enqueued one after another, and then waited for.
pub fn square_sums<'a>(stream: &Stream, parts: impl Iterator<Item = View<'a>> + Clone) -> Vec<Vec<f32>> {
    let blocks = |part: View<'_>| part.len().div_ceil(NORM_BLOCK);
    let mut sums = stream.uninit(parts.clone().map(blocks).sum());
    let mut rest = sums.view_mut();
    for part in parts.clone() {
        let (of_part, after) = rest.split_at(blocks(part));
        stream.sum_of_squares_blocks(part, of_part);
        rest = after;
    }
    let mut sums = stream.to_vec(sums.view()).into_iter();
    parts.map(|part| sums.by_ref().take(blocks(part)).collect()).collect()
}

/// The sum of one tensor's units in the tree over logical shards.
fn sum_tensor(geometry: &Geometry, units: &[UnitId], values: &[f32]) -> f32 {
    let find = |shard: usize| units.iter().position(|unit| unit.shard as usize == shard);
    let mut leaf = |shard| find(shard).map(|at| values[at]);
    sum_shards(0..geometry.sharding.logical(), &mut leaf, &|left, right| *left += right).unwrap_or(0.0)
}

/// AdamW and its state for the units of one slice, or for a part of each of some of them.
#[derive(Debug)]
pub struct Optimizer {
    stream: Stream,
    /// Its options.
    pub options: OptimizerOptions,
    /// Running means of the gradients.
    pub first_moment: DeviceUnits,
    /// Running means of the squared gradients.
    pub second_moment: DeviceUnits,
    /// Which numbers of each unit the moments belong to.
    parts: BTreeMap<UnitId, Range<usize>>,
}

impl Optimizer {
    /// The optimizer before the first step.
    pub fn new(stream: Stream, options: OptimizerOptions, parameters: &DeviceUnits) -> Self {
        let zeros = || DeviceUnits::zeros(&stream, parameters.index().clone());
        let parts = parameters.index().iter().map(|(unit, range)| (unit, 0..range.len())).collect();
        let [first_moment, second_moment] = [zeros(), zeros()];
        Self { stream, options, first_moment, second_moment, parts }
    }

    /// Which numbers of each unit it has moments of, and updates.
    pub fn parts(&self) -> &BTreeMap<UnitId, Range<usize>> {
        &self.parts
    }

    /// Keeps the moments of `parts` alone, which lie within those that it has.
    pub fn keep(&mut self, parts: BTreeMap<UnitId, Range<usize>>) {
        let index = Arc::new(UnitIndex::new(parts.iter().map(|(unit, part)| (*unit, part.len()))));
        for moment in [&mut self.first_moment, &mut self.second_moment] {
            let mut kept = DeviceUnits::zeros(&self.stream, index.clone());
            for (unit, part) in &parts {
                let before = self.parts.get(unit).map_or(0, |held| held.start);
                let held = moment.unit(*unit).slice(part.start - before..part.end - before);
                self.stream.copy(held, kept.unit_mut(*unit));
            }
            *moment = kept;
        }
        self.parts = parts;
    }

    /// Changes its part of `parameters` by the finished gradients of `step` (counted from 0), whose global norm
    /// over the whole model is `norm`. Returns the learning rate.
    pub fn step(
        &mut self,
        parameters: &mut DeviceUnits,
        gradients: &DeviceUnits,
        step: u64,
        norm: f32,
    ) -> f32 {
        let learning_rate = self.options.learning_rate_at(step);
        let gradient_scale = self.options.clip_scale(norm);
        for (unit, part) in &self.parts {
            let weight_decay = if unit.tensor.is_vector() { 0.0 } else { self.options.weight_decay };
            let OptimizerOptions { beta1, beta2, epsilon: eps, .. } = self.options;
            let adamw =
                AdamW { learning_rate, beta1, beta2, eps, weight_decay, step: step + 1, gradient_scale };
            self.stream.adamw_step(
                parameters.unit_mut(*unit).slice(part.clone()),
                self.first_moment.unit_mut(*unit),
                self.second_moment.unit_mut(*unit),
                of_unit(gradients, *unit).slice(part.clone()),
                &adamw,
            );
        }
        learning_rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_warms_up_and_falls_as_a_cosine() {
        let options = OptimizerOptions { warmup_steps: 10, steps: 110, ..OptimizerOptions::default() };
        let at = |step| options.learning_rate_at(step) / options.learning_rate;
        let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-5, "{a} {b}");
        close(at(0), 0.1);
        close(at(9), 1.0);
        close(at(10), 1.0);
        close(at(60), 0.55);
        close(at(110), 0.1);
        close(at(1000), 0.1);
    }

    #[test]
    fn only_large_gradients_are_clipped() {
        let options = OptimizerOptions { clip_norm: 2.0, ..OptimizerOptions::default() };
        assert_eq!((options.clip_scale(1.0), options.clip_scale(8.0)), (1.0, 0.25));
        assert_eq!(OptimizerOptions { clip_norm: 0.0, ..options }.clip_scale(1e9), 1.0);
    }
}
