//! Our own `exp`, `ln`, `sin`, `cos` and normal distribution: the same bits on every machine, unlike those of the
//! platform's library.
//!
//! Only operations that IEEE 754 defines exactly are used (sum, product, quotient, fused multiply-add), never
//! rearranged. [`exp`] and [`normal()`] are branch-free, so loops over them are vectorised; the others work in `f64` and
//! serve the few values a row needs.

mod normal;

use std::f64::consts::{FRAC_2_PI, LN_2, SQRT_2};

pub use normal::normal;

/// `1.5 * 2^23`: adding it rounds an `f32` below `2^22` to an integer, which is then in the low bits.
const ROUND_F32: f32 = 12_582_912.0;
/// Inputs below have an `exp` of exactly 0.
const EXP_LOWEST: f32 = -87.0;
/// Inputs above have an infinite `exp`: the logarithm of `f32::MAX`.
const EXP_HIGHEST: f32 = 88.722_84;

/// `e^x`, within 2 units in the last place; exactly 0 below -87, infinite above 88.72, NaN for NaN.
///
/// Range reduction in two parts and the polynomial of degree 7 are those of `expf` in the Cephes library.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND_F32);
    let n = rounded - ROUND_F32;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    p = (p * r).mul_add(r, r) + 1.0;
    // 2^n in two factors, because n reaches 128.
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND_F32.to_bits() as i32);
    let half = n >> 1;
    let e = p * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    let e = if x < EXP_LOWEST { 0.0 } else { e };
    if x > EXP_HIGHEST { f32::INFINITY } else { e }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// The natural logarithm, correctly rounded but for rare ties; negative infinity at 0, NaN below.
pub fn ln(x: f32) -> f32 {
    if x == 0.0 {
        f32::NEG_INFINITY
    } else if x.is_nan() || x < 0.0 {
        f32::NAN
    } else if x.is_infinite() {
        x
    } else {
        ln_f64(f64::from(x)) as f32
    }
}

/// The sine, for `|x|` up to about a million (beyond, the reduction by multiples of pi/2 loses digits).
pub fn sin(x: f32) -> f32 {
    sin_cos(x).0
}

/// The cosine; see [`sin`].
pub fn cos(x: f32) -> f32 {
    sin_cos(x).1
}

/// Sine and cosine at once; see [`sin`]. NaN for an infinite or undefined argument.
///
/// Reduction and polynomials are those of `__kernel_sin` and `__kernel_cos` in Sun's fdlibm.
pub fn sin_cos(x: f32) -> (f32, f32) {
    if !x.is_finite() {
        return (f32::NAN, f32::NAN);
    }
    let x = f64::from(x);
    let n = (x * FRAC_2_PI).round();
    let r =
        ((x - n * 1.570_796_326_734_125_6) - n * 6.077_100_506_303_966e-11) - n * 2.022_266_248_795_950_6e-21;
    let z = r * r;
    let sine = r + r
        * z
        * polynomial(
            z,
            &[
                1.589_690_995_211_55e-10,
                -2.505_076_025_340_686_3e-8,
                2.755_731_370_707_006_8e-6,
                -1.984_126_982_985_795e-4,
                8.333_333_333_322_49e-3,
                -1.666_666_666_666_663_2e-1,
            ],
        );
    let cosine = 1.0 - 0.5 * z
        + z * z
            * polynomial(
                z,
                &[
                    -1.135_964_755_778_819_5e-11,
                    2.087_572_321_298_175e-9,
                    -2.755_731_435_139_066_3e-7,
                    2.480_158_728_947_673e-5,
                    -1.388_888_888_887_411e-3,
                    4.166_666_666_666_66e-2,
                ],
            );
    let (sine, cosine) = match (n as i64) & 3 {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    };
    (sine as f32, cosine as f32)
}

/// `base^exponent` for a positive, finite base, in `f64`: frequencies and bias corrections are made of it.
pub fn pow_f64(base: f64, exponent: f64) -> f64 {
    exp_f64(exponent * ln_f64(base))
}

/// `base^exponent` by squaring.
pub(crate) fn powi_f64(base: f64, exponent: u64) -> f64 {
    let (mut power, mut square, mut left) = (1.0, base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            power *= square;
        }
        square *= square;
        left >>= 1;
    }
    power
}

/// `ln x` for positive, finite, normal `x`: `x = m 2^e` with `m` near 1, then `2 artanh((m - 1) / (m + 1))`.
pub fn ln_f64(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i32) - 1023;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let series = (0..12).rev().fold(0.0, |sum, term| sum * z + 1.0 / f64::from(2 * term + 1));
    f64::from(exponent) * LN_2 + 2.0 * s * series
}

/// `e^x` for `|x|` up to 700: `2^n` times the Taylor series of the rest.
fn exp_f64(x: f64) -> f64 {
    let n = (x / LN_2).round();
    let r = (x - n * 0.693_147_180_369_123_8) - n * 1.908_214_929_270_587_7e-10;
    let series = (1..=16).rev().fold(1.0, |sum, term| 1.0 + sum * r / f64::from(term));
    series * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// Horner's rule, highest power first.
fn polynomial(z: f64, coefficients: &[f64]) -> f64 {
    coefficients.iter().fold(0.0, |sum, coefficient| sum * z + coefficient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::SimdLevel;
    use crate::cpu::simd::simd_dispatch;

    simd_dispatch!(fn exp_at(values: &mut [f32]) = exp_all);

    #[inline(always)]
    fn exp_all(values: &mut [f32]) {
        for value in values {
            *value = exp(*value);
        }
    }

    fn units_off(actual: f32, expected: f64) -> f64 {
        let unit = f64::from(f32::from_bits((expected as f32).abs().to_bits() + 1))
            - f64::from((expected as f32).abs());
        (f64::from(actual) - expected).abs() / unit
    }

    #[test]
    fn exp_is_within_two_units_and_equal_at_every_level() {
        let inputs: Vec<f32> = (-880_000..=887_000).step_by(37).map(|value| value as f32 * 1e-4).collect();
        let mut expected = inputs.clone();
        exp_all(&mut expected);
        for (&x, &e) in inputs.iter().zip(&expected).filter(|(x, _)| **x >= -87.0) {
            assert!(units_off(e, f64::from(x).exp()) <= 2.0, "exp({x}) = {e}");
        }
        for level in SimdLevel::available() {
            let mut actual = inputs.clone();
            exp_at(level, &mut actual);
            assert_eq!(actual, expected, "{}", level.name());
        }
    }

    #[test]
    fn exp_has_exact_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(-87.000_01), exp(f32::NEG_INFINITY), exp(f32::MIN)), (0.0, 0.0, 0.0));
        assert_eq!(
            (exp(89.0), exp(f32::INFINITY), exp(f32::MAX)),
            (f32::INFINITY, f32::INFINITY, f32::INFINITY)
        );
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-87.0) > f32::MIN_POSITIVE && exp(88.722).is_finite());
    }

    #[test]
    fn ln_is_rounded_correctly() {
        for index in 1..20_000u32 {
            let x = f32::from_bits(index * 101_003);
            if x.is_finite() && x > 0.0 {
                assert!(units_off(ln(x), f64::from(x).ln()) <= 0.51, "ln({x})");
            }
        }
        assert_eq!((ln(1.0), ln(0.0), ln(f32::INFINITY)), (0.0, f32::NEG_INFINITY, f32::INFINITY));
        assert!(ln(-1.0).is_nan() && ln(f32::NAN).is_nan());
    }

    #[test]
    fn sine_and_cosine_are_rounded_correctly() {
        for index in -30_000..30_000 {
            let x = index as f32 * 3.717;
            let (s, c) = (f64::from(x).sin(), f64::from(x).cos());
            assert!((f64::from(sin(x)) - s).abs() <= 3.1e-8, "sin({x})");
            assert!((f64::from(cos(x)) - c).abs() <= 3.1e-8, "cos({x})");
        }
        assert!(sin(f32::INFINITY).is_nan());
    }

    #[test]
    fn powers_match_the_library() {
        for (base, exponent) in [(10_000.0, -0.25), (500_000.0, -0.968_75), (2.0, 10.0), (0.9, 3.0)] {
            let expected = f64::powf(base, exponent);
            assert!((pow_f64(base, exponent) / expected - 1.0).abs() < 1e-14, "{base}^{exponent}");
        }
        assert_eq!(powi_f64(0.5, 10), 1.0 / 1024.0);
        assert_eq!(powi_f64(0.999, 0), 1.0);
    }
}
