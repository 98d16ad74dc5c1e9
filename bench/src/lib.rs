//! End-to-end and side-by-side benchmarks.
