//! Rotary positions, as config.json describes them: [`Rotary`].

use std::f64::consts::TAU;

use serde_json::{Map, Value};

use crate::error::Fault;

/// What `transformers` takes for a missing base.
const THETA: f64 = 10_000.0;
/// What it takes for YaRN's missing bounds: turns in the original length.
const BETAS: [f64; 2] = [32.0, 1.0];

/// The base and the scaling of a model's rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rotary {
    pub(crate) theta: Option<f64>,
    pub(crate) scaling: Option<Scaling>,
}

/// How frequencies are scaled, by `rope_type`. Lengths are in positions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scaling {
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        /// How often waves turn in the original length that are low, and that are high.
        bounds: [f64; 2],
        original: Option<usize>,
    },
    Yarn(Yarn),
}

/// YaRN, with what a file says of it and nothing of what follows from the rest.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Yarn {
    pub(crate) factor: f64,
    pub(crate) original: Option<usize>,
    /// `beta_fast` and `beta_slow`.
    pub(crate) betas: [Option<f64>; 2],
    pub(crate) attention_factor: Option<f64>,
    /// `mscale` and `mscale_all_dim`.
    pub(crate) mscales: [Option<f64>; 2],
    pub(crate) truncate: bool,
}

impl Rotary {
    /// Reads both forms: `rope_theta` with `rope_scaling`, and `rope_parameters`.
    ///
    /// # Errors
    /// [`Fault`] names the field that is missing, is no such number or asks for what is not known, or says that both forms
    /// are there and differ.
    pub(crate) fn of(config: &Map<String, Value>) -> Result<Self, Fault> {
        whole_heads(config)?;
        let objects =
            ["rope_parameters", "rope_scaling"].map(|key| config.get(key).and_then(Value::as_object));
        let mut scalings = Vec::new();
        for parameters in objects.into_iter().flatten() {
            scalings.push(scaling(parameters)?);
        }
        if scalings.windows(2).any(|both| both[0] != both[1]) {
            return Err(Fault::new("rope_scaling", "says something else than `rope_parameters`"));
        }
        let theta = |map: &Map<String, Value>| map.get("rope_theta").and_then(Value::as_f64);
        let theta = theta(config).or_else(|| objects.into_iter().flatten().find_map(theta));
        Ok(Self { theta, scaling: scalings.into_iter().next().flatten() })
    }

    /// The base, or what `transformers` takes for a missing one.
    pub(crate) fn base(&self) -> f64 {
        self.theta.unwrap_or(THETA)
    }

    /// By how much each pair of a head turns with a position, in radians, and what sines and cosines are multiplied by;
    /// `positions` stands for a missing original length.
    ///
    /// # Errors
    /// [`Fault`] where that are no numbers.
    pub(crate) fn frequencies(&self, head_dim: usize, positions: usize) -> Result<(Vec<f32>, f32), Fault> {
        let theta = self.base();
        let plain = |pair: usize| theta.powf(-((2 * pair) as f64) / head_dim as f64);
        let pairs = 0..head_dim / 2;
        let (frequencies, scale): (Vec<f64>, f64) = match &self.scaling {
            None => (pairs.map(plain).collect(), 1.0),
            Some(Scaling::Linear { factor }) => (pairs.map(|pair| plain(pair) / factor).collect(), 1.0),
            Some(Scaling::Llama3 { factor, bounds, original }) => {
                let factors =
                    llama3_factors(theta, head_dim, *factor, *bounds, original.unwrap_or(positions));
                (factors.iter().enumerate().map(|(pair, factor)| plain(pair) / factor).collect(), 1.0)
            }
            Some(Scaling::Yarn(yarn)) => {
                let divided = yarn.divided(theta, head_dim, positions);
                let scaled =
                    |(pair, divided): (usize, f64)| plain(pair) * (1.0 - divided + divided / yarn.factor);
                (divided.into_iter().enumerate().map(scaled).collect(), yarn.scale())
            }
        };
        let frequencies: Vec<f32> = frequencies.into_iter().map(|frequency| frequency as f32).collect();
        let scale = scale as f32;
        let wrong = |number: &&f32| !(number.is_finite() && **number > 0.0);
        let wrong = frequencies.iter().chain([&scale]).find(wrong).copied();
        match wrong {
            Some(number) => Err(Fault::new("rope_parameters", format!("come to a frequency of {number}"))),
            None => Ok((frequencies, scale)),
        }
    }
}

impl Yarn {
    /// Which part of each pair's frequency is divided (Peng et al., "YaRN: Efficient Context Window Extension of Large
    /// Language Models", 2023), with the bounds of `_compute_yarn_parameters` of `transformers`.
    fn divided(&self, theta: f64, head_dim: usize, positions: usize) -> Vec<f64> {
        let original = self.original.unwrap_or(positions) as f64;
        // The pair, not a whole number, that turns so often in the original length.
        let pair_of = |turns: f64| head_dim as f64 * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
        let pair = |at: usize| pair_of(self.betas[at].unwrap_or(BETAS[at]));
        let (first, last) =
            if self.truncate { (pair(0).floor(), pair(1).ceil()) } else { (pair(0), pair(1)) };
        let (first, last) = (first.max(0.0), last.min(head_dim as f64 - 1.0));
        let length = if first == last { 0.001 } else { last - first };
        (0..head_dim / 2).map(|pair| ((pair as f64 - first) / length).clamp(0.0, 1.0)).collect()
    }

    /// What sines and cosines are multiplied by.
    fn scale(&self) -> f64 {
        let of = |mscale: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 };
        self.attention_factor.unwrap_or(match self.mscales {
            [Some(mscale), Some(all)] if mscale != 0.0 && all != 0.0 => of(mscale) / of(all),
            _ => of(1.0),
        })
    }
}

/// By how much Llama 3.1 divides each frequency (`_compute_llama3_parameters` of `transformers`, the factors of
/// `convert_hf_to_gguf.py`): long waves by `factor`, short ones by nothing, those between smoothly.
pub(crate) fn llama3_factors(
    theta: f64,
    head_dim: usize,
    factor: f64,
    [low, high]: [f64; 2],
    original: usize,
) -> Vec<f64> {
    let original = original as f64;
    let one = |pair: usize| {
        let wave = TAU * theta.powf((2 * pair) as f64 / head_dim as f64);
        if wave < original / high {
            1.0
        } else if wave > original / low {
            factor
        } else {
            let smooth = (original / wave - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..head_dim / 2).map(one).collect()
}

/// Refuses heads of which only a part is turned.
fn whole_heads(map: &Map<String, Value>) -> Result<(), Fault> {
    const FIELD: &str = "partial_rotary_factor";
    match map.get(FIELD) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if value.as_f64() == Some(1.0) => Ok(()),
        Some(value) => Err(Fault::new(FIELD, format!("is {value}; known are models where all turn"))),
    }
}

/// What one of the objects says.
fn scaling(parameters: &Map<String, Value>) -> Result<Option<Scaling>, Fault> {
    let field = |key: &str| format!("rope_scaling.{key}");
    if let Some((kind, _)) = parameters.iter().find(|(_, value)| value.is_object()) {
        return Err(Fault::new(field(kind), "is of one kind of layer; known is one for all layers"));
    }
    whole_heads(parameters)?;
    let number = |key: &str| parameters.get(key).and_then(Value::as_f64);
    let need = |key: &str| match number(key) {
        None => Err(Fault::new(field(key), "is missing or no number")),
        Some(value) if value > 0.0 => Ok(value),
        Some(value) => Err(Fault::new(field(key), format!("is {value}; it must be above 0"))),
    };
    let original = parameters.get("original_max_position_embeddings").and_then(Value::as_u64);
    let original = original.and_then(|original| usize::try_from(original).ok());
    let kind = parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Value::as_str);
    let scaling = match kind {
        None | Some("default") => return Ok(None),
        Some("linear") => Scaling::Linear { factor: need("factor")? },
        Some("llama3") => Scaling::Llama3 {
            factor: need("factor")?,
            bounds: [need("low_freq_factor")?, need("high_freq_factor")?],
            original,
        },
        Some("yarn") => Scaling::Yarn(Yarn {
            factor: need("factor")?,
            original,
            betas: ["beta_fast", "beta_slow"].map(number),
            attention_factor: number("attention_factor"),
            mscales: ["mscale", "mscale_all_dim"].map(number),
            truncate: parameters.get("truncate").and_then(Value::as_bool).unwrap_or(true),
        }),
        Some(other) => {
            return Err(Fault::new(
                field("rope_type"),
                format!("is `{other}`; known are linear, yarn and llama3"),
            ));
        }
    };
    Ok(Some(scaling))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rotary(config: &Value) -> Result<Rotary, Fault> {
        Rotary::of(config.as_object().unwrap())
    }

    #[test]
    fn factors_of_llama_3_leave_short_waves_and_stretch_long_ones() {
        let factors = llama3_factors(500_000.0, 128, 8.0, [1.0, 4.0], 8192);
        assert_eq!((factors.len(), factors[0], factors[63]), (64, 1.0, 8.0));
        assert!(factors.is_sorted());
        // Pair 30: a wave of 2953 positions, between 2048 and 8192.
        assert!(factors[30] > 1.0 && factors[30] < 8.0, "{}", factors[30]);
    }

    /// The expected numbers are those of transformers 5.24, which computes them in f32.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let linear = json!({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}});
        let llama3 = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
        let mut yarn = json!({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 32768}});
        let check = |config: &Value, expected: [f64; 8], scale: f64| {
            let (frequencies, actual_scale) = rotary(config).unwrap().frequencies(16, 1).unwrap();
            for (actual, expected) in frequencies.iter().zip(expected) {
                assert!((f64::from(*actual) / expected - 1.0).abs() < 1e-6, "{actual:e}, {expected:e}");
            }
            assert!((f64::from(actual_scale) - scale).abs() < 1e-6, "{actual_scale}");
        };
        let expected =
            [0.25, 0.079056941, 0.025, 0.0079056947, 0.0025, 7.905694656e-4, 2.5e-4, 7.905694656e-5];
        check(&linear, expected, 1.0);
        let expected = [
            1.0,
            0.193922758,
            0.0376060307,
            0.00729266508,
            5.248460220e-4,
            3.428102355e-5,
            6.647869668e-6,
            1.289173156e-6,
        ];
        check(&llama3, expected, 1.0);
        let mut expected = [
            1.0,
            0.177827939,
            0.0316227786,
            0.00421755994,
            5.0e-4,
            4.445698505e-5,
            7.905693565e-6,
            1.405853368e-6,
        ];
        check(&yarn, expected, 1.138629436);
        yarn["rope_parameters"]["truncate"] = json!(false);
        yarn["rope_parameters"]["attention_factor"] = json!(1.25);
        (expected[3], expected[4]) = (0.00551727042, 6.07408001e-4);
        check(&yarn, expected, 1.25);
        let mscales = json!({"rope_scaling": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}});
        let expected =
            [1.0, 0.316227764, 0.1, 0.0239147246, 0.00512499968, 8.498621755e-4, 2.5e-5, 7.905694474e-6];
        check(&mscales, expected, 0.921042355);
    }

    #[test]
    fn what_cannot_be_turned_is_refused_with_the_field() {
        let field = |config: Value| rotary(&config).unwrap_err().field;
        assert_eq!(field(json!({"partial_rotary_factor": 0.5})), "partial_rotary_factor");
        assert_eq!(field(json!({"rope_scaling": {"type": "linear", "factor": 0}})), "rope_scaling.factor");
        let layers = json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}});
        assert_eq!(field(layers), "rope_scaling.full_attention");
        let both = json!({"rope_parameters": {"rope_type": "default"},
            "rope_scaling": {"rope_type": "linear", "factor": 2.0}});
        assert_eq!(field(both), "rope_scaling");
        let base = rotary(&json!({"rope_theta": 0.0})).unwrap();
        assert!(base.frequencies(16, 8).unwrap_err().problem.contains("frequency"));
    }
}
