//! Adapters as PEFT keeps them, in `adapter_config.json` and `adapter_model.safetensors`: [`PeftAdapter`].
//!
//! PEFT has an adapter for each module of Hugging Face's model. Where that is one of several weights, as GPT-2's `c_attn` is of
//! queries, keys and values, ours of rank `r` are written as one: their `A` below one another, their `B` on a diagonal, the
//! rank theirs together. One that is read is one for each of the weights, with the same `A` and rows of `B`. Both come to the same
//! weights, exactly.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::file_tensor::{adapter_name, rows};
use super::{WeightFiles, WeightsError, decoder_of};
use crate::config::ModelConfig;
use crate::families::Family;
use crate::lora::{Factor, Lora, LoraError, Projection};
use crate::unit::{Geometry, ModelSlice, Place, Tensor, UnitId, UnitIndex};
use crate::unit_buffer::UnitBuffer;

/// What PEFT's configurations may ask for beside what is read here, and what changes what adapters compute.
const UNSUPPORTED: [&str; 14] = [
    "use_dora",
    "modules_to_save",
    "exclude_modules",
    "layers_to_transform",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
];

/// A configuration of PEFT, as far as it is read.
#[derive(Deserialize)]
struct Configuration {
    peft_type: String,
    r: usize,
    lora_alpha: f32,
    target_modules: Targets,
    bias: Option<String>,
    #[serde(default)]
    use_rslora: bool,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Modules by name, or by a pattern.
#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    Names(Vec<String>),
    Pattern(String),
}

/// What a file of PEFT has for one projection.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    /// At most the rank of all; the rest is zero.
    rank: usize,
    /// By what its `B` is multiplied, so that it is scaled as the others.
    factor: f32,
}

/// Adapters that PEFT saved, or that were written for it.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftAdapter {
    lora: Lora,
    held: BTreeMap<Projection, Held>,
}

impl PeftAdapter {
    /// Reads the `adapter_config.json` of adapters of a model of `config`. Modules may differ in rank and scale.
    ///
    /// # Errors
    /// [`LoraError`] if the file is broken or asks for another kind of adapters.
    pub fn parse(text: &[u8], config: &ModelConfig) -> Result<Self, LoraError> {
        let peft: Configuration =
            serde_json::from_slice(text).map_err(|error| LoraError::Peft(error.to_string()))?;
        peft.refuse_others()?;
        let modules = modules(config);
        let targets = peft.targets(&modules)?.into_iter();
        let adapted = targets.map(|module| peft.adapter_of(module)).collect::<Result<Vec<_>, _>>()?;
        adapted.iter().try_for_each(|lora| lora.validate(config))?;
        let projections = adapted.iter().flat_map(|lora| lora.projections.iter().copied()).collect();
        let Some(largest) = adapted.iter().max_by_key(|lora| lora.rank) else {
            return Err(LoraError::Nothing);
        };
        let held = adapted.iter().flat_map(|lora| {
            let held = Held { rank: lora.rank, factor: lora.scale() / largest.scale() };
            lora.projections.iter().map(move |projection| (*projection, held))
        });
        let held: BTreeMap<Projection, Held> = held.collect();
        if let Some(held) = held.values().find(|held| !held.factor.is_normal()) {
            return Err(LoraError::Peft(format!(
                "modules whose scales differ by a factor of {}",
                held.factor
            )));
        }
        Ok(Self { held, lora: Lora { projections, ..largest.clone() } })
    }

    /// What the adapters are once they are read.
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    /// Reads the bytes of their `adapter_model.safetensors`, for a model with [`Self::lora`].
    ///
    /// # Errors
    /// [`WeightsError`] if the file is broken, or is not of these adapters of this model.
    ///
    /// # Panics
    /// If `geometry` has other adapters.
    pub fn read(&self, geometry: &Geometry, file: &[u8]) -> Result<UnitBuffer, WeightsError> {
        assert_eq!(geometry.lora.as_ref(), Some(&self.lora), "a model with other adapters");
        let (tensors, whole) = (WeightFiles::parse(&[file])?, ModelSlice::whole(geometry));
        let index = UnitIndex::of_parameters(geometry, &whole);
        // The shapes first: what is allocated then is in proportion to the file.
        index.iter().try_for_each(|(unit, _)| self.read_unit(geometry, unit, &tensors, &mut []))?;
        let mut adapters = UnitBuffer::zeros(Arc::new(index));
        let units: Vec<UnitId> = adapters.index().iter().map(|(unit, _)| unit).collect();
        for unit in units {
            self.read_unit(geometry, unit, &tensors, adapters.unit_mut(unit))?;
        }
        Ok(adapters)
    }

    /// Reads as much of a unit as there is room for.
    fn read_unit(
        &self,
        geometry: &Geometry,
        unit: UnitId,
        tensors: &WeightFiles<'_>,
        values: &mut [f32],
    ) -> Result<(), WeightsError> {
        let adapted = unit.tensor.adapts().and_then(|(weight, factor)| {
            let held = self.held.get(&Projection::of_weight(weight)?)?;
            Some((weight, factor, *held))
        });
        let Some((weight, factor, held)) = adapted else { return Ok(()) };
        let file = geometry.config.family.file_tensor(unit.place, weight);
        let above = file.parts.iter().take_while(|part| **part != weight).copied().collect::<Vec<_>>();
        let (first_row, expected) = match factor {
            Factor::A => (0, [held.rank, geometry.whole(unit.tensor).1]),
            Factor::B => (rows(geometry, &above), [rows(geometry, &file.parts), held.rank]),
        };
        let name = adapter_name(&file.name, factor);
        let view = tensors.tensor(&name)?;
        if view.shape() != expected {
            return Err(WeightsError::Shape {
                name,
                shape: view.shape().to_vec(),
                expected: expected.to_vec(),
            });
        }
        let (size, decode) =
            decoder_of(view.dtype()).ok_or(WeightsError::Dtype { name, dtype: view.dtype() })?;
        let region = geometry.region(unit);
        let places =
            region.rows.clone().flat_map(|row| region.columns.clone().map(move |column| (row, column)));
        for (value, (row, column)) in values.iter_mut().zip(places) {
            let (rank_at, scale) = if factor == Factor::A { (row, 1.0) } else { (column, held.factor) };
            if rank_at < held.rank {
                let at = (first_row + row) * expected[1] + column;
                *value = scale * decode(&view.data()[at * size..][..size]);
            }
        }
        Ok(())
    }
}

impl Lora {
    /// `adapter_config.json` as PEFT reads it, for adapters of a model of `config` beside the model `base`, whose numbers
    /// [`write_parameters`](crate::write_parameters) writes.
    pub fn to_peft(&self, config: &ModelConfig, base: &str, dropout: f32) -> Value {
        let (modules, mut ranks, mut alphas) = (modules(config), Map::new(), Map::new());
        let mut names = Vec::new();
        for module in &modules {
            let adapted = module.projections.iter().filter(|one| self.projections.contains(one)).count();
            let name = module.shortest_name(&modules);
            if adapted > 1 {
                ranks.insert(name.to_owned(), json!(adapted * self.rank));
                alphas.insert(name.to_owned(), json!(adapted as f32 * self.alpha));
            }
            if adapted > 0 {
                names.push(name);
            }
        }
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "lora_dropout": dropout,
            "target_modules": names,
            "bias": "none",
            "fan_in_fan_out": config.family.file_tensor(Place::Layer(0), Tensor::Query).transposed,
            "inference_mode": true,
            "use_rslora": false,
            "use_dora": false,
        })
    }
}

impl Configuration {
    fn refuse_others(&self) -> Result<(), LoraError> {
        if self.peft_type != "LORA" {
            return refuse(format!("`peft_type` is {}", self.peft_type));
        }
        if self.bias.as_deref().is_some_and(|bias| bias != "none") {
            return refuse("`bias` is not none".to_owned());
        }
        for (field, value) in &self.others {
            let is_set = !matches!(value, Value::Null | Value::Bool(false))
                && value.as_object().is_none_or(|map| !map.is_empty())
                && value.as_array().is_none_or(|list| !list.is_empty());
            if is_set && UNSUPPORTED.contains(&field.as_str()) {
                return refuse(format!("`{field}` is {value}"));
            }
        }
        Ok(())
    }

    /// The adapter of a module by itself.
    fn adapter_of(&self, module: &Module) -> Result<Lora, LoraError> {
        let rank = match number_for(self.rank_pattern.as_ref(), module)? {
            None => self.r,
            Some(rank) if rank.fract() == 0.0 => rank as usize,
            Some(rank) => return Err(LoraError::Peft(format!("`{}` has a rank of {rank}", module.path))),
        };
        let alpha = number_for(self.alpha_pattern.as_ref(), module)?;
        let alpha = alpha.map_or(self.lora_alpha, |alpha| alpha as f32);
        let stabilized = if self.use_rslora { (rank as f32).sqrt() } else { 1.0 };
        let projections = module.projections.iter().copied().collect();
        Ok(Lora { rank, alpha: alpha * stabilized, projections })
    }

    /// The modules that have adapters.
    fn targets<'a>(&self, modules: &'a [Module]) -> Result<Vec<&'a Module>, LoraError> {
        let names = match &self.target_modules {
            Targets::Names(names) => names,
            Targets::Pattern(pattern) if pattern == "all-linear" => return Ok(modules.iter().collect()),
            Targets::Pattern(pattern) => {
                return refuse(format!("`target_modules` is the pattern {pattern}"));
            }
        };
        let unknown =
            |name: &&String| !modules.iter().any(|module| module.is_named(name) || module.ends(name));
        if let Some(name) = names.iter().find(unknown) {
            return Err(LoraError::Peft(format!("adapters of `{name}` are not implemented")));
        }
        let is_target =
            |module: &&Module| names.iter().any(|name| module.is_named(name) || module.ends(name));
        Ok(modules.iter().filter(is_target).collect())
    }
}

fn refuse<T>(what: String) -> Result<T, LoraError> {
    Err(LoraError::Peft(format!("{what}, which is not implemented")))
}

/// What a pattern of ranks or alphas says about a module, in all layers alike.
fn number_for(pattern: Option<&Map<String, Value>>, module: &Module) -> Result<Option<f64>, LoraError> {
    let mut found = None;
    for (name, value) in pattern.into_iter().flatten() {
        let is_plain = name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._".contains(letter));
        if !is_plain || (module.ends(name) && !module.is_named(name)) {
            return refuse(format!("`{name}` has a rank or alpha of its own"));
        }
        if module.is_named(name) && found.is_none() {
            let number = value.as_f64().filter(|number| *number > 0.0 && number.is_finite());
            let number = number.ok_or_else(|| LoraError::Peft(format!("`{name}` has {value}")))?;
            found = Some(number);
        }
    }
    Ok(found)
}

/// A module of a layer of Hugging Face's model, which has one adapter.
struct Module {
    /// As in `self_attn.q_proj`.
    path: String,
    projections: Vec<Projection>,
}

impl Module {
    /// Whether PEFT takes the name, which may begin anywhere in the path, for that of the module in every layer.
    fn is_named(&self, name: &str) -> bool {
        self.path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    }

    /// Whether the module ends the name, which then is that of one layer.
    fn ends(&self, name: &str) -> bool {
        name.strip_suffix(&self.path).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    }

    /// The last of the path, or all of it if another module ends alike.
    fn shortest_name(&self, modules: &[Self]) -> &str {
        let last = self.path.rsplit('.').next().unwrap_or(&self.path);
        let alike = modules.iter().filter(|module| module.is_named(last)).count();
        if alike > 1 { &self.path } else { last }
    }
}

/// The modules of a layer that may have adapters.
fn modules(config: &ModelConfig) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    for projection in Projection::ALL.into_iter().filter(|projection| projection.is_of(config)) {
        let path = path(config.family, projection);
        match modules.iter_mut().find(|module| module.path == path) {
            Some(module) => module.projections.push(projection),
            None => modules.push(Module { path, projections: vec![projection] }),
        }
    }
    modules
}

fn path(family: Family, projection: Projection) -> String {
    let name = family.file_tensor(Place::Layer(0), projection.tensors()[0]).name;
    let in_layer = name.split_once(".0.").map_or(name.as_str(), |(_, after)| after);
    in_layer.trim_end_matches(".weight").to_owned()
}
