//! Finds the start tags of an HTML document, in one pass and linear time.
//!
//! Follows the tokenizer of the HTML standard (section 13.2.5) as far as tags, comments and raw
//! text go; it builds no tree. A full tokenizer compares each attribute of a tag with all before
//! it, so that one tag with a million attributes would hold a crawler up for hours; here only the
//! few attributes that matter are kept.

/// Attributes that are kept.
const KEPT: [&str; 7] = ["href", "src", "rel", "name", "content", "http-equiv", "charset"];

/// Elements whose content is text, whatever it looks like, up to their end tag.
const RAW_TEXT: [&str; 8] = ["script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"];

/// A start tag, with the attributes that matter as they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag<'a> {
    /// The element, in lower case.
    pub(crate) name: String,
    attributes: [Option<&'a str>; KEPT.len()],
}

impl<'a> Tag<'a> {
    /// The value of an attribute of [`KEPT`], character references not yet resolved.
    pub(crate) fn attribute(&self, name: &str) -> Option<&'a str> {
        let index = KEPT.iter().position(|kept| *kept == name)?;
        self.attributes[index]
    }
}

/// Iterates over the start tags of a document.
pub(crate) struct Scanner<'a> {
    html: &'a str,
    at: usize,
    /// XML syntax: an element may close itself, whatever it is.
    xml: bool,
}

impl<'a> Scanner<'a> {
    /// A scanner of `html`; `xml` where it was sent as XHTML.
    pub(crate) fn new(html: &'a str, xml: bool) -> Self {
        Self { html, at: 0, xml }
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.html.as_bytes().get(self.at + offset).copied()
    }

    /// Moves behind the next `mark`, or to the end.
    fn skip_past(&mut self, mark: &str) {
        self.at =
            self.html[self.at..].find(mark).map_or(self.html.len(), |found| self.at + found + mark.len());
    }

    /// Moves over `<!` or `<?` and what belongs to it.
    fn skip_declaration(&mut self) {
        let rest = &self.html[self.at..];
        if rest.starts_with("<!--") {
            // `<!-->` is a whole comment, so the search begins inside the opening mark.
            self.at += 2;
            self.skip_past("-->");
        } else if self.xml && rest.starts_with("<![CDATA[") {
            self.skip_past("]]>");
        } else {
            self.skip_past(">");
        }
    }

    /// Moves to the end tag of a raw text element, or to the end.
    fn skip_raw_text(&mut self, name: &str) {
        while let Some(found) = self.html[self.at..].find("</") {
            self.at += found + 2;
            let rest = &self.html.as_bytes()[self.at..];
            let ends = rest
                .get(name.len())
                .is_none_or(|byte| matches!(byte, b'>' | b'/') || byte.is_ascii_whitespace());
            if ends && rest.get(..name.len()).is_some_and(|word| word.eq_ignore_ascii_case(name.as_bytes())) {
                return;
            }
        }
        self.at = self.html.len();
    }

    /// Reads the tag that begins here; its name's first letter has been seen.
    fn tag(&mut self) -> Tag<'a> {
        self.at += 1;
        let name = self.take_until(|byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>'));
        let mut tag = Tag { name: name.to_ascii_lowercase(), attributes: [None; KEPT.len()] };
        let mut closes_itself = false;
        while let Some(byte) = self.byte(0) {
            match byte {
                b'>' => {
                    self.at += 1;
                    break;
                }
                b'/' => self.at += 1,
                byte if byte.is_ascii_whitespace() => self.at += 1,
                _ => self.attribute(&mut tag),
            }
            closes_itself = byte == b'/';
        }
        if RAW_TEXT.contains(&tag.name.as_str()) && !(self.xml && closes_itself) {
            self.skip_raw_text(&tag.name);
        } else if tag.name == "plaintext" {
            self.at = self.html.len();
        }
        tag
    }

    fn attribute(&mut self, tag: &mut Tag<'a>) {
        // An equals sign at the start belongs to the name.
        let start = self.at;
        self.at += usize::from(self.byte(0) == Some(b'='));
        self.take_until(|byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>' | b'='));
        let name = &self.html[start..self.at];
        self.take_until(|byte| !byte.is_ascii_whitespace());
        let mut value = "";
        if self.byte(0) == Some(b'=') {
            self.at += 1;
            self.take_until(|byte| !byte.is_ascii_whitespace());
            value = self.value();
        }
        let kept = KEPT.iter().position(|kept| kept.eq_ignore_ascii_case(name));
        if let Some(slot) = kept.map(|index| &mut tag.attributes[index]) {
            // The first of two equal names counts.
            slot.get_or_insert(value);
        }
    }

    fn value(&mut self) -> &'a str {
        match self.byte(0) {
            Some(quote @ (b'"' | b'\'')) => {
                self.at += 1;
                let value = self.take_until(|byte| byte == quote);
                self.at = (self.at + 1).min(self.html.len());
                value
            }
            _ => self.take_until(|byte| byte.is_ascii_whitespace() || byte == b'>'),
        }
    }

    /// Moves to the first byte that ends this piece and returns the piece. `ends` holds for ASCII only,
    /// or for all but ASCII white space, so that the cut never falls into a character.
    fn take_until(&mut self, ends: impl Fn(u8) -> bool) -> &'a str {
        let rest = &self.html[self.at..];
        let length = rest.bytes().position(ends).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }
}

impl<'a> Iterator for Scanner<'a> {
    type Item = Tag<'a>;

    fn next(&mut self) -> Option<Tag<'a>> {
        loop {
            self.at += self.html[self.at..].find('<')?;
            match self.byte(1) {
                Some(b'!' | b'?') => self.skip_declaration(),
                Some(b'/') => self.skip_past(">"),
                Some(letter) if letter.is_ascii_alphabetic() => return Some(self.tag()),
                _ => self.at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::*;

    fn hrefs(html: &str) -> Vec<&str> {
        Scanner::new(html, false).filter_map(|tag| tag.attribute("href")).collect()
    }

    #[test]
    fn reads_attributes_in_every_notation() {
        assert_eq!(
            hrefs("<a href=1><A\nHREF = '2'><a class=x href=\"3>\" href=4 / ><a/href=5><a =href=6 href=7>"),
            ["1", "2", "3>", "5", "7"]
        );
        assert_eq!(hrefs("<a href>"), [""]);
        assert_eq!(hrefs("<a 名=值 href=值>"), ["值"]);
        assert_eq!(hrefs("<a href = 值 x>"), ["值"]);
    }

    #[test]
    fn sees_no_tags_in_comments_and_raw_text() {
        assert_eq!(hrefs("<!-- <a href=1> --><a href=2><!--><a href=3>--><a href=4>"), ["2", "3", "4"]);
        assert_eq!(hrefs("<script>'<a href=1>'</scripts></SCRIPT ><a href=2>"), ["2"]);
        assert_eq!(hrefs("<title><a href=1></title><a href=2><style><a href=3>"), ["2"]);
        assert_eq!(hrefs("a < b <3 <a href=1>"), ["1"]);
    }

    #[test]
    fn self_closing_scripts_end_in_xml_only() {
        let html = "<script src='x'/><a href=1><![CDATA[<a href=2>]]><a href=3>";
        assert!(hrefs(html).is_empty());
        let found: Vec<_> = Scanner::new(html, true).filter_map(|tag| tag.attribute("href")).collect();
        assert_eq!(found, ["1", "3"]);
    }

    #[test]
    fn takes_linear_time_on_hostile_documents() {
        let attributes = (0..400_000).fold(String::from("<a "), |mut text, index| {
            let _ = write!(text, "a{index} ");
            text
        });
        for html in [
            attributes,
            "<div>".repeat(1_000_000),
            "<!--".repeat(1_000_000),
            "<script></".repeat(300_000),
            "<a href=\"".repeat(300_000),
            "\0<\0".repeat(1_000_000),
        ] {
            assert!(Scanner::new(&html, false).count() <= 1_000_000);
        }
    }

    proptest! {
        #[test]
        fn never_panics(html in "[<>!/='\" a-c\\-你\\[\\]\u{0}]{0,60}", xml in any::<bool>()) {
            let _ = Scanner::new(&html, xml).count();
        }
    }
}
