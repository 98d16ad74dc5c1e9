//! The search for numbers that are not finite.

use crate::cpu::threads;

/// Numbers of one task.
const TASK_NUMBERS: usize = 1 << 16;

/// Whether all numbers are finite. It looks at every number: without a branch for each, that is a small part of
/// what a sum costs.
pub fn are_finite(values: &[f32]) -> bool {
    let mut tasks: Vec<(&[f32], bool)> = values.chunks(TASK_NUMBERS).map(|values| (values, false)).collect();
    threads::for_each(&mut tasks, values.len(), |(values, are_finite)| {
        const EXPONENT: u32 = 0x7f80_0000;
        let is_wrong = |value: &f32| u32::from(value.to_bits() & EXPONENT == EXPONENT);
        *are_finite = values.iter().fold(0, |wrong, value| wrong | is_wrong(value)) == 0;
    });
    tasks.into_iter().all(|(_, are_finite)| are_finite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_are_seen_wherever_they_are() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 7, TASK_NUMBERS, TASK_NUMBERS + 100] {
                let mut values = vec![f32::MAX; TASK_NUMBERS + 101];
                assert!(are_finite(&values));
                values[at] = wrong;
                assert!(!are_finite(&values), "{wrong} at {at}");
            }
        }
        assert!(are_finite(&[]));
    }
}
