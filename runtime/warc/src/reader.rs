//! Reads WARC files record by record, plain or gzip (one member a record, or any other cut).

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::headers::Headers;
use crate::http::{HttpError, HttpMessage};

/// What a reader accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Bytes of one record's header.
    pub header_bytes_max: usize,
    /// Bytes of one record's block that are kept; the rest is skipped and the record marked.
    pub block_bytes_max: u64,
    /// Bytes of the whole file, unpacked.
    pub file_bytes_max: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { header_bytes_max: 256 << 10, block_bytes_max: 64 << 20, file_bytes_max: 64 << 30 }
    }
}

/// Why a file cannot be read on. Records before this point were whole.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading or unpacking failed, or the file ends within a record.
    #[error("the WARC file is damaged or cut: {0}")]
    Io(#[from] io::Error),
    /// Something else stands where a record should begin.
    #[error("expected a WARC record, found {found:?}")]
    NotARecord {
        /// The beginning of the line.
        found: String,
    },
    /// A record does not say how long it is.
    #[error("a WARC record without a valid Content-Length")]
    NoLength,
    /// A record's header is larger than any.
    #[error("a WARC record's header has more than {bytes_max} bytes")]
    HeaderTooLarge {
        /// The limit.
        bytes_max: usize,
    },
}

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// About the file.
    Info,
    /// What a crawler asked.
    Request,
    /// What a server answered.
    Response,
    /// Content without a protocol's header.
    Resource,
    /// Facts about another record.
    Metadata,
    /// A later visit that found the same.
    Revisit,
    /// Content in another form, for example extracted text.
    Conversion,
    /// Any other.
    Other(String),
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// For example `WARC/1.1`.
    pub version: String,
    /// Its header.
    pub headers: Headers,
    /// Its block, up to [`ReadLimits::block_bytes_max`].
    pub block: Vec<u8>,
    /// Whether the block was longer than that.
    pub cut: bool,
}

impl Record {
    /// What the record holds.
    pub fn kind(&self) -> RecordKind {
        match self.headers.get("WARC-Type").unwrap_or_default().to_ascii_lowercase().as_str() {
            "warcinfo" => RecordKind::Info,
            "request" => RecordKind::Request,
            "response" => RecordKind::Response,
            "resource" => RecordKind::Resource,
            "metadata" => RecordKind::Metadata,
            "revisit" => RecordKind::Revisit,
            "conversion" => RecordKind::Conversion,
            other => RecordKind::Other(other.to_owned()),
        }
    }

    /// The URL that the record is about. Old versions of wget wrote it in angle brackets.
    pub fn target_uri(&self) -> Option<&str> {
        let uri = self.headers.get("WARC-Target-URI")?;
        Some(uri.strip_prefix('<').and_then(|uri| uri.strip_suffix('>')).unwrap_or(uri))
    }

    /// The HTTP message in the block.
    ///
    /// # Errors
    /// [`HttpError`] where it holds none.
    pub fn http(&self) -> Result<HttpMessage<'_>, HttpError> {
        HttpMessage::parse(&self.block)
    }
}

/// Reads records one after the other. Memory stays within the limits, whatever the file claims.
pub struct Reader<R: BufRead> {
    source: io::Take<Source<R>>,
    limits: ReadLimits,
}

enum Source<R: BufRead> {
    Plain(R),
    Gzip(Box<BufReader<MultiGzDecoder<R>>>),
}

impl<R: BufRead> Reader<R> {
    /// A reader of `input`, with the default limits.
    ///
    /// # Errors
    /// [`io::Error`] where the first bytes cannot be read.
    pub fn new(input: R) -> io::Result<Self> {
        Self::with_limits(input, ReadLimits::default())
    }

    /// A reader of `input`; whether it is packed is seen from its first bytes.
    ///
    /// # Errors
    /// [`io::Error`] where the first bytes cannot be read.
    pub fn with_limits(mut input: R, limits: ReadLimits) -> io::Result<Self> {
        let source = if input.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
            Source::Gzip(Box::new(BufReader::with_capacity(64 << 10, MultiGzDecoder::new(input))))
        } else {
            Source::Plain(input)
        };
        Ok(Self { source: source.take(limits.file_bytes_max), limits })
    }

    /// The next record, or `None` at the end of the file.
    ///
    /// # Errors
    /// [`ReadError`]; reading on afterwards makes no sense.
    pub fn next_record(&mut self) -> Result<Option<Record>, ReadError> {
        let Some(version) = self.version_line()? else { return Ok(None) };
        let headers = self.header(version.len())?;
        let bytes: u64 =
            headers.get("Content-Length").and_then(|text| text.parse().ok()).ok_or(ReadError::NoLength)?;
        let kept = bytes.min(self.limits.block_bytes_max);
        let mut block = Vec::new();
        if (&mut self.source).take(kept).read_to_end(&mut block)? as u64 != kept {
            return Err(cut_short());
        }
        let skipped = io::copy(&mut (&mut self.source).take(bytes - kept), &mut io::sink())?;
        if skipped != bytes - kept {
            return Err(cut_short());
        }
        Ok(Some(Record { version, headers, block, cut: skipped > 0 }))
    }

    /// The line that begins a record, after the empty lines that end the one before.
    fn version_line(&mut self) -> Result<Option<String>, ReadError> {
        loop {
            let Some(line) = self.line(0)? else { return Ok(None) };
            if line.is_empty() {
                continue;
            }
            let text = String::from_utf8_lossy(&line).into_owned();
            return match text.starts_with("WARC/") && text.len() <= 16 {
                true => Ok(Some(text)),
                false => Err(ReadError::NotARecord { found: text.chars().take(40).collect() }),
            };
        }
    }

    fn header(&mut self, mut bytes: usize) -> Result<Headers, ReadError> {
        let mut headers = Headers::default();
        loop {
            let line = self.line(bytes)?.ok_or_else(cut_short)?;
            if line.is_empty() {
                return Ok(headers);
            }
            bytes += line.len() + 2;
            headers.push_line(&line);
        }
    }

    /// One line without its end, or `None` at the end of the file. `used` bytes of the header's
    /// limit are gone already.
    fn line(&mut self, used: usize) -> Result<Option<Vec<u8>>, ReadError> {
        let bytes_max = self.limits.header_bytes_max;
        let mut line = Vec::new();
        let left = bytes_max.saturating_sub(used) as u64;
        let read = (&mut self.source).take(left + 1).read_until(b'\n', &mut line)? as u64;
        if read > left {
            return Err(ReadError::HeaderTooLarge { bytes_max });
        }
        if read == 0 {
            return Ok(None);
        }
        while line.last().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
            line.pop();
        }
        Ok(Some(line))
    }
}

fn cut_short() -> ReadError {
    ReadError::Io(io::ErrorKind::UnexpectedEof.into())
}

impl<R: BufRead> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(input) => input.read(buffer),
        }
    }
}

impl<R: BufRead> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self {
            Self::Plain(input) => input.fill_buf(),
            Self::Gzip(input) => input.fill_buf(),
        }
    }

    fn consume(&mut self, bytes: usize) {
        match self {
            Self::Plain(input) => input.consume(bytes),
            Self::Gzip(input) => input.consume(bytes),
        }
    }
}

#[cfg(test)]
mod tests;
