//! What a process tells about itself: log lines and metrics.
//!
//! [`init`] sends the `tracing` events of the whole process to its standard error or a file, with
//! the process's role, node, job and rank on every line. [`Metrics::install`] takes what the
//! `metrics` macros record, and [`MetricsHandle::render`] writes it in Prometheus' text format.
//! [`LatencyHistogram`] is the one histogram of times that both metrics and reports are made of.
//!
//! [`usage`] says what the process takes of the machine.
//!
//! Nothing here listens or sends: whoever serves HTTP serves the text.

mod latency;
mod log;
mod metrics;
pub mod usage;

pub use latency::LatencyHistogram;
pub use log::{LogError, LogForm, LogOutput, Process, TelemetryOptions, init};
pub use metrics::{InstallError, Metrics, MetricsHandle, Samples};
