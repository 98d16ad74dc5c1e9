//! Job files: TOML in, a checked [`sixfold_coordinator::job::JobSpec`] out.
//!
//! ```toml
//! name = "pretrain-tiny"
//!
//! [stage.data]
//! kind = "import"
//! text = "book.txt"
//!
//! [stage.tokens]
//! kind = "tokenize"
//! inputs = ["data"]
//! ```
//! [`mod@file`] reads the text and keeps the place of every key, so that an error points at its line.
//! [`kinds`] is the closed set of stage kinds. [`mod@compile`] joins the two.

mod base;
mod compile;
pub(crate) mod file;
pub(crate) mod kinds;

use sixfold_coordinator::job::JobSpec;

/// Reads a job file and checks it against the kinds that this binary knows.
///
/// # Errors
/// The first thing that is wrong, with its line and the way out.
pub(crate) fn compile(path: &str, source: &str, settings: &[String]) -> Result<JobSpec, file::JobFileError> {
    let raw = file::RawJob::parse(path, source, settings)?;
    compile::compile(&raw, source, &kinds::all())
}

#[cfg(test)]
mod tests;
