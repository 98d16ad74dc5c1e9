//! Writes WARC 1.1 files, one gzip member a record, so that a reader can begin at any record.
//!
//! The bytes depend on the arguments alone: dates are given, gzip headers carry no time, record ids
//! are derived from what the record holds.

use std::io::{self, Write};
use std::net::IpAddr;

use flate2::Compression;
use flate2::write::GzEncoder;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::digest::sha1_base32;

/// One request and the answer to it.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// The URL that was asked for.
    pub uri: &'a str,
    /// When the answer arrived.
    pub date: OffsetDateTime,
    /// The address that answered.
    pub address: Option<IpAddr>,
    /// The request line and header, ending with an empty line.
    pub request_head: &'a [u8],
    /// The status line and header, ending with an empty line.
    pub response_head: &'a [u8],
    /// The body, in the form that `response_head` describes.
    pub payload: &'a [u8],
}

/// Writes records to `W`.
pub struct Writer<W: Write> {
    inner: W,
    info_id: String,
}

impl<W: Write> Writer<W> {
    /// Begins a file named `file_name` with a `warcinfo` record that says `about` (field and value).
    ///
    /// # Errors
    /// [`io::Error`] of the inner writer.
    pub fn begin(
        inner: W,
        file_name: &str,
        date: OffsetDateTime,
        about: &[(&str, &str)],
    ) -> io::Result<Self> {
        let block: String =
            about.iter().map(|(name, value)| format!("{}: {}\r\n", plain(name), plain(value))).collect();
        let date = format_date(date);
        let info_id = record_id(&["warcinfo", file_name, &date], block.as_bytes());
        let mut writer = Self { inner, info_id: info_id.clone() };
        let fields = [
            ("WARC-Type", "warcinfo"),
            ("WARC-Record-ID", &info_id),
            ("WARC-Date", &date),
            ("WARC-Filename", file_name),
            ("Content-Type", "application/warc-fields"),
        ];
        writer.record(&fields, &[block.as_bytes()])?;
        Ok(writer)
    }

    /// Adds a `request` and a `response` record.
    ///
    /// # Errors
    /// [`io::Error`] of the inner writer.
    pub fn exchange(&mut self, exchange: &Exchange<'_>) -> io::Result<()> {
        let date = format_date(exchange.date);
        let digest = sha1_base32(exchange.payload);
        let request_id = record_id(&["request", exchange.uri, &date], exchange.request_head);
        let response_id = record_id(&["response", exchange.uri, &date, &digest], exchange.response_head);
        let address = exchange.address.map(|address| address.to_string());
        let info_id = self.info_id.clone();
        let common = [
            ("WARC-Target-URI", exchange.uri),
            ("WARC-Date", &date),
            ("WARC-Warcinfo-ID", &info_id),
            ("WARC-IP-Address", address.as_deref().unwrap_or_default()),
        ];
        let request = [
            ("WARC-Type", "request"),
            ("WARC-Record-ID", &request_id),
            ("WARC-Concurrent-To", &response_id),
            ("Content-Type", "application/http; msgtype=request"),
        ];
        self.record(&[&request[..], &common].concat(), &[exchange.request_head])?;
        let response = [
            ("WARC-Type", "response"),
            ("WARC-Record-ID", &response_id),
            ("WARC-Payload-Digest", &digest),
            ("Content-Type", "application/http; msgtype=response"),
        ];
        self.record(&[&response[..], &common].concat(), &[exchange.response_head, exchange.payload])
    }

    /// The inner writer, with all records written to it.
    pub fn finish(self) -> W {
        self.inner
    }

    /// One record as one gzip member. Fields with an empty value are left out.
    fn record(&mut self, fields: &[(&str, &str)], block: &[&[u8]]) -> io::Result<()> {
        let mut member = GzEncoder::new(&mut self.inner, Compression::default());
        member.write_all(b"WARC/1.1\r\n")?;
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            write!(member, "{name}: {}\r\n", plain(value))?;
        }
        write!(member, "Content-Length: {}\r\n\r\n", block.iter().map(|part| part.len()).sum::<usize>())?;
        block.iter().try_for_each(|part| member.write_all(part))?;
        member.write_all(b"\r\n\r\n")?;
        member.finish().map(drop)
    }
}

/// A value that cannot end its header line.
fn plain(value: &str) -> String {
    value.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// The time in UTC to the second. `WARC-Date` of the range of years that it allows always formats.
fn format_date(date: OffsetDateTime) -> String {
    let whole = date.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(date);
    whole.format(&Rfc3339).unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
}

/// A UUID of version 8 (RFC 9562: custom content) from the BLAKE3 hash of what the record is about.
fn record_id(parts: &[&str], block: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts.iter().map(|part| part.as_bytes()).chain([block]) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    format!("<urn:uuid:{a}-{b}-{c}-{d}-{e}>")
}

#[cfg(test)]
mod tests;
