//! The tasks of the stage kinds `import`, `clean` and `tokenize`: artefacts in, artefacts out.
//!
//! Each reads its inputs through the task's context, calls the pure core, and publishes. A task
//! that is run again publishes the same artefacts.

mod clean;
mod import;
mod instruct;
mod tokenize;

use std::path::PathBuf;

use sixfold_artifact::{Manifest, Store};
use sixfold_cluster::task::{TaskContext, TaskOutput};
use sixfold_wire::id::ArtifactId;

use crate::error::CleanError;

/// Kind of an artefact of raw documents or candidates.
pub const DOCUMENTS: &str = "documents";
/// Kind of an artefact of clean documents.
pub const CORPUS: &str = "corpus";
/// Kind of an artefact of token shards.
pub const TOKENS: &str = "tokens";
/// The splits, in the order of [`SplitWriter`](crate::shards::SplitWriter)s.
const SPLITS: [&str; 2] = ["train", "held-out"];
/// Kind of a crawl's segment.
const WARC: &str = "warc";

/// The file of documents, candidates or corpus lines.
pub const DOCUMENTS_FILE: &str = "documents.jsonl";

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reads a file that somebody has: `documents` artefacts.
    Import,
    /// Cleans each input artefact by itself: a `documents` artefact of candidates for each.
    Clean,
    /// Joins candidates, in order: one `corpus` artefact.
    CleanReduce,
    /// Reads dialogues that somebody has, for a model: one `tokens` artefact.
    Instruct,
    /// Trains a tokenizer, or takes a model's, and writes token shards: one `tokens` artefact.
    Tokenize,
}

impl Work {
    /// The name of the role that does it.
    pub const fn role(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Clean => "clean",
            Self::CleanReduce => "clean-reduce",
            Self::Instruct => "instruct",
            Self::Tokenize => "tokenize",
        }
    }
}

/// Does a task. Blocks its thread while it computes: give it a thread of its own.
///
/// # Errors
/// [`CleanError`]; nothing that was not published is left behind.
pub async fn run(work: Work, context: &TaskContext) -> Result<TaskOutput, CleanError> {
    match work {
        Work::Import => import::run(context).await,
        Work::Clean => clean::map(context).await,
        Work::CleanReduce => clean::reduce(context).await,
        Work::Instruct => Box::pin(instruct::run(context)).await,
        Work::Tokenize => Box::pin(tokenize::run(context)).await,
    }
}

fn options<O: serde::de::DeserializeOwned>(context: &TaskContext) -> Result<O, CleanError> {
    context.options().map_err(|error| CleanError::Options(error.message))
}

/// Where an input's file of documents lies.
fn documents_of(store: &Store, id: ArtifactId, manifest: &Manifest) -> Result<PathBuf, CleanError> {
    let Some(file) = manifest.file(DOCUMENTS_FILE) else {
        let reason = format!("a `{}` artefact has no {DOCUMENTS_FILE}", manifest.kind);
        return Err(CleanError::Input { artifact: id.to_string(), reason });
    };
    Ok(store.entry_path(file)?)
}

#[cfg(test)]
mod tests;
