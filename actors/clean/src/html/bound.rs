//! Bounds nesting and tag size, and drops scripts, before a tree is built.

use std::borrow::Cow;

use super::scan::{Kind, Scanner};

/// Deeper elements lose their tags. The deepest honest pages seen have about 100 levels.
pub const DEPTH_MAX: usize = 256;

/// A tag longer than this loses its attributes: tree builders compare each with all before it.
const TAG_BYTES_MAX: usize = 32 << 10;

/// How far up an end tag looks for its start tag.
const LOOK_BACK: usize = 64;

/// Elements without content.
const VOID: [&str; 14] = [
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr",
];

/// Elements whose end tag may be left out: the next of their kind closes them, so by themselves
/// they cannot nest, and a long list of them is no deep page.
const SELF_ENDING: [&str; 17] = [
    "p", "li", "dt", "dd", "option", "optgroup", "tr", "td", "th", "thead", "tbody", "tfoot", "colgroup",
    "rt", "rp", "html", "body",
];

/// `html` with tags beyond `depth_max` levels dropped, their text kept, oversized tags reduced to
/// their names, and the content of scripts and styles left out (it is no text, and the copies of
/// articles in it differ from what the page shows). Borrowed where nothing had to be changed.
pub fn bounded(html: &str, depth_max: usize) -> Cow<'_, str> {
    let mut open: Vec<&str> = Vec::new();
    let mut out = String::new();
    let mut copied = 0;
    let mut position = 0;
    for piece in Scanner::new(html) {
        let start = position;
        position += piece.source.len();
        let keep = match piece.kind {
            Kind::Start { name, closed } => {
                let nests = !closed && !is_one_of(name, &VOID) && !is_one_of(name, &SELF_ENDING);
                if nests && open.len() < depth_max {
                    open.push(name);
                    true
                } else {
                    open.len() < depth_max || (!nests && is_one_of(name, &VOID))
                }
            }
            Kind::End { name } => close(&mut open, name),
            Kind::Raw { element } => !is_one_of(element, &["script", "style"]),
            _ => true,
        };
        let oversized = matches!(piece.kind, Kind::Start { .. }) && piece.source.len() > TAG_BYTES_MAX;
        if keep && !oversized {
            continue;
        }
        out.push_str(&html[copied..start]);
        copied = position;
        if let (true, Kind::Start { name, .. }) = (keep, piece.kind) {
            out.push('<');
            out.push_str(name);
            out.push('>');
        } else if !out.ends_with(' ') {
            out.push(' ');
        }
    }
    if copied == 0 {
        return Cow::Borrowed(html);
    }
    out.push_str(&html[copied..]);
    Cow::Owned(out)
}

/// Takes the element off the open ones. An end tag of an element that was dropped is dropped too.
fn close(open: &mut Vec<&str>, name: &str) -> bool {
    if is_one_of(name, &SELF_ENDING) {
        return true;
    }
    let recent = open.len().saturating_sub(LOOK_BACK);
    let Some(at) = open[recent..].iter().rposition(|other| other.eq_ignore_ascii_case(name)) else {
        return false;
    };
    open.truncate(recent + at);
    true
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|other| other.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_an_honest_page_alone() {
        let html = "<html><body><ul>".to_owned() + &"<li>one<p>two<br>".repeat(5000) + "</ul></body></html>";
        assert!(matches!(bounded(&html, DEPTH_MAX), Cow::Borrowed(_)));
    }

    #[test]
    fn drops_tags_beyond_the_depth_and_keeps_their_text() {
        let html = "<div>".repeat(5) + "text" + &"</div>".repeat(5) + "<p>after</p>";
        let cut = bounded(&html, 3);
        assert_eq!(cut.matches("<div>").count(), 3);
        assert!(cut.contains("text") && cut.contains("<p>after</p>"));
    }

    #[test]
    fn bounds_a_million_nested_tags_in_linear_time() {
        for element in ["<div>", "<b a=1>", "<ul><li>", "<table><tr><td>", "<x-y>"] {
            let html = element.repeat(1_000_000) + "the text";
            let cut = bounded(&html, DEPTH_MAX);
            assert!(cut.contains("the text"));
            assert!(cut.matches('<').count() <= 3 * DEPTH_MAX, "{element}");
        }
    }

    #[test]
    fn reduces_oversized_tags_to_their_names() {
        let html = format!("<p>a<img {}>b", "x ".repeat(100_000));
        assert_eq!(bounded(&html, 9), "<p>a<img>b");
    }
}
