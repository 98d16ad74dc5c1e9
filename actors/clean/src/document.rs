//! Documents on their way through the stages, one JSON object a line.
//!
//! [`RawDocument`] is what an import makes, [`Candidate`] what the map phase of a clean stage makes of
//! a page or a raw document, [`Document`] a line of a corpus, [`Rejected`] a line of what was left out.

use std::io::{self, BufRead, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pii::Mask;
use crate::quality::Rule;
use crate::signature::Signature;

/// Longer lines are refused, so that a hostile file cannot exhaust memory.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// A text with its origin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawDocument {
    /// Its place in its source, from 0.
    #[serde(default)]
    pub position: u64,
    /// Where it comes from.
    pub url: String,
    /// Its title, empty where it has none.
    #[serde(default)]
    pub title: String,
    /// The text.
    pub text: String,
}

/// What was made of a page. Rejected candidates are kept, with the reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its place in its segment, from 0.
    pub position: u64,
    /// The page's address.
    pub url: String,
    /// The page's title, empty where it has none.
    pub title: String,
    /// The clean text.
    pub text: String,
    /// BCP 47 tag.
    pub language: String,
    /// 0 to 1.
    pub language_confidence: f64,
    /// Charset that the page was decoded from; `UTF-8` for imported text.
    pub charset: String,
    /// Characters of the text.
    pub chars: u64,
    /// Words of the text, punctuation not counted.
    pub words: u64,
    /// What was masked in the text.
    pub masks: Vec<Mask>,
    /// By which duplicates are found.
    pub signature: Signature,
    /// Why it is not to be kept.
    pub rejection: Option<Rejection>,
}

/// Why a document is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejection {
    /// The first reason that was found.
    pub reason: Reason,
    /// The value and the limit, or the document that it repeats.
    pub detail: String,
}

/// A reason for leaving a document out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reason {
    /// It is no text that could be used.
    Fault(Fault),
    /// A quality rule is broken.
    Rule(Rule),
}

/// Reasons other than quality rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Neither HTML nor plain text.
    MediaType,
    /// More bytes than the options allow, or a body that cannot be decoded.
    Unreadable,
    /// Too many characters that the charset does not have.
    GarbledText,
    /// Cleaning it failed twice.
    Poison,
    /// Nothing is left of it.
    NoText,
    /// Not one of the wanted languages.
    Language,
    /// The same letters and digits as an earlier document.
    ExactDuplicate,
    /// Nearly the same as an earlier document.
    NearDuplicate,
}

impl Reason {
    /// The reason's name in figures and files.
    pub fn name(self) -> String {
        let json = serde_json::to_value(self).unwrap_or_default();
        json.as_str().unwrap_or_default().to_owned()
    }
}

/// A line of a corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// A hash of address and text; the same document has the same id in every run.
    pub id: String,
    /// Where it comes from.
    pub url: String,
    /// Its title, empty where it has none.
    pub title: String,
    /// The clean text.
    pub text: String,
    /// BCP 47 tag.
    pub language: String,
    /// 0 to 1.
    pub language_confidence: f64,
    /// Characters of the text.
    pub chars: u64,
    /// Words of the text, punctuation not counted.
    pub words: u64,
    /// What was masked in the text.
    pub masks: Vec<Mask>,
    /// The artefact that it was read from.
    pub source_artifact: String,
    /// Its place in that artefact.
    pub source_position: u64,
}

/// A line of what was left out of a corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejected {
    /// As in [`Document`].
    pub id: String,
    /// Where it comes from.
    pub url: String,
    /// Why.
    pub reason: Reason,
    /// The value and the limit, or the id of the document that it repeats.
    pub detail: String,
    /// BCP 47 tag.
    pub language: String,
    /// What was left of its text when it was rejected.
    pub text: String,
    /// The artefact that it was read from.
    pub source_artifact: String,
    /// Its place in that artefact.
    pub source_position: u64,
}

/// The id of a document: 32 hex digits of the BLAKE3 hash of address and text.
pub fn document_id(url: &str, text: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(url.len() as u64).to_le_bytes()).update(url.as_bytes()).update(text.as_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}

/// Writes one line.
///
/// # Errors
/// Where `sink` does not take it.
pub fn write_line<T: Serialize>(sink: &mut impl Write, value: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *sink, value)?;
    sink.write_all(b"\n")
}

/// Reads lines one after the other.
pub fn read_lines<T: DeserializeOwned>(mut source: impl BufRead) -> impl Iterator<Item = io::Result<T>> {
    let mut line = Vec::new();
    let mut number = 0_u64;
    std::iter::from_fn(move || {
        line.clear();
        number += 1;
        match (&mut source).take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) if line.last() != Some(&b'\n') && line.len() as u64 == LINE_BYTES_MAX => {
                Some(Err(io::Error::other(format!("line {number} has more than {LINE_BYTES_MAX} bytes"))))
            }
            Ok(_) => Some(serde_json::from_slice(&line).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("line {number}: {error}"))
            })),
            Err(error) => Some(Err(error)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_plain_names() {
        let reasons = [Reason::Fault(Fault::NearDuplicate), Reason::Rule(Rule::Top2GramMax)];
        assert_eq!(reasons.map(Reason::name), ["near_duplicate", "top_2_gram_max"]);
        for reason in reasons {
            let json = serde_json::to_string(&reason).unwrap();
            assert_eq!(serde_json::from_str::<Reason>(&json).unwrap(), reason);
        }
        assert!(serde_json::from_str::<Reason>("\"whim\"").is_err());
    }

    #[test]
    fn says_which_line_is_broken() {
        let file = b"{\"position\":0,\"url\":\"u\",\"text\":\"t\"}\n{\"url\":1}\n";
        let lines: Vec<io::Result<RawDocument>> = read_lines(&file[..]).collect();
        assert_eq!(lines[0].as_ref().unwrap().text, "t");
        assert!(lines[1].as_ref().unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn ids_depend_on_address_and_text() {
        assert_eq!(document_id("a", "b"), document_id("a", "b"));
        assert_ne!(document_id("ab", "c"), document_id("a", "bc"));
        assert_eq!(document_id("a", "b").len(), 32);
    }
}
