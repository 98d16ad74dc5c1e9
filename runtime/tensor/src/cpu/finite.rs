//! The search for numbers that are not finite.

/// Whether all numbers are finite. It looks at every number: without a branch for each, that is a small part of
/// what a sum costs.
pub fn are_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let wrong =
        values.iter().fold(0, |wrong, value| wrong | u32::from(value.to_bits() & EXPONENT == EXPONENT));
    wrong == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_are_seen_wherever_they_are() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 7, 100] {
                let mut values = vec![f32::MAX; 101];
                assert!(are_finite(&values));
                values[at] = wrong;
                assert!(!are_finite(&values), "{wrong} at {at}");
            }
        }
        assert!(are_finite(&[]));
    }
}
