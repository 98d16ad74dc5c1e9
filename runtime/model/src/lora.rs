//! Which weights have adapters of low rank: [`Lora`] (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021).
//!
//! Beside a weight `W` of `[outputs, inputs]`, which stays as it is, lie `A` of `[rank, inputs]` and `B` of `[outputs, rank]`:
//! `y = x W^T + alpha / rank * (dropout(x) A^T) B^T`. Only `A` and `B` are trained, saved and sent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::hugging_face::assemble;
use crate::unit::{Geometry, Place, Region, Tensor, UnitId};
use crate::unit_buffer::{HostUnits, UnitBuffer};

/// Largest rank that is accepted from outside.
const RANK_MAX: usize = 1024;

/// The adapters of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rank of the product that is added to a weight.
    pub rank: usize,
    /// What is added is scaled by `alpha / rank`.
    pub alpha: f32,
    /// The projections of each layer that have adapters.
    pub projections: BTreeSet<Projection>,
}

/// A projection of a decoder layer, by the name that Hugging Face's Llama has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Projection {
    /// Queries.
    #[serde(rename = "q_proj")]
    Query,
    /// Keys.
    #[serde(rename = "k_proj")]
    Key,
    /// Values.
    #[serde(rename = "v_proj")]
    Value,
    /// From the heads to the residual stream.
    #[serde(rename = "o_proj")]
    AttentionOutput,
    /// Gates of the feed-forward layer, in families that have them.
    #[serde(rename = "gate_proj")]
    Gate,
    /// Into the feed-forward layer.
    #[serde(rename = "up_proj")]
    Up,
    /// From the feed-forward layer to the residual stream.
    #[serde(rename = "down_proj")]
    Down,
}

/// The adapters cannot be had.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoraError {
    /// The rank is zero or absurdly large.
    #[error("a LoRA rank of {0}; it must be from 1 to {RANK_MAX}")]
    Rank(usize),
    /// The scale is not a number above zero.
    #[error("a LoRA alpha of {0}; it must be above 0")]
    Alpha(f32),
    /// There would be nothing to train.
    #[error("no projection has adapters; name some of {}", Projection::names(&Projection::ALL))]
    Nothing,
    /// PEFT's configuration is broken, or asks for something else than these adapters.
    #[error("adapter_config.json: {0}")]
    Peft(String),
    /// The family has no such weight.
    #[error("models of this family have no `{}`", .0.name())]
    Missing(Projection),
}

impl Projection {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::AttentionOutput, Self::Gate, Self::Up, Self::Down];

    /// The name, as in `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::AttentionOutput => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    fn names(projections: &[Self]) -> String {
        projections.iter().map(|projection| projection.name()).collect::<Vec<_>>().join(", ")
    }

    /// The weight, its `A` and its `B`.
    pub fn tensors(self) -> [Tensor; 3] {
        match self {
            Self::Query => [Tensor::Query, Tensor::QueryLoraA, Tensor::QueryLoraB],
            Self::Key => [Tensor::Key, Tensor::KeyLoraA, Tensor::KeyLoraB],
            Self::Value => [Tensor::Value, Tensor::ValueLoraA, Tensor::ValueLoraB],
            Self::AttentionOutput => {
                [Tensor::AttentionOutput, Tensor::AttentionOutputLoraA, Tensor::AttentionOutputLoraB]
            }
            Self::Gate => [Tensor::Gate, Tensor::GateLoraA, Tensor::GateLoraB],
            Self::Up => [Tensor::Up, Tensor::UpLoraA, Tensor::UpLoraB],
            Self::Down => [Tensor::Down, Tensor::DownLoraA, Tensor::DownLoraB],
        }
    }

    /// Whether layers of a model have it.
    pub fn is_of(self, config: &ModelConfig) -> bool {
        config.layer_tensors().any(|tensor| tensor == self.tensors()[0])
    }

    /// The projection of which this is the weight.
    pub(crate) fn of_weight(tensor: Tensor) -> Option<Self> {
        Self::ALL.into_iter().find(|projection| projection.tensors()[0] == tensor)
    }
}

/// A factor of what is added to a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Factor {
    /// `[rank, inputs]`
    A,
    /// `[outputs, rank]`
    B,
}

impl Tensor {
    /// Of which weight this is which factor.
    pub(crate) fn adapts(self) -> Option<(Self, Factor)> {
        Projection::ALL.into_iter().find_map(|projection| {
            let [weight, a, b] = projection.tensors();
            let factor = [(a, Factor::A), (b, Factor::B)].into_iter().find(|(tensor, _)| *tensor == self);
            factor.map(|(_, factor)| (weight, factor))
        })
    }

    /// The factor of the adapter of this weight.
    pub(crate) fn factor(self, factor: Factor) -> Option<Self> {
        let [_, a, b] = Projection::of_weight(self)?.tensors();
        Some(if factor == Factor::A { a } else { b })
    }
}

impl Lora {
    /// By what the product of an adapter is scaled.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Checks that the adapters make sense for a model.
    ///
    /// # Errors
    /// [`LoraError`] says what does not.
    pub fn validate(&self, config: &ModelConfig) -> Result<(), LoraError> {
        if self.rank == 0 || self.rank > RANK_MAX {
            return Err(LoraError::Rank(self.rank));
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(LoraError::Alpha(self.alpha));
        }
        if self.projections.is_empty() {
            return Err(LoraError::Nothing);
        }
        match self.projections.iter().find(|projection| !projection.is_of(config)) {
            Some(projection) => Err(LoraError::Missing(*projection)),
            None => Ok(()),
        }
    }

    /// Whether a weight has an adapter.
    pub(crate) fn adapts(&self, weight: Tensor) -> bool {
        Projection::of_weight(weight).is_some_and(|projection| self.projections.contains(&projection))
    }

    /// The adapters' tensors of every layer, in canonical order.
    pub(crate) fn layer_tensors(&self) -> Vec<Tensor> {
        let both = |projection: &Projection| projection.tensors().into_iter().skip(1);
        let mut tensors: Vec<Tensor> = self.projections.iter().flat_map(both).collect();
        tensors.sort_unstable();
        tensors
    }
}

/// The weights of the model that adapters and the weights beside them come to: `W + alpha / rank * B A`, each element a sum over
/// the rank in ascending order, in f32. `weights` and `adapters` are whole models.
///
/// # Panics
/// If either is of another model.
pub fn merge_adapters(geometry: &Geometry, weights: &HostUnits<'_>, adapters: &HostUnits<'_>) -> UnitBuffer {
    let mut merged = weights.clone().into_owned();
    let (Some(factors), base) = (Factors::new(geometry, adapters), geometry.base()) else { return merged };
    let index = merged.index().clone();
    index.iter().for_each(|(unit, _)| factors.add_to(&base, unit, merged.unit_mut(unit)));
    merged
}

/// The adapters of a model, each factor whole, so that they can be added to any part of a weight.
#[derive(Debug)]
pub(crate) struct Factors {
    lora: Lora,
    /// `A` and `B` of each weight that has an adapter.
    of_weights: BTreeMap<(Place, Tensor), [Vec<f32>; 2]>,
}

impl Factors {
    /// Those of a whole model; none of a model without adapters.
    pub(crate) fn new(geometry: &Geometry, adapters: &HostUnits<'_>) -> Option<Self> {
        let lora = geometry.lora.clone()?;
        let layers = (0..geometry.config.num_hidden_layers as u32).map(Place::Layer);
        let all = layers.flat_map(|place| lora.projections.iter().map(move |one| (place, one.tensors())));
        let whole = |(place, [weight, a, b]): (Place, [Tensor; 3])| {
            ((place, weight), [a, b].map(|factor| assemble(geometry, adapters, place, factor)))
        };
        let of_weights = all.map(whole).collect();
        Some(Self { lora, of_weights })
    }

    /// Adds what they come to in a unit of the model `base`, whose values these are, if it has an adapter.
    pub(crate) fn add_to(&self, base: &Geometry, unit: UnitId, values: &mut [f32]) {
        if let Some([a, b]) = self.of_weights.get(&(unit.place, unit.tensor)) {
            add_product(&base.region(unit), (a, b), &self.lora, values);
        }
    }
}

/// Adds what `a` and `b` come to in a region of their weight.
fn add_product(region: &Region, (a, b): (&[f32], &[f32]), lora: &Lora, weight: &mut [f32]) {
    let mut sums = vec![0.0_f32; region.columns.len()];
    for (row, weight) in region.rows.clone().zip(weight.chunks_exact_mut(region.columns.len())) {
        sums.fill(0.0);
        for (b, a) in b[row * lora.rank..][..lora.rank].iter().zip(a.chunks_exact(region.width)) {
            sums.iter_mut().zip(&a[region.columns.clone()]).for_each(|(sum, a)| *sum = b.mul_add(*a, *sum));
        }
        weight.iter_mut().zip(&sums).for_each(|(weight, sum)| *weight += lora.scale() * sum);
    }
}
