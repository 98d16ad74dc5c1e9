//! The crawler role: web sites to WARC files.
//!
//! A crawl is a sequence of committed rounds. Each takes the next addresses from the frontier,
//! visits them, publishes an archive segment and then saves the state; after a crash, on this node
//! or another, it goes on from the last state, and only the round in flight is visited again.
//! Which pages are archived depends on the options and on the servers' answers, not on timing.
//!
//! It keeps what servers sent and follows links; reading text out of pages is the cleaner's work.
//! It runs no scripts and sends no cookies.
//!
//! Read [`Campaign`] first: it is the crawl without a network. [`Crawler`] is what a node hosts.

mod actor;
mod address;
mod campaign;
mod error;
mod fetch;
mod frontier;
mod host_queue;
mod links;
mod options;
mod outcome;
mod page_url;
mod robots;
mod run;
mod scope;
mod segment;
mod sitemap;
mod state;
#[cfg(test)]
mod testing;
mod visit;

pub use actor::Crawler;
pub use address::is_public;
pub use campaign::{ArchivedPage, Campaign};
pub use error::CrawlError;
pub use frontier::{Frontier, Pending};
pub use options::{CrawlOptions, OptionsError};
pub use outcome::{FailureClass, FetchedPage, Outcome, SkipReason};
pub use page_url::{PageUrl, UrlRefused};
pub use run::{RoundSummary, run};
pub use state::{CrawlState, HostRecord, SeenSet, StateError};
