//! Numbers stored in 16 bits: the upper half of an `f32` (Kalamkar et al., "A Study of BFLOAT16 for Deep Learning
//! Training", 2019). Arithmetic is in `f32`; this is what lies in memory and in files.

use half::bf16;

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::threads;

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 16;
/// All bits of an `f32` but the sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// Infinity, above which are the NaNs.
const INFINITY: u32 = 0x7f80_0000;
/// The bit that makes a NaN a quiet one.
const QUIET: u32 = 0x40_0000;
/// The bits that are kept.
const UPPER_HALF: u32 = 0xffff_0000;

/// Rounds `x` to `out`, to the nearest and ties to even: beyond the largest number to infinity, denormals like all others. A NaN
/// stays one, quiet, with its sign.
///
/// # Panics
/// The lengths differ.
pub fn round_to_bf16(x: &[f32], out: &mut [bf16]) {
    assert_eq!(x.len(), out.len(), "lengths of a conversion");
    let (level, cost) = (simd_level(), x.len());
    threads::for_each_chunk(out, TASK_ELEMENTS, cost, |index, out| {
        narrow_at(level, &x[index * TASK_ELEMENTS..][..out.len()], out);
    });
}

/// Widens `x` to `out`, exactly.
///
/// # Panics
/// The lengths differ.
pub fn widen_bf16(x: &[bf16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "lengths of a conversion");
    let (level, cost) = (simd_level(), x.len());
    threads::for_each_chunk(out, TASK_ELEMENTS, cost, |index, out| {
        widen_at(level, &x[index * TASK_ELEMENTS..][..out.len()], out);
    });
}

simd_dispatch!(fn narrow_at(x: &[f32], out: &mut [bf16]) = narrow);
simd_dispatch!(fn widen_at(x: &[bf16], out: &mut [f32]) = widen);

#[inline(always)]
fn narrow(x: &[f32], out: &mut [bf16]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = bf16::from_bits((rounded_bits(x) >> 16) as u16);
    }
}

/// The bits of `x` rounded, as those of an `f32`.
#[inline(always)]
pub(crate) fn rounded_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    // Half of the last place kept, less one bit unless that place is odd: ties go to even.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    (if bits & MAGNITUDE > INFINITY { bits | QUIET } else { rounded }) & UPPER_HALF
}

/// What products in bfloat16 take for zero: the products of other numbers are multiples of 2^-126, the smallest number that is no
/// denormal, and so are sums of them.
const SMALLEST_OPERAND: f32 = f32::from_bits((127 - 56) << 23);

/// The bits of `x` as an operand of a product in bfloat16, as those of an `f32`: zero where it is closer to zero than 2^-56, else rounded.
#[inline(always)]
pub(crate) fn operand_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits & MAGNITUDE < SMALLEST_OPERAND.to_bits() { 0 } else { rounded_bits(x) }
}

simd_dispatch!(pub(crate) fn round_operands_at(x: &mut [f32]) = round_operands);

#[inline(always)]
fn round_operands(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = f32::from_bits(operand_bits(*x)));
}

#[inline(always)]
fn widen(x: &[bf16], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f32::from_bits(u32::from(x.to_bits()) << 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{SimdLevel, set_threads};

    fn bits(values: &[bf16]) -> Vec<u16> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Every number of 16 bits with what decides about rounding behind it: below, at and above a tie.
    fn inputs() -> Vec<f32> {
        let upper = 0..=u32::from(u16::MAX);
        let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        upper.flat_map(|upper| lower.map(|lower| f32::from_bits(upper << 16 | lower))).collect()
    }

    /// The nearer of both neighbours in f64, where differences are exact; in a tie the even one.
    fn reference(x: f32) -> u16 {
        let below = (x.to_bits() >> 16) as u16;
        let above = below + 1;
        // Beyond the largest number the next step would be 2^128.
        let wide = |bits: u16| match f32::from_bits(u32::from(bits) << 16) {
            value if value.is_infinite() => 2f64.powi(128).copysign(value.into()),
            value => f64::from(value),
        };
        let (down, up) = ((f64::from(x) - wide(below)).abs(), (wide(above) - f64::from(x)).abs());
        if down < up || (down == up && below.is_multiple_of(2)) { below } else { above }
    }

    #[test]
    fn every_number_is_rounded_to_the_nearest_and_ties_to_even() {
        let x = inputs();
        let mut out = vec![bf16::ZERO; x.len()];
        round_to_bf16(&x, &mut out);
        for (x, out) in x.iter().zip(&out) {
            if x.is_nan() {
                assert!(out.is_nan() && out.is_sign_negative() == x.is_sign_negative(), "{:x}", x.to_bits());
                assert!(out.to_bits() & 0x40 != 0, "{:x} stays a signalling NaN", x.to_bits());
            } else if x.is_infinite() {
                assert_eq!(f64::from(*out), f64::from(*x));
            } else {
                assert_eq!(out.to_bits(), reference(*x), "{x:e} {:x}", x.to_bits());
            }
        }
    }

    #[test]
    fn golden_values() {
        let x =
            [1.0, 1.003_906_2, 1.003_906_4, 1.011_718_8, f32::MAX, -f32::MAX, 1e-45, -0.0, f32::MIN_POSITIVE];
        let mut out = [bf16::ZERO; 9];
        round_to_bf16(&x, &mut out);
        assert_eq!(bits(&out), [0x3f80, 0x3f80, 0x3f81, 0x3f82, 0x7f80, 0xff80, 0, 0x8000, 0x0080]);
        round_to_bf16(&[f32::INFINITY, f32::NEG_INFINITY], &mut out[..2]);
        assert_eq!(bits(&out[..2]), [0x7f80, 0xff80]);
    }

    #[test]
    fn widening_is_exact_and_the_way_back() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let (mut wide, mut back) = (vec![0.0; all.len()], vec![bf16::ZERO; all.len()]);
        widen_bf16(&all, &mut wide);
        round_to_bf16(&wide, &mut back);
        for ((narrow, wide), back) in all.iter().zip(&wide).zip(&back) {
            assert_eq!(wide.to_bits(), u32::from(narrow.to_bits()) << 16);
            let quiet = narrow.to_bits() | if narrow.is_nan() { 0x40 } else { 0 };
            assert_eq!(back.to_bits(), quiet);
        }
    }

    #[test]
    fn levels_and_threads_agree() {
        let x = inputs();
        let (mut expected, mut e_wide) = (vec![bf16::ZERO; x.len()], vec![0.0; x.len()]);
        narrow_at(SimdLevel::PLAIN, &x, &mut expected);
        widen_at(SimdLevel::PLAIN, &expected, &mut e_wide);
        let as_bits = |wide: &[f32]| wide.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let (mut out, mut wide) = (vec![bf16::ONE; x.len()], vec![1.0; x.len()]);
        for level in SimdLevel::available() {
            narrow_at(level, &x, &mut out);
            wide.copy_from_slice(&x);
            round_operands_at(level, &mut wide);
            let tiny = 2f32.powi(-56);
            for (x, (operand, rounded)) in x.iter().zip(wide.iter().zip(&e_wide)) {
                let expected = if x.abs() < tiny { 0 } else { rounded.to_bits() };
                assert_eq!(operand.to_bits(), expected, "{x:e} {}", level.name());
            }
            widen_at(level, &out, &mut wide);
            assert!(bits(&out) == bits(&expected) && as_bits(&wide) == as_bits(&e_wide), "{}", level.name());
        }
        set_threads(2).unwrap();
        round_to_bf16(&x, &mut out);
        widen_bf16(&out, &mut wide);
        set_threads(1).unwrap();
        assert!(bits(&out) == bits(&expected) && as_bits(&wide) == as_bits(&e_wide));
    }
}
