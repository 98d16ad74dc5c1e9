//! Tests of `quality`.

use super::*;
use crate::words::words;

fn broken(profile: Profile, text: &str, language: &str) -> Option<Rule> {
    let judge = Judge::new(profile, 50, &Limits::new(), &Limits::new());
    judge.judge(text, &words(text, language), language).map(|breach| breach.rule)
}

/// Running English, ten sentences that do not repeat each other.
fn good_english() -> String {
    "The archive keeps the packages that people need at home. A mirror copies them every night and sends \
     them to whoever asks. Before a machine unpacks anything, it checks the signature with a key that the \
     developers have published. Some administrators write down what was done and when. Others prefer to \
     look at the log only after a disk has failed. Old versions are removed once nobody has wanted them \
     for a year. New ones appear as soon as their authors are content with their tests. To be told of \
     them, subscribe to the list. Whoever finds a fault reports it with the steps that led there. \
     Volunteers read each report and answer within days."
        .to_owned()
}

/// The same text in lines so short that they look like a menu.
fn lines_of_three_words(text: &str) -> String {
    let sentences = text.split_inclusive(". ").map(|sentence| {
        let words: Vec<&str> = sentence.split_whitespace().collect();
        words.rchunks(3).rev().map(|line| line.join(" ")).collect::<Vec<_>>().join("\n")
    });
    sentences.collect::<Vec<_>>().join("\n")
}

#[test]
fn good_text_passes() {
    assert_eq!(broken(Profile::Web, &good_english(), "en"), None);
}

#[test]
fn each_kind_of_noise_breaks_its_rule() {
    let good = good_english();
    let distinct = |n: usize| (0..n).map(|i| format!("word{i}x")).collect::<Vec<_>>().join(" ");
    let cases = [
        ("short".to_owned(), Rule::CharsMin),
        (format!("{good}\n\n").repeat(4), Rule::DuplicateParagraphsMax),
        (distinct(40), Rule::WordsMin),
        (distinct(60), Rule::StopWordsMin),
        (format!("{good} function() {{ return }}"), Rule::CurlyBracketsMax),
        (format!("{good} Lorem ipsum dolor."), Rule::LoremIpsumMax),
        (format!("{good} {}", "# ".repeat(60)), Rule::Top2GramMax),
        ("Home page\nAbout us\n".repeat(6), Rule::DuplicateLinesMax),
        (lines_of_three_words(&good), Rule::ShortLinesMax),
        (format!("the and of {}", distinct(80)), Rule::SentencesMin),
    ];
    for (text, rule) in cases {
        assert_eq!(broken(Profile::Web, &text, "en"), Some(rule), "{text:.60}");
    }
}

#[test]
fn the_milder_profiles_keep_code_and_lists() {
    let code = "# apt update\n# apt install nginx { listen 80; }\nThe server answers.\n- one\n- two\n"
        .to_owned()
        + "Options of the command follow in the table below.";
    assert!(broken(Profile::Web, &code, "en").is_some());
    assert_eq!(broken(Profile::Documentation, &code, "en"), None);
    assert_eq!(broken(Profile::None, &"x".repeat(50), "en"), None);
    assert_eq!(broken(Profile::None, &"x".repeat(49), "en"), Some(Rule::CharsMin));
}

#[test]
fn limits_can_be_replaced_and_turned_off() {
    let text = format!("{{ {}", good_english());
    let judge = |limit| {
        Judge::new(Profile::Web, 50, &Limits::from([(Rule::CurlyBracketsMax, limit)]), &Limits::new())
    };
    assert_eq!(judge(1.0).judge(&text, &words(&text, "en"), "en"), None);
    assert_eq!(judge(-1.0).judge(&text, &words(&text, "en"), "en"), None);
    let breach = judge(0.0).judge(&text, &words(&text, "en"), "en").unwrap();
    assert_eq!((breach.rule, breach.value, breach.limit), (Rule::CurlyBracketsMax, 1.0, 0.0));
}

#[test]
fn repetition_is_counted_as_the_reference_counts() {
    use repetition::{duplicate_gram_chars, duplicates, top_gram_chars};
    // datatrove 0.10.1: find_duplicates, find_top_duplicate(get_n_grams(words, 2)), find_all_duplicate(words, 5).
    let words: Vec<&str> = "a bc a bc a bc d e f g h a bc a bc a d e f g h".split(' ').collect();
    assert_eq!(top_gram_chars(&words, 2), 20);
    assert_eq!(duplicate_gram_chars(&words, 5), 12);
    assert_eq!(duplicates(["x", "yy", "x", "yy", "yy"].into_iter()), (3, 5));
    assert_eq!((top_gram_chars(&words[..1], 2), duplicate_gram_chars(&[], 5)), (0, 0));
}
