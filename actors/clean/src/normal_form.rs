//! One form for all text: Unicode NFC, no control or invisible characters, plain white space, and
//! by choice full-width to half-width and traditional to simplified Chinese.
//!
//! The spaces by which code is laid out stay: extraction marks them ([`KEPT_SPACE`]), since in all other
//! text indentation and runs of spaces are a matter of layout, and say nothing.
//!
//! Width is not NFKC: that also turns ² into 2 and ﬁ into fi, which changes what a text says.

use ferrous_opencc::OpenCC;
use ferrous_opencc::config::BuiltinConfig;
use serde::{Deserialize, Serialize};
use unicode_normalization::{UnicodeNormalization, is_nfc};

use crate::language::is_han;

/// What becomes of full-width forms (U+FF01 to U+FF5E, U+3000).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// They stay.
    Keep,
    /// Letters, digits and the space become half-width; punctuation stays, since a half-width comma
    /// is an error in Chinese text.
    #[default]
    Alphanumerics,
    /// All become half-width.
    All,
}

/// A space that stays where it is, and a tab. Noncharacters, which Unicode leaves to programs for use
/// inside of them (section 23.7); normal form has spaces and tabs in their place.
pub const KEPT_SPACE: char = '\u{fdd0}';
/// See [`KEPT_SPACE`].
pub const KEPT_TAB: char = '\u{fdd1}';

/// `text` in normal form, without conversion of characters.
pub fn normalize(text: &str, width: Width) -> String {
    let visible: String = visible_characters(text).map(|c| half_width(c, width)).collect();
    let composed = if is_nfc(&visible) { visible } else { visible.nfc().collect() };
    tidy_white_space(&composed)
}

/// Line ends as `\n`, other control, formatting and private characters dropped.
fn visible_characters(text: &str) -> impl Iterator<Item = char> + '_ {
    let mut previous = ' ';
    let mut characters = text.chars().peekable();
    std::iter::from_fn(move || {
        loop {
            let character = match characters.next()? {
                '\r' if characters.peek() == Some(&'\n') => continue,
                '\r' | '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{b}' | '\u{c}' => '\n',
                // Joiners shape Persian, Indic and emoji; after Latin or Han they only hide words from filters.
                '\u{200c}' | '\u{200d}' if previous.is_ascii() || is_han(previous) => continue,
                character if is_invisible(character) => continue,
                character => character,
            };
            previous = character;
            return Some(character);
        }
    })
}

fn is_invisible(character: char) -> bool {
    let control = character.is_control() && !matches!(character, '\n' | '\t');
    control
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}'
            | '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}' | '\u{e0000}'..='\u{e007f}')
}

fn half_width(character: char, width: Width) -> char {
    let wanted = match width {
        Width::Keep => false,
        Width::All => true,
        Width::Alphanumerics => {
            matches!(character, '０'..='９' | 'Ａ'..='Ｚ' | 'ａ'..='ｚ' | '\u{3000}')
        }
    };
    match character {
        '\u{3000}' if wanted => ' ',
        '\u{ff01}'..='\u{ff5e}' if wanted => char::from_u32(character as u32 - 0xfee0).unwrap_or(character),
        _ => character,
    }
}

/// `text`, which is in normal form, without the indentation and the runs of spaces that code has in it.
pub fn flat(text: &str) -> String {
    tidy_white_space(text)
}

/// Lines trimmed, runs of spaces as one, at most one blank line together; white space that is to be
/// kept stays before and within the first word of a line and within others.
fn tidy_white_space(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut blank_lines = 0;
    for line in text.split('\n') {
        let mut words = line.split(char::is_whitespace).filter(|word| !word.chars().all(is_kept)).peekable();
        if words.peek().is_none() {
            blank_lines += 1;
            continue;
        }
        if !out.is_empty() {
            out.push_str(if blank_lines > 0 { "\n\n" } else { "\n" });
        }
        blank_lines = 0;
        for (number, word) in words.enumerate() {
            let mut word = word.trim_end_matches(is_kept);
            if number > 0 {
                // Where a line of code was joined to the one before, its indentation is none.
                word = word.trim_start_matches(is_kept);
                out.push(' ');
            }
            out.extend(word.chars().map(|character| match character {
                KEPT_SPACE => ' ',
                KEPT_TAB => '\t',
                _ => character,
            }));
        }
    }
    out
}

fn is_kept(character: char) -> bool {
    matches!(character, KEPT_SPACE | KEPT_TAB)
}

/// Converts traditional Chinese to simplified, by OpenCC's `t2s` phrases and characters.
pub struct Simplifier(OpenCC);

impl Simplifier {
    /// Loads the tables that the program carries.
    ///
    /// # Errors
    /// Where they are damaged.
    pub fn new() -> Result<Self, ferrous_opencc::error::OpenCCError> {
        OpenCC::from_config(BuiltinConfig::T2s).map(Self)
    }

    /// `text` in simplified characters.
    pub fn simplify(&self, text: &str) -> String {
        self.0.convert(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composes_and_drops_what_cannot_be_seen() {
        let text = "cafe\u{301}\0 \u{200b}so\u{ad}ft\u{feff} wo\u{200d}rd\u{7}\u{e001}\u{fffd}";
        assert_eq!(normalize(text, Width::Keep), "café soft word");
        let persian = "می\u{200c}خواهم";
        assert_eq!(normalize(persian, Width::Keep), persian);
    }

    #[test]
    fn tidies_white_space() {
        let text = "\u{3000}\u{3000}one \t two\u{a0}three  \r\n\r\n\n\nfour\r five\u{2028}six\n\n";
        assert_eq!(normalize(text, Width::Keep), "one two three\n\nfour\nfive\nsix");
    }

    #[test]
    fn keeps_the_white_space_of_code() {
        let text = "One  line: \u{fdd0}joined\u{fdd1}\nif x:\n\u{fdd0}\u{fdd0}y\u{fdd0}\u{fdd0}= 1 \n\u{fdd0}\u{fdd1}\n\n\u{fdd1}z\u{fdd1}# end\u{fdd0}";
        let normal = normalize(text, Width::Keep);
        assert_eq!(normal, "One line: joined\nif x:\n  y  = 1\n\n\tz\t# end");
        assert_eq!(flat(&normal), "One line: joined\nif x:\ny = 1\n\nz # end");
    }

    #[test]
    fn narrows_by_choice() {
        let text = "Ｓｉｘｆｏｌｄ　２，你好！１²";
        assert_eq!(normalize(text, Width::Keep), "Ｓｉｘｆｏｌｄ ２，你好！１²");
        assert_eq!(normalize(text, Width::Alphanumerics), "Sixfold 2，你好！1²");
        assert_eq!(normalize(text, Width::All), "Sixfold 2,你好!1²");
    }

    #[test]
    fn simplifies_as_opencc_does() {
        let simplifier = Simplifier::new().unwrap();
        assert_eq!(simplifier.simplify("乾坤乾燥頭髮發財"), "乾坤干燥头发发财");
        assert_eq!(simplifier.simplify("資訊軟體"), "资讯软体");
        assert_eq!(simplifier.simplify("plain ASCII, 简体"), "plain ASCII, 简体");
    }

    proptest::proptest! {
        #[test]
        fn normal_form_is_stable(text: String) {
            for width in [Width::Keep, Width::Alphanumerics, Width::All] {
                let once = normalize(&text, width);
                proptest::prop_assert_eq!(normalize(&once, width), once);
            }
        }
    }
}
