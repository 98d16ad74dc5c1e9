//! The extractor's scores on two public benchmarks, each by its own metric: Scrapinghub's article
//! extraction benchmark (pages with known article bodies; mean precision and recall of 4-word
//! shingles) and trafilatura's evaluation set (segments that a page's text must and must not have).

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sixfold_clean::charset;
use sixfold_clean::extract::{Extractor, extract};
use sixfold_clean::normal_form::{Width, normalize};

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

fn in_deep_threads<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().stack_size(64 << 20).build().unwrap().install(work)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn f1(precision: f64, recall: f64) -> f64 {
    2.0 * precision * recall / (precision + recall)
}

fn mean_f1(pages: &[(PathBuf, String)], extractor: Extractor) -> f64 {
    let scores: Vec<(f64, f64)> = in_deep_threads(|| {
        let scored = pages.par_iter().map(|(path, expected)| {
            let page = charset::decode(&read_gzip(path), None);
            score(expected, &extract(&page.text, "", extractor).text)
        });
        scored.collect()
    });
    let mean = |value: fn(&(f64, f64)) -> f64| scores.iter().map(value).sum::<f64>() / scores.len() as f64;
    let (precision, recall) = (mean(|score| score.0), mean(|score| score.1));
    let f1 = f1(precision, recall);
    println!("{extractor:?}: precision {precision:.3}, recall {recall:.3}, F1 {f1:.3}");
    f1
}

#[test]
fn finds_article_bodies() {
    let Some(folder) = shared("web/article-extraction") else { return };
    let truth = json(&folder.join("ground-truth.json"));
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
    assert!(main_text >= 0.96 && main_text > body);
}

/// How many of a page's wanted and unwanted segments are in `text`.
fn segments_found(page: &serde_json::Value, text: &str) -> [usize; 2] {
    ["with", "without"].map(|key| {
        let segments = page[key].as_array().unwrap().iter();
        segments.filter(|segment| text.contains(segment.as_str().unwrap())).count()
    })
}

#[test]
fn keeps_wanted_segments_and_leaves_out_unwanted_ones() {
    let Some(folder) = shared("web/trafilatura-eval") else { return };
    let pages = json(&folder.join("evaldata.json"));
    let pages: Vec<&serde_json::Value> = pages.as_object().unwrap().values().collect();
    assert!(pages.len() > 200);
    let found: Vec<[usize; 2]> = in_deep_threads(|| {
        let found = pages.par_iter().map(|page| {
            let body = read_gzip(&folder.join(page["file"].as_str().unwrap()));
            let text = extract(&charset::decode(&body, None).text, "", Extractor::MainText).text;
            segments_found(page, &normalize(&text, Width::Keep))
        });
        found.collect()
    });
    let total = |index: usize| found.iter().map(|counts| counts[index]).sum::<usize>() as f64;
    let wanted: usize = pages.iter().map(|page| page["with"].as_array().unwrap().len()).sum();
    let (precision, recall) = (total(0) / (total(0) + total(1)), total(0) / wanted as f64);
    println!("segments: precision {precision:.3}, recall {recall:.3}, F1 {:.3}", f1(precision, recall));
    assert!(f1(precision, recall) >= 0.92);
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
