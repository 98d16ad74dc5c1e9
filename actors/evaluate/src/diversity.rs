//! Distinct-n: how little a model repeats itself.

use std::collections::HashSet;

/// Distinct n-grams divided by all n-grams of the texts; 0 where there is none.
///
/// Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models",
/// section 5.2. N-grams do not cross texts.
pub fn distinct_n(texts: &[Vec<u32>], n: usize) -> f64 {
    let grams = || texts.iter().flat_map(|text| text.windows(n.max(1)));
    let distinct: HashSet<&[u32]> = grams().collect();
    match grams().count() {
        0 => 0.0,
        all => distinct.len() as f64 / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_distinct_n_grams_within_texts() {
        let texts = [vec![1, 2, 1, 2], vec![1, 2]];
        assert_eq!(distinct_n(&texts, 1), 2.0 / 6.0);
        // 12 21 12 | 12
        assert_eq!(distinct_n(&texts, 2), 2.0 / 4.0);
        assert_eq!(distinct_n(&texts, 5), 0.0);
    }
}
