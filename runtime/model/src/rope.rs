//! How far rotary positions turn the pairs of a head, and how models that were stretched to longer texts scale that:
//! [`RopeScaling`].

use serde::{Deserialize, Serialize};
use sixfold_tensor::math::{ln_f64, pow_f64};

/// Most tokens that a model was trained with before it was stretched.
const POSITIONS_MAX: usize = 1 << 20;

/// A scaling of the rotary frequencies, under the names of Hugging Face's `rope_scaling`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeScaling {
    /// All frequencies are divided (Chen et al., "Extending Context Window of Large Language Models via Positional
    /// Interpolation", 2023).
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Low frequencies are divided, high ones stay, those between are something between (Grattafiori et al., "The Llama 3 Herd
    /// of Models", 2024; the form is Hugging Face's `llama3`).
    Llama3 {
        /// By how much low ones are divided.
        factor: f64,
        /// Frequencies that turn less often in the original length are low.
        low_freq_factor: f64,
        /// Frequencies that turn more often in it are high.
        high_freq_factor: f64,
        /// The original length, in tokens.
        original_max_position_embeddings: usize,
    },
    /// The same by pairs, and scores grow (Peng et al., "YaRN: Efficient Context Window Extension of Large Language
    /// Models", 2023).
    Yarn {
        /// By how much low frequencies are divided.
        factor: f64,
        /// The original length, in tokens.
        original_max_position_embeddings: usize,
        /// Pairs that turn more often in the original length are left as they are.
        beta_fast: f64,
        /// Pairs that turn less often in it are divided.
        beta_slow: f64,
        /// What sines and cosines are multiplied by, and scores by its square.
        attention_factor: f64,
        /// Whether the pairs at which that begins and ends are whole numbers.
        truncate: bool,
    },
}

impl RopeScaling {
    /// What YaRN's sines and cosines are multiplied by where a configuration does not say it: the paper's, or the quotient of
    /// two of its kind where a configuration has `mscale` and `mscale_all_dim`.
    pub(crate) fn yarn_attention_factor(factor: f64, mscales: Option<(f64, f64)>) -> f64 {
        let of = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * ln_f64(factor) + 1.0 };
        match mscales {
            Some((mscale, all)) if mscale != 0.0 && all != 0.0 => of(mscale) / of(all),
            _ => of(1.0),
        }
    }

    /// Why the numbers cannot be used, if they cannot.
    pub(crate) fn reason_against(&self, theta: f32) -> Option<String> {
        let positive = |value: f64| value > 0.0 && value.is_finite() && value < 1e9;
        let (factor, original) = match *self {
            Self::Linear { factor } => (factor, 1),
            Self::Llama3 { factor, original_max_position_embeddings: original, .. }
            | Self::Yarn { factor, original_max_position_embeddings: original, .. } => (factor, original),
        };
        if !(positive(factor) && factor >= 1.0) {
            return Some(format!("a rope_scaling with a factor of {factor}; it must be at least 1"));
        }
        if original == 0 || original > POSITIONS_MAX {
            return Some(format!(
                "a rope_scaling for {original} original positions; they must be from 1 to {POSITIONS_MAX}"
            ));
        }
        match *self {
            Self::Llama3 { low_freq_factor: low, high_freq_factor: high, .. }
                if !(positive(low) && positive(high) && low < high) =>
            {
                Some(format!("low_freq_factor is {low}; it must be between 0 and high_freq_factor, {high}"))
            }
            Self::Yarn { beta_fast: fast, beta_slow: slow, .. }
                if !(positive(slow) && positive(fast) && slow < fast) =>
            {
                Some(format!("beta_slow is {slow}; it must be between 0 and beta_fast, {fast}"))
            }
            Self::Yarn { attention_factor, .. } if !positive(attention_factor) => {
                Some(format!("attention_factor is {attention_factor}; it must be above 0"))
            }
            Self::Yarn { .. } if theta <= 1.0 => Some("YaRN needs a rope_theta above 1".to_owned()),
            _ => None,
        }
    }
}

/// By how much each pair of a head turns with a position, in radians, and what sines and cosines are multiplied by.
pub(crate) fn frequencies(head_dim: usize, theta: f32, scaling: Option<&RopeScaling>) -> (Vec<f32>, f32) {
    let theta = f64::from(theta);
    let plain = |pair: usize| pow_f64(theta, -((2 * pair) as f64) / head_dim as f64);
    let all = |scaled: &dyn Fn(usize) -> f64| (0..head_dim / 2).map(|pair| scaled(pair) as f32).collect();
    match scaling {
        None => (all(&plain), 1.0),
        Some(&RopeScaling::Linear { factor }) => (all(&|pair| plain(pair) / factor), 1.0),
        Some(&RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        }) => {
            let scaled = |pair| {
                let frequency = plain(pair);
                let turns = original as f64 * frequency / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            };
            (all(&scaled), 1.0)
        }
        Some(&RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        }) => {
            // The pair, not a whole number, that turns so often in the original length.
            let pair_of = |turns: f64| {
                head_dim as f64 * ln_f64(original as f64 / (turns * std::f64::consts::TAU))
                    / (2.0 * ln_f64(theta))
            };
            let (first, last) = (pair_of(beta_fast), pair_of(beta_slow));
            let (first, last) = if truncate { (first.floor(), last.ceil()) } else { (first, last) };
            let (first, last) = (first.max(0.0), last.min(head_dim as f64 - 1.0));
            // Hugging Face's step where the ramp has no length.
            let length = if first == last { 0.001 } else { last - first };
            let scaled = |pair| {
                let divided = ((pair as f64 - first) / length).clamp(0.0, 1.0);
                plain(pair) * (1.0 - divided + divided / factor)
            };
            (all(&scaled), attention_factor as f32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD_DIM: usize = 16;

    /// The expected numbers are those of transformers 5.24, which computes them in f32.
    fn assert_frequencies(theta: f32, scaling: &RopeScaling, expected: [f64; HEAD_DIM / 2], scale: f64) {
        let (frequencies, actual_scale) = frequencies(HEAD_DIM, theta, Some(scaling));
        for (actual, expected) in frequencies.iter().zip(expected) {
            assert!(
                (f64::from(*actual) / expected - 1.0).abs() < 1e-6,
                "{actual:e}, {expected:e}: {scaling:?}"
            );
        }
        assert!((f64::from(actual_scale) - scale).abs() < 1e-6, "{actual_scale}");
    }

    fn yarn(factor: f64, original: usize, mscales: Option<(f64, f64)>, truncate: bool) -> RopeScaling {
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: RopeScaling::yarn_attention_factor(factor, mscales),
            truncate,
        }
    }

    #[test]
    fn linear_divides_all_frequencies() {
        let expected =
            [0.25, 0.079056941, 0.025, 0.0079056947, 0.0025, 7.905694656e-4, 2.5e-4, 7.905694656e-5];
        assert_frequencies(10_000.0, &RopeScaling::Linear { factor: 4.0 }, expected, 1.0);
    }

    #[test]
    fn llama3_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
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
        assert_frequencies(500_000.0, &scaling, expected, 1.0);
    }

    #[test]
    fn yarn_divides_pairs_that_turn_seldom_and_lets_scores_grow() {
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
        assert_frequencies(1e6, &yarn(4.0, 32_768, None, true), expected, 1.138629436);
        (expected[3], expected[4]) = (0.00551727042, 6.07408001e-4);
        assert_frequencies(1e6, &yarn(4.0, 32_768, None, false), expected, 1.138629436);
        let expected =
            [1.0, 0.316227764, 0.1, 0.0239147246, 0.00512499968, 8.498621755e-4, 2.5e-5, 7.905694474e-6];
        assert_frequencies(10_000.0, &yarn(40.0, 4096, Some((0.707, 1.0)), true), expected, 0.921042355);
    }

    #[test]
    fn numbers_that_scale_nothing_are_refused_with_a_reason() {
        let llama3 = |low, high, original_max_position_embeddings| RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings,
        };
        for (scaling, theta, reason) in [
            (RopeScaling::Linear { factor: 0.0 }, 1e4, "factor of 0"),
            (RopeScaling::Linear { factor: f64::INFINITY }, 1e4, "factor of inf"),
            (llama3(4.0, 4.0, 8), 1e4, "low_freq_factor is 4"),
            (llama3(1.0, 4.0, 0), 1e4, "0 original positions"),
            (yarn(2.0, 8, None, true), 1.0, "rope_theta"),
        ] {
            let refused = scaling.reason_against(theta).unwrap();
            assert!(refused.contains(reason), "{refused}");
        }
        assert_eq!(llama3(1.0, 4.0, 8192).reason_against(1e4), None);
    }
}
