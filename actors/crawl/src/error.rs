//! How a crawl fails as a whole. A page that fails is an outcome, not an error.

use std::io;

use sixfold_artifact::StoreError;
use sixfold_cluster::task::{HostError, TaskError};

use crate::fetch::FetcherError;
use crate::options::OptionsError;
use crate::state::StateError;

/// Why a crawl ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum CrawlError {
    /// The options make no sense.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// Not a single page could be archived.
    #[error("no page was archived ({why}); the seeds were {seeds}")]
    NoPages {
        /// What happened to the requests, for example `3 errors_connect, 2 skipped_robots`.
        why: String,
        /// The beginning of the list of seeds.
        seeds: String,
    },
    /// Requests cannot be made at all.
    #[error(transparent)]
    Fetcher(#[from] FetcherError),
    /// The state cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A segment cannot be written.
    #[error("cannot write an archive segment: {0}")]
    Segment(#[source] io::Error),
    /// The node's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster did not do its part.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The task is to stop.
    #[error("the crawl was cancelled")]
    Cancelled,
}

impl From<CrawlError> for TaskError {
    fn from(error: CrawlError) -> Self {
        match error {
            CrawlError::Options(_) | CrawlError::NoPages { .. } | CrawlError::State(_) => Self::fatal(error),
            _ => Self::restart(error),
        }
    }
}
