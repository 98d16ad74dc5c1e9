//! Tests of `reader`.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::coding::DecodeLimits;

const BODY: DecodeLimits = DecodeLimits { bytes_max: 8 << 20, ratio_max: 200 };

/// Reads a file of the shared collection of web archives; `None`, with a message, where it is absent.
fn shared(name: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/web").join(name);
    let content = fs::read(&path).ok();
    if content.is_none() {
        println!("skipped: {} is not here", path.display());
    }
    content
}

fn read(file: &[u8]) -> Result<Vec<Record>, ReadError> {
    let mut reader = Reader::new(file)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record);
    }
    Ok(records)
}

fn record(block: &[u8]) -> Vec<u8> {
    let head = format!("WARC/1.0\r\nWARC-Type: resource\r\nContent-Length: {}\r\n\r\n", block.len());
    [head.as_bytes(), block, b"\r\n\r\n"].concat()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Every response whose payload digest is stated and whose body is stored as it was hashed.
fn digests_agree(records: &[Record]) -> usize {
    let mut agreed = 0;
    for record in records.iter().filter(|record| record.kind() == RecordKind::Response) {
        let Some(digest) = record.headers.get("WARC-Payload-Digest") else { continue };
        let message = record.http().unwrap();
        let decoded = message.body(BODY).unwrap();
        agreed += usize::from(
            [message.raw_body, &decoded].iter().any(|body| crate::sha1_base32(body).ends_with(&digest[5..])),
        );
    }
    agreed
}

/// The counts are those of `warcio index` 1.8; responses are those whose payload digest agrees.
#[test]
fn reads_public_archives_as_warcio_does() {
    for (name, records, responses) in [
        ("commoncrawl-whirlwind/whirlwind.warc.gz", 4, 1),
        ("commoncrawl-whirlwind/whirlwind.warc.wet.gz", 2, 0),
        ("warc-warcio/example.warc.gz", 6, 1),
        ("warc-warcio/post-test.warc.gz", 6, 3),
        ("warc-fastwarc/warcfile.warc.gz", 50, 16),
        ("warc-dolma/sample-0000.warc.gz", 48, 22),
        ("warc-iipc/IAH-urls-wget.warc.gz", 36, 16),
    ] {
        let Some(packed) = shared(name) else { continue };
        let found = read(&packed).unwrap();
        assert_eq!((found.len(), digests_agree(&found)), (records, responses), "{name}");
        let mut plain = Vec::new();
        MultiGzDecoder::new(&packed[..]).read_to_end(&mut plain).unwrap();
        assert!(read(&plain).unwrap() == found, "{name}: unpacked, it reads otherwise");
    }
}

#[test]
fn undoes_chunks_and_codings_of_a_stored_answer() {
    let Some(file) = shared("warc-warcio/example-iana.org-chunked.warc") else { return };
    let records = read(&file).unwrap();
    let response = records.iter().find(|record| record.kind() == RecordKind::Response).unwrap();
    let message = response.http().unwrap();
    assert!(!message.raw_body.starts_with(b"<"));
    assert!(
        message.body(BODY).unwrap().trim_ascii_start().to_ascii_lowercase().starts_with(b"<!doctype html")
    );
}

#[test]
fn strips_the_brackets_that_wget_wrote() {
    let Some(file) = shared("warc-warcio/example-wget-bad-target-uri.warc.gz") else { return };
    let records = read(&file).unwrap();
    assert!(records.iter().filter_map(Record::target_uri).any(|uri| uri == "http://example.com/"));
}

#[test]
fn stops_at_damage_and_keeps_what_came_before() {
    let whole = record(b"one");
    let mut reader =
        Reader::new(&b"\r\nWARC/1.0\nContent-Length: 3\n\none\nWARC/1.0\nContent-Length: 9\n\ntw"[..])
            .unwrap();
    assert_eq!(reader.next_record().unwrap().unwrap().block, b"one");
    assert!(matches!(reader.next_record(), Err(ReadError::Io(_))));
    assert!(matches!(read(b"<html>"), Err(ReadError::NotARecord { .. })));
    assert!(matches!(read(b"WARC/1.0\r\nWARC-Type: response\r\n\r\n"), Err(ReadError::NoLength)));
    let packed = gzip(&whole);
    assert!(matches!(read(&packed[..packed.len() - 12]), Err(ReadError::Io(_))));
}

#[test]
fn bounds_headers_blocks_and_the_file() {
    let limits = ReadLimits { header_bytes_max: 100, block_bytes_max: 4, file_bytes_max: 300 };
    let file = [record(b"longer than four"), record(b"four")].concat();
    let mut reader = Reader::with_limits(&file[..], limits).unwrap();
    let first = reader.next_record().unwrap().unwrap();
    assert_eq!((&first.block[..], first.cut), (&b"long"[..], true));
    let second = reader.next_record().unwrap().unwrap();
    assert_eq!((&second.block[..], second.cut), (&b"four"[..], false));

    let long = format!("WARC/1.0\r\nA: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(100));
    let mut reader = Reader::with_limits(long.as_bytes(), limits).unwrap();
    assert!(matches!(reader.next_record(), Err(ReadError::HeaderTooLarge { bytes_max: 100 })));

    let bomb = gzip(&[&b"WARC/1.0\r\nContent-Length: 33554432\r\n\r\n"[..], &vec![0; 32 << 20]].concat());
    let mut reader = Reader::with_limits(&bomb[..], limits).unwrap();
    assert!(matches!(reader.next_record(), Err(ReadError::Io(_))));
}

proptest! {
    #[test]
    fn never_panics_on_damaged_files(
        noise in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = [record(b"one"), record(b"two")].concat();
        for (at, byte) in noise {
            let at = at.index(file.len());
            file[at] = byte;
        }
        let _ = read(&file);
        let _ = read(&gzip(&file));
    }
}
