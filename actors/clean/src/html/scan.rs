//! Splits HTML into tags, text and raw content, roughly as a browser's tokenizer would.

/// Elements whose content is not markup.
const RAW: [&str; 8] = ["script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"];

/// A piece of HTML; `source` slices of all pieces together are the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// The piece as written.
    pub(super) source: &'a str,
    /// What it is.
    pub(super) kind: Kind<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// Character data.
    Text,
    /// A start tag with its name as written. The content of a raw element follows as [`Kind::Raw`].
    Start { name: &'a str, closed: bool },
    /// An end tag.
    End { name: &'a str },
    /// The content of a script, a style, a title.
    Raw { element: &'a str },
    /// A comment, a doctype, a processing instruction.
    Comment,
}

/// The pieces of `html`, one after the other. Linear in its length.
pub(super) struct Scanner<'a> {
    rest: &'a str,
    raw: Option<&'a str>,
    /// Raw elements, comments and tags (`>`) known to have no end: not searched for again.
    endless: Vec<String>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(html: &'a str) -> Self {
        Self { rest: html, raw: None, endless: Vec::new() }
    }

    fn take(&mut self, length: usize, kind: Kind<'a>) -> Piece<'a> {
        let (source, rest) = self.rest.split_at(length);
        self.rest = rest;
        Piece { source, kind }
    }

    /// The content of the raw element that has just begun, if it ends anywhere.
    fn raw_content(&mut self, element: &'a str) -> Option<Piece<'a>> {
        let name = element.to_ascii_lowercase();
        if self.endless.contains(&name) {
            return None;
        }
        let Some(end) = find_end_tag(self.rest, &name) else {
            self.endless.push(name);
            return None;
        };
        Some(self.take(end, Kind::Raw { element }))
    }

    /// Bytes of the tag that is next. Where there is no `>` left, that is remembered, so that a page
    /// of nothing but `<a` is read once.
    fn tag_length(&mut self) -> Option<usize> {
        let is_known = self.endless.iter().any(|name| name == ">");
        let length = if is_known { None } else { tag_length(self.rest) };
        if length.is_none() && !is_known {
            self.endless.push(">".to_owned());
        }
        length
    }

    fn markup(&mut self) -> Option<Piece<'a>> {
        let after = &self.rest[1..];
        if let Some(comment) = after.strip_prefix("!--") {
            let known_endless = self.endless.iter().any(|name| name == "!--");
            let end = if known_endless { None } else { comment.find("-->") };
            if end.is_none() && !known_endless {
                self.endless.push("!--".to_owned());
            }
            let length = end.map_or(4, |end| end + 7);
            return Some(self.take(length, Kind::Comment));
        }
        let first = after.chars().next()?;
        if matches!(first, '!' | '?') {
            let length = self.tag_length()?;
            return Some(self.take(length, Kind::Comment));
        }
        let (name_start, is_end) = if first == '/' { (2, true) } else { (1, false) };
        let name = tag_name(&self.rest[name_start..])?;
        let length = self.tag_length()?;
        let closed = self.rest[..length].ends_with("/>");
        let kind = if is_end { Kind::End { name } } else { Kind::Start { name, closed } };
        if !is_end && !closed && RAW.iter().any(|raw| raw.eq_ignore_ascii_case(name)) {
            self.raw = Some(name);
        }
        Some(self.take(length, kind))
    }
}

impl<'a> Iterator for Scanner<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        if let Some(content) = self.raw.take().and_then(|element| self.raw_content(element)) {
            return Some(content);
        }
        if self.rest.starts_with('<')
            && let Some(piece) = self.markup()
        {
            return Some(piece);
        }
        // A `<` that begins nothing is text.
        let first = char_length(self.rest);
        let length = self.rest[first..].find('<').map_or(self.rest.len(), |end| first + end);
        Some(self.take(length, Kind::Text))
    }
}

fn char_length(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

fn tag_name(text: &str) -> Option<&str> {
    if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let end = text.find(|c: char| c.is_whitespace() || matches!(c, '>' | '/' | '<'))?;
    Some(&text[..end])
}

/// Bytes of the tag that `text` begins with, quoted attribute values skipped. `None` where it has no end.
fn tag_length(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut previous = b' ';
    for (at, &byte) in text.as_bytes().iter().enumerate().take(TAG_BYTES_MAX) {
        match quote {
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            // A quote opens a value only after `=`: stray quotes are common.
            None if matches!(byte, b'"' | b'\'') && previous == b'=' => quote = Some(byte),
            None if byte == b'>' => return Some(at + 1),
            None => {}
        }
        if !byte.is_ascii_whitespace() {
            previous = byte;
        }
    }
    // A quote that is never closed: the tag ends at the first `>`.
    text.find('>').map(|at| at + 1)
}

/// Images inside attributes make long tags; longer ones than this are not read as quoted.
const TAG_BYTES_MAX: usize = 1 << 20;

/// Where `</name` begins.
fn find_end_tag(text: &str, name: &str) -> Option<usize> {
    text.match_indices("</").map(|(at, _)| at).find(|&at| {
        let after = &text.as_bytes()[at + 2..];
        after.len() >= name.len() && after[..name.len()].eq_ignore_ascii_case(name.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(html: &str) -> Vec<Kind<'_>> {
        Scanner::new(html).map(|piece| piece.kind).collect()
    }

    #[test]
    fn splits_tags_text_raw_content_and_comments() {
        let html = "<!doctype html><p a='x>y'>one<br/><script>if (a<b) '<p>'</SCRIPT>two</p><!-- <p> -->";
        assert_eq!(
            kinds(html),
            [
                Kind::Comment,
                Kind::Start { name: "p", closed: false },
                Kind::Text,
                Kind::Start { name: "br", closed: true },
                Kind::Start { name: "script", closed: false },
                Kind::Raw { element: "script" },
                Kind::End { name: "SCRIPT" },
                Kind::Text,
                Kind::End { name: "p" },
                Kind::Comment,
            ]
        );
    }

    #[test]
    fn loses_no_byte_and_ends_on_anything() {
        let odd = ["<", "<<<>", "a < b > c", "<p", "</", "<!--", "<!", "<script>x", "<a b='", "é<é>", "<1>"];
        for html in odd {
            let joined: String = Scanner::new(html).map(|piece| piece.source).collect();
            assert_eq!(joined, html);
        }
    }

    proptest::proptest! {
        #[test]
        fn loses_no_byte(html in "([<>/!a-c'\"= é-]|<p>|<script>|</script|<!--|-->){0,60}") {
            let joined: String = Scanner::new(&html).map(|piece| piece.source).collect();
            proptest::prop_assert_eq!(joined, html);
        }
    }
}
