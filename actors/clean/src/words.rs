//! Words, for counts and filters: jieba for Chinese, white space and punctuation for the rest.
//!
//! These are not a model's tokens. English follows the rules of spaCy's blank tokenizer as far as
//! counts depend on them: punctuation around a word, contractions and hyphens are words of their own.

use std::sync::LazyLock;

use jieba_rs::Jieba;

use crate::language::is_chinese;

static JIEBA: LazyLock<Jieba> = LazyLock::new(Jieba::new);

/// Endings that are words of their own.
const CONTRACTIONS: [&str; 14] =
    ["n't", "n’t", "'s", "’s", "'re", "’re", "'ve", "’ve", "'ll", "’ll", "'d", "’d", "'m", "’m"];

/// The words of `text`, punctuation included, white space not.
pub fn words<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    if is_chinese(language) {
        let tokens = JIEBA.cut(text, true);
        return tokens.iter().map(|token| token.word).filter(|word| !word.trim().is_empty()).collect();
    }
    let mut words = Vec::new();
    text.split_whitespace().for_each(|word| peel(word, &mut words));
    words
}

/// How many of them are not punctuation alone.
pub fn count(words: &[&str]) -> usize {
    words.iter().filter(|word| word.chars().any(char::is_alphanumeric)).count()
}

/// Splits punctuation off both ends, one character a word, except that dots stay together.
fn peel<'a>(mut word: &'a str, words: &mut Vec<&'a str>) {
    while let Some(first) = word.chars().next().filter(|&c| is_edge(c) && c != '.') {
        let (head, rest) = word.split_at(first.len_utf8());
        words.push(head);
        word = rest;
    }
    let mut tail = Vec::new();
    while let Some(last) = word.chars().next_back().filter(|&c| is_edge(c)) {
        let dots = word.len() - word.trim_end_matches('.').len();
        let length = if dots > 1 { dots } else { last.len_utf8() };
        let (rest, end) = word.split_at(word.len() - length);
        // The dot of an abbreviation such as `U.S.` belongs to it.
        if dots == 1 && rest.contains('.') && rest.chars().all(|c| c == '.' || c.is_alphabetic()) {
            break;
        }
        tail.push(end);
        word = rest;
    }
    let ending =
        CONTRACTIONS.iter().find_map(|ending| word.strip_suffix(ending).map(|stem| (stem, ending.len())));
    match ending {
        Some((stem, length)) if !stem.is_empty() => {
            infixes(stem, words);
            words.push(&word[word.len() - length..]);
        }
        _ => infixes(word, words),
    }
    words.extend(tail.into_iter().rev());
}

/// Splits at hyphens and dashes between letters.
fn infixes<'a>(mut word: &'a str, words: &mut Vec<&'a str>) {
    let mut from = 0;
    while let Some(at) = word[from..].find(['-', '–', '—']).map(|at| from + at) {
        let length = word[at..].chars().next().map_or(1, char::len_utf8);
        let before = word[..at].chars().next_back().is_some_and(char::is_alphabetic);
        let after = word[at + length..].chars().next().is_some_and(char::is_alphabetic);
        if before && after {
            words.extend([&word[..at], &word[at..at + length]]);
            word = &word[at + length..];
            from = 0;
        } else {
            from = at + length;
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
}

fn is_edge(character: char) -> bool {
    !character.is_alphanumeric()
        && !matches!(character, '#' | '@' | '/' | '_' | '+' | '=' | '~' | '^' | '-' | '\\' | '|')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_english_like_a_blank_spacy_tokenizer() {
        let cases = [
            ("Hello, world!", "Hello|,|world|!"),
            ("(it doesn't matter)", "(|it|does|n't|matter|)"),
            ("a well-known \"quote\"...", "a|well|-|known|\"|quote|\"|..."),
            ("the U.S. and i.e. so on.", "the|U.S.|and|i.e.|so|on|."),
            ("3.14 and 10-20", "3.14|and|10-20"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(words(text, "en").join("|"), expected);
        }
    }

    #[test]
    fn cuts_chinese_with_jieba() {
        // Python jieba 0.42.1, HMM on.
        assert_eq!(words("我来到北京清华大学", "zh-Hans").join("/"), "我/来到/北京/清华大学");
        assert_eq!(words("他来到了网易杭研大厦。", "zh-Hans").join("/"), "他/来到/了/网易/杭研/大厦/。");
        assert_eq!(count(&words("他来到了网易杭研大厦。", "zh-Hans")), 6);
    }

    proptest::proptest! {
        #[test]
        fn loses_nothing_but_white_space(text in "[a-c'’.,!()#\\- —é中1]{0,40}") {
            let joined = words(&text, "en").concat();
            let kept: String = text.split_whitespace().collect();
            proptest::prop_assert_eq!(joined, kept);
        }
    }
}
