//! Identifiers, envelope, codec and limits of every message; no IO.
//!
//! Read [`id`] first: everything that crosses a process boundary is named there.

pub mod id;
