//! A small sketch of a text's runs of words, by which the overlap of two texts is estimated.
//!
//! MinHash (Broder, 1997) over runs of five words, with the permutations of datatrove 0.10 (seed 1,
//! 14 buckets of 8) and its normal form. Of each minimum the low byte is kept (b-bit MinHash, Li and
//! König, 2010): 112 bytes a document, and an estimate of Jaccard similarity with a standard
//! deviation of at most 0.05. Where datatrove segments text that is written without spaces, here
//! each of its characters is a word.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use xxhash_rust::xxh64::xxh64;

use crate::language::is_han;

mod permutation;

use permutation::{PERMUTATIONS, Permutations};

/// Words a run.
const RUN_WORDS: usize = 5;

/// Minima a sketch, eight to each of its numbers.
const ROWS: usize = 112;
const NUMBERS: usize = ROWS / 8;

/// Pairs of neighbouring minima.
pub(crate) const PAIRS: usize = ROWS / 2;

/// Two minima that differ have the same low byte this often.
const CHANCE: f64 = 1.0 / 256.0;

/// The low bytes of the minima, the first in the highest byte of the first number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sketch(pub(crate) [u64; NUMBERS]);

impl Sketch {
    /// The sketch of `text`.
    pub fn of(text: &str) -> Self {
        let permutations: &Permutations = &PERMUTATIONS;
        let mut minima = [u64::MAX; ROWS];
        Words::of(text).for_each_run(|run| permutations.lower(&mut minima, xxh64(run.as_bytes(), 0)));
        let mut numbers = [0; NUMBERS];
        for (number, eight) in numbers.iter_mut().zip(minima.chunks(8)) {
            *number = eight.iter().fold(0, |value, minimum| value << 8 | (minimum & 0xff));
        }
        Self(numbers)
    }

    /// The Jaccard similarity, 0 to 1, of the sets of runs of two texts, as their sketches tell it.
    pub fn overlap(&self, other: &Self) -> f64 {
        estimate(self.0.iter().zip(&other.0).map(|(a, b)| zero_bytes(a ^ b)).sum())
    }

    /// Two neighbouring minima, of [`PAIRS`] such pairs.
    pub(crate) fn pair(&self, at: usize) -> u16 {
        (self.0[at / 4] >> (at % 4 * 16)) as u16
    }

    /// Whether two sketches that overlap by `overlap` or more must have an equal pair: whether more
    /// minima are equal then than there are pairs.
    pub(crate) fn pairs_tell(overlap: f64) -> bool {
        estimate(PAIRS as u32) < overlap
    }
}

/// Jaccard similarity by how many minima are equal.
fn estimate(equal: u32) -> f64 {
    let share = f64::from(equal) / ROWS as f64;
    ((share - CHANCE) / (1.0 - CHANCE)).max(0.0)
}

/// How many of the eight bytes are 0.
fn zero_bytes(number: u64) -> u32 {
    const LOW_BITS: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    // The highest bit of each byte is set where any bit of it is.
    let filled = ((number & LOW_BITS) + LOW_BITS) | number;
    (!(filled | LOW_BITS)).count_ones()
}

/// The words of a text in the form in which they are compared, with one space between them.
#[derive(Default)]
struct Words {
    text: String,
    /// Where each word begins.
    starts: Vec<usize>,
}

impl Words {
    /// Lower case, numbers as 0, no punctuation, no marks on letters.
    fn of(text: &str) -> Self {
        static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\d+(\.\d+)?").ok());
        let lower = text.to_lowercase();
        let plain = match &*NUMBER {
            Some(number) => number.replace_all(&lower, "0"),
            None => lower.as_str().into(),
        };
        let mut words = Self { text: String::with_capacity(plain.len()), starts: Vec::new() };
        let mut in_word = false;
        for character in plain.nfd().filter(|&c| !is_combining_mark(c)) {
            let is_word_by_itself = is_unspaced(character);
            if !character.is_alphanumeric() {
                in_word = false;
                continue;
            }
            if is_word_by_itself || !in_word {
                words.begin();
            }
            words.text.push(character);
            in_word = !is_word_by_itself;
        }
        words
    }

    fn begin(&mut self) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.starts.push(self.text.len());
    }

    /// Calls `take` with each run of words; a text of fewer words is one run.
    fn for_each_run(&self, mut take: impl FnMut(&str)) {
        let words = self.starts.len().min(RUN_WORDS);
        let ends = self.starts.iter().skip(words).map(|next| next - 1).chain([self.text.len()]);
        self.starts.iter().zip(ends).for_each(|(&start, end)| take(&self.text[start..end]));
    }
}

/// Whether the character is of a script that is written without spaces between words.
fn is_unspaced(character: char) -> bool {
    is_han(character)
        || matches!(character, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
            | '\u{3041}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}')
}

impl Serialize for Sketch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|number| format!("{number:016x}")).collect();
        serializer.serialize_str(&digits)
    }
}

impl<'de> Deserialize<'de> for Sketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let mut numbers = [0; NUMBERS];
        if digits.len() != NUMBERS * 16 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(D::Error::custom(format!("a sketch has {} hexadecimal digits", NUMBERS * 16)));
        }
        for (at, number) in numbers.iter_mut().enumerate() {
            let sixteen = &digits[at * 16..(at + 1) * 16];
            *number = u64::from_str_radix(sixteen, 16).map_err(D::Error::custom)?;
        }
        Ok(Self(numbers))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn runs(text: &str) -> HashSet<String> {
        let mut runs = HashSet::new();
        Words::of(text).for_each_run(|run| {
            runs.insert(run.to_owned());
        });
        runs
    }

    #[test]
    fn runs_are_of_words_in_plain_form() {
        let cases = [
            ("", vec![]),
            ("... !!", vec![]),
            ("Two words", vec!["two words"]),
            ("The Café's 3.14 (or 1,000)!", vec!["the cafe s 0 or", "cafe s 0 or 0", "s 0 or 0 0"]),
            ("自由的 GNU 系统", vec!["自 由 的 gnu 系", "由 的 gnu 系 统"]),
            ("できます", vec!["て き ま す"]),
        ];
        for (text, expected) in cases {
            assert_eq!(runs(text), expected.into_iter().map(str::to_owned).collect::<HashSet<_>>(), "{text}");
        }
    }

    #[test]
    fn minima_are_those_of_the_reference() {
        // numpy 2 and xxhash: the low bytes of min((h * a + b) mod 2^64 mod 2^61 - 1) over the runs.
        let text =
            "The archive keeps the packages that people need, and a mirror copies them to every country.";
        let expected = "9744731e7bcd1ecad35ab9a0fc55a20db29bd6078688172cb11a2c48467f33efd4c1c618cb4daee3f886cb68b3c9\
                        d7b8072524038fd53421e9c63ef1370572109850e4b091e301dcd0cb740a1d78ae011b4612120cc76e492f95436c\
                        9a7d90442dd419e15c62d2ff36497ea209afa03b";
        let json = serde_json::to_string(&Sketch::of(text)).unwrap();
        assert_eq!(json, format!("\"{expected}\""));
        assert_eq!(serde_json::from_str::<Sketch>(&json).unwrap(), Sketch::of(text));
        for broken in [expected[1..].to_owned(), expected.replace('9', "é"), expected.replace('9', "+")] {
            assert!(serde_json::from_value::<Sketch>(broken.into()).is_err());
        }
    }

    #[test]
    fn overlap_estimates_jaccard_similarity() {
        let word =
            |seed: usize| format!("w{}", char::from(b'a' + (seed % 26) as u8)).repeat(1 + seed / 26 % 40);
        let text = |from: usize| (from..from + 1000).map(word).collect::<Vec<_>>().join(" ");
        for shift in [0, 100, 300, 500, 800, 1000] {
            let (one, other) = (text(0), text(shift));
            let (a, b) = (runs(&one), runs(&other));
            let exact = a.intersection(&b).count() as f64 / a.union(&b).count() as f64;
            let found = Sketch::of(&one).overlap(&Sketch::of(&other));
            assert!((found - exact).abs() < 0.15, "{found} for {exact}");
        }
        assert_eq!(Sketch::of("").overlap(&Sketch::of("!")), 1.0);
    }

    #[test]
    fn pairs_tell_where_more_minima_are_equal_than_there_are_pairs() {
        // One of each pair is equal: 56 minima, .498.
        let half = Sketch([0x00ff_00ff_00ff_00ff; NUMBERS]);
        let none = Sketch([0; NUMBERS]);
        assert!((0..PAIRS).all(|at| half.pair(at) != none.pair(at)));
        assert!(!Sketch::pairs_tell(half.overlap(&none)) && Sketch::pairs_tell(0.5));
        assert_eq!(Sketch([0xabcd; NUMBERS]).pair(4), 0xabcd);
    }

    #[test]
    fn zero_bytes_are_counted() {
        for (number, count) in [(0, 8), (u64::MAX, 0), (0x0100_8000_0000_7f00, 5), (0x80, 7)] {
            assert_eq!(zero_bytes(number), count, "{number:x}");
        }
    }
}
