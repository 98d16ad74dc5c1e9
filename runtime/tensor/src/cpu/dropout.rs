//! Dropout whose mask is a function of an element's index, so backward recomputes it instead of storing it.

use crate::cpu::Counter;

/// Sets elements to zero with `probability` and scales the others by `1 / (1 - probability)`, in place.
///
/// Element `i` uses word `first + i` of the stream: a rank that holds part of a row passes the part's index in the whole
/// tensor. Backward is the same call on the gradient. A probability of 0 changes nothing.
///
/// # Panics
/// The probability is not in `[0, 1)`.
pub fn dropout(values: &mut [f32], counter: &Counter, first: u64, probability: f32) {
    assert!((0.0..1.0).contains(&probability), "dropout probability {probability}");
    if probability == 0.0 {
        return;
    }
    let (factor, threshold) = coefficients(probability);
    counter.for_each_word(first, values.len(), |index, word| {
        values[index] = if word >= threshold { values[index] * factor } else { 0.0 };
    });
}

/// The factor on elements that stay, and the least random word of theirs.
pub(crate) fn coefficients(probability: f32) -> (f32, u32) {
    (1.0 / (1.0 - probability), (f64::from(probability) * 4_294_967_296.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Purpose;

    #[test]
    fn drops_the_asked_share_and_keeps_the_mean() {
        let counter = Counter::new(5, 1, 0, 2, Purpose::MLP_DROPOUT);
        let mut values = vec![1.0; 20_000];
        dropout(&mut values, &counter, 0, 0.25);
        let dropped = values.iter().filter(|&&value| value == 0.0).count();
        assert!((4_700..5_300).contains(&dropped), "{dropped} dropped");
        assert!(values.iter().all(|&value| value == 0.0 || value == 1.0 / 0.75));
    }

    #[test]
    fn a_shard_sees_its_part_of_the_mask() {
        let counter = Counter::new(5, 1, 0, 2, Purpose::MLP_DROPOUT);
        let (mut whole, mut part) = (vec![1.0; 200], vec![1.0; 50]);
        dropout(&mut whole, &counter, 1000, 0.5);
        dropout(&mut part, &counter, 1099, 0.5);
        assert_eq!(part, whole[99..149]);
    }

    #[test]
    fn probability_zero_changes_nothing() {
        let mut values = vec![1.5; 10];
        dropout(&mut values, &Counter::new(0, 0, 0, 0, Purpose::MLP_DROPOUT), 0, 0.0);
        assert_eq!(values, [1.5; 10]);
    }
}
