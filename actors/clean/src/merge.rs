//! The reduce phase: candidates of all segments, in order, to a corpus without duplicates.
//!
//! Two passes over the candidates. The first holds one signature a document and finds duplicates;
//! the second writes. The result depends on the segments and their order alone.

use std::io::BufReader;
use std::path::PathBuf;

use crate::corpus::CorpusSink;
use crate::document::{Candidate, Document, Fault, Reason, Rejected, Rejection, document_id, read_lines};
use crate::duplicates::{Finder, Nearness, Verdict};
use crate::error::CleanError;
use crate::figures::Figures;
use crate::options::CleanOptions;
use crate::progress::Progress;

/// Documents between two looks at whether to stop.
const CHECK_EVERY: u64 = 512;

/// The candidates of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Their file.
    pub path: PathBuf,
    /// The artefact that they were made from: a WARC segment, an import.
    pub source_artifact: String,
}

impl Segment {
    fn candidates(
        &self,
    ) -> Result<impl Iterator<Item = Result<Candidate, CleanError>> + use<'_>, CleanError> {
        let file = std::fs::File::open(&self.path)
            .map_err(|source| CleanError::File { path: self.path.clone(), source })?;
        let lines = read_lines(BufReader::with_capacity(1 << 18, file));
        Ok(lines.map(|line| {
            line.map_err(|error| CleanError::Input {
                artifact: self.source_artifact.clone(),
                reason: error.to_string(),
            })
        }))
    }
}

/// Writes the corpus of `segments` to `sink` and returns its figures.
///
/// # Errors
/// The first candidate that cannot be read or document that cannot be written, or
/// [`CleanError::Cancelled`].
pub fn merge(
    segments: &[Segment],
    options: &CleanOptions,
    sink: &mut impl CorpusSink,
    progress: &Progress,
) -> Result<Figures, CleanError> {
    let verdicts = find_duplicates(segments, options)?;
    let mut figures = Figures::default();
    let mut ids = Vec::with_capacity(verdicts.len());
    for segment in segments {
        for candidate in segment.candidates()? {
            let mut candidate = candidate?;
            let id = document_id(&candidate.url, &candidate.text);
            if candidate.rejection.is_none() {
                candidate.rejection = repeated(verdicts[ids.len()], &ids);
                ids.push(id.clone());
            }
            figures.count(&candidate);
            write(candidate, id, &segment.source_artifact, sink)?;
            if figures.documents_in.is_multiple_of(CHECK_EVERY) {
                progress.check()?;
                progress.add(CHECK_EVERY, 0);
            }
        }
    }
    Ok(figures)
}

/// A verdict on each candidate that was not rejected before, in order.
fn find_duplicates(segments: &[Segment], options: &CleanOptions) -> Result<Vec<Verdict>, CleanError> {
    let mut finder = Finder::default();
    for segment in segments {
        for candidate in segment.candidates()? {
            let candidate = candidate?;
            if candidate.rejection.is_none() {
                finder.add(candidate.signature, &candidate.language);
            }
        }
    }
    let near = Nearness { distance: options.near_duplicate_bits, overlap: options.near_duplicate_overlap };
    Ok(finder.find(options.exact_duplicates, options.near_duplicates.then_some(near)))
}

fn repeated(verdict: Verdict, ids: &[String]) -> Option<Rejection> {
    let (fault, of) = match verdict {
        Verdict::Unique => return None,
        Verdict::Exact { of } => (Fault::ExactDuplicate, of),
        Verdict::Near { of } => (Fault::NearDuplicate, of),
    };
    Some(Rejection { reason: Reason::Fault(fault), detail: ids[of].clone() })
}

fn write(
    candidate: Candidate,
    id: String,
    source_artifact: &str,
    sink: &mut impl CorpusSink,
) -> Result<(), CleanError> {
    let source_artifact = source_artifact.to_owned();
    match candidate.rejection {
        Some(rejection) => sink.rejected(Rejected {
            id,
            url: candidate.url,
            reason: rejection.reason,
            detail: rejection.detail,
            language: candidate.language,
            text: candidate.text,
            source_artifact,
            source_position: candidate.position,
        }),
        None => sink.document(Document {
            id,
            url: candidate.url,
            title: candidate.title,
            text: candidate.text,
            language: candidate.language,
            language_confidence: candidate.language_confidence,
            chars: candidate.chars,
            words: candidate.words,
            masks: candidate.masks,
            source_artifact,
            source_position: candidate.position,
        }),
    }
}

#[cfg(test)]
mod tests;
