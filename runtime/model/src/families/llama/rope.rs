//! The fields of `config.json` that rotary positions follow from, in both forms: `rope_theta` beside `rope_scaling`, and both
//! in `rope_parameters`, as transformers 5 writes them.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{ConfigError, ModelConfig};
use crate::rope::RopeScaling;

/// What Hugging Face takes for a missing base.
const THETA: f32 = 10_000.0;

#[derive(Deserialize)]
pub(super) struct RopeFields {
    rope_theta: Option<f32>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    partial_rotary_factor: Option<f64>,
}

/// Writes both forms, for readers of either.
pub(super) fn write(config: &ModelConfig, value: &mut Value) {
    let scaling = config.rope_scaling.as_ref().map(scaling_to_json);
    let mut parameters = scaling.clone().unwrap_or_else(|| json!({"rope_type": "default"}));
    parameters["rope_theta"] = json!(config.rope_theta);
    value["rope_theta"] = json!(config.rope_theta);
    value["rope_parameters"] = parameters;
    if let Some(scaling) = scaling {
        value["rope_scaling"] = scaling;
    }
}

fn scaling_to_json(scaling: &RopeScaling) -> Value {
    match *scaling {
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_max_position_embeddings,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "attention_factor": attention_factor,
            "truncate": truncate,
        }),
    }
}

/// Base and scaling for a model of so many positions.
pub(super) fn read(fields: &RopeFields, positions: usize) -> Result<(f32, Option<RopeScaling>), ConfigError> {
    whole_heads(fields.partial_rotary_factor)?;
    let of = |map: &Option<Map<String, Value>>| map.clone().map(|map| Parameters::read(map, positions));
    let former = of(&fields.rope_scaling).transpose()?;
    let newer = of(&fields.rope_parameters).transpose()?;
    let scaling = match (&former, &newer) {
        (Some(former), Some(newer)) if former.scaling != newer.scaling => {
            return Err(ConfigError::Shape(
                "`rope_scaling` and `rope_parameters` say different things".into(),
            ));
        }
        (former, newer) => former.as_ref().or(newer.as_ref()).and_then(|either| either.scaling.clone()),
    };
    let thetas =
        [fields.rope_theta, newer.and_then(|newer| newer.theta), former.and_then(|former| former.theta)];
    let mut thetas = thetas.into_iter().flatten();
    let theta = thetas.next().unwrap_or(THETA);
    match thetas.find(|other| *other != theta) {
        Some(other) => {
            Err(ConfigError::Shape(format!("`rope_theta` is {theta} in one place and {other} in another")))
        }
        None => Ok((theta, scaling)),
    }
}

/// Refuses heads of which only a part is turned.
fn whole_heads(partial_rotary_factor: Option<f64>) -> Result<(), ConfigError> {
    match partial_rotary_factor {
        Some(factor) if factor != 1.0 => {
            Err(ConfigError::Unsupported { field: "partial_rotary_factor", value: factor.to_string() })
        }
        _ => Ok(()),
    }
}

/// What one of the objects says.
struct Parameters {
    theta: Option<f32>,
    scaling: Option<RopeScaling>,
}

#[derive(Deserialize)]
struct Raw {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
    /// The former name of `rope_type`; some files have both.
    r#type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
}

impl Parameters {
    fn read(map: Map<String, Value>, positions: usize) -> Result<Self, ConfigError> {
        if let Some((kind, _)) = map.iter().find(|(_, value)| value.is_object()) {
            let value = format!("one for each kind of layer (`{kind}`)");
            return Err(ConfigError::Unsupported { field: "rope_parameters", value });
        }
        let raw: Raw = serde_json::from_value(Value::Object(map))?;
        whole_heads(raw.partial_rotary_factor)?;
        let original_max_position_embeddings = raw.original_max_position_embeddings.unwrap_or(positions);
        let factor = || raw.factor.ok_or(ConfigError::Missing("rope_scaling.factor"));
        let scaling = match raw.rope_type.as_deref().or(raw.r#type.as_deref()) {
            None | Some("default") => None,
            Some("linear") => Some(RopeScaling::Linear { factor: factor()? }),
            Some("llama3") => Some(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: raw
                    .low_freq_factor
                    .ok_or(ConfigError::Missing("rope_scaling.low_freq_factor"))?,
                high_freq_factor: raw
                    .high_freq_factor
                    .ok_or(ConfigError::Missing("rope_scaling.high_freq_factor"))?,
                original_max_position_embeddings,
            }),
            Some("yarn") => {
                let factor =
                    raw.factor.unwrap_or(positions as f64 / original_max_position_embeddings.max(1) as f64);
                let usual = RopeScaling::yarn_attention_factor(factor, raw.mscale.zip(raw.mscale_all_dim));
                Some(RopeScaling::Yarn {
                    factor,
                    original_max_position_embeddings,
                    beta_fast: raw.beta_fast.unwrap_or(32.0),
                    beta_slow: raw.beta_slow.unwrap_or(1.0),
                    attention_factor: raw.attention_factor.unwrap_or(usual),
                    truncate: raw.truncate.unwrap_or(true),
                })
            }
            Some(other) => {
                return Err(ConfigError::Unsupported { field: "rope_type", value: other.to_owned() });
            }
        };
        Ok(Self { theta: raw.rope_theta, scaling })
    }
}
