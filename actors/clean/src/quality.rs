//! Published rules that tell text worth training on from noise. The first rule that a text breaks
//! is recorded with the value and the limit.
//!
//! Sources: Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020), FineWeb (Penedo et al.
//! 2024) and FineWeb-2's thresholds for Mandarin, all as datatrove 0.10 computes them. Ratios are
//! of characters or words as the source has it. They were made for web pages; documentation, with
//! its short lines, code and lists, has a milder profile.
//!
//! Read [`Judge`] first.

mod measure;
mod repetition;
mod rule;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::language::is_chinese;
use measure::Measures;
pub use rule::Rule;

/// Which rules hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// The published rules: English pages by Gopher, C4 and FineWeb, Chinese ones by FineWeb-2, others
    /// by the rules that depend on no language.
    #[default]
    Web,
    /// For manuals and references: repetition and symbol rules with wide limits.
    Documentation,
    /// Length only.
    None,
}

/// Limits by rule; a rule without a limit does not hold.
pub type Limits = BTreeMap<Rule, f64>;

/// A broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Breach {
    /// The rule.
    pub rule: Rule,
    /// What was measured.
    pub value: f64,
    /// What would have passed.
    pub limit: f64,
}

/// Judges texts by the rules of a profile.
#[derive(Clone, Debug)]
pub struct Judge {
    chars_min: usize,
    english: Limits,
    chinese: Limits,
    other: Limits,
}

impl Judge {
    /// A judge with a profile's limits, some of them replaced. A negative limit turns a rule off.
    pub fn new(profile: Profile, chars_min: usize, english: &Limits, chinese: &Limits) -> Self {
        let with = |base: Limits, changed: &Limits| -> Limits {
            let all = base.into_iter().chain(changed.iter().map(|(&rule, &limit)| (rule, limit)));
            let merged: Limits = all.collect();
            merged.into_iter().filter(|(_, limit)| *limit >= 0.0).collect()
        };
        Self {
            chars_min,
            english: with(rule::limits(profile, rule::Tongue::English), english),
            chinese: with(rule::limits(profile, rule::Tongue::Chinese), chinese),
            other: rule::limits(profile, rule::Tongue::Other),
        }
    }

    /// The first rule that the text breaks. `words` are the text's words, punctuation included.
    pub fn judge(&self, text: &str, words: &[&str], language: &str) -> Option<Breach> {
        let chars = text.chars().count();
        if chars < self.chars_min {
            let (value, limit) = (chars as f64, self.chars_min as f64);
            return Some(Breach { rule: Rule::CharsMin, value, limit });
        }
        let limits = if is_chinese(language) {
            &self.chinese
        } else if language == "en" {
            &self.english
        } else {
            &self.other
        };
        let measures = Measures::new(text, words, chars, is_chinese(language));
        limits.iter().find_map(|(&rule, &limit)| {
            let value = measures.value(rule);
            let broken = if rule.is_minimum() { value < limit } else { value > limit };
            broken.then_some(Breach { rule, value, limit })
        })
    }
}

#[cfg(test)]
#[path = "quality/tests.rs"]
mod tests;
