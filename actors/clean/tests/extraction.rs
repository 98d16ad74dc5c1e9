//! The extractor's score on pages with known article bodies: the public part of Scrapinghub's
//! article extraction benchmark, by its own metric (mean precision and recall of 4-word shingles).

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sixfold_clean::charset;
use sixfold_clean::extract::{Extractor, extract};

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(path);
    if !path.exists() {
        println!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

fn read_gzip(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn shingles(text: &str) -> HashMap<Vec<&str>, f64> {
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let mut counts = HashMap::new();
    for shingle in words.windows(4.min(words.len().max(1))) {
        *counts.entry(shingle.to_vec()).or_default() += 1.0;
    }
    counts
}

/// Precision and recall of one page.
fn score(expected: &str, found: &str) -> (f64, f64) {
    let (expected, found) = (shingles(expected), shingles(found));
    let common: f64 = expected.iter().map(|(key, count)| count.min(*found.get(key).unwrap_or(&0.0))).sum();
    let share = |whole: f64| if whole > 0.0 { common / whole } else { f64::from(u8::from(common == 0.0)) };
    (share(found.values().sum()), share(expected.values().sum()))
}

fn mean_f1(pages: &[(PathBuf, String)], extractor: Extractor) -> f64 {
    let pool = rayon::ThreadPoolBuilder::new().stack_size(64 << 20).build().unwrap();
    let scores: Vec<(f64, f64)> = pool.install(|| {
        let scored = pages.par_iter().map(|(path, expected)| {
            let page = charset::decode(&read_gzip(path), None);
            score(expected, &extract(&page.text, "", extractor).text)
        });
        scored.collect()
    });
    let mean = |value: fn(&(f64, f64)) -> f64| scores.iter().map(value).sum::<f64>() / scores.len() as f64;
    let (precision, recall) = (mean(|score| score.0), mean(|score| score.1));
    let f1 = 2.0 * precision * recall / (precision + recall);
    println!("{extractor:?}: precision {precision:.3}, recall {recall:.3}, F1 {f1:.3}");
    f1
}

#[test]
fn finds_article_bodies() {
    let Some(folder) = shared("web/article-extraction") else { return };
    let truth: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("ground-truth.json")).unwrap()).unwrap();
    let pages: Vec<(PathBuf, String)> = truth
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, page)| {
            let body = page["articleBody"].as_str().unwrap().to_owned();
            (folder.join("html").join(format!("{key}.html.gz")), body)
        })
        .collect();
    assert!(pages.len() > 50);
    let main_text = mean_f1(&pages, Extractor::MainText);
    let body = mean_f1(&pages, Extractor::Body);
    assert!(main_text >= 0.955 && main_text > body);
}

#[test]
fn decodes_chinese_news_pages() {
    let Some(folder) = shared("web/zh-news-pages") else { return };
    let mut pages = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gz") {
            continue;
        }
        let decoded = charset::decode(&read_gzip(&path), None);
        assert!(
            decoded.replaced < 0.001,
            "{}: {} by {:?}",
            path.display(),
            decoded.charset,
            decoded.evidence
        );
        let found = extract(&decoded.text, "", Extractor::MainText);
        let language = sixfold_clean::language::identify(&found.text);
        println!(
            "{}: {} {:?}, {} characters, {} {:.2}",
            path.file_name().unwrap().to_string_lossy(),
            decoded.charset,
            decoded.evidence,
            found.text.chars().count(),
            language.tag,
            language.confidence
        );
        assert!(found.text.chars().count() > 50, "{}", path.display());
        assert_eq!(language.tag, "zh-Hans", "{}", path.display());
        pages += 1;
    }
    assert!(pages > 20);
}
