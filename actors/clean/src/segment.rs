//! The map phase: all inputs of one artefact to candidates, in order, on several threads.
//!
//! The result depends on the artefact and the options alone: threads take inputs of a batch in any
//! order, but candidates leave in the order of the inputs.

use std::io::{self, BufRead, Write};

use rayon::prelude::*;
use sixfold_warc::{DecodeLimits, HttpMessage, Reader, Record, RecordKind};

use crate::clean::{Cleaner, Input, Page};
use crate::document::{Candidate, RawDocument, read_lines, write_line};
use crate::error::CleanError;
use crate::progress::Progress;

/// Inputs and bytes of a batch: enough for the threads to share, little enough to hold.
const BATCH_INPUTS: usize = 128;
const BATCH_BYTES: usize = 64 << 20;

/// Pages unfold up to this many times; markup seldom packs better.
const UNFOLD_RATIO_MAX: usize = 200;

/// Tree builders and their destructors recurse; nesting is bounded, and this is ample for the bound.
const STACK_BYTES: usize = 64 << 20;

/// Threads for a task's pure work.
///
/// # Errors
/// [`CleanError::Output`] where the system gives no threads.
pub fn pool(threads: usize) -> Result<rayon::ThreadPool, CleanError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(STACK_BYTES)
        .thread_name(|number| format!("clean-{number}"))
        .build()
        .map_err(|error| CleanError::Output { what: "a pool of threads", reason: error.to_string() })
}

/// Cleans inputs and writes their candidates to `sink`, one a line. Returns how many there were.
///
/// # Errors
/// The first error of `inputs` or `sink`, or [`CleanError::Cancelled`].
pub fn clean_all(
    cleaner: &Cleaner,
    pool: &rayon::ThreadPool,
    inputs: impl Iterator<Item = Result<Input, CleanError>>,
    sink: &mut impl Write,
    progress: &Progress,
) -> Result<u64, CleanError> {
    let mut inputs = inputs.peekable();
    let mut count = 0;
    while inputs.peek().is_some() {
        progress.check()?;
        let batch = next_batch(&mut inputs)?;
        let candidates: Vec<Candidate> =
            pool.install(|| batch.par_iter().map(|input| cleaner.clean(input)).collect());
        for candidate in &candidates {
            write_line(sink, candidate).map_err(CleanError::output("documents"))?;
        }
        count += candidates.len() as u64;
        progress.add(candidates.len() as u64, 0);
    }
    Ok(count)
}

fn next_batch(
    inputs: &mut impl Iterator<Item = Result<Input, CleanError>>,
) -> Result<Vec<Input>, CleanError> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < BATCH_INPUTS && bytes < BATCH_BYTES {
        let Some(input) = inputs.next().transpose()? else { break };
        bytes += match &input {
            Input::Page(page) => page.body.as_ref().map_or(0, Vec::len),
            Input::Raw(raw) => raw.text.len(),
        };
        batch.push(input);
    }
    Ok(batch)
}

/// The pages of a WARC file: successful responses and resources. Requests, redirects, errors and
/// `robots.txt` are the crawl's business and are passed over. Their places are left at 0.
pub fn pages<R: BufRead>(
    reader: R,
    page_bytes_max: usize,
    damaged: impl Fn(String) -> CleanError,
) -> Result<impl Iterator<Item = Result<Input, CleanError>>, CleanError> {
    let mut reader = Reader::new(reader).map_err(|error| damaged(error.to_string()))?;
    Ok(std::iter::from_fn(move || {
        loop {
            match reader.next_record() {
                Ok(None) => return None,
                Err(error) => return Some(Err(damaged(error.to_string()))),
                Ok(Some(record)) => {
                    if let Some(page) = page_of(&record, page_bytes_max) {
                        return Some(Ok(Input::Page(page)));
                    }
                }
            }
        }
    }))
}

fn page_of(record: &Record, page_bytes_max: usize) -> Option<Page> {
    let url = record.target_uri()?.to_owned();
    if !url.starts_with("http") || url.ends_with("/robots.txt") {
        return None;
    }
    match record.kind() {
        RecordKind::Resource => Some(Page {
            position: 0,
            url,
            content_type: record.headers.get("Content-Type").map(str::to_owned),
            body: Ok(record.block.clone()),
        }),
        RecordKind::Response => {
            let message = record.http().ok().filter(|message| message.status() == Some(200))?;
            let content_type = message.headers.get("content-type").map(str::to_owned);
            Some(Page { position: 0, url, content_type, body: body_of(record, &message, page_bytes_max) })
        }
        _ => None,
    }
}

fn body_of(record: &Record, message: &HttpMessage<'_>, bytes_max: usize) -> Result<Vec<u8>, String> {
    if record.cut {
        return Err("the record is too long".to_owned());
    }
    let limits = DecodeLimits { bytes_max, ratio_max: UNFOLD_RATIO_MAX };
    message.body(limits).map_err(|error| error.to_string())
}

/// The documents of an import.
pub fn raw_documents<R: BufRead>(
    reader: R,
    damaged: impl Fn(String) -> CleanError,
) -> impl Iterator<Item = Result<Input, CleanError>> {
    read_lines::<RawDocument>(reader).map(move |line: io::Result<RawDocument>| {
        line.map(Input::Raw).map_err(|error| damaged(error.to_string()))
    })
}
