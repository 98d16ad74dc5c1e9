//! A tolerant scanner of HTML, for the two things that must hold before a tree is built: bounded
//! nesting, and text to fall back on.
//!
//! It is no parser: it builds no tree and repairs nothing. A million nested elements make a tree
//! builder quadratic and a recursive reader overflow its stack, so [`bounded`] drops tags beyond a
//! depth that honest pages do not reach. [`body_text`] is the visible text in reading order.
//!
//! Read [`bounded`] first.

mod bound;
mod entity;
mod plain;
mod scan;

pub use bound::{DEPTH_MAX, bounded};
pub use plain::{body_text, title};
