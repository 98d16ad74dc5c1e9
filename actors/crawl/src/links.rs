//! The links of a page: where a crawler may go next, and whether the page asks it not to.

mod scanner;

use std::borrow::Cow;
use std::collections::BTreeSet;

use encoding_rs::{Encoding, UTF_8};
use url::Url;

use self::scanner::{Scanner, Tag};
use crate::page_url::PageUrl;

/// Bytes searched for a declaration of the encoding, as browsers do.
const PRESCAN_BYTES: usize = 1024;

/// How a page is to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkRules {
    /// Whether `rel=nofollow` and the robots meta tag are heeded.
    pub obey_meta_robots: bool,
    /// Links kept of one page.
    pub links_max: usize,
}

/// What a page says about other pages and about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageLinks {
    /// Where it links to, each once, in canonical order.
    pub links: BTreeSet<PageUrl>,
    /// It asks not to be indexed.
    pub noindex: bool,
}

/// What the header of an answer says about its body.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PageHeader<'a> {
    /// `Content-Type`.
    pub content_type: &'a str,
    /// All `X-Robots-Tag` fields, joined by commas.
    pub robots_tag: &'a str,
}

/// Finds the links of the page `body`, which was fetched from `address`.
pub(crate) fn extract(body: &[u8], address: &Url, header: PageHeader<'_>, rules: LinkRules) -> PageLinks {
    let media_type = header.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let mut page = Page { base: address.clone(), directives: Directives::default(), links: BTreeSet::new() };
    if rules.obey_meta_robots {
        page.directives.read(header.robots_tag);
    }
    if !matches!(media_type.as_str(), "text/plain" | "text/xml" | "application/xml") {
        let encoding = encoding(body, header.content_type);
        let text = encoding.decode(body).0;
        page.scan(&text, media_type.ends_with("xhtml+xml"), encoding, rules);
    }
    if page.directives.nofollow {
        page.links.clear();
    }
    PageLinks { links: page.links, noindex: page.directives.noindex }
}

#[derive(Default)]
struct Directives {
    nofollow: bool,
    noindex: bool,
}

impl Directives {
    /// Reads a robots meta tag's or header's list. Directives for a named crawler are not for us.
    fn read(&mut self, list: &str) {
        for directive in list.split(',').map(|directive| directive.trim().to_ascii_lowercase()) {
            self.nofollow |= matches!(directive.as_str(), "nofollow" | "none");
            self.noindex |= matches!(directive.as_str(), "noindex" | "none");
        }
    }
}

struct Page {
    base: Url,
    directives: Directives,
    links: BTreeSet<PageUrl>,
}

impl Page {
    fn scan(&mut self, html: &str, xml: bool, encoding: &'static Encoding, rules: LinkRules) {
        let mut base_seen = false;
        for tag in Scanner::new(html, xml) {
            match tag.name.as_str() {
                "base" if !base_seen => {
                    if let Some(base) =
                        tag.attribute("href").and_then(|href| self.base.join(&unescape(href)).ok())
                    {
                        (self.base, base_seen) = (base, true);
                    }
                }
                "meta" => self.meta(&tag, encoding, rules),
                "a" | "area" if !(rules.obey_meta_robots && is_nofollow(&tag)) => {
                    self.follow(tag.attribute("href"), encoding, rules);
                }
                "frame" | "iframe" => self.follow(tag.attribute("src"), encoding, rules),
                _ => {}
            }
        }
    }

    fn meta(&mut self, tag: &Tag<'_>, encoding: &'static Encoding, rules: LinkRules) {
        let content = unescape(tag.attribute("content").unwrap_or_default());
        let is = |attribute: &str, value: &str| {
            tag.attribute(attribute).is_some_and(|text| text.trim().eq_ignore_ascii_case(value))
        };
        if is("name", "robots") && rules.obey_meta_robots {
            self.directives.read(&content);
        } else if is("http-equiv", "refresh") {
            self.follow(refresh_target(&content), encoding, rules);
        }
    }

    fn follow(&mut self, reference: Option<&str>, encoding: &'static Encoding, rules: LinkRules) {
        let Some(reference) = reference else { return };
        if self.links.len() < rules.links_max {
            self.links.extend(PageUrl::join(&self.base, &unescape(reference), encoding));
        }
    }
}

fn is_nofollow(tag: &Tag<'_>) -> bool {
    let rel = tag.attribute("rel").unwrap_or_default();
    rel.split_ascii_whitespace().any(|word| word.eq_ignore_ascii_case("nofollow"))
}

/// The address in `5; url='next.html'`.
fn refresh_target(content: &str) -> Option<&str> {
    let (_, rest) = content.split_once([';', ','])?;
    let rest = rest.trim_start();
    let target = match rest.get(..3) {
        Some(word) if word.eq_ignore_ascii_case("url") => rest[3..].trim_start().strip_prefix('=')?,
        _ => rest,
    };
    Some(target.trim().trim_matches(['"', '\'']))
}

/// The encoding by byte order mark, header, declaration in the first kilobyte, else UTF-8. Enough
/// for addresses; text gets a detector too, later and elsewhere.
fn encoding(body: &[u8], content_type: &str) -> &'static Encoding {
    let label = |text: &str| {
        let start = text.to_ascii_lowercase().find("charset")? + "charset".len();
        let value = text.get(start..)?.trim_start().strip_prefix('=')?.trim_start();
        let value = value.trim_start_matches(['"', '\'']);
        let end = value.find(|letter: char| !(letter.is_ascii_alphanumeric() || "-_:.".contains(letter)));
        Encoding::for_label(&value.as_bytes()[..end.unwrap_or(value.len())])
    };
    let head = || String::from_utf8_lossy(&body[..body.len().min(PRESCAN_BYTES)]).into_owned();
    Encoding::for_bom(body)
        .map(|(encoding, _)| encoding)
        .or_else(|| label(content_type))
        .or_else(|| label(&head()))
        .unwrap_or(UTF_8)
}

/// Resolves the character references that addresses are written with.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        // The longest reference of interest is `&#x10FFFF;`, with a few zeros.
        let end = rest.bytes().take(16).position(|byte| byte == b';');
        match end.and_then(|end| Some((referenced(&rest[1..end])?, end))) {
            Some((letter, end)) => {
                plain.push(letter);
                rest = &rest[end + 1..];
            }
            None => {
                plain.push('&');
                rest = &rest[1..];
            }
        }
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

fn referenced(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        name => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: LinkRules = LinkRules { obey_meta_robots: true, links_max: 100 };
    const HTML: PageHeader<'static> = PageHeader { content_type: "text/html", robots_tag: "" };

    fn links_of(body: &[u8], header: PageHeader<'_>, rules: LinkRules) -> Vec<String> {
        let address = Url::parse("http://example.com/dir/page.html").unwrap();
        let page = extract(body, &address, header, rules);
        page.links.iter().map(|link| link.as_str().to_owned()).collect()
    }

    fn links(body: &str) -> Vec<String> {
        links_of(body.as_bytes(), HTML, RULES)
    }

    #[test]
    fn follows_anchors_areas_frames_and_refreshes() {
        assert_eq!(
            links(
                "<meta http-equiv=Refresh content=\"0; URL='e'\"><a href=' b#x '>1</a><area href=a><iframe src=c></iframe>\
                 <frame src=d><a href=mailto:x@y><a href='javascript:void(0)'><img src=f><a name=g><a href=#h>"
            ),
            ["a", "b", "c", "d", "e", "page.html"].map(|name| format!("http://example.com/dir/{name}"))
        );
    }

    #[test]
    fn the_first_base_counts_and_references_are_resolved() {
        assert_eq!(
            links("<base href='/other/'><base href='/third/'><a href='x?a=1&amp;b=&#50;&c'>"),
            ["http://example.com/other/x?a=1&b=2&c"]
        );
    }

    #[test]
    fn heeds_nofollow_and_noindex_where_told_to() {
        let page = "<meta name=ROBOTS content='NoIndex, nofollow'><a href=a>";
        let deaf = LinkRules { obey_meta_robots: false, ..RULES };
        assert!(links(page).is_empty());
        assert_eq!(links_of(page.as_bytes(), HTML, deaf).len(), 1);
        assert_eq!(links("<a rel='external NOFOLLOW' href=a><a href=b>"), ["http://example.com/dir/b"]);
        let address = Url::parse("http://example.com/").unwrap();
        let tagged = PageHeader { robots_tag: "none", ..HTML };
        let found = extract(b"<a href=a>", &address, tagged, RULES);
        assert!(found.noindex && found.links.is_empty());
        assert!(!extract(b"<a href=a>", &address, HTML, RULES).noindex);
    }

    #[test]
    fn writes_queries_in_the_encoding_of_the_page() {
        let gbk = encoding_rs::GBK.encode("<meta charset=gb2312><a href='?q=你&r=1'>").0.into_owned();
        assert_eq!(links_of(&gbk, HTML, RULES), ["http://example.com/dir/page.html?q=%C4%E3&r=1"]);
        let header = PageHeader { content_type: "text/html; charset=\"utf-8\"", ..HTML };
        assert_eq!(
            links_of("<a href='?q=你'>".as_bytes(), header, RULES),
            ["http://example.com/dir/page.html?q=%E4%BD%A0"]
        );
    }

    #[test]
    fn survives_broken_pages_and_bounds_links() {
        assert_eq!(links_of(b"\xff\xfe\xfd<\0a href=x><a href=\xff>", HTML, RULES).len(), 0);
        assert_eq!(links_of(b"\xc3\x28<a href=x\xff>", HTML, RULES), ["http://example.com/dir/x%EF%BF%BD"]);
        let many: String = (0..200).map(|index| format!("<a href={index}>")).collect();
        assert_eq!(links(&many).len(), 100);
        assert!(links_of(b"<a href=x>", PageHeader { content_type: "text/plain", ..HTML }, RULES).is_empty());
    }
}
