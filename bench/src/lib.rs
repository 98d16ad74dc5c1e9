//! What the benchmarks share: a second process, reports.
//!
//! The benchmarks are the binaries: `remote_ref` (actor channels) and `tensor_link` (tensor links
//! beside plain TCP), each between two processes, itself and a child of the same program; `plans` (the bits, traffic and
//! memory of every plan), `growth` (larger models, more processes, longer sequences) and `commit_overhead` (what it costs
//! to have states held); and `fault_trials` (faults in whole clusters). Read [`report::Report`] for what a run prints.

pub mod dice;
pub mod peer;
pub mod report;
