//! Sitemaps (sitemaps.org 0.9): lists of pages, lists of lists, and plain text.

use quick_xml::Reader;
use quick_xml::events::Event;
use sixfold_warc::{ContentCoding, ContentDecoder, DecodeError, DecodeLimits};

/// Addresses in one file, as the protocol limits them.
const ENTRIES_MAX: usize = 50_000;
/// Bytes of one address.
const ADDRESS_BYTES_MAX: usize = 2083;

/// What a sitemap names, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sitemap {
    /// Addresses of pages.
    pub pages: Vec<String>,
    /// Addresses of further sitemaps.
    pub sitemaps: Vec<String>,
}

/// Reads a sitemap, packed with gzip or not. What is readable before damage counts.
///
/// # Errors
/// [`DecodeError`] where a packed one does not unfold within `limits`.
pub(crate) fn parse(file: &[u8], limits: DecodeLimits) -> Result<Sitemap, DecodeError> {
    let coding = if file.starts_with(&[0x1f, 0x8b]) { ContentCoding::Gzip } else { ContentCoding::Identity };
    let mut decoder = ContentDecoder::new(coding, limits);
    decoder.push(file)?;
    let content = decoder.finish()?;
    let text = String::from_utf8_lossy(&content);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    Ok(if text.starts_with('<') { parse_xml(text) } else { parse_lines(text) })
}

fn parse_lines(text: &str) -> Sitemap {
    let pages = text.lines().map(str::trim).filter(|line| line.starts_with("http") && fits(line));
    Sitemap { pages: pages.take(ENTRIES_MAX).map(str::to_owned).collect(), sitemaps: Vec::new() }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Element {
    Page,
    Sitemap,
    Address,
    Other,
}

impl Element {
    fn named(name: &str) -> Self {
        match name {
            "url" => Self::Page,
            "sitemap" => Self::Sitemap,
            "loc" => Self::Address,
            _ => Self::Other,
        }
    }
}

fn parse_xml(text: &str) -> Sitemap {
    let mut reader = Reader::from_str(text);
    reader.config_mut().check_end_names = false;
    let mut found = Sitemap::default();
    let mut open: Vec<Element> = Vec::new();
    let mut address = String::new();
    while found.pages.len() + found.sitemaps.len() < ENTRIES_MAX {
        match reader.read_event() {
            Ok(Event::Start(tag)) => {
                open.push(Element::named(tag.local_name().as_ref()));
                address.clear();
            }
            Ok(Event::Text(text)) => append(&mut address, &text.xml10_content()),
            Ok(Event::CData(text)) => append(&mut address, &text.xml10_content()),
            Ok(Event::GeneralRef(name)) => {
                let mut utf8 = [0; 4];
                let letter =
                    name.resolve_char_ref().ok().flatten().map(|letter| &*letter.encode_utf8(&mut utf8));
                let known = quick_xml::escape::resolve_predefined_entity(&name.xml10_content());
                append(&mut address, letter.or(known).unwrap_or_default());
            }
            Ok(Event::End(_)) => {
                // An address of an image or a video stands in an element of its own.
                let list = match open[..] {
                    [.., Element::Page, Element::Address] => Some(&mut found.pages),
                    [.., Element::Sitemap, Element::Address] => Some(&mut found.sitemaps),
                    _ => None,
                };
                open.pop();
                if let Some(list) = list.filter(|_| fits(address.trim())) {
                    list.push(address.trim().to_owned());
                }
                address.clear();
            }
            Ok(Event::Eof) | Err(_) => break,
            Ok(_) => {}
        }
    }
    found
}

fn append(address: &mut String, text: &str) {
    // A longer one is refused at its end; no need to gather it.
    if address.len() <= 2 * ADDRESS_BYTES_MAX {
        address.push_str(text);
    }
}

fn fits(address: &str) -> bool {
    !address.is_empty() && address.len() <= ADDRESS_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: DecodeLimits = DecodeLimits { bytes_max: 4 << 20, ratio_max: 1000 };

    const PAGES: &str = "<?xml version='1.0'?><urlset xmlns='http://www.sitemaps.org/schemas/sitemap/0.9' \
        xmlns:i='http://www.google.com/schemas/sitemap-image/1.1'><url><loc> http://a/?x=1&amp;y=2 </loc>\
        <i:image><i:loc>http://a/i.png</i:loc></i:image></url><url><loc><![CDATA[http://a/b]]></loc></url></urlset>";

    #[test]
    fn reads_pages_with_entities_and_cdata() {
        let found = parse(PAGES.as_bytes(), LIMITS).unwrap();
        assert_eq!(found.pages, ["http://a/?x=1&y=2", "http://a/b"]);
        assert!(found.sitemaps.is_empty());
    }

    #[test]
    fn reads_lists_of_lists_and_packed_files() {
        let index = "<sitemapindex><sitemap><loc>http://a/1.xml.gz</loc></sitemap></sitemapindex>";
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(index.as_bytes()).unwrap();
        let found = parse(&packed.finish().unwrap(), LIMITS).unwrap();
        assert_eq!(found, Sitemap { pages: vec![], sitemaps: vec!["http://a/1.xml.gz".to_owned()] });
    }

    #[test]
    fn reads_plain_text() {
        let found = parse("\u{feff}http://a/1\r\n\nnot an address\nhttps://a/2".as_bytes(), LIMITS).unwrap();
        assert_eq!(found.pages, ["http://a/1", "https://a/2"]);
    }

    #[test]
    fn keeps_what_stands_before_damage_and_bounds_what_it_keeps() {
        let cut = &PAGES[..PAGES.len() - 40];
        assert_eq!(parse(cut.as_bytes(), LIMITS).unwrap().pages[0], "http://a/?x=1&y=2");
        let many = format!("<urlset>{}</urlset>", "<url><loc>h</loc></url>".repeat(ENTRIES_MAX + 9));
        assert_eq!(parse(many.as_bytes(), LIMITS).unwrap().pages.len(), ENTRIES_MAX);
        let long = format!("<urlset><url><loc>{}</loc></url></urlset>", "x".repeat(ADDRESS_BYTES_MAX + 1));
        assert_eq!(parse(long.as_bytes(), LIMITS).unwrap(), Sitemap::default());
        let small = DecodeLimits { bytes_max: 10, ratio_max: 10 };
        assert!(matches!(parse(PAGES.as_bytes(), small), Err(DecodeError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn never_panics(text in "[<>/a-z&;!\\[\\]#x0-9 ]{0,80}") {
            let _ = parse(format!("<urlset><url><loc>{text}</loc>").as_bytes(), LIMITS);
        }
    }
}
