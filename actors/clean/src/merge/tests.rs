//! Tests of `merge`.

use super::*;
use crate::clean::{Cleaner, Input};
use crate::corpus::{CorpusFiles, CorpusWriter};
use crate::document::RawDocument;
use crate::quality::Profile;
use crate::segment::{clean_all, pool};

/// Texts of which some repeat others exactly, some nearly, and some are too short.
fn inputs() -> Vec<RawDocument> {
    let words = ["archive", "mirror", "package", "signature", "machine", "server", "volunteer", "release"];
    let text = |seed: usize| {
        let word = |i: usize| words[(seed * 7 + i * i * (seed + 3) + i / 3) % words.len()];
        (0..80).map(|i| format!("{}{}", word(i), (seed * 31 + i * 17) % 97)).collect::<Vec<_>>().join(" ")
    };
    (0..40_usize)
        .map(|n| {
            let text = match n % 8 {
                3 => text(n - 2).to_uppercase(),
                5 => format!("{} also", text(n - 1)),
                6 => "short".to_owned(),
                _ => text(n),
            };
            let url = format!("http://example.org/{n}");
            RawDocument { position: n as u64, url, title: String::new(), text }
        })
        .collect()
}

fn options() -> CleanOptions {
    CleanOptions { profile: Profile::None, ..CleanOptions::default() }
}

/// Cleans segments with that many threads, in the given order of completion, and merges them.
fn corpus(segments: &[Vec<RawDocument>], threads: usize, order: &[usize]) -> (CorpusFiles<Vec<u8>>, Figures) {
    corpus_with(&options(), segments, threads, order)
}

fn corpus_with(
    options: &CleanOptions,
    segments: &[Vec<RawDocument>],
    threads: usize,
    order: &[usize],
) -> (CorpusFiles<Vec<u8>>, Figures) {
    let folder = tempfile::tempdir().unwrap();
    let cleaner = Cleaner::new(options).unwrap();
    let pool = pool(threads).unwrap();
    let path = |number: usize| folder.path().join(format!("{number}.jsonl"));
    for &number in order {
        let mut sink = Vec::new();
        let inputs = segments[number].iter().cloned().map(|raw| Ok(Input::Raw(raw)));
        clean_all(&cleaner, &pool, inputs, &mut sink, &Progress::default()).unwrap();
        std::fs::write(path(number), sink).unwrap();
    }
    let list: Vec<Segment> = (0..segments.len())
        .map(|number| Segment { path: path(number), source_artifact: format!("segment {number}") })
        .collect();
    let files = CorpusFiles { documents: Vec::new(), parquet: Vec::new(), rejected: Vec::new() };
    let mut writer = CorpusWriter::new(files).unwrap();
    let figures = merge(&list, options, &mut writer, &Progress::default()).unwrap();
    (writer.finish().unwrap(), figures)
}

fn split(count: usize) -> Vec<Vec<RawDocument>> {
    inputs().chunks(inputs().len().div_ceil(count)).map(<[_]>::to_vec).collect()
}

#[test]
fn workers_and_their_order_do_not_change_a_byte() {
    let segments = split(5);
    let (first, figures) = corpus(&segments, 1, &[0, 1, 2, 3, 4]);
    assert!(figures.documents_kept > 5 && figures.rejected.len() >= 3, "{figures:?}");
    for (threads, order) in [(2, [4, 2, 0, 3, 1]), (5, [3, 4, 1, 0, 2]), (3, [0, 1, 2, 3, 4])] {
        let (again, _) = corpus(&segments, threads, &order);
        assert!(again.documents == first.documents);
        assert!(again.rejected == first.rejected);
        assert!(again.parquet == first.parquet);
    }
}

#[test]
fn segmentation_does_not_change_what_is_kept() {
    let kept = |count: usize| {
        let order: Vec<usize> = (0..split(count).len()).rev().collect();
        let (files, figures) = corpus(&split(count), 2, &order);
        let lines = String::from_utf8(files.documents).unwrap();
        let ids: Vec<String> =
            lines.lines().map(|line| serde_json::from_str::<Document>(line).unwrap().id).collect();
        (ids, figures)
    };
    let one = kept(1);
    assert_eq!(kept(2), one);
    assert_eq!(kept(5), one);
}

#[test]
fn duplicates_name_the_earlier_document_that_stays() {
    let (files, figures) = corpus(&split(2), 2, &[1, 0]);
    let kept: Vec<Document> = String::from_utf8(files.documents)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let rejected: Vec<Rejected> = String::from_utf8(files.rejected)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(kept.len() + rejected.len(), 40);
    assert_eq!((figures.documents_in, figures.documents_kept), (40, kept.len() as u64));
    let duplicates = [Reason::Fault(Fault::ExactDuplicate), Reason::Fault(Fault::NearDuplicate)];
    for reason in duplicates {
        let of_reason: Vec<&Rejected> =
            rejected.iter().filter(|rejected| rejected.reason == reason).collect();
        assert!(!of_reason.is_empty(), "{reason:?}");
        for duplicate in of_reason {
            let original = kept.iter().find(|document| document.id == duplicate.detail).unwrap();
            assert!(original.url != duplicate.url);
        }
    }
}

#[test]
fn parquet_holds_the_same_documents() {
    use arrow_array::{Array, StringArray};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    let (files, figures) = corpus(&split(2), 2, &[0, 1]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents.parquet");
    std::fs::write(&path, &files.parquet).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let mut ids = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let column =
            batch.column_by_name("id").unwrap().as_any().downcast_ref::<StringArray>().unwrap().clone();
        ids.extend(column.iter().map(|id| id.unwrap().to_owned()));
    }
    let lines = String::from_utf8(files.documents).unwrap();
    let expected: Vec<String> =
        lines.lines().map(|line| serde_json::from_str::<Document>(line).unwrap().id).collect();
    assert_eq!(ids, expected);
    assert_eq!(ids.len() as u64, figures.documents_kept);
}

mod near;
