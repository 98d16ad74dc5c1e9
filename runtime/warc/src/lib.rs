//! The WARC file format (ISO 28500, versions 1.0 and 1.1): what the crawler writes and the
//! cleaner reads, and what Common Crawl, wget and warcio write.
//!
//! It neither fetches nor interprets pages. It is a crate of its own because two stages share the
//! format and stages do not import each other. Everything that it reads is bounded: header
//! lines, blocks, decoded bodies, the whole stream.
//!
//! Read [`Reader`] first, then [`HttpMessage`] for what stands in a response record. [`Writer`]
//! makes files; [`ContentDecoder`] undoes content codings without trusting them.

mod coding;
mod digest;
mod headers;
mod http;
mod reader;
mod writer;

pub use coding::{ContentCoding, ContentDecoder, DecodeError, DecodeLimits};
pub use digest::sha1_base32;
pub use headers::Headers;
pub use http::{HttpError, HttpMessage, StartLine};
pub use reader::{ReadError, ReadLimits, Reader, Record, RecordKind};
pub use writer::{Exchange, Writer};
