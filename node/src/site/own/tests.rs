//! Tests of the site in this binary: that it is whole, and worth training on.

use std::collections::BTreeSet;
use std::path::Path;

use sixfold_clean::clean::{Cleaner, Input, Page};
use sixfold_clean::document::Candidate;
use sixfold_clean::duplicates::{DISTANCE_MAX, Finder, Nearness, Verdict};
use sixfold_clean::extract::Extractor;
use sixfold_clean::options::CleanOptions;
use sixfold_clean::quality::Profile;

use super::*;
use crate::site::testing::{crawl, options};
use crate::site::{Source, serve};

/// What every page has around its text.
const FRAME: [&str; 2] = ["Sixfold reading room", "Written for sixfold"];

#[test]
fn every_file_of_the_folder_is_in_the_binary() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("site");
    let mut there = BTreeSet::new();
    for part in ["", "en", "zh"] {
        for entry in folder.join(part).read_dir().unwrap().filter_map(Result::ok) {
            if entry.path().is_file() {
                let path = entry.path();
                there.insert(path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let embedded: BTreeSet<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(there, embedded);
    assert!(FILES.iter().map(|(_, text)| text.len()).sum::<usize>() < 400_000);
}

#[tokio::test]
async fn is_crawled_whole_by_its_links_and_by_its_sitemap() {
    let site = serve("own".to_owned(), Source::Own, &["/".to_owned()], Vec::new()).await.unwrap();
    let by_links = crawl(sixfold_crawl::CrawlOptions { sitemaps: false, ..options(&site) }).await;
    let by_sitemap =
        crawl(sixfold_crawl::CrawlOptions { depth_max: 1, page_links_max: 0, ..options(&site) }).await;
    assert_eq!(by_links.pages.len(), pages(), "{:?}", by_links.paths());
    assert_eq!(by_links.pages, by_sitemap.pages);
    assert_eq!(by_links.count("errors"), 0);
}

/// The pages as the cleaner reads them.
fn cleaned() -> Vec<(&'static str, Candidate)> {
    let documentation = CleanOptions {
        extractor: Extractor::Documentation,
        profile: Profile::Documentation,
        ..CleanOptions::default()
    };
    let cleaner = Cleaner::new(&documentation).unwrap();
    let clean = move |path: &'static str| {
        let Answer::File(content_type, body) = answer(&format!("/{path}"), ([127, 0, 0, 1], 80).into())
        else {
            panic!("{path}")
        };
        let page = Page {
            position: 0,
            url: format!("http://127.0.0.1/{path}"),
            content_type: Some(content_type),
            body: Ok(body.to_vec()),
        };
        (path, cleaner.clean(&Input::Page(page)))
    };
    // The extractor wants the deep stack that the cleaner's own threads have.
    let thread = std::thread::Builder::new().stack_size(64 << 20);
    thread.spawn(move || page_paths().map(clean).collect()).unwrap().join().unwrap()
}

#[test]
fn passes_the_cleaner_without_its_frame_and_without_duplicates() {
    let pages = cleaned();
    for (path, page) in &pages {
        assert_eq!(page.rejection, None, "{path}");
        assert!(page.masks.is_empty(), "{path}: {:?}", page.masks);
        for frame in FRAME {
            assert!(!page.text.contains(frame), "{path}: {}", page.text);
        }
        let language = if path.starts_with("zh/") { "zh-Hans" } else { "en" };
        assert!(*path == "index.html" || page.language == language, "{path}: {}", page.language);
        let long_enough = if path.starts_with("zh/") { page.chars >= 300 } else { page.words >= 250 };
        assert!(*path == "index.html" || long_enough, "{path}: {} words, {} chars", page.words, page.chars);
    }
    let mut finder = Finder::default();
    pages.iter().for_each(|(_, page)| finder.add(page.signature, &page.language));
    let verdicts = finder.find(true, Some(Nearness { distance: DISTANCE_MAX, overlap: 0.0 }));
    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Unique), "{verdicts:?}");
}

#[test]
fn is_enough_for_a_tokenizer_and_a_toy_model() {
    let texts: Vec<String> = cleaned().into_iter().map(|(_, page)| page.text).collect();
    let tokenizer = sixfold_clean::tokenizer::train(texts.clone(), 1024, 2).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), 1024);
    let encoder = sixfold_clean::tokenizer::DocumentEncoder::new(tokenizer);
    let tokens: usize = texts.iter().map(|text| encoder.encode(text).unwrap().len()).sum();
    assert!(tokens > 30_000, "{tokens} tokens");
}
