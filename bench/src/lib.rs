//! What the benchmarks share: a second process, reports.
//!
//! The benchmarks are the binaries: `remote_ref` (actor channels) and `tensor_link` (tensor links
//! beside plain TCP), each between two processes, itself and a child of the same program; and
//! `fault_trials` (kills in whole clusters). Read [`report::Report`] for what a run prints.

pub mod peer;
pub mod report;
