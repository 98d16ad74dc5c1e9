//! Tests of `tokenizer`.

use std::collections::BTreeSet;
use std::path::Path;

use tokenizers::Trainer;

use super::*;

fn texts() -> Vec<String> {
    let lines = [
        "low lower lowest newer newest widest",
        "the cat sat on the mat",
        "软件包保存在归档中，软件包很多。",
    ];
    lines.iter().cycle().take(30).map(|line| (*line).to_owned()).collect()
}

fn documents(tokenizer: &Tokenizer) -> DocumentEncoder {
    DocumentEncoder::new(tokenizer.clone())
}

#[test]
fn the_same_documents_give_the_same_bytes() {
    let json = |texts| to_json(&train(texts, 320, 2).unwrap()).unwrap();
    let first = json(texts());
    let mut shuffled = texts();
    shuffled.reverse();
    assert_eq!(json(texts()), first);
    assert_eq!(json(shuffled), first);
    assert_ne!(json(texts()[..2].to_vec()), first);
}

#[test]
fn decoding_gives_the_text_back() {
    let tokenizer = train(texts(), 400, 2).unwrap();
    for text in ["the lowest cat", " two  spaces\n\n\ttabs ", "软件包", "unseen: Ω≈ç√ 🦀", "a\u{0}b", ""]
    {
        let ids = documents(&tokenizer).encode(text).unwrap();
        assert_eq!(ids.last(), Some(&0));
        assert_eq!(tokenizer.decode(&ids[..ids.len() - 1], false).unwrap(), text);
    }
}

#[test]
fn special_tokens_come_first_and_never_from_text() {
    let tokenizer = train(texts(), 300, 2).unwrap();
    for (id, token) in SPECIAL_TOKENS.iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
    }
    let ids = documents(&tokenizer).encode("a <|endoftext|> b <|user|>").unwrap();
    assert!(ids[..ids.len() - 1].iter().all(|&id| id >= 4), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids[..ids.len() - 1], false).unwrap(), "a <|endoftext|> b <|user|>");
}

#[test]
fn the_smallest_vocabulary_is_bytes() {
    let tokenizer = train(Vec::new(), VOCABULARY_MIN, 2).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), 260);
    assert_eq!(documents(&tokenizer).encode("中a").unwrap().len(), 5);
    assert!(matches!(train(Vec::new(), 259, 2), Err(CleanError::Options(_))));
}

#[test]
fn stops_where_no_pair_is_frequent_enough() {
    let tokenizer = train(vec!["abab ab".to_owned(), "xy".to_owned()], 1000, 2).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), 261);
}

#[test]
fn loads_in_the_library_unchanged() {
    let json = to_json(&train(texts(), 320, 2).unwrap()).unwrap();
    let again = to_json(&load(json.as_bytes()).unwrap()).unwrap();
    assert_eq!(again, json);
    assert!(matches!(load(b"{}"), Err(CleanError::Tokenizer(_))));
}

/// Counts every pair again at each step: what the incremental counts must equal.
fn plain_merges(words: &[(&str, u64)], steps: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut words: Vec<(Vec<Vec<u8>>, u64)> =
        words.iter().map(|(word, count)| (word.bytes().map(|byte| vec![byte]).collect(), *count)).collect();
    let mut merges = Vec::new();
    for _ in 0..steps {
        let mut counts = std::collections::BTreeMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *counts.entry((pair[0].clone(), pair[1].clone())).or_insert(0) += count;
            }
        }
        let Some((pair, _)) = counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(&b.0)))
        else {
            break;
        };
        for (word, _) in &mut words {
            let mut at = 0;
            while at + 1 < word.len() {
                if word[at] == pair.0 && word[at + 1] == pair.1 {
                    let right = word.remove(at + 1);
                    word[at].extend(right);
                }
                at += 1;
            }
        }
        merges.push(pair);
    }
    merges
}

/// The merges of a trained model, as bytes.
fn merges_of(trainer: &MergeTrainer) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut model = BPE::default();
    trainer.train(&mut model).unwrap();
    let json = serde_json::to_value(&model).unwrap();
    let characters = merges::byte_characters();
    let byte = |c: char| characters.iter().position(|&other| other == c).unwrap() as u8;
    let bytes = |value: &serde_json::Value| value.as_str().unwrap().chars().map(byte).collect::<Vec<u8>>();
    let merges = json["merges"].as_array().unwrap();
    merges.iter().map(|pair| (bytes(&pair[0]), bytes(&pair[1]))).collect()
}

fn trainer_on(words: &[(&str, u64)], vocabulary: usize) -> MergeTrainer {
    let mut trainer = MergeTrainer::new(vocabulary, 1, Vec::new());
    let sequences: Vec<String> = words
        .iter()
        .flat_map(|(word, count)| std::iter::repeat_n((*word).to_owned(), *count as usize))
        .collect();
    trainer.feed(sequences.into_iter(), |word| Ok(vec![word.to_owned()])).unwrap();
    trainer
}

proptest::proptest! {
    #[test]
    fn equals_counting_anew_at_each_step(
        words in proptest::collection::btree_map("[a-c]{1,9}", 1_u64..5, 1..12),
        steps in 1_usize..20,
    ) {
        let words: Vec<(&str, u64)> = words.iter().map(|(word, count)| (word.as_str(), *count)).collect();
        let merges = merges_of(&trainer_on(&words, 256 + steps));
        let expected = plain_merges(&words, merges.len());
        proptest::prop_assert_eq!(merges, expected);
    }
}

#[test]
fn equals_the_reference_training_run() {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/serving/bpe-train-reference");
    let Ok(corpus) = std::fs::read_to_string(folder.join("corpus.en")) else {
        println!("skipped: {} is not here", folder.display());
        return;
    };
    let byte_level = ByteLevel::new(false, false, true);
    let mut trained = Trained::new(BPE::default());
    trained.with_pre_tokenizer(Some(byte_level));
    let specials = vec![AddedToken::from(END_OF_TEXT, true)];
    let mut trainer = MergeTrainer::new(500, 1, specials);
    let parts: Vec<&str> = corpus.split(END_OF_TEXT).collect();
    trained.train(&mut trainer, parts.into_iter()).unwrap();

    let json = serde_json::to_value(trained.get_model()).unwrap();
    let merges = json["merges"].as_array().unwrap();
    let written: Vec<String> = merges
        .iter()
        .map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    let reference = std::fs::read_to_string(folder.join("train-bpe-reference-merges.txt")).unwrap();
    assert_eq!(written.join("\n"), reference.trim_end());

    let reference: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("train-bpe-reference-vocab.json")).unwrap())
            .unwrap();
    let names =
        |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&json["vocab"]), names(&reference));
}
