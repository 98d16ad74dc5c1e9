//! How positions are scaled: `rope_scaling` of config.json, which GGUF has in metadata and, for Llama 3, as a tensor.

use serde_json::{Map, Value, json};

use super::config::Keyed;
use super::keys;
use crate::error::Fault;
use crate::positions::{Rotary, Scaling, llama3_factors};

/// The scalings of Llama 3 that were published: factor, and positions that were trained before. Their frequency factors
/// are 1 and 4.
const LLAMA3: [(f64, usize); 2] = [(8.0, 8192), (32.0, 8192)];
const FREQUENCY_FACTORS: [f64; 2] = [1.0, 4.0];
/// Two factors that differ by less, relative to their size, are the same but for rounding.
const TOLERANCE: f64 = 1e-4;

/// `rope_scaling` of a file.
pub(super) fn scaling(keyed: &Keyed<'_>, file: &[u8], head_dim: usize) -> Result<Option<Value>, Fault> {
    if let Some(tensor) = keyed.header.tensors.iter().find(|tensor| tensor.name == keys::ROPE_FREQUENCIES) {
        let mut factors = vec![0.0; tensor.shape.iter().product()];
        tensor.encoding.decode(&file[tensor.bytes.clone()], &mut factors);
        let theta = keyed.float(keys::ROPE_BASE)?.unwrap_or(10_000.0);
        let known = LLAMA3.iter().find(|(factor, original)| {
            let ours = llama3_factors(theta, head_dim, *factor, FREQUENCY_FACTORS, *original);
            ours.len() == factors.len()
                && ours
                    .iter()
                    .zip(&factors)
                    .all(|(ours, theirs)| (ours - f64::from(*theirs)).abs() <= TOLERANCE * ours.abs())
        });
        let problem = "has other factors than Llama 3.1 and 3.2, and config.json has words for theirs alone";
        let (factor, original) = known.ok_or_else(|| Fault::at(tensor.name, tensor.offset, problem))?;
        return Ok(Some(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": FREQUENCY_FACTORS[0],
            "high_freq_factor": FREQUENCY_FACTORS[1],
            "original_max_position_embeddings": original,
        })));
    }
    let kind = keyed.header.text(&keyed.key(keys::ROPE_SCALING))?;
    let linear = keyed.float(keys::ROPE_SCALE_LINEAR)?.filter(|factor| *factor != 1.0);
    let factor = keyed.float(keys::ROPE_FACTOR)?;
    if let Some(other) = keyed.float(keys::ROPE_ATTENTION_FACTOR)?.filter(|factor| *factor != 1.0) {
        let problem = format!("is {other}, for which config.json has no word");
        return Err(keyed.fault(keys::ROPE_ATTENTION_FACTOR, problem));
    }
    match (kind, factor.or(linear)) {
        (Some("none") | None, None) | (Some("none"), Some(_)) => Ok(None),
        (Some("linear") | None, Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
        (Some("yarn"), Some(factor)) => yarn(keyed, factor).map(Some),
        (Some(kind @ ("linear" | "yarn")), None) => {
            Err(keyed.fault(keys::ROPE_SCALING, format!("is `{kind}`, but no factor is there")))
        }
        (Some(other), _) => {
            Err(keyed.fault(keys::ROPE_SCALING, format!("is `{other}`; known are none, linear and yarn")))
        }
    }
}

fn yarn(keyed: &Keyed<'_>, factor: f64) -> Result<Value, Fault> {
    let mut scaling = json!({"rope_type": "yarn", "factor": factor});
    if let Some(original) = keyed.size(keys::ROPE_ORIGINAL_CONTEXT)? {
        scaling["original_max_position_embeddings"] = json!(original);
    }
    for (key, end) in [("beta_fast", keys::ROPE_BETA_FAST), ("beta_slow", keys::ROPE_BETA_SLOW)] {
        if let Some(value) = keyed.float(end)? {
            scaling[key] = json!(value);
        }
    }
    Ok(scaling)
}

/// What a config.json says of positions, for a file that is written.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Positions {
    pub(super) theta: Option<f64>,
    pub(super) texts: Vec<(&'static str, &'static str)>,
    pub(super) floats: Vec<(&'static str, f64)>,
    pub(super) sizes: Vec<(&'static str, usize)>,
    /// By how much frequencies are divided, where that is a tensor.
    pub(super) factors: Option<Vec<f32>>,
}

impl Positions {
    /// Reads both forms of config.json, and refuses what GGUF has no key for.
    pub(super) fn of(config: &Map<String, Value>, head_dim: usize) -> Result<Self, Fault> {
        let rotary = Rotary::of(config)?;
        let mut positions = Self { theta: rotary.theta, ..Self::default() };
        match &rotary.scaling {
            None => {}
            Some(Scaling::Linear { factor }) => {
                positions.texts.push((keys::ROPE_SCALING, "linear"));
                positions.floats.push((keys::ROPE_FACTOR, *factor));
            }
            Some(Scaling::Yarn(yarn)) => {
                let [mscale, mscale_all_dim] = yarn.mscales;
                let told = [
                    ("attention_factor", yarn.attention_factor),
                    ("mscale", mscale),
                    ("mscale_all_dim", mscale_all_dim),
                ];
                if let Some((key, _)) = told.into_iter().find(|(_, number)| number.is_some()) {
                    let problem = "is told, and not what follows from the factor: GGUF has no key for that";
                    return Err(Fault::new(format!("rope_scaling.{key}"), problem));
                }
                positions.texts.push((keys::ROPE_SCALING, "yarn"));
                positions.floats.push((keys::ROPE_FACTOR, yarn.factor));
                positions.sizes.extend(yarn.original.map(|original| (keys::ROPE_ORIGINAL_CONTEXT, original)));
                let betas = [keys::ROPE_BETA_FAST, keys::ROPE_BETA_SLOW].into_iter().zip(yarn.betas);
                positions.floats.extend(betas.filter_map(|(end, beta)| Some((end, beta?))));
            }
            Some(Scaling::Llama3 { factor, bounds, original }) => {
                let original = original.ok_or_else(|| {
                    Fault::new("rope_scaling.original_max_position_embeddings", "is missing or no number")
                })?;
                let factors = llama3_factors(rotary.base(), head_dim, *factor, *bounds, original);
                positions.factors = Some(factors.into_iter().map(|factor| factor as f32).collect());
            }
        }
        Ok(positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_config_json_are_read() {
        let object = |value: Value| value.as_object().unwrap().clone();
        let old = object(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}));
        let new =
            object(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}));
        let old = Positions::of(&old, 4).unwrap();
        assert_eq!(old, Positions::of(&new, 4).unwrap());
        assert_eq!((old.theta, old.floats), (Some(5e5), vec![(keys::ROPE_FACTOR, 2.0)]));
        let told = object(json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.5}}));
        assert_eq!(Positions::of(&told, 4).unwrap_err().field, "rope_scaling.attention_factor");
        let unknown = object(json!({"rope_scaling": {"rope_type": "longrope"}}));
        assert!(Positions::of(&unknown, 4).unwrap_err().problem.contains("longrope"));
    }
}
