//! A page's main text: what its author wrote, without menus, banners and footers.
//!
//! `rs-trafilatura` finds it (see `tests/extraction.rs` for its score on a public benchmark). Where
//! it finds nothing, loses most of a manual page, or panics, the body's text stands in. It runs on
//! HTML of bounded depth only; the caller provides a deep stack.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rs_trafilatura::page_type::PageType;
use serde::{Deserialize, Serialize};

use crate::html;

/// How a page's text is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extractor {
    /// The main text of any web page; the body's text where there is none.
    #[default]
    MainText,
    /// The main text of a manual's page: keeps lists, tables and code, and the body's text where
    /// the main text lost most of it.
    Documentation,
    /// All of the body's text but navigation.
    Body,
}

/// What was found, and by whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extracted {
    /// The page's title, empty where it has none.
    pub title: String,
    /// Its text, one line a block.
    pub text: String,
    /// Whether the body's text stands in for the main text.
    pub is_body: bool,
}

/// A main text shorter than this share of the body's text lost too much of a manual's page.
const DOCUMENTATION_SHARE_MIN: f64 = 0.5;

/// Finds the text of an HTML page.
pub fn extract(page: &str, url: &str, extractor: Extractor) -> Extracted {
    let page = page.replace('\0', "");
    let page = html::bounded(&page, html::DEPTH_MAX);
    let title = html::title(&page);
    let body = || Extracted {
        title: title.clone().unwrap_or_default(),
        text: html::body_text(&page),
        is_body: true,
    };
    let page_type = match extractor {
        Extractor::Body => return body(),
        Extractor::MainText => None,
        Extractor::Documentation => Some(PageType::Documentation),
    };
    let Some(text) = main_text(&page, url, page_type) else { return body() };
    let found = Extracted { title: title.clone().unwrap_or_default(), text, is_body: false };
    if extractor == Extractor::Documentation {
        let body = body();
        if (visible(&found.text) as f64) < DOCUMENTATION_SHARE_MIN * visible(&body.text) as f64 {
            return body;
        }
    }
    found
}

/// `None` where nothing is found or the extractor panics.
fn main_text(page: &str, url: &str, page_type: Option<PageType>) -> Option<String> {
    let options = rs_trafilatura::Options {
        url: Some(url.to_owned()),
        include_title_in_content: false,
        page_type,
        ..rs_trafilatura::Options::default()
    };
    let mut found = attempt(page, &options)?;
    // For what it takes for a page of several sections the extractor joins overlapping parts, which
    // repeats text. As a manual's page it is read in one piece.
    if found.warnings.iter().any(|warning| warning.starts_with("Used multi-candidate merge")) {
        let options = rs_trafilatura::Options { page_type: Some(PageType::Documentation), ..options };
        found = attempt(page, &options)?;
    }
    (!found.content_text.trim().is_empty()).then_some(found.content_text)
}

fn attempt(page: &str, options: &rs_trafilatura::Options) -> Option<rs_trafilatura::ExtractResult> {
    // The extractor keeps nothing between calls that a panic could leave half done.
    catch_unwind(AssertUnwindSafe(|| rs_trafilatura::extract_with_options(page, options))).ok()?.ok()
}

fn visible(text: &str) -> usize {
    text.chars().filter(|c| !c.is_whitespace()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAGRAPH: &str = "Packages are installed with a tool that resolves their dependencies, fetches them \
                             from a mirror, checks their signatures and unpacks them in the right order.";

    fn page() -> String {
        let paragraphs = format!("<p>{PARAGRAPH}</p>").repeat(6);
        format!(
            "<html><head><title>Packages</title></head><body><nav><a href=/>Home</a> <a href=/x>Other</a></nav>\
             <article><h1>Packages</h1>{paragraphs}</article><footer>Copyright somebody</footer></body></html>"
        )
    }

    #[test]
    fn finds_the_main_text_without_navigation() {
        let found = extract(&page(), "http://example.org/packages", Extractor::MainText);
        assert!(found.text.contains(PARAGRAPH));
        assert!(!found.text.contains("Home") && !found.text.contains("Copyright"), "{}", found.text);
        assert_eq!((found.title.as_str(), found.is_body), ("Packages", false));
    }

    #[test]
    fn falls_back_to_the_body() {
        let found = extract(&page(), "http://example.org/", Extractor::Body);
        assert!(found.is_body && found.text.contains("Copyright somebody"));
        assert_eq!(extract("", "http://example.org/", Extractor::MainText).text, "");
    }

    #[test]
    fn is_the_same_every_time() {
        let first = extract(&page(), "http://example.org/", Extractor::Documentation);
        for _ in 0..5 {
            assert_eq!(extract(&page(), "http://example.org/", Extractor::Documentation), first);
        }
    }
}
