//! How much of a text repeats itself. Lengths are in characters.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// How many parts equal an earlier one, and how many characters they have.
pub(super) fn duplicates<'a>(parts: impl Iterator<Item = &'a str>) -> (usize, usize) {
    let mut seen = HashSet::new();
    let (mut count, mut chars) = (0, 0);
    for part in parts.filter(|part| !seen.insert(*part)) {
        count += 1;
        chars += part.chars().count();
    }
    (count, chars)
}

/// Characters that the most frequent run of `n` words takes; of equally frequent ones the first.
/// A run's length includes the spaces between its words.
pub(super) fn top_gram_chars(words: &[&str], n: usize) -> usize {
    let mut counts: HashMap<&[&str], usize> = HashMap::new();
    for gram in words.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    let highest = counts.values().copied().max().unwrap_or(0);
    let first = words.windows(n).find(|gram| counts.get(gram) == Some(&highest));
    first.map_or(0, |gram| (chars(gram) + n - 1) * highest)
}

/// Characters in runs of `n` words that occurred before; a counted run is stepped over.
pub(super) fn duplicate_gram_chars(words: &[&str], n: usize) -> usize {
    let mut seen = HashSet::new();
    let (mut at, mut repeated) = (0, 0);
    while let Some(gram) = words.get(at..at + n) {
        // Runs are compared as joined text, as the reference does.
        if insert(&mut seen, gram) {
            at += 1;
        } else {
            repeated += chars(gram);
            at += n;
        }
    }
    repeated
}

fn insert(seen: &mut HashSet<u64>, gram: &[&str]) -> bool {
    let mut hasher = xxhash_rust::xxh64::Xxh64::new(0);
    gram.iter().for_each(|word| hasher.update(word.as_bytes()));
    seen.insert(hasher.digest())
}

fn chars(gram: &[&str]) -> usize {
    gram.iter().map(|word| word.chars().count()).sum()
}

/// Distinct values among `wanted`.
pub(super) fn distinct<T: Eq + Hash>(values: impl Iterator<Item = T>, wanted: impl Fn(&T) -> bool) -> usize {
    values.filter(wanted).collect::<HashSet<_>>().len()
}
