//! What the rules measure. Values are computed when a rule asks for them.

use super::repetition::{distinct, duplicate_gram_chars, duplicates, top_gram_chars};
use super::rule::Rule;

/// Lines of at most this many characters are short (FineWeb).
const SHORT_LINE_CHARS: usize = 30;

/// C4 drops lines with longer words and with fewer words.
const WORD_CHARS_MAX: usize = 1000;
const LINE_WORDS_MIN: usize = 3;

/// Gopher's stop words.
const ENGLISH_STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];

/// FineWeb-2's stop words for Mandarin.
const CHINESE_STOP_WORDS: [&str; 22] = [
    "的", "年", "在", "月", "是", "和", "日", "了", "於", "·", "為", "有", "被", "人", "中", "为", "他",
    "与", "後", "也", "而", "由",
];

/// Lines with these phrases are about a site, not its subject (C4).
const POLICY_PHRASES: [&str; 7] = [
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
    "javascript",
];

/// A text with what is needed more than once.
pub(super) struct Measures<'a> {
    text: &'a str,
    words: &'a [&'a str],
    chars: usize,
    chinese: bool,
}

impl<'a> Measures<'a> {
    pub(super) fn new(text: &'a str, words: &'a [&'a str], chars: usize, chinese: bool) -> Self {
        Self { text, words, chars, chinese }
    }

    /// The value that `rule` compares with its limit.
    pub(super) fn value(&self, rule: Rule) -> f64 {
        match rule {
            Rule::CharsMin => self.chars as f64,
            Rule::DuplicateParagraphsMax => self.duplicate_share(self.paragraphs()),
            Rule::DuplicateParagraphCharsMax => self.of_chars(duplicates(self.paragraphs()).1),
            Rule::DuplicateLinesMax => self.duplicate_share(self.filled_lines()),
            Rule::DuplicateLineCharsMax => self.of_chars(duplicates(self.filled_lines()).1),
            Rule::Top2GramMax => self.of_chars(top_gram_chars(self.words, 2)),
            Rule::Top3GramMax => self.of_chars(top_gram_chars(self.words, 3)),
            Rule::Top4GramMax => self.of_chars(top_gram_chars(self.words, 4)),
            Rule::Duplicate5GramsMax => self.of_chars(duplicate_gram_chars(self.words, 5)),
            Rule::Duplicate6GramsMax => self.of_chars(duplicate_gram_chars(self.words, 6)),
            Rule::Duplicate7GramsMax => self.of_chars(duplicate_gram_chars(self.words, 7)),
            Rule::Duplicate8GramsMax => self.of_chars(duplicate_gram_chars(self.words, 8)),
            Rule::Duplicate9GramsMax => self.of_chars(duplicate_gram_chars(self.words, 9)),
            Rule::Duplicate10GramsMax => self.of_chars(duplicate_gram_chars(self.words, 10)),
            Rule::WordsMin | Rule::WordsMax => self.real_words().count() as f64,
            Rule::MeanWordCharsMin | Rule::MeanWordCharsMax => self.mean_word_chars(),
            Rule::HashesMax => self.of_words(self.text.matches('#').count()),
            Rule::EllipsesMax => {
                self.of_words(self.text.matches("...").count() + self.text.matches('…').count())
            }
            Rule::BulletLinesMax => self.line_share(|line| line.trim_start().starts_with(['•', '-'])),
            Rule::EllipsisLinesMax => {
                self.line_share(|line| line.trim_end().ends_with('…') || line.trim_end().ends_with("..."))
            }
            Rule::AlphabeticWordsMin => {
                self.of_words(self.words.iter().filter(|word| word.chars().any(char::is_alphabetic)).count())
            }
            Rule::StopWordsMin => self.stop_words() as f64,
            Rule::CurlyBracketsMax => self.text.matches('{').count() as f64,
            Rule::LoremIpsumMax => self.text.to_lowercase().matches("lorem ipsum").count() as f64,
            Rule::SentencesMin => self.sentences() as f64,
            Rule::LinePunctuationMin => self.line_share(|line| line.ends_with(is_terminal)),
            Rule::ShortLinesMax => self.line_share(|line| line.chars().count() <= SHORT_LINE_CHARS),
            Rule::RepeatedLineCharsMax => {
                let breaks = self.text.matches('\n').count();
                share(duplicates(self.filled_lines()).1, self.chars - breaks)
            }
            Rule::LineBreaksMax => self.of_words(self.text.matches('\n').count()),
        }
    }

    fn paragraphs(&self) -> impl Iterator<Item = &'a str> {
        self.text.split("\n\n").filter(|paragraph| !paragraph.is_empty())
    }

    fn filled_lines(&self) -> impl Iterator<Item = &'a str> {
        self.text.lines().filter(|line| !line.trim().is_empty())
    }

    /// Words that are not symbols alone.
    fn real_words(&self) -> impl Iterator<Item = &'a str> {
        self.words.iter().copied().filter(|word| word.chars().any(char::is_alphanumeric))
    }

    fn mean_word_chars(&self) -> f64 {
        let chars: usize = self.real_words().map(|word| word.chars().count()).sum();
        share(chars, self.real_words().count())
    }

    fn duplicate_share<'p>(&self, parts: impl Iterator<Item = &'p str>) -> f64 {
        let parts: Vec<&str> = parts.collect();
        share(duplicates(parts.iter().copied()).0, parts.len())
    }

    fn line_share(&self, holds: impl Fn(&str) -> bool) -> f64 {
        let held = self.filled_lines().filter(|line| holds(line)).count();
        share(held, self.filled_lines().count())
    }

    fn stop_words(&self) -> usize {
        let stop_words: &[&str] = if self.chinese { &CHINESE_STOP_WORDS } else { &ENGLISH_STOP_WORDS };
        distinct(self.words.iter().copied(), |word| stop_words.contains(word))
    }

    /// Sentences of the lines that C4 keeps.
    fn sentences(&self) -> usize {
        self.filled_lines().filter(|line| is_worth_counting(line)).map(sentences_of).sum()
    }

    fn of_chars(&self, count: usize) -> f64 {
        share(count, self.chars)
    }

    fn of_words(&self, count: usize) -> f64 {
        share(count, self.words.len())
    }
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn is_worth_counting(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let enough = words.clone().count() >= LINE_WORDS_MIN;
    let lower = line.to_lowercase();
    enough
        && !words.any(|word| word.chars().count() > WORD_CHARS_MAX)
        && !POLICY_PHRASES.iter().any(|phrase| lower.contains(phrase))
}

/// A sentence ends at terminal punctuation that a word without it follows.
fn sentences_of(line: &str) -> usize {
    let mut sentences = 0;
    let mut open = false;
    for word in line.split_whitespace() {
        open = true;
        if word.trim_end_matches(['"', '\'', ')', '”', '’']).ends_with(is_terminal) {
            sentences += 1;
            open = false;
        }
    }
    sentences + usize::from(open)
}

/// Punctuation that ends a sentence in the scripts handled here.
fn is_terminal(character: char) -> bool {
    matches!(
        character,
        '.' | '!'
            | '?'
            | '。'
            | '！'
            | '？'
            | '．'
            | '｡'
            | '؟'
            | '۔'
            | '।'
            | '॥'
            | '។'
            | '။'
            | '።'
            | '‼'
            | '⁇'
            | '⁈'
            | '⁉'
    )
}
