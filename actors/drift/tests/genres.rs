//! Real text: sentences of five genres of English. A model trained on one of them, asked for more of
//! the same and for the others.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use sixfold_drift::{Change, DriftOptions, Monitor, Reference};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

const VOCABULARY: usize = 500;
/// Of so many documents the last one is held out.
const HELD_OUT: usize = 4;
/// Tokens of an observation, less than a window.
const OBSERVED: usize = 256;

type Bpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The documents of each genre.
fn genres() -> Option<BTreeMap<String, Vec<String>>> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/drift/text-genres/ewt-dev.jsonl.gz");
    let Ok(content) = std::fs::read(&path) else {
        println!("skipped: {} is not here", path.display());
        return None;
    };
    let mut lines = String::new();
    flate2::read::GzDecoder::new(&content[..]).read_to_string(&mut lines).unwrap();
    let mut genres: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut last = String::new();
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| line[name].as_str().unwrap().to_owned();
        let documents = genres.entry(field("genre")).or_default();
        if std::mem::replace(&mut last, field("doc")) != last || documents.is_empty() {
            documents.push(String::new());
        }
        let document = documents.last_mut().unwrap();
        *document += &field("text");
        document.push('\n');
    }
    Some(genres)
}

fn tokenizer(training: &[&String]) -> Bpe {
    let mut tokenizer = Bpe::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    tokenizer.train(&mut trainer, training.iter().copied()).unwrap();
    tokenizer
}

fn encode(tokenizer: &Bpe, documents: &[&String]) -> Vec<u32> {
    let encoded = documents.iter().map(|text| tokenizer.encode(text.as_str(), false).unwrap());
    encoded.flat_map(|encoding| encoding.get_ids().to_vec()).collect()
}

/// The part of the looks at full windows that find drift, and the alarms.
fn ask(monitor: &Monitor, tokens: &[u32], window: u64) -> (f64, usize) {
    let mut monitor = monitor.clone();
    let (mut looks, mut drift, mut alarms) = (0, 0, 0);
    for part in tokens.chunks_exact(OBSERVED) {
        let counts: Vec<(u32, u64)> = part.iter().map(|token| (*token, 1)).collect();
        monitor.observe("sixfold", &counts).unwrap();
        let (report, change) = monitor.look();
        alarms += usize::from(change == Some(Change::Alarm));
        if report.window_tokens >= window {
            looks += 1;
            drift += usize::from(report.js_distance > report.js_limit);
        }
    }
    (f64::from(drift as u32) / f64::from(looks.max(1)), alarms)
}

#[test]
fn other_genres_alarm_and_the_same_genre_does_not() {
    let Some(genres) = genres() else { return };
    assert_eq!(genres.len(), 5);
    let mut table = BTreeMap::new();
    for (trained_on, documents) in &genres {
        let held_out = |number: usize| number % HELD_OUT == HELD_OUT - 1;
        let split = |wanted: bool| -> Vec<&String> {
            let numbered = documents.iter().enumerate();
            numbered.filter(|(number, _)| held_out(*number) == wanted).map(|(_, text)| text).collect()
        };
        let tokenizer = tokenizer(&split(false));
        let options = DriftOptions { window_tokens: 1024, min_tokens: 1024, ..Default::default() };
        let vocabulary = tokenizer.get_vocab_size(true) as u32;
        let reference = Reference::new(&encode(&tokenizer, &split(false)), vocabulary, &options).unwrap();
        println!("{trained_on}: {:?}", reference.noise);
        let monitor = Monitor::new(options, reference);
        for (asked_for, others) in &genres {
            let texts = if asked_for == trained_on { split(true) } else { others.iter().collect() };
            let (share, alarms) = ask(&monitor, &encode(&tokenizer, &texts), 1024);
            println!("  asked for {asked_for}: drift in {share:.2} of looks, {alarms} alarms");
            table.insert((trained_on.as_str(), asked_for.as_str()), (share, alarms));
        }
    }
    check(&table);
}

/// Reviews are many short texts by many people: the genre whose pieces are most alike. Newsgroups and
/// e-mail, a few long threads each, differ from themselves as much as from others at this size.
fn check(table: &BTreeMap<(&str, &str), (f64, usize)>) {
    for genre in ["reviews", "answers", "weblog"] {
        assert_eq!(table[&(genre, genre)], (0.0, 0), "{genre} alarmed about more {genre}");
    }
    for other in ["answers", "email", "newsgroup", "weblog"] {
        let (share, alarms) = table[&("reviews", other)];
        assert!(share > 0.5 && alarms >= 1, "{other} after reviews: {share}, {alarms} alarms");
    }
}
