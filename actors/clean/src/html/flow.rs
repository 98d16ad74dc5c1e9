//! The flow of a page's text: white space as a browser shows it, and by choice without lines that
//! only point to other pages.
//!
//! Extractors copy the line breaks of a page's source into its text, where they cut sentences, and
//! in Chinese would leave spaces between characters. Here a line is what stands between two tags
//! that are not inline. A line that is nearly all link ("Read more: ...", "Next article") is no
//! sentence of its page; to a reader of plain text it leads nowhere.
//!
//! In `pre` white space says something. What of it is more than a space between two words is marked
//! here, so that whatever reads the page next cannot take it for layout.

use std::borrow::Cow;

use crate::language::is_han;
use crate::normal_form::{KEPT_SPACE, KEPT_TAB};

use super::attribute::attribute;
use super::scan::{Kind, Piece, Scanner};

/// Elements that stand within a line; all others begin or end one.
const INLINE: [&str; 34] = [
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font",
    "i", "img", "ins", "kbd", "mark", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup",
    "time", "tt", "u", "var", "wbr", "nobr",
];

/// Elements whose lines may point elsewhere. Table cells are not among them: they hold data.
const POINTING: [&str; 9] = ["p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "div"];

/// A line with at least this share of its letters and digits in links points elsewhere. Below 1 for
/// the words that announce the link.
const LINKED_SHARE_MIN: f64 = 0.8;

/// `html` with white space collapsed outside `pre` and marked in it ([`KEPT_SPACE`]), and the text of lines
/// that point elsewhere left out where `drop_pointers` is set. Tags stay as they are.
pub fn flowing(html: &str, drop_pointers: bool) -> String {
    let mut flow = Flow { out: String::with_capacity(html.len()), drop_pointers, ..Flow::default() };
    for piece in Scanner::new(html) {
        flow.take(piece);
    }
    flow.end_line();
    flow.out
}

#[derive(Default)]
struct Flow<'a> {
    out: String,
    drop_pointers: bool,
    preformatted: bool,
    code: Code,
    /// The pieces of the line so far, and the element that it began with.
    line: Vec<Piece<'a>>,
    element: &'a str,
    in_link: bool,
    /// Within a link to a place on the page itself.
    in_anchor: bool,
    /// Letters and digits of the line, and those of them in links.
    letters: usize,
    linked: usize,
}

impl<'a> Flow<'a> {
    fn take(&mut self, piece: Piece<'a>) {
        match piece.kind {
            Kind::Text => self.count(piece.source),
            Kind::Start { name, .. } if !is_one_of(name, &INLINE) => self.begin_line(name),
            Kind::End { name } if !is_one_of(name, &INLINE) => self.begin_line(""),
            Kind::Start { name, .. } if name.eq_ignore_ascii_case("a") => {
                let address = attribute(piece.source, "href").unwrap_or_default();
                self.in_anchor = address.starts_with('#');
                self.in_link = !self.in_anchor && !address.is_empty();
            }
            Kind::End { name } if name.eq_ignore_ascii_case("a") => {
                (self.in_link, self.in_anchor) = (false, false);
            }
            _ => {}
        }
        if !(piece.kind == Kind::Text && self.in_anchor && is_sign(piece.source)) {
            self.line.push(piece);
        }
        match piece.kind {
            Kind::Start { name, .. } if name.eq_ignore_ascii_case("pre") => self.preformatted = true,
            Kind::End { name } if name.eq_ignore_ascii_case("pre") => self.preformatted = false,
            _ => {}
        }
    }

    fn count(&mut self, text: &str) {
        let letters = text.chars().filter(|c| c.is_alphanumeric()).count();
        self.letters += letters;
        self.linked += if self.in_link { letters } else { 0 };
    }

    fn begin_line(&mut self, element: &'a str) {
        self.end_line();
        self.element = element;
    }

    fn end_line(&mut self) {
        let keeps_text = !self.points_elsewhere();
        let mut words = Words::default();
        for piece in self.line.drain(..) {
            match piece.kind {
                Kind::Text if !keeps_text => {}
                Kind::Text if !self.preformatted => words.write(piece.source, &mut self.out),
                Kind::Text => self.code.write(piece.source, &mut self.out),
                _ => self.out.push_str(piece.source),
            }
        }
        if words.gap != Gap::None {
            self.out.push(' ');
        }
        self.code = Code::default();
        (self.letters, self.linked) = (0, 0);
    }

    fn points_elsewhere(&self) -> bool {
        self.drop_pointers
            && !self.preformatted
            && self.linked > 0
            && self.linked as f64 >= LINKED_SHARE_MIN * self.letters as f64
            && is_one_of(self.element, &POINTING)
    }
}

/// The "¶" or "§" beside a heading, by which readers copy its address.
fn is_sign(text: &str) -> bool {
    !text.contains(|c: char| c.is_alphanumeric() || c.is_whitespace())
}

/// White space that is owed before the next character of a line.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    #[default]
    None,
    Space,
    /// With a line break in it: nothing between two wide characters, since writers of Chinese break
    /// lines anywhere (CSS Text 3, section 4.1.3).
    Break,
}

#[derive(Default)]
struct Words {
    gap: Gap,
    last: char,
}

impl Words {
    fn write(&mut self, text: &str, out: &mut String) {
        for character in text.chars() {
            match character {
                '\n' | '\r' => self.gap = Gap::Break,
                ' ' | '\t' | '\u{c}' => self.gap = self.gap.max(Gap::Space),
                _ => {
                    let joins = self.gap == Gap::Break && is_wide(self.last) && is_wide(character);
                    if self.gap != Gap::None && !joins {
                        out.push(' ');
                    }
                    out.push(character);
                    (self.gap, self.last) = (Gap::None, character);
                }
            }
        }
        // A break waits for what follows the tag; a space need not.
        if self.gap == Gap::Space {
            out.push(' ');
            (self.gap, self.last) = (Gap::None, ' ');
        }
    }
}

/// How pages write a no-break space, which in code is a space as others are.
const NO_BREAK_SPACES: [&str; 3] = ["&nbsp;", "&#160;", "&#xa0;"];

/// Lines of preformatted text.
#[derive(Default)]
struct Code {
    /// White space, marked, that is owed before the next character of the line; none is at its end.
    owed: String,
    /// Whether the line has another character yet.
    is_begun: bool,
}

impl Code {
    fn write(&mut self, text: &str, out: &mut String) {
        let plain =
            NO_BREAK_SPACES.iter().fold(Cow::Borrowed(text), |text, name| match text.contains(name) {
                true => text.replace(name, "\u{a0}").into(),
                false => text,
            });
        for character in plain.chars() {
            match character {
                '\n' | '\r' => {
                    *self = Self::default();
                    out.push(character);
                }
                ' ' | '\u{a0}' => self.owed.push(KEPT_SPACE),
                '\t' => self.owed.push(KEPT_TAB),
                _ => {
                    // The extractor of main text closes up punctuation.
                    let closes_up = matches!(character, '.' | ',' | ';' | ':' | '!' | '?');
                    let is_plain = self.is_begun && !closes_up && self.owed.chars().eq([KEPT_SPACE]);
                    out.push_str(if is_plain { " " } else { &self.owed });
                    out.push(character);
                    self.owed.clear();
                    self.is_begun = true;
                }
            }
        }
    }
}

/// Han, kana and their punctuation; Hangul is written with spaces.
fn is_wide(character: char) -> bool {
    is_han(character)
        || matches!(character, '\u{3001}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' | '\u{ff01}'..='\u{ff9f}')
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|other| other.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collapses_white_space_but_in_preformatted_text() {
        let html = "<p>one\n  two <b>three</b>\n<i>four</i>\n</p><pre>a\n  b</pre> <p>c\td";
        let flat = "<p>one two <b>three</b><i> four</i> </p><pre>a\n__b</pre> <p>c d";
        assert_eq!(flowing(html, true).replace(KEPT_SPACE, "_"), flat);
    }

    #[test]
    fn marks_the_white_space_of_code_that_is_more_than_a_space_between_words() {
        let html =
            "<pre> if <b>x</b> :\r\n\t<i> y</i>  = 1 \n \n<br>  z&nbsp;&#160;w&nbsp;<div> v\t</div></pre>";
        let marked = flowing(html, false).replace(KEPT_SPACE, "_").replace(KEPT_TAB, "|");
        let expected = "<pre>_if<b> x</b>_:\r\n<i>|_y</i>__= 1\n\n<br>__z__w<div>_v</div></pre>";
        assert_eq!(marked, expected);
    }

    #[test]
    fn joins_lines_of_chinese_without_a_space() {
        assert_eq!(
            flowing("<p>自由的\n操作<b>系统</b>，\n  包括\nLinux\n内核。\n</p>", false),
            "<p>自由的操作<b>系统</b>，包括 Linux 内核。 </p>"
        );
        assert_eq!(flowing("한국어\n문장 中 文", false), "한국어 문장 中 文");
    }

    #[test]
    fn drops_lines_that_only_point_elsewhere() {
        let kept = "<h2><a href='#t'>Title</a></h2><p><a name=n>x</a></p><p>See <a href=/x>the manual</a> before you install anything.</p><td><a href=/c>cell</a></td>";
        let html = format!("{kept}<p><b>MORE:</b> <a href=/y>Ten things you never knew about it</a></p>");
        assert_eq!(flowing(&html, true), format!("{kept}<p><b></b><a href=/y></a></p>"));
        assert_eq!(flowing(&html, false), html);
    }

    #[test]
    fn drops_the_sign_beside_a_heading() {
        let html = "<h2>Title<a class=x href=#t>¶</a></h2><a href=#t>in 2.1</a> <a href=/t>»</a>";
        assert_eq!(flowing(html, false), html.replace('¶', ""));
    }

    proptest::proptest! {
        #[test]
        fn changes_white_space_only(html in "([<>/ac\n 中é-]|<p>|<a>|</a>|<pre>|</p>){0,60}") {
            let dense = |text: &str| text.split_whitespace().collect::<String>().replace(KEPT_SPACE, "");
            proptest::prop_assert_eq!(dense(&flowing(&html, false)), dense(&html));
        }
    }
}
