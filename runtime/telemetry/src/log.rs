//! Log lines of the process: where they go, which, and in what form.

mod line;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use line::ProcessLine;

/// Names the levels, also by target, in the form of `tracing`'s `EnvFilter`.
const FILTER_VARIABLE: &str = "SIXFOLD_LOG";
/// What is logged where nobody says otherwise.
const FILTER_DEFAULT: &str = "info";

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogForm {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogOutput {
    /// Standard error.
    #[default]
    Stderr,
    /// The end of a file, which is made where it is not there.
    File(PathBuf),
}

/// Which process speaks; what it has of this is on every line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    /// What it does: `coordinator`, `node`, `worker`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// The node that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The job that a worker works for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// A worker's rank in its gang.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
}

/// How the process logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryOptions {
    /// Which process it is.
    pub process: Process,
    /// Form of a line.
    pub form: LogForm,
    /// Where lines go.
    pub output: LogOutput,
    /// Levels, for example `info,sixfold_transport=debug`. Where it is `None` the environment's
    /// `SIXFOLD_LOG` counts, and `info` without that.
    pub filter: Option<String>,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The levels are not in the filter's form.
    #[error("the log filter `{filter}` (from {FILTER_VARIABLE} or the options): {source}")]
    Filter {
        /// What was said.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The file cannot be written.
    #[error("the log file {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was called before.
    #[error("this process already logs elsewhere")]
    Twice,
}

/// Logs the process's `tracing` events from now on.
///
/// # Errors
/// [`LogError`]; then nothing has changed.
pub fn init(options: &TelemetryOptions) -> Result<(), LogError> {
    let filter = filter(options.filter.clone())?;
    let layer = layer(options)?;
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter));
    subscriber.try_init().map_err(|_| LogError::Twice)
}

fn filter(asked: Option<String>) -> Result<EnvFilter, LogError> {
    let text = asked.or_else(|| std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.is_empty()));
    let filter = text.unwrap_or_else(|| FILTER_DEFAULT.to_owned());
    EnvFilter::builder().parse(&filter).map_err(|source| LogError::Filter { filter, source })
}

fn layer(options: &TelemetryOptions) -> Result<Box<dyn Layer<Registry> + Send + Sync>, LogError> {
    let (writer, ansi) = writer(&options.output)?;
    let layer = fmt::layer().with_writer(writer).with_ansi(ansi && options.form == LogForm::Human);
    Ok(match options.form {
        LogForm::Human => layer.event_format(ProcessLine::human(&options.process)).boxed(),
        LogForm::Json => {
            layer.fmt_fields(JsonFields::new()).event_format(ProcessLine::json(&options.process)).boxed()
        }
    })
}

/// The writer, and whether it shows colours.
fn writer(output: &LogOutput) -> Result<(BoxMakeWriter, bool), LogError> {
    match output {
        LogOutput::Stderr => Ok((BoxMakeWriter::new(io::stderr), io::stderr().is_terminal())),
        LogOutput::File(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file: File = file.map_err(|source| LogError::File { path: path.clone(), source })?;
            Ok((BoxMakeWriter::new(Mutex::new(file)), false))
        }
    }
}
