//! The HTTP message inside a `request` or `response` record.

use crate::coding::{ContentCoding, ContentDecoder, DecodeError, DecodeLimits};
use crate::headers::Headers;

/// Fields beyond this number make a message malformed.
const FIELDS_MAX: usize = 1000;

/// The first line of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartLine {
    /// Of an answer.
    Response {
        /// For example 200.
        status: u16,
    },
    /// Of a question.
    Request {
        /// For example `GET`.
        method: String,
        /// Path and query, or a whole URL.
        target: String,
    },
}

/// A message, borrowed from its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpMessage<'a> {
    /// Its first line.
    pub start: StartLine,
    /// Its header.
    pub headers: Headers,
    /// Everything after the header, as it was transferred.
    pub raw_body: &'a [u8],
}

/// Why bytes are not an HTTP message, or its body cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The first line is neither a request's nor a response's.
    #[error("not an HTTP message: it begins with {0:?}")]
    StartLine(String),
    /// More header fields than any message has.
    #[error("an HTTP message with more than {FIELDS_MAX} header fields")]
    TooManyFields,
    /// A coding that is not known here.
    #[error("the body's coding `{0}` is not known")]
    UnknownCoding(String),
    /// The body does not unfold within the limits.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl<'a> HttpMessage<'a> {
    /// Reads a record's block.
    ///
    /// # Errors
    /// [`HttpError::StartLine`], [`HttpError::TooManyFields`].
    pub fn parse(block: &'a [u8]) -> Result<Self, HttpError> {
        let (line, mut rest) = split_line(block);
        let start = parse_start_line(line)?;
        let mut headers = Headers::default();
        for count in 0.. {
            let (line, after) = split_line(rest);
            rest = after;
            if line.is_empty() {
                break;
            }
            if count == FIELDS_MAX {
                return Err(HttpError::TooManyFields);
            }
            headers.push_line(line);
        }
        Ok(Self { start, headers, raw_body: rest })
    }

    /// The status of a response.
    pub fn status(&self) -> Option<u16> {
        match self.start {
            StartLine::Response { status } => Some(status),
            StartLine::Request { .. } => None,
        }
    }

    /// The media type, in lower case and without parameters.
    pub fn media_type(&self) -> Option<String> {
        let value = self.headers.get("content-type")?;
        Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
    }

    /// The body with transfer and content codings undone. Archives store bodies either as they were
    /// transferred or already decoded with the header left as it was; a body that does not fit its
    /// stated coding from the first byte on is taken as decoded.
    ///
    /// # Errors
    /// [`HttpError::UnknownCoding`], [`HttpError::Decode`].
    pub fn body(&self, limits: DecodeLimits) -> Result<Vec<u8>, HttpError> {
        let chunked =
            self.headers.all("transfer-encoding").any(|value| value.to_ascii_lowercase().contains("chunked"));
        let unchunked = if chunked { join_chunks(self.raw_body) } else { None };
        let transferred = unchunked.as_deref().unwrap_or(self.raw_body);
        let name = self.headers.get("content-encoding").unwrap_or_default();
        let coding = match ContentCoding::named(name) {
            Some(ContentCoding::Gzip) if !transferred.starts_with(&[0x1f, 0x8b]) => ContentCoding::Identity,
            Some(coding) => coding,
            None => return Err(HttpError::UnknownCoding(name.chars().take(40).collect())),
        };
        let mut decoder = ContentDecoder::new(coding, limits);
        decoder.push(transferred)?;
        Ok(decoder.finish()?)
    }
}

fn parse_start_line(line: &[u8]) -> Result<StartLine, HttpError> {
    let text = String::from_utf8_lossy(&line[..line.len().min(8192)]);
    let refuse = || HttpError::StartLine(text.chars().take(60).collect());
    let mut words = text.split_ascii_whitespace();
    let (first, second) = (words.next().ok_or_else(refuse)?, words.next().ok_or_else(refuse)?);
    if first.starts_with("HTTP/") {
        let status = second.parse().map_err(|_| refuse())?;
        return Ok(StartLine::Response { status });
    }
    match words.next() {
        Some(version) if version.starts_with("HTTP/") => {
            Ok(StartLine::Request { method: first.to_owned(), target: second.to_owned() })
        }
        _ => Err(refuse()),
    }
}

/// The first line without its end, and what follows.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = match bytes.iter().position(|&byte| byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &bytes[bytes.len()..]),
    };
    (line.strip_suffix(b"\r").unwrap_or(line), rest)
}

/// The body of a chunked message (RFC 9112, section 7.1), or `None` where it is not chunked. What a
/// cut message still has of its last chunk is kept.
fn join_chunks(mut raw: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(raw.len());
    loop {
        let (line, rest) = split_line(raw);
        let digits = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        let size = std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        match size {
            None if body.is_empty() => return None,
            None | Some(0) => return Some(body),
            Some(size) => {
                let size = size.min(rest.len());
                body.extend_from_slice(&rest[..size]);
                raw = split_line(&rest[size..]).1;
                if raw.is_empty() {
                    return Some(body);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: DecodeLimits = DecodeLimits { bytes_max: 1000, ratio_max: 100 };

    fn body(block: &[u8]) -> Vec<u8> {
        HttpMessage::parse(block).unwrap().body(LIMITS).unwrap()
    }

    #[test]
    fn joins_chunks_and_tolerates_bodies_already_joined() {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        assert_eq!(body(&[&head[..], b"4\r\nWiki\r\n5;x=y\r\npedia\r\n0\r\n\r\n"].concat()), b"Wikipedia");
        assert_eq!(body(&[&head[..], b"<html>"].concat()), b"<html>");
        assert_eq!(body(&[&head[..], b"ffffffffffffffff\r\nab"].concat()), b"ab");
    }

    #[test]
    fn takes_a_body_that_is_not_gzip_as_decoded() {
        assert_eq!(body(b"HTTP/1.1 200 OK\nContent-Encoding: gzip\n\nplain"), b"plain");
    }

    #[test]
    fn reads_requests_and_media_types() {
        let request = HttpMessage::parse(b"GET /a HTTP/1.1\r\nHost: b\r\n\r\n").unwrap();
        assert_eq!(request.start, StartLine::Request { method: "GET".into(), target: "/a".into() });
        assert_eq!(request.status(), None);
        let response =
            HttpMessage::parse(b"HTTP/1.0 404 Not Found\r\nContent-Type: Text/HTML; charset=gbk\r\n\r\n")
                .unwrap();
        assert_eq!((response.status(), response.media_type().as_deref()), (Some(404), Some("text/html")));
    }

    #[test]
    fn bounds_bodies_and_fields() {
        let long = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[b'x'; 1001]].concat();
        let message = HttpMessage::parse(&long).unwrap();
        assert!(matches!(message.body(LIMITS), Err(HttpError::Decode(DecodeError::TooLarge { .. }))));
        let many = format!("HTTP/1.1 200 OK\n{}", "a: b\n".repeat(FIELDS_MAX + 1));
        assert!(matches!(HttpMessage::parse(many.as_bytes()), Err(HttpError::TooManyFields)));
    }

    proptest! {
        #[test]
        fn never_panics_on_noise(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let block = [&b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"[..], &noise].concat();
            let _ = HttpMessage::parse(&block).unwrap().body(LIMITS);
            let _ = HttpMessage::parse(&noise);
        }
    }
}
