//! The role `crawl`, as work on a thread of its own.
//!
//! The thread writes archives and parses pages, so it must not be one of those that run actors; it
//! has a single-threaded runtime, since a crawl waits for the network most of the time.

use std::time::Duration;

use sixfold_cluster::task::{Metrics, TaskContext, TaskError, TaskResult};
use sixfold_cluster::work::Work;
use tokio::runtime::{Builder, Handle};

use crate::run::{RoundSummary, run};

/// A name look-up cannot be interrupted; the thread does not wait longer than this for one.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(100);

/// The work of the `crawl` role: crawls, and reports each committed round.
pub struct Crawler;

impl Work for Crawler {
    fn name(&self) -> &'static str {
        "crawl"
    }

    fn run(&self, context: &TaskContext, _runtime: &Handle) -> TaskResult {
        let options = context.options()?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(TaskError::restart)?;
        let committed = |round| context.host.progress(progress(&round));
        let result = runtime.block_on(run(context, options, committed));
        runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
        Ok(result?)
    }
}

fn progress(round: &RoundSummary) -> Metrics {
    let figures = [
        ("pages_fetched", round.pages),
        ("pages_max", round.pages_max),
        ("bytes", round.bytes),
        ("errors", round.errors),
        ("frontier", round.frontier),
        ("rounds", round.rounds),
    ];
    figures.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect()
}

#[cfg(test)]
mod tests;
