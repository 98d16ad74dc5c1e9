//! The rules, in the order in which they are applied, and each profile's limits.

use serde::{Deserialize, Serialize};

use super::{Limits, Profile};

/// What a text is measured by. The order is the order of application.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Characters at least.
    CharsMin,
    /// Share of paragraphs that repeat an earlier one, at most.
    DuplicateParagraphsMax,
    /// Their characters' share, at most.
    DuplicateParagraphCharsMax,
    /// Share of lines that repeat an earlier one, at most.
    DuplicateLinesMax,
    /// Their characters' share, at most.
    DuplicateLineCharsMax,
    /// Share of characters in the most frequent pair of words, at most.
    #[serde(rename = "top_2_gram_max")]
    Top2GramMax,
    /// The same of three words.
    #[serde(rename = "top_3_gram_max")]
    Top3GramMax,
    /// The same of four words.
    #[serde(rename = "top_4_gram_max")]
    Top4GramMax,
    /// Share of characters in repeated runs of five words, at most.
    #[serde(rename = "duplicate_5_grams_max")]
    Duplicate5GramsMax,
    /// The same of six words.
    #[serde(rename = "duplicate_6_grams_max")]
    Duplicate6GramsMax,
    /// The same of seven words.
    #[serde(rename = "duplicate_7_grams_max")]
    Duplicate7GramsMax,
    /// The same of eight words.
    #[serde(rename = "duplicate_8_grams_max")]
    Duplicate8GramsMax,
    /// The same of nine words.
    #[serde(rename = "duplicate_9_grams_max")]
    Duplicate9GramsMax,
    /// The same of ten words.
    #[serde(rename = "duplicate_10_grams_max")]
    Duplicate10GramsMax,
    /// Words that are not symbols alone, at least.
    WordsMin,
    /// Words that are not symbols alone, at most.
    WordsMax,
    /// Mean characters of these words, at least.
    MeanWordCharsMin,
    /// Mean characters of these words, at most.
    MeanWordCharsMax,
    /// `#` a word, at most.
    HashesMax,
    /// Ellipses a word, at most.
    EllipsesMax,
    /// Share of lines that begin with a bullet, at most.
    BulletLinesMax,
    /// Share of lines that end with an ellipsis, at most.
    EllipsisLinesMax,
    /// Share of words with a letter, at least.
    AlphabeticWordsMin,
    /// Distinct stop words, at least.
    StopWordsMin,
    /// Curly brackets, at most.
    CurlyBracketsMax,
    /// Mentions of "lorem ipsum", at most.
    LoremIpsumMax,
    /// Sentences in lines that are worth counting, at least.
    SentencesMin,
    /// Share of lines that end with punctuation, at least.
    LinePunctuationMin,
    /// Share of lines of at most 30 characters, at most.
    ShortLinesMax,
    /// Share of characters in lines that repeat an earlier one, line breaks not counted, at most.
    RepeatedLineCharsMax,
    /// Line breaks a word, at most.
    LineBreaksMax,
}

impl Rule {
    /// Whether smaller values break the rule.
    pub fn is_minimum(self) -> bool {
        matches!(
            self,
            Self::CharsMin
                | Self::WordsMin
                | Self::MeanWordCharsMin
                | Self::AlphabeticWordsMin
                | Self::StopWordsMin
                | Self::SentencesMin
                | Self::LinePunctuationMin
        )
    }
}

/// For whom limits were published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tongue {
    English,
    Chinese,
    Other,
}

/// Gopher, C4 (without the rule on line ends, as FineWeb uses it) and FineWeb.
const ENGLISH: [(Rule, f64); 30] = [
    (Rule::DuplicateParagraphsMax, 0.3),
    (Rule::DuplicateParagraphCharsMax, 0.2),
    (Rule::DuplicateLinesMax, 0.3),
    (Rule::DuplicateLineCharsMax, 0.2),
    (Rule::Top2GramMax, 0.2),
    (Rule::Top3GramMax, 0.18),
    (Rule::Top4GramMax, 0.16),
    (Rule::Duplicate5GramsMax, 0.15),
    (Rule::Duplicate6GramsMax, 0.14),
    (Rule::Duplicate7GramsMax, 0.13),
    (Rule::Duplicate8GramsMax, 0.12),
    (Rule::Duplicate9GramsMax, 0.11),
    (Rule::Duplicate10GramsMax, 0.10),
    (Rule::WordsMin, 50.0),
    (Rule::WordsMax, 100_000.0),
    (Rule::MeanWordCharsMin, 3.0),
    (Rule::MeanWordCharsMax, 10.0),
    (Rule::HashesMax, 0.1),
    (Rule::EllipsesMax, 0.1),
    (Rule::BulletLinesMax, 0.9),
    (Rule::EllipsisLinesMax, 0.3),
    (Rule::AlphabeticWordsMin, 0.8),
    (Rule::StopWordsMin, 2.0),
    (Rule::CurlyBracketsMax, 0.0),
    (Rule::LoremIpsumMax, 0.0),
    (Rule::SentencesMin, 5.0),
    (Rule::LinePunctuationMin, 0.12),
    (Rule::ShortLinesMax, 0.67),
    (Rule::RepeatedLineCharsMax, 0.01),
    (Rule::LineBreaksMax, 0.3),
];

/// FineWeb-2, `cmn_Hani`.
const CHINESE: [(Rule, f64); 22] = [
    (Rule::DuplicateLinesMax, 0.287),
    (Rule::Top2GramMax, 0.256),
    (Rule::Top3GramMax, 0.201),
    (Rule::Top4GramMax, 0.171),
    (Rule::Duplicate5GramsMax, 0.198),
    (Rule::Duplicate6GramsMax, 0.182),
    (Rule::Duplicate7GramsMax, 0.167),
    (Rule::Duplicate8GramsMax, 0.154),
    (Rule::Duplicate9GramsMax, 0.14),
    (Rule::Duplicate10GramsMax, 0.127),
    (Rule::WordsMin, 50.0),
    (Rule::WordsMax, 100_000.0),
    (Rule::MeanWordCharsMin, 1.0),
    (Rule::MeanWordCharsMax, 5.0),
    (Rule::HashesMax, 0.1),
    (Rule::EllipsesMax, 0.1),
    (Rule::BulletLinesMax, 0.9),
    (Rule::EllipsisLinesMax, 0.3),
    (Rule::AlphabeticWordsMin, 0.735),
    (Rule::StopWordsMin, 2.0),
    (Rule::LinePunctuationMin, 0.106),
    (Rule::LineBreaksMax, 0.178),
];

/// What of the published rules depends on no language.
const OTHER: [(Rule, f64); 16] = [
    (Rule::DuplicateParagraphsMax, 0.3),
    (Rule::DuplicateLinesMax, 0.3),
    (Rule::Top2GramMax, 0.2),
    (Rule::Top3GramMax, 0.18),
    (Rule::Top4GramMax, 0.16),
    (Rule::Duplicate5GramsMax, 0.15),
    (Rule::Duplicate6GramsMax, 0.14),
    (Rule::Duplicate7GramsMax, 0.13),
    (Rule::Duplicate8GramsMax, 0.12),
    (Rule::Duplicate9GramsMax, 0.11),
    (Rule::Duplicate10GramsMax, 0.10),
    (Rule::WordsMax, 100_000.0),
    (Rule::HashesMax, 0.1),
    (Rule::EllipsesMax, 0.1),
    (Rule::BulletLinesMax, 0.9),
    (Rule::EllipsisLinesMax, 0.3),
];

/// Wide limits of our own: a page of a manual may be a table of options, not a repeated banner.
const DOCUMENTATION: [(Rule, f64); 8] = [
    (Rule::DuplicateLinesMax, 0.6),
    (Rule::DuplicateLineCharsMax, 0.5),
    (Rule::Top2GramMax, 0.4),
    (Rule::Duplicate10GramsMax, 0.5),
    (Rule::WordsMin, 10.0),
    (Rule::HashesMax, 0.5),
    (Rule::AlphabeticWordsMin, 0.3),
    (Rule::LoremIpsumMax, 0.0),
];

/// A profile's limits.
pub(super) fn limits(profile: Profile, tongue: Tongue) -> Limits {
    let limits: &[(Rule, f64)] = match (profile, tongue) {
        (Profile::Web, Tongue::English) => &ENGLISH,
        (Profile::Web, Tongue::Chinese) => &CHINESE,
        (Profile::Web, Tongue::Other) => &OTHER,
        (Profile::Documentation, _) => &DOCUMENTATION,
        (Profile::None, _) => &[],
    };
    limits.iter().copied().collect()
}
