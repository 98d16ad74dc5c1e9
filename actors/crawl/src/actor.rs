//! The crawler as an actor: starts the crawl on a thread of its own, reports its rounds, and says
//! how it ended.
//!
//! The thread writes archives and parses pages, so it must not be one of those that run actors; it
//! has a single-threaded runtime, since a crawl waits for the network most of the time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use sixfold_cluster::task::{Metrics, TaskContext, TaskOutput};
use tokio::runtime::Builder;

use crate::error::CrawlError;
use crate::message::{CrawlerMessage, RoundSummary};
use crate::options::CrawlOptions;
use crate::run::run;

/// A name look-up cannot be interrupted; the thread does not wait longer than this for one.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(100);

/// The actor of the `crawl` role. Its argument is the task; it stops when the crawl has ended.
pub struct Crawler;

impl Actor for Crawler {
    type Msg = CrawlerMessage;
    type State = TaskContext;
    type Arguments = TaskContext;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: TaskContext,
    ) -> Result<TaskContext, ActorProcessingErr> {
        Ok(context)
    }

    async fn post_start(
        &self,
        myself: ActorRef<Self::Msg>,
        _context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        Ok(myself.cast(CrawlerMessage::Begin)?)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: CrawlerMessage,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            CrawlerMessage::Begin => match context.options() {
                Ok(options) => start_thread(context.clone(), options, myself)?,
                Err(error) => {
                    context.finish(Err(error));
                    myself.stop(None);
                }
            },
            CrawlerMessage::RoundDone(round) => context.host.progress(progress(&round)),
            CrawlerMessage::Ended(result) => {
                context.finish(result.map_err(Into::into));
                myself.stop(None);
            }
            CrawlerMessage::Panicked(message) => return Err(CrawlError::Thread(message).into()),
            CrawlerMessage::Cancel => context.cancel.cancel(),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        context.cancel.cancel();
        Ok(())
    }
}

fn start_thread(
    context: TaskContext,
    options: CrawlOptions,
    actor: ActorRef<CrawlerMessage>,
) -> Result<(), CrawlError> {
    let crawl = move || {
        let last = match catch_unwind(AssertUnwindSafe(|| crawl(&context, options, &actor))) {
            Ok(result) => CrawlerMessage::Ended(result),
            Err(panic) => CrawlerMessage::Panicked(panic_message(&*panic)),
        };
        // An actor that is gone was stopped, and nobody waits for this crawl.
        let _ = actor.cast(last);
    };
    let started = std::thread::Builder::new().name("crawl".to_owned()).spawn(crawl);
    started.map(drop).map_err(|error| CrawlError::Thread(error.to_string()))
}

fn crawl(
    context: &TaskContext,
    options: CrawlOptions,
    actor: &ActorRef<CrawlerMessage>,
) -> Result<TaskOutput, CrawlError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CrawlError::Thread(error.to_string()))?;
    let committed = |round| {
        let _ = actor.cast(CrawlerMessage::RoundDone(round));
    };
    let result = runtime.block_on(run(context, options, committed));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result
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

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests;
