//! From a page's bytes to its text: byte order mark, then HTTP header, then `meta`, then a detector.
//!
//! Labels mean what browsers take them for (WHATWG Encoding Standard): `gb2312` and `gbk` are read
//! as GB18030, `iso-8859-1` as windows-1252. A stated charset that plainly does not fit the bytes is
//! passed over, since servers send one default header for pages of every age.

use chardetng::EncodingDetector;
use encoding_rs::{Encoding, UTF_8};
use serde::{Deserialize, Serialize};

/// Browsers look for `meta` in the first 1024 bytes; real pages have it later.
const META_BYTES: usize = 16 << 10;

/// A stated charset is believed up to this share of characters that it cannot decode.
const REPLACED_SHARE_MAX: f64 = 0.01;

/// What told the charset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The bytes begin with a mark.
    ByteOrderMark,
    /// The `Content-Type` of the answer.
    Header,
    /// A `meta` element.
    Meta,
    /// Letter statistics.
    Detector,
}

/// A page as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The text; U+FFFD stands for what could not be decoded.
    pub text: String,
    /// The charset's name, as in the Encoding Standard.
    pub charset: &'static str,
    /// What told the charset.
    pub evidence: Evidence,
    /// Share of characters that could not be decoded, 0 to 1.
    pub replaced: f64,
}

/// Decodes a page. `content_type` is the HTTP header's value, where there was one.
pub fn decode(bytes: &[u8], content_type: Option<&str>) -> Decoded {
    if let Some((encoding, length)) = Encoding::for_bom(bytes) {
        return decode_as(&bytes[length..], encoding, Evidence::ByteOrderMark);
    }
    let header = content_type.and_then(charset_parameter).map(|encoding| (encoding, Evidence::Header));
    let meta = meta_charset(bytes).map(|encoding| (encoding, Evidence::Meta));
    for (encoding, evidence) in [header, meta].into_iter().flatten() {
        let decoded = decode_as(bytes, encoding, evidence);
        // Bytes that are UTF-8 throughout and not quite what is stated were converted by somebody
        // who left the statement as it was.
        if decoded.replaced > 0.0 && std::str::from_utf8(bytes).is_ok() {
            return decode_as(bytes, UTF_8, Evidence::Detector);
        }
        if decoded.replaced <= REPLACED_SHARE_MAX {
            return decoded;
        }
    }
    let mut detector = EncodingDetector::new();
    detector.feed(bytes, true);
    decode_as(bytes, detector.guess(None, true), Evidence::Detector)
}

fn decode_as(bytes: &[u8], encoding: &'static Encoding, evidence: Evidence) -> Decoded {
    let (text, had_errors) = encoding.decode_without_bom_handling(bytes);
    let text = text.into_owned();
    let replaced = if had_errors {
        text.matches('\u{fffd}').count() as f64 / text.chars().count().max(1) as f64
    } else {
        0.0
    };
    Decoded { text, charset: encoding.name(), evidence, replaced }
}

/// The encoding named by `charset=` in a header's value or in a `meta` element's `content`.
fn charset_parameter(value: &str) -> Option<&'static Encoding> {
    let lower = value.to_ascii_lowercase();
    let (_, after) = lower.split_once("charset")?;
    let label = after.trim_start().strip_prefix('=')?.trim_start();
    let label = label.trim_start_matches(['"', '\'']);
    let end = label.find(|c: char| c.is_whitespace() || matches!(c, ';' | '"' | '\'' | '>' | '/' | ','));
    Encoding::for_label(&label.as_bytes()[..end.unwrap_or(label.len())])
}

/// The encoding that a `meta` element names. The page must be ASCII up to there, so a stated UTF-16
/// cannot be true and means UTF-8 (HTML standard, 13.2.3.2).
fn meta_charset(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(META_BYTES)]).to_ascii_lowercase();
    let metas = head.match_indices("<meta").map(|(at, _)| &head[at..]);
    let mut found = metas.filter_map(|meta| charset_parameter(&meta[..meta.find('>').unwrap_or(meta.len())]));
    let encoding = found.next().or_else(|| xml_declaration(&head))?;
    Some(if encoding.is_ascii_compatible() { encoding } else { UTF_8 })
}

/// `<?xml version="1.0" encoding="GBK"?>`.
fn xml_declaration(head: &str) -> Option<&'static Encoding> {
    let declaration = head.trim_start().strip_prefix("<?xml")?;
    let (_, after) = declaration[..declaration.find("?>")?].split_once("encoding")?;
    let label = after.trim_start().strip_prefix('=')?.trim().trim_matches(['"', '\'']);
    Encoding::for_label(label.split(['"', '\'']).next()?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHINESE: &str = "中文网页的编码并不总是写在它应该在的地方。";

    fn gbk(text: &str) -> Vec<u8> {
        encoding_rs::GBK.encode(text).0.into_owned()
    }

    #[test]
    fn believes_mark_before_header_before_meta_before_detector() {
        let with_mark = ["\u{feff}".as_bytes(), CHINESE.as_bytes()].concat();
        let decoded = decode(&with_mark, Some("text/html; charset=gbk"));
        assert_eq!((decoded.text.as_str(), decoded.evidence), (CHINESE, Evidence::ByteOrderMark));

        let page = gbk(&format!("<meta charset=\"utf-8\"><p>{CHINESE}"));
        let decoded = decode(&page, Some("text/html; Charset = \"GB2312\""));
        assert_eq!((decoded.charset, decoded.evidence), ("GBK", Evidence::Header));

        let page = gbk(&format!("<meta http-equiv=Content-Type content='text/html; charset=gbk'>{CHINESE}"));
        let decoded = decode(&page, None);
        assert_eq!((decoded.charset, decoded.evidence), ("GBK", Evidence::Meta));

        let decoded = decode(&gbk(&CHINESE.repeat(5)), None);
        assert_eq!((decoded.charset, decoded.evidence), ("GBK", Evidence::Detector));
        assert_eq!(decoded.text, CHINESE.repeat(5));
    }

    #[test]
    fn reads_gb2312_as_gb18030() {
        let text = "镕 and four bytes: 㐀";
        let bytes = encoding_rs::GB18030.encode(text).0;
        assert_eq!(decode(&bytes, Some("text/html; charset=gb2312")).text, text);
    }

    #[test]
    fn does_not_decide_on_ascii_kilobytes() {
        let page = [vec![b' '; 100_000], gbk(&CHINESE.repeat(20))].concat();
        assert_eq!(decode(&page, None).charset, "GBK");
        let page = [vec![b' '; 100_000], CHINESE.repeat(20).into_bytes()].concat();
        assert_eq!(decode(&page, None).charset, "UTF-8");
    }

    #[test]
    fn passes_over_a_header_that_cannot_be_true() {
        let decoded = decode(&gbk(&CHINESE.repeat(5)), Some("text/html; charset=utf-8"));
        assert_eq!((decoded.charset, decoded.evidence), ("GBK", Evidence::Detector));
    }

    #[test]
    fn keeps_a_stated_charset_over_single_broken_bytes() {
        let mut page = CHINESE.repeat(20).into_bytes();
        page.extend([0xff, b'a', 0x00, 0xc3]);
        let decoded = decode(&page, Some("text/html; charset=utf-8"));
        assert_eq!((decoded.charset, decoded.evidence), ("UTF-8", Evidence::Header));
        assert!(decoded.replaced > 0.0 && decoded.text.starts_with(CHINESE));
    }

    #[test]
    fn reads_utf16_with_a_mark_and_never_from_meta() {
        let little: Vec<u8> = "\u{feff}中文 text".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(decode(&little, None).text, "中文 text");
        assert_eq!(decode(b"<meta charset=utf-16>plain", None).charset, "UTF-8");
    }

    #[test]
    fn reads_an_xml_declaration() {
        let page = gbk(&format!("<?xml version=\"1.0\" encoding=\"gbk\"?><html>{CHINESE}"));
        assert_eq!(decode(&page, None).evidence, Evidence::Meta);
    }
}
