//! Tests of `tokens`.

use std::fs;

use proptest::prelude::*;

use super::super::{ShardEntry, TokenWriter, boundaries_file, encode_boundaries, shard_file};
use super::*;

/// Writes documents as a split of shards of `shard_documents` documents each.
fn write(folder: &Path, split: &str, vocabulary: u32, documents: &[Vec<u32>], shard_documents: usize) {
    let mut shards = Vec::new();
    for (number, part) in documents.chunks(shard_documents).enumerate() {
        let mut writer = TokenWriter::new(Vec::new(), vocabulary);
        part.iter().for_each(|document| writer.push(document).unwrap());
        let (bytes, tokens) = writer.finish().unwrap();
        let file = shard_file(split, number);
        fs::write(folder.join(&file), bytes).unwrap();
        shards.push(ShardEntry { file, tokens });
    }
    let mut boundaries = vec![0];
    documents.iter().for_each(|document| boundaries.push(boundaries.last().unwrap() + document.len() as u64));
    fs::write(folder.join(boundaries_file(split)), encode_boundaries(&boundaries)).unwrap();
    let index = TokenIndex::new(split, vocabulary, documents.len() as u64, shards);
    fs::write(folder.join(index_file(split)), index.encode().unwrap()).unwrap();
}

fn small() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "train", 300, &[vec![1, 2, 3], vec![], vec![299], vec![4, 5]], 2);
    folder
}

#[test]
fn a_mask_has_a_bit_for_each_token_and_its_length_is_checked() {
    let folder = small();
    assert!(!TokenShards::open(folder.path(), "train").unwrap().is_masked());
    let path = |name: &str| folder.path().join(name);
    let index = TokenIndex::decode(&fs::read(path("train.idx.json")).unwrap()).unwrap().with_mask("train");
    fs::write(path("train.idx.json"), index.encode().unwrap()).unwrap();
    let mut bits = MaskBits::default();
    [false, true, true, false, false, true].into_iter().for_each(|bit| bits.push(bit));
    fs::write(path("train.mask.bin"), bits.bytes()).unwrap();
    let shards = TokenShards::open(folder.path(), "train").unwrap();
    assert!(shards.is_masked());
    let learned: Vec<u64> = (0..8).filter(|&token| shards.is_learned(token)).collect();
    assert_eq!(learned, [1, 2, 5]);
    fs::write(path("train.mask.bin"), [0, 0]).unwrap();
    let error = TokenShards::open(folder.path(), "train").unwrap_err();
    assert!(matches!(error, TokensError::Length { found: 2, expected: 1, .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_range_reads_back_across_shards(
        wide: bool,
        documents in prop::collection::vec(prop::collection::vec(0_u32..60_000, 0..20), 0..30),
        shard_documents in 1_usize..8,
        ends in (0.0_f64..=1.0, 0.0_f64..=1.0),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = if wide { 100_000 } else { 60_000 };
        write(folder.path(), "train", vocabulary, &documents, shard_documents);
        let shards = TokenShards::open(folder.path(), "train").unwrap();
        let all: Vec<u32> = documents.concat();
        prop_assert_eq!(shards.len(), all.len() as u64);
        let (a, b) = ((ends.0 * all.len() as f64) as usize, (ends.1 * all.len() as f64) as usize);
        let range = a.min(b)..a.max(b);
        prop_assert_eq!(shards.get(range.start as u64..range.end as u64).unwrap(), &all[range]);
        let mut token = 0;
        for (number, document) in documents.iter().enumerate() {
            let range = shards.document(number as u64).unwrap();
            prop_assert_eq!(&shards.get(range).unwrap(), document);
            for _ in document {
                prop_assert_eq!(shards.document_at(token), Some(number as u64));
                token += 1;
            }
        }
        prop_assert_eq!(shards.document_at(token), None);
        prop_assert_eq!(shards.document(documents.len() as u64), None);
    }

    #[test]
    fn damaged_files_never_panic(file in 0_usize..4, at in 0_usize..400, value: u8, cut in 0_usize..40) {
        let folder = small();
        let names = ["train.idx.json", "train.boundaries.bin", "train-00000.bin", "train-00001.bin"];
        let path = folder.path().join(names[file]);
        let mut bytes = fs::read(&path).unwrap();
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.truncate(bytes.len().saturating_sub(cut));
        fs::write(&path, bytes).unwrap();
        if let Ok(shards) = TokenShards::open(folder.path(), "train") {
            let _ = shards.get(0..shards.len());
            for number in 0..shards.documents().min(10) {
                let _ = shards.document(number).map(|range| shards.get(range));
            }
        }
    }
}

#[test]
fn refuses_ranges_beyond_the_end() {
    let folder = small();
    let shards = TokenShards::open(folder.path(), "train").unwrap();
    for range in [0..7, 6..7, 7..7, u64::MAX - 1..u64::MAX] {
        assert!(matches!(shards.get(range), Err(TokensError::OutOfRange { .. })));
    }
    assert!(shards.copy_to(u64::MAX, &mut [0; 4]).is_err());
    assert_eq!(shards.get(6..6).unwrap(), [0_u32; 0]);
}

#[test]
fn refuses_a_shard_of_another_length() {
    let folder = small();
    fs::write(folder.path().join("train-00001.bin"), [0; 5]).unwrap();
    let error = TokenShards::open(folder.path(), "train").unwrap_err();
    assert!(matches!(error, TokensError::Length { found: 5, expected: 6, .. }), "{error}");
}

#[test]
fn refuses_ids_outside_the_vocabulary() {
    let folder = small();
    fs::write(folder.path().join("train-00000.bin"), [1, 0, 44, 1, 3, 0]).unwrap();
    let shards = TokenShards::open(folder.path(), "train").unwrap();
    let error = shards.get(0..3).unwrap_err();
    assert!(matches!(error, TokensError::OutOfVocabulary { token: 300, position: 1, .. }), "{error}");
    assert_eq!(shards.get(2..4).unwrap(), [3, 299]);
    let mut writer = TokenWriter::new(Vec::new(), 300);
    assert!(writer.push(&[1, 300]).is_err());
    assert_eq!(writer.finish().unwrap(), (vec![], 0));
}

#[test]
fn refuses_names_that_lead_out_of_the_folder() {
    let folder = small();
    let path = folder.path().join("train.idx.json");
    let index = fs::read_to_string(&path).unwrap().replace("train-00001.bin", "../secret");
    fs::write(&path, index).unwrap();
    assert!(matches!(TokenShards::open(folder.path(), "train"), Err(TokensError::FileName { .. })));
}

#[test]
fn refuses_an_index_that_contradicts_itself() {
    let cases = [
        ("\"tokens\": 6", "\"tokens\": 7", "add up"),
        ("\"version\": 1", "\"version\": 2", "version 2"),
        ("\"vocabulary\": 300", "\"vocabulary\": 70000", "does not fit"),
        ("\"documents\": 4", "\"documents\": 18446744073709551615", "promises"),
    ];
    for (from, to, words) in cases {
        let folder = small();
        let path = folder.path().join("train.idx.json");
        let index = fs::read_to_string(&path).unwrap();
        assert!(index.contains(from));
        fs::write(&path, index.replace(from, to)).unwrap();
        let error = TokenShards::open(folder.path(), "train").unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn refuses_boundaries_that_go_back() {
    let folder = small();
    fs::write(folder.path().join("train.boundaries.bin"), encode_boundaries(&[0, 3, 2, 4, 6])).unwrap();
    assert!(matches!(TokenShards::open(folder.path(), "train"), Err(TokensError::Inconsistent(_))));
}

#[test]
fn opens_a_split_of_an_artefact() {
    let folder = small();
    let store = Store::open(folder.path().join("store")).unwrap();
    let mut manifest = crate::Manifest::new("tokens", "tokenize");
    for name in ["train.idx.json", "train.boundaries.bin", "train-00000.bin", "train-00001.bin"] {
        manifest.files.push(store.put(name, &fs::read(folder.path().join(name)).unwrap()).unwrap());
    }
    let id = store.publish(&manifest).unwrap();
    let shards = TokenShards::from_artifact(&store, id, "train").unwrap();
    assert_eq!(shards.get(0..6).unwrap(), [1, 2, 3, 299, 4, 5]);
    assert!(matches!(TokenShards::from_artifact(&store, id, "held-out"), Err(TokensError::Store(_))));
}
