//! What a clean stage counted: its metrics and the numbers of its data card.

use std::collections::BTreeMap;

use sixfold_cluster::task::Metrics;

use crate::document::{Candidate, Fault, Reason};
use crate::pii::MaskKind;

/// Characters of a text that stand for it.
const SAMPLE_CHARS: usize = 240;

/// One document that stands for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Where it comes from.
    pub url: String,
    /// The beginning of its text, or why it was rejected.
    pub words: String,
}

/// Counts over a corpus and what was left out of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Candidates.
    pub documents_in: u64,
    /// Candidates that are documents of the corpus.
    pub documents_kept: u64,
    /// Characters of these.
    pub chars: u64,
    /// Words of these.
    pub words: u64,
    /// Rejected candidates by reason.
    pub rejected: BTreeMap<Reason, u64>,
    /// Masks in kept documents by kind.
    pub masks: BTreeMap<MaskKind, u64>,
    /// Kept documents by language.
    pub languages: BTreeMap<String, u64>,
    /// Kept documents by host, or by file where they were imported.
    pub hosts: BTreeMap<String, u64>,
    /// Kept documents by length: at `n` those of at least 2^n and less than 2^(n+1) characters.
    pub lengths: BTreeMap<u32, u64>,
    /// The first kept document of each language.
    pub samples: BTreeMap<String, Sample>,
    /// The first rejected document of each reason.
    pub refusals: BTreeMap<Reason, Sample>,
}

impl Figures {
    /// Counts a candidate.
    pub fn count(&mut self, candidate: &Candidate) {
        self.documents_in += 1;
        if let Some(rejection) = &candidate.rejection {
            *self.rejected.entry(rejection.reason).or_default() += 1;
            let refusal = || Sample::of(&candidate.url, &rejection.detail);
            self.refusals.entry(rejection.reason).or_insert_with(refusal);
            return;
        }
        self.documents_kept += 1;
        self.chars += candidate.chars;
        self.words += candidate.words;
        for mask in &candidate.masks {
            *self.masks.entry(mask.kind).or_default() += 1;
        }
        *self.languages.entry(candidate.language.clone()).or_default() += 1;
        let sample = || Sample::of(&candidate.url, &candidate.text);
        self.samples.entry(candidate.language.clone()).or_insert_with(sample);
        *self.hosts.entry(host(&candidate.url)).or_default() += 1;
        *self.lengths.entry(candidate.chars.max(1).ilog2()).or_default() += 1;
    }

    /// Candidates that are not documents of the corpus.
    pub fn documents_rejected(&self) -> u64 {
        self.documents_in - self.documents_kept
    }

    /// The stage's metrics: totals, `rejected_<reason>` and `masked_<kind>`.
    pub fn metrics(&self) -> Metrics {
        let rejected_for = |fault| self.rejected.get(&Reason::Fault(fault)).copied().unwrap_or(0);
        let totals = [
            ("documents_in", self.documents_in),
            ("documents_kept", self.documents_kept),
            ("documents_rejected", self.documents_rejected()),
            ("duplicates", rejected_for(Fault::ExactDuplicate) + rejected_for(Fault::NearDuplicate)),
            ("masks", self.masks.values().sum()),
            ("chars", self.chars),
            ("words", self.words),
        ];
        let mut metrics: Metrics = totals.map(|(name, count)| (name.to_owned(), count.into())).into();
        let rejected =
            self.rejected.iter().map(|(reason, &count)| (format!("rejected_{}", reason.name()), count));
        let masked = self.masks.iter().map(|(kind, &count)| (format!("masked_{}", kind.name()), count));
        metrics.extend(rejected.chain(masked).map(|(name, count)| (name, count.into())));
        metrics
    }
}

impl Sample {
    fn of(url: &str, words: &str) -> Self {
        let end = words.char_indices().nth(SAMPLE_CHARS);
        let words = end.map_or_else(|| words.to_owned(), |(end, _)| format!("{}…", &words[..end]));
        Self { url: url.to_owned(), words }
    }
}

/// The host of an address; the file of an imported document.
fn host(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(parsed) => match parsed.host_str() {
            Some(host) => host.to_owned(),
            None => parsed.path().to_owned(),
        },
        Err(_) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hosts_and_files() {
        assert_eq!(host("https://Example.org:8080/a?b"), "example.org");
        assert_eq!(host("file:book.txt#3"), "/book.txt");
        assert_eq!(host("not an address"), "unknown");
    }
}
