//! Whole clusters: one binary, in which a cluster that is only waited for does not keep another one waiting.

mod bad_input;
mod faults;
mod instruct;
mod plans;
mod quickstart;
mod replan;
