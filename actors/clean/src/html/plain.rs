//! The visible text of a page in reading order, without any judgement of what is its main part.

use super::entity::unescape;
use super::scan::{Kind, Scanner};

/// Elements that never hold a page's own text.
const HIDDEN: [&str; 7] = ["nav", "noscript", "svg", "template", "select", "button", "dialog"];

/// Elements that begin and end a line. Two levels: a blank line around the first.
const PARAGRAPHS: [&str; 16] = [
    "p",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "pre",
    "blockquote",
    "section",
    "article",
    "table",
    "ul",
    "ol",
    "dl",
    "main",
];
const LINES: [&str; 12] =
    ["div", "li", "dt", "dd", "tr", "br", "hr", "header", "footer", "figure", "figcaption", "caption"];

/// The text between the tags of the body: one line a block, blank lines around paragraphs.
pub fn body_text(html: &str) -> String {
    let mut out = Lines::default();
    let mut preformatted = false;
    let mut hidden: Vec<&str> = Vec::new();
    for piece in Scanner::new(html) {
        match piece.kind {
            Kind::Text if hidden.is_empty() => out.text(&unescape(piece.source), preformatted),
            Kind::Start { name, closed } => {
                out.begin_block(name);
                preformatted |= name.eq_ignore_ascii_case("pre");
                if !closed && is_one_of(name, &HIDDEN) && hidden.len() < 64 {
                    hidden.push(name);
                }
            }
            Kind::End { name } => {
                out.begin_block(name);
                preformatted &= !name.eq_ignore_ascii_case("pre");
                if let Some(at) = hidden.iter().rposition(|open| open.eq_ignore_ascii_case(name)) {
                    hidden.truncate(at);
                }
            }
            _ => {}
        }
    }
    out.finish()
}

/// The content of the `title` element.
pub fn title(html: &str) -> Option<String> {
    let content = Scanner::new(html).find_map(|piece| match piece.kind {
        Kind::Raw { element } if element.eq_ignore_ascii_case("title") => Some(piece.source),
        _ => None,
    })?;
    let words: Vec<&str> = content.split_whitespace().collect();
    Some(unescape(&words.join(" ")).into_owned()).filter(|title| !title.is_empty())
}

/// Collects text; white space counts once, breaks do not pile up.
#[derive(Default)]
struct Lines {
    out: String,
    breaks: usize,
    space: bool,
}

impl Lines {
    fn begin_block(&mut self, name: &str) {
        if is_one_of(name, &PARAGRAPHS) {
            self.breaks = self.breaks.max(2);
        } else if is_one_of(name, &LINES) {
            self.breaks = self.breaks.max(1);
        } else if is_one_of(name, &["td", "th"]) {
            self.space = true;
        }
    }

    /// Lines of preformatted text stay lines; of its white space what [`super::flowing`] marked stays.
    fn text(&mut self, text: &str, preformatted: bool) {
        if !preformatted {
            return self.words(text);
        }
        for line in text.split_inclusive('\n') {
            self.words(line);
            self.breaks += usize::from(line.ends_with('\n'));
        }
    }

    fn words(&mut self, text: &str) {
        self.space |= text.starts_with(char::is_whitespace);
        for word in text.split_whitespace() {
            if !self.out.is_empty() {
                match self.breaks {
                    0 if self.space => self.out.push(' '),
                    0 => {}
                    breaks => self.out.push_str(&"\n\n"[..breaks.min(2)]),
                }
            }
            self.out.push_str(word);
            (self.breaks, self.space) = (0, true);
        }
        if !text.trim().is_empty() {
            self.space = text.ends_with(char::is_whitespace);
        }
    }

    fn finish(self) -> String {
        self.out
    }
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|other| other.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_blocks_apart_and_inline_text_together() {
        let html = "<title>A &amp; B</title><nav><a>Home</a></nav><h1>Head</h1><div>one <b>two</b>, <i>three</i>\
                    </div><ul><li>x<li>y</ul><script>no</script><table><tr><td>a<td>b</table>";
        assert_eq!(body_text(html), "Head\n\none two, three\n\nx\ny\n\na b");
        assert_eq!(title(html).as_deref(), Some("A & B"));
        assert_eq!(title("<p>none"), None);
    }

    #[test]
    fn keeps_the_lines_of_preformatted_text() {
        let html = "<p>Run:<pre># apt\n  <b>install</b> x\n\n\n    y</pre> and\nwait";
        assert_eq!(body_text(html), "Run:\n\n# apt\ninstall x\n\ny\n\nand wait");
    }

    #[test]
    fn joins_chinese_without_spaces() {
        assert_eq!(body_text("<p>中<b>文</b>字</p>"), "中文字");
    }
}
