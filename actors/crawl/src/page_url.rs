//! Addresses of pages: what is asked for, and the canonical form that tells whether two addresses
//! are the same page.
//!
//! The canonical form is that of w3lib's `canonicalize_url` (the one that Scrapy's duplicate filter
//! uses): lower-case scheme and host, dot segments resolved, percent-encoding normalised, query
//! arguments sorted, no fragment, a written port kept. It serves comparison and order only; the
//! page is fetched by the address as it was written, since a server may care about the order of
//! arguments.

use std::borrow::Cow;
use std::fmt;

use encoding_rs::Encoding;
use serde::{Deserialize, Serialize};
use url::{Position, Url};

/// Why a text is not the address of a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlRefused {
    /// Not a URL.
    #[error("not a URL: {0}")]
    Malformed(#[from] url::ParseError),
    /// Neither `http` nor `https`.
    #[error("only http and https are crawled")]
    Scheme,
    /// It carries a user name or a password, which would end up in archives.
    #[error("a URL with a user name or password is not crawled")]
    Credentials,
}

/// The address of a page. Ordered and compared by its canonical form.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PageUrl {
    text: String,
    canonical: String,
}

impl PageUrl {
    /// Reads an absolute URL.
    ///
    /// # Errors
    /// [`UrlRefused`].
    pub fn parse(text: &str) -> Result<Self, UrlRefused> {
        Self::from_url(Url::parse(text)?, text)
    }

    /// Resolves a reference found in a page. The page's encoding counts, since browsers write the
    /// query of a link in it.
    ///
    /// # Errors
    /// [`UrlRefused`].
    pub fn join(base: &Url, reference: &str, encoding: &'static Encoding) -> Result<Self, UrlRefused> {
        let options = Url::options().base_url(Some(base));
        let url = options
            .encoding_override(Some(&|text| Cow::Owned(encoding.encode(text).0.into_owned())))
            .parse(reference)?;
        Self::from_url(url, reference)
    }

    fn from_url(mut url: Url, written: &str) -> Result<Self, UrlRefused> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(UrlRefused::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlRefused::Credentials);
        }
        url.set_fragment(None);
        let port = written_default_port(&url, written);
        let canonical = canonical(&url, port);
        let text = match port {
            "" => url.into(),
            port => format!("{}{port}{}", &url[..Position::AfterHost], &url[Position::BeforePath..]),
        };
        Ok(Self { text, canonical })
    }

    /// The address to ask for, without a fragment.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The form that is equal for equal pages.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// The address in its parts.
    ///
    /// # Errors
    /// None for an address made here; the type cannot say so.
    pub fn url(&self) -> Result<Url, UrlRefused> {
        Ok(Url::parse(&self.text)?)
    }
}

impl PartialEq for PageUrl {
    fn eq(&self, other: &Self) -> bool {
        self.canonical == other.canonical
    }
}

impl Eq for PageUrl {}

impl PartialOrd for PageUrl {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PageUrl {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.canonical.cmp(&other.canonical)
    }
}

impl fmt::Display for PageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for PageUrl {
    type Error = UrlRefused;

    fn try_from(text: String) -> Result<Self, UrlRefused> {
        Self::parse(&text)
    }
}

impl From<PageUrl> for String {
    fn from(url: PageUrl) -> Self {
        url.text
    }
}

/// The scheme's default port, with its colon, where it was written out; the `url` crate drops it.
fn written_default_port(url: &Url, written: &str) -> &'static str {
    let port = if url.scheme() == "https" { ":443" } else { ":80" };
    let Some((before, after)) = written.trim_start().split_once("//") else { return "" };
    let authority = after.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let is_authority = before.is_empty() || before.ends_with(':');
    if is_authority && url.port().is_none() && authority.trim_end().ends_with(port) { port } else { "" }
}

fn canonical(url: &Url, written_port: &str) -> String {
    let mut text = url[..Position::AfterPort].to_owned();
    text.push_str(written_port);
    push_path(&mut text, url.path());
    push_query(&mut text, url.query().unwrap_or_default());
    text
}

/// Characters that stand for themselves in a path: unreserved, and reserved ones that do not end it.
fn is_plain_in_path(byte: u8) -> bool {
    is_unreserved(byte) || b":/[]@!$&'()*+,;=|".contains(&byte)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Encoded, these mean something else than written plainly.
const STAY_ENCODED: &[u8] = b"%/;?";

fn push_path(text: &mut String, path: &str) {
    let bytes = path.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let (byte, length) = match decoded_at(bytes, at) {
            Some(byte) if STAY_ENCODED.contains(&byte) => {
                push_encoded(text, byte);
                at += 3;
                continue;
            }
            Some(byte) => (byte, 3),
            None => (bytes[at], 1),
        };
        if is_plain_in_path(byte) {
            text.push(char::from(byte))
        } else {
            push_encoded(text, byte)
        }
        at += length;
    }
}

fn push_query(text: &mut String, query: &str) {
    let mut arguments: Vec<(Vec<u8>, Vec<u8>)> = query
        .split('&')
        .filter(|argument| !argument.is_empty())
        .map(|argument| argument.split_once('=').unwrap_or((argument, "")))
        .map(|(name, value)| (decode_argument(name), decode_argument(value)))
        .collect();
    arguments.sort();
    for (index, (name, value)) in arguments.iter().enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        push_argument(text, name);
        text.push('=');
        push_argument(text, value);
    }
}

fn decode_argument(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let encoded = decoded_at(bytes, at);
        at += if encoded.is_some() { 3 } else { 1 };
        decoded.push(encoded.unwrap_or_else(|| if bytes[at - 1] == b'+' { b' ' } else { bytes[at - 1] }));
    }
    decoded
}

fn push_argument(text: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        match byte {
            b' ' => text.push('+'),
            byte if is_unreserved(byte) => text.push(char::from(byte)),
            byte => push_encoded(text, byte),
        }
    }
}

/// The byte that a `%XX` at this place stands for.
fn decoded_at(bytes: &[u8], at: usize) -> Option<u8> {
    let [b'%', high, low] = bytes.get(at..at + 3)? else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

fn push_encoded(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    text.push('%');
    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
    text.push(char::from(DIGITS[usize::from(byte & 15)]));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical_of(text: &str) -> String {
        PageUrl::parse(text).unwrap().canonical().to_owned()
    }

    /// What w3lib's `canonicalize_url` answers.
    #[test]
    fn agrees_with_w3lib() {
        for (text, canonical) in [
            ("HTTP://Example.com:80/a b/../c?b=2&a=1&a=#frag", "http://example.com:80/c?a=&a=1&b=2"),
            ("http://example.com", "http://example.com/"),
            ("https://example.com:443/?b&a", "https://example.com:443/?a=&b="),
            ("http://example.com:8080/", "http://example.com:8080/"),
            ("http://EXAMPLE.com:443/", "http://example.com:443/"),
            (
                "http://example.com/%7Euser/%e4%bd%a0?q=%e4%bd%a0+b&x",
                "http://example.com/~user/%E4%BD%A0?q=%E4%BD%A0+b&x=",
            ),
            ("http://example.com/a%2fb%3fc%3bd%25", "http://example.com/a%2Fb%3Fc%3Bd%25"),
            ("http://example.com/你好?键=值", "http://example.com/%E4%BD%A0%E5%A5%BD?%E9%94%AE=%E5%80%BC"),
            ("http://example.com/?a=1&&b=2&=3", "http://example.com/?=3&a=1&b=2"),
            ("http://example.com/a;p=1?x=a%20b", "http://example.com/a;p=1?x=a+b"),
            ("http://example.com/a//b/./c/../d/", "http://example.com/a//b/d/"),
            ("http://example.com/?q=a%2Bb%26c", "http://example.com/?q=a%2Bb%26c"),
            ("http://example.com/a|b\"<>^`{}", "http://example.com/a|b%22%3C%3E%5E%60%7B%7D"),
            ("http://example.com/?z=%zz&a=~-_.!*'()", "http://example.com/?a=~-_.%21%2A%27%28%29&z=%25zz"),
            ("http://example.com/%E9t%e9", "http://example.com/%E9t%E9"),
            ("http://例え.jp/", "http://xn--r8jz45g.jp/"),
            ("http://example.com/a?", "http://example.com/a"),
            ("http://example.com/~x/!$&'()*+,;=:@", "http://example.com/~x/!$&'()*+,;=:@"),
        ] {
            assert_eq!(canonical_of(text), canonical);
        }
    }

    #[test]
    fn refuses_what_is_no_page() {
        assert_eq!(PageUrl::parse("file:///etc/passwd"), Err(UrlRefused::Scheme));
        assert_eq!(PageUrl::parse("http://user:secret@example.com/"), Err(UrlRefused::Credentials));
        assert!(matches!(PageUrl::parse("page.html"), Err(UrlRefused::Malformed(_))));
    }

    #[test]
    fn asks_for_the_address_as_written() {
        let url = PageUrl::parse("http://example.com:80/?b=2&a=1#x").unwrap();
        assert_eq!(url.as_str(), "http://example.com:80/?b=2&a=1");
        let base = Url::parse("http://example.com/a/b").unwrap();
        let gbk = encoding_rs::GBK;
        let joined = PageUrl::join(&base, "../c?q=你", gbk).unwrap();
        assert_eq!(joined.as_str(), "http://example.com/c?q=%C4%E3");
        assert_eq!(PageUrl::join(&base, "/x//y:80", gbk).unwrap().as_str(), "http://example.com/x//y:80");
        assert_eq!(PageUrl::join(&base, "//other:80/", gbk).unwrap().as_str(), "http://other:80/");
    }

    proptest! {
        #[test]
        fn canonical_form_is_a_fixed_point(
            path in "(/[a-zA-Z0-9%.~;|^ 你]{0,6}){0,4}",
            query in "(\\?[a-z%+&=/ !0-9é]{0,12})?",
        ) {
            let once = canonical_of(&format!("http://example.com{path}{query}"));
            prop_assert_eq!(canonical_of(&once), once.clone());
            prop_assert!(once.is_ascii());
        }

        #[test]
        fn order_of_arguments_and_letter_case_of_the_host_do_not_matter(
            arguments in proptest::collection::vec("[a-c]=[0-9]{1,2}", 1..5),
        ) {
            let mut turned = arguments.clone();
            turned.reverse();
            prop_assert_eq!(
                canonical_of(&format!("http://EXAMPLE.com/?{}", arguments.join("&"))),
                canonical_of(&format!("http://example.com/?{}#top", turned.join("&")))
            );
        }

        #[test]
        fn survives_json(path in "[a-z%/?&=]{0,20}") {
            let url = PageUrl::parse(&format!("http://example.com:80/{path}")).unwrap();
            let back: PageUrl = serde_json::from_str(&serde_json::to_string(&url).unwrap()).unwrap();
            prop_assert_eq!((back.as_str(), back.canonical()), (url.as_str(), url.canonical()));
        }

        #[test]
        fn never_panics(text in "\\PC{0,60}") {
            let _ = PageUrl::parse(&text);
            let base = Url::parse("https://example.com/").unwrap();
            let _ = PageUrl::join(&base, &text, encoding_rs::GBK);
        }
    }
}
