//! Tests of `clean`.

use std::time::{Duration, Instant};

use super::*;
use crate::quality::{Profile, Rule};

fn cleaner(change: impl FnOnce(&mut CleanOptions)) -> Cleaner {
    let mut options = CleanOptions { profile: Profile::None, ..CleanOptions::default() };
    change(&mut options);
    Cleaner::new(&options).unwrap()
}

fn page(body: impl Into<Vec<u8>>) -> Input {
    Input::Page(Page {
        position: 7,
        url: "http://example.org/page".to_owned(),
        content_type: Some("text/html; charset=utf-8".to_owned()),
        body: Ok(body.into()),
    })
}

fn raw(text: &str) -> Input {
    Input::Raw(RawDocument {
        position: 1,
        url: "file:a".to_owned(),
        title: String::new(),
        text: text.to_owned(),
    })
}

const ENGLISH: &str = "The packages are kept in an archive from which every machine fetches what it needs.";

fn fault(candidate: &Candidate) -> Option<Fault> {
    match candidate.rejection.as_ref().map(|rejection| rejection.reason) {
        Some(Reason::Fault(fault)) => Some(fault),
        _ => None,
    }
}

#[test]
fn makes_a_candidate_of_a_page() {
    let html =
        format!("<title>T</title><article><p>{ENGLISH}</p><p>Write to a@b.org about it.</p></article>");
    let candidate = cleaner(|_| ()).clean(&page(html));
    assert_eq!(candidate.rejection, None);
    assert_eq!((candidate.position, candidate.language.as_str(), candidate.title.as_str()), (7, "en", "T"));
    assert!(candidate.text.contains("[EMAIL]") && candidate.text.starts_with(ENGLISH), "{}", candidate.text);
    assert_eq!(candidate.masks.len(), 1);
    assert_eq!(candidate.chars, candidate.text.chars().count() as u64);
}

#[test]
fn records_why_a_page_is_rejected() {
    let cleaner = cleaner(|options| {
        options.languages = vec!["zh".to_owned()];
        options.page_bytes_max = 10_000;
    });
    let mut other = page("%PDF");
    let Input::Page(pdf) = &mut other else { unreachable!() };
    pdf.content_type = Some("application/pdf".to_owned());
    assert_eq!(fault(&cleaner.clean(&other)), Some(Fault::MediaType));
    assert_eq!(fault(&cleaner.clean(&page(vec![b'a'; 10_001]))), Some(Fault::Unreadable));
    assert_eq!(fault(&cleaner.clean(&page("<p> </p>"))), Some(Fault::NoText));
    assert_eq!(fault(&cleaner.clean(&raw(ENGLISH))), Some(Fault::Language));
    assert_eq!(
        cleaner.clean(&raw(&"软件包保存在归档中，每台机器都从那里获取所需的内容。".repeat(3))).rejection,
        None
    );
    let short = cleaner.clean(&raw("软件包保存在归档中。"));
    assert_eq!(short.rejection.unwrap().reason, Reason::Rule(Rule::CharsMin));
}

#[test]
fn converts_traditional_chinese_only_when_asked_and_only_chinese() {
    let traditional = "這個軟體的發行版由志願者維護，它們會在網路上發佈。".repeat(3);
    let kept = cleaner(|_| ()).clean(&raw(&traditional));
    assert_eq!((kept.language.as_str(), &kept.text), ("zh-Hant", &traditional));
    let simplify = cleaner(|options| options.simplify = true);
    let converted = simplify.clean(&raw(&traditional));
    assert_eq!(converted.language, "zh-Hans");
    assert!(converted.text.starts_with("这个软体的发行版由志愿者维护"), "{}", converted.text);
    let japanese = "この発行版はボランティアが維持し、網路で発表している。關係者へ。".repeat(3);
    assert_eq!(simplify.clean(&raw(&japanese)).text, japanese);
}

#[test]
fn survives_poison_in_bounded_time() {
    let cleaner = cleaner(|options| options.page_bytes_max = 64 << 20);
    let text = format!("<p>{ENGLISH}</p>");
    let poison: Vec<Vec<u8>> = vec![
        ["<div>".repeat(1_000_000).into_bytes(), text.clone().into_bytes()].concat(),
        ["<b><a href=x>".repeat(300_000).into_bytes(), text.clone().into_bytes()].concat(),
        ["<table><tr><td>".repeat(200_000).into_bytes(), text.clone().into_bytes()].concat(),
        [b"<p>\xff\xfe\xc3\x28\0\0\0".to_vec(), text.clone().into_bytes()].concat(),
        ["\0".repeat(100_000).into_bytes(), text.clone().into_bytes()].concat(),
        format!("<img {}>{text}", "a".repeat(3_000_000)).into_bytes(),
        format!("<a {}>{text}", (0..200_000).map(|n| format!("a{n} ")).collect::<String>()).into_bytes(),
        [text.into_bytes(), "<!--".repeat(500_000).into_bytes()].concat(),
        "<script>".repeat(300_000).into_bytes(),
        (0..=255).cycle().take(300_000).collect(),
    ];
    let thread = std::thread::Builder::new().stack_size(64 << 20);
    let worker = move || {
        for (number, body) in poison.into_iter().enumerate() {
            let begin = Instant::now();
            let candidate = cleaner.clean(&page(body));
            let time = begin.elapsed();
            assert!(time < Duration::from_secs(10), "poison {number} took {time:?}");
            assert_eq!(candidate.position, 7);
        }
    };
    thread.spawn(worker).unwrap().join().unwrap();
}

#[test]
fn refuses_options_out_of_range() {
    for json in [
        r#"{"near_duplicate_bits":4}"#,
        r#"{"language_confidence_min":1.5}"#,
        r#"{"near_duplicate_overlap":-0.1}"#,
    ] {
        let options: CleanOptions = serde_json::from_str(json).unwrap();
        assert!(matches!(Cleaner::new(&options), Err(CleanError::Options(_))));
    }
}
