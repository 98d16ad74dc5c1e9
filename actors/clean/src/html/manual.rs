//! The part of a manual's page that is the manual: its main element, without navigation.
//!
//! Generators of manuals (Sphinx, mdBook, rustdoc, DocBook, Texinfo) mark up well, so no guess is
//! needed, and none is made: what a guess drops from a manual is a heading, a listing or a table.

use super::attribute::attribute;
use super::scan::{Kind, Piece, Scanner};

/// Elements that lead through a site.
const CHROME: [&str; 2] = ["nav", "footer"];

/// Elements that frame a page, unless they stand in its main element: there a header holds the
/// title, and an aside a note.
const FRAME: [&str; 2] = ["header", "aside"];

/// Elements that are dropped by their role, class or id; others may be left without an end.
const CONTAINERS: [&str; 10] =
    ["div", "ul", "ol", "dl", "section", "header", "form", "table", "details", "span"];

/// Roles of elements that lead through a site (WAI-ARIA landmarks).
const CHROME_ROLES: [&str; 5] = ["navigation", "banner", "contentinfo", "search", "complementary"];

/// Classes and ids by which generators mark navigation.
const CHROME_CLASSES: [&str; 13] = [
    "toc",
    "docnav",
    "navheader",
    "navfooter",
    "header-nav",
    "nav-panel",
    "breadcrumb",
    "breadcrumbs",
    "sphinxsidebar",
    "related",
    "prev-next-footer",
    "pagination-nav",
    "skip-link",
];

/// `html` reduced to its main element where it marks one, without the elements that lead through
/// the site.
pub fn manual(html: &str) -> String {
    let pieces: Vec<Piece<'_>> = Scanner::new(html).collect();
    let mut ends = Ends { pieces: &pieces, endless: Vec::new() };
    let main = pieces.iter().position(is_main).and_then(|start| Some(start..ends.of(start)? + 1));
    let is_marked = main.is_some();
    let mut at = main.as_ref().map_or(0, |main| main.start);
    let end = main.map_or(pieces.len(), |main| main.end);
    let mut out = String::with_capacity(html.len());
    while at < end {
        let is_chrome = is_chrome(&pieces[at]) || (!is_marked && is_frame(&pieces[at]));
        match is_chrome.then(|| ends.of(at)).flatten() {
            Some(last) => at = last,
            None => out.push_str(pieces[at].source),
        }
        at += 1;
    }
    out
}

/// Finds where elements end.
struct Ends<'p, 'a> {
    pieces: &'p [Piece<'a>],
    /// Names of elements that were found to have no end: not searched for again.
    endless: Vec<&'a str>,
}

impl<'a> Ends<'_, 'a> {
    /// The end tag of the element that begins at `start`.
    fn of(&mut self, start: usize) -> Option<usize> {
        let Kind::Start { name: element, .. } = self.pieces[start].kind else { return None };
        if is_one_of(element, &self.endless) {
            return None;
        }
        let mut depth = 0_usize;
        for (at, piece) in self.pieces.iter().enumerate().skip(start) {
            match piece.kind {
                Kind::Start { name, closed: false } if name.eq_ignore_ascii_case(element) => depth += 1,
                Kind::End { name } if name.eq_ignore_ascii_case(element) => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(at);
            }
        }
        self.endless.push(element);
        None
    }
}

fn is_main(piece: &Piece<'_>) -> bool {
    let Kind::Start { name, closed: false } = piece.kind else { return false };
    name.eq_ignore_ascii_case("main") || attribute(piece.source, "role") == Some("main")
}

fn is_frame(piece: &Piece<'_>) -> bool {
    matches!(piece.kind, Kind::Start { name, .. } if is_one_of(name, &FRAME))
}

fn is_chrome(piece: &Piece<'_>) -> bool {
    let Kind::Start { name, .. } = piece.kind else { return false };
    is_one_of(name, &CHROME)
        || (is_one_of(name, &CONTAINERS)
            && (attribute(piece.source, "role").is_some_and(|role| is_one_of(role, &CHROME_ROLES))
                || ["class", "id"].iter().filter_map(|key| attribute(piece.source, key)).any(|classes| {
                    classes.split_whitespace().any(|class| is_one_of(class, &CHROME_CLASSES))
                })))
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|other| other.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_main_element_and_its_header() {
        let html = "<body><header>Site</header><div role=main><header>Title</header><aside>Note</aside><div class='x toc'><div>1\
                    </div></div>text<nav>next</nav></div><footer>by</footer>";
        assert_eq!(manual(html), "<div role=main><header>Title</header><aside>Note</aside>text</div>");
    }

    #[test]
    fn drops_navigation_of_pages_that_mark_no_main_element() {
        let html = "<header>Site</header><aside>x</aside><ul class=docnav><li>up</ul><p>text<div class=sidebar>box</div>";
        assert_eq!(manual(html), "<p>text<div class=sidebar>box</div>");
    }

    #[test]
    fn an_element_without_end_drops_nothing() {
        for html in ["<nav>a<p>b", "<main>a<p>b", "<div id=toc>a<p>b", "<nav/>a"] {
            assert!(manual(html).contains('a'), "{html}");
        }
        let many = "<nav><p>b".repeat(100_000);
        assert_eq!(manual(&many), many);
    }
}
