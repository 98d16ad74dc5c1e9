//! Tracing set-up, latency histograms, Prometheus text.
