//! Counters, gauges and latencies of the process, recorded by the macros of the `metrics` crate.
//!
//! The recorder is our own. `metrics-exporter-prometheus` keeps every sample of a histogram until
//! somebody renders it, so its memory grows where nobody asks; here a latency is an HDR histogram
//! of a fixed size, and the series are bounded too.
//!
//! A histogram holds seconds: `histogram!("..._seconds").record(duration)`. It is shown as a
//! summary whose quantiles are those of the last minute or two, and whose sum and count are those
//! of the process's life; or, where [`Metrics::install`] was told of buckets for it, as Prometheus'
//! histogram, which adds up over processes.

mod histogram;
mod registry;
mod samples;
mod summary;
#[cfg(test)]
mod tests;
mod text;

use std::sync::Arc;

use registry::Registry;
pub use samples::Samples;

/// The process already has a recorder.
#[derive(Debug, thiserror::Error)]
#[error("this process's metrics already go to another recorder")]
pub struct InstallError;

/// Where the `metrics` macros of the whole process record.
pub struct Metrics;

impl Metrics {
    /// Takes what is recorded from now on. Latencies whose names are in `buckets` are shown as
    /// histograms up to these bounds, in seconds, ascending, and one beyond.
    ///
    /// # Errors
    /// [`InstallError`] where it was called before.
    pub fn install(buckets: &[(&str, &'static [f64])]) -> Result<MetricsHandle, InstallError> {
        let registry = Arc::new(Registry::new(buckets));
        metrics::set_global_recorder(Arc::clone(&registry)).map_err(|_| InstallError)?;
        Ok(MetricsHandle { registry })
    }
}

/// Reads the metrics. Cheap to clone.
#[derive(Clone)]
pub struct MetricsHandle {
    registry: Arc<Registry>,
}

impl MetricsHandle {
    /// Everything in Prometheus' text format, version 0.0.4, sorted by name and labels.
    pub fn render(&self) -> String {
        self.render_with(Samples::default())
    }

    /// As [`Self::render`], with series that were made for it. Their names are no macro's.
    pub fn render_with(&self, samples: Samples) -> String {
        let mut families = self.registry.snapshot();
        families.extend(samples.into_families());
        families.sort_by(|a, b| a.name.cmp(&b.name));
        text::render(&families)
    }
}
