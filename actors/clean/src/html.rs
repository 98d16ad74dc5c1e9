//! A tolerant scanner of HTML, for what must hold before a tree is built, and for pages that need no tree.
//!
//! It is no parser: it builds no tree and repairs nothing. A million nested elements make a tree
//! builder quadratic and a recursive reader overflow its stack, so [`bounded`] drops tags beyond a
//! depth that honest pages do not reach. [`flowing`] sets white space as a browser shows it and drops
//! lines that are links. [`manual`] cuts a manual's page out of its site. [`body_text`] is the
//! visible text in reading order.
//!
//! Read [`bounded`] first.

mod attribute;
mod bound;
mod entity;
mod flow;
mod manual;
mod plain;
mod scan;

pub use bound::{DEPTH_MAX, bounded};
pub use flow::flowing;
pub use manual::manual;
pub use plain::{body_text, title};
