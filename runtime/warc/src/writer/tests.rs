//! Tests of `writer`.

use super::*;
use crate::reader::{Reader, Record, RecordKind};

fn sample() -> Vec<u8> {
    let date = OffsetDateTime::from_unix_timestamp(1_764_000_000).unwrap();
    let mut writer =
        Writer::begin(Vec::new(), "pages-00000.warc.gz", date, &[("software", "sixfold")]).unwrap();
    writer
        .exchange(&Exchange {
            uri: "http://example.com/a?b=1",
            date,
            address: Some(IpAddr::from([192, 0, 2, 1])),
            request_head: b"GET /a?b=1 HTTP/1.1\r\nHost: example.com\r\n\r\n",
            response_head: b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9\r\n\r\n",
            payload: "<p>你好".as_bytes(),
        })
        .unwrap();
    writer.finish()
}

fn records(file: &[u8]) -> Vec<Record> {
    let mut reader = Reader::new(file).unwrap();
    std::iter::from_fn(|| reader.next_record().unwrap()).collect()
}

#[test]
fn writes_what_the_reader_reads() {
    let records = records(&sample());
    let kinds: Vec<_> = records.iter().map(Record::kind).collect();
    assert_eq!(kinds, [RecordKind::Info, RecordKind::Request, RecordKind::Response]);
    let [_, request, response] = &records[..] else { panic!("{kinds:?}") };
    assert_eq!(response.target_uri(), Some("http://example.com/a?b=1"));
    assert_eq!(request.headers.get("WARC-Concurrent-To"), response.headers.get("WARC-Record-ID"));
    assert_eq!(response.headers.get("WARC-Date"), Some("2025-11-24T16:00:00Z"));
    assert_eq!(response.http().unwrap().raw_body, "<p>你好".as_bytes());
}

/// `warcio check` 1.8 found every digest of this file valid and listed three records.
#[test]
fn writes_the_bytes_that_warcio_accepted() {
    let file = sample();
    let digest = records(&file)[2].headers.get("WARC-Payload-Digest").map(str::to_owned);
    assert_eq!(digest.as_deref(), Some("sha1:FUI6CE4BNPNUPI37D4FVU7E254U6MNCW"));
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&file[..]), &mut unpacked).unwrap();
    assert_eq!(
        blake3::hash(&unpacked).to_hex().as_str(),
        "396f637ee2590d16027133db11ec6bbf83cb10870114450781b3028ea5bc43ac"
    );
}

#[test]
fn packs_each_record_as_a_member_of_its_own() {
    let file = sample();
    let mut rest = &file[..];
    let mut members = 0;
    while !rest.is_empty() {
        let mut member = flate2::bufread::GzDecoder::new(rest);
        let mut unpacked = Vec::new();
        std::io::Read::read_to_end(&mut member, &mut unpacked).unwrap();
        assert!(unpacked.starts_with(b"WARC/1.1\r\n") && unpacked.ends_with(b"\r\n\r\n"));
        rest = member.into_inner();
        members += 1;
    }
    assert_eq!(members, 3);
}

#[test]
fn no_value_can_forge_a_header_line() {
    let date = OffsetDateTime::UNIX_EPOCH;
    let mut writer = Writer::begin(Vec::new(), "a\r\nWARC-Type: response", date, &[]).unwrap();
    let exchange = Exchange {
        uri: "http://example.com/\r\nWARC-Type: metadata",
        date,
        address: None,
        request_head: b"",
        response_head: b"",
        payload: b"",
    };
    writer.exchange(&exchange).unwrap();
    for record in records(&writer.finish()) {
        assert_eq!(record.headers.all("WARC-Type").count(), 1);
    }
}
