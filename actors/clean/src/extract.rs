//! A page's main text: what its author wrote, without menus, banners and footers.
//!
//! `rs-trafilatura` finds it (see `tests/extraction.rs` for the scores on public benchmarks), in HTML
//! of bounded depth without lines that are links; the caller provides a deep stack. Manuals say
//! themselves what is text (see [`html::manual`]). Where nothing is found, or the extractor panics, the
//! body's text stands in.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rs_trafilatura::page_type::PageType;
use serde::{Deserialize, Serialize};

use crate::html;
use crate::normal_form::{KEPT_SPACE, KEPT_TAB};

/// How a page's text is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Extractor {
    /// The main text of any web page; the body's text where there is none.
    #[default]
    MainText,
    /// The text of a manual's page: all of its main element, lists, tables and code included, but
    /// navigation.
    Documentation,
    /// All of the body's text but navigation.
    Body,
}

/// What was found, and by whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extracted {
    /// The page's title, empty where it has none.
    pub title: String,
    /// Its text, one line a block; in code, spaces that the normal form keeps stand as [`KEPT_SPACE`] and
    /// [`KEPT_TAB`].
    pub text: String,
    /// Whether the body's text stands in for the main text.
    pub is_body: bool,
}

/// Finds the text of an HTML page.
pub fn extract(page: &str, url: &str, extractor: Extractor) -> Extracted {
    let page = page.replace(['\0', KEPT_SPACE, KEPT_TAB], "");
    let page = html::bounded(&page, html::DEPTH_MAX);
    let title = html::title(&page).unwrap_or_default();
    let main_text = match extractor {
        Extractor::MainText => main_text(&html::flowing(&page, true), url),
        Extractor::Documentation => manual_text(&page),
        Extractor::Body => None,
    };
    let is_body = main_text.is_none();
    let text = main_text.unwrap_or_else(|| html::body_text(&html::flowing(&page, false)));
    Extracted { title, text, is_body }
}

/// `None` where nothing is left.
fn manual_text(page: &str) -> Option<String> {
    let text = html::body_text(&html::flowing(&html::manual(page), true));
    (!text.is_empty()).then_some(text)
}

/// `None` where nothing is found or the extractor panics.
fn main_text(page: &str, url: &str) -> Option<String> {
    let options = rs_trafilatura::Options {
        url: Some(url.to_owned()),
        include_title_in_content: false,
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
    fn keeps_all_of_a_manual_but_its_navigation() {
        let page = "<title>7.2. 监控</title><body><div id=banner><a href=/get>电子书</a></div><div class=section>\
                    <h1 class=title>7.2. 监控<a href=#m>¶</a></h1><div class=para>\n  守护进程\n  不与 <code>tty</code> 交互。\n\
                    </div><ul><li>日志</ul><pre># ps\n  aux</pre></div><ul class=docnav><li><a href=a>上一页</a></ul>";
        let found = extract(page, "http://example.org/", Extractor::Documentation);
        assert_eq!(found.text, "7.2. 监控\n\n守护进程不与 tty 交互。\n\n日志\n\n# ps\n\u{fdd0}\u{fdd0}aux");
    }

    #[test]
    fn is_the_same_every_time() {
        let first = extract(&page(), "http://example.org/", Extractor::Documentation);
        for _ in 0..5 {
            assert_eq!(extract(&page(), "http://example.org/", Extractor::Documentation), first);
        }
    }
}
