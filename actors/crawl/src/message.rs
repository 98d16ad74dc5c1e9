//! What the crawler's mailbox takes.

use sixfold_cluster::task::TaskOutput;

use crate::error::CrawlError;

/// Messages of the [`Crawler`](crate::Crawler) actor. At most one of each is on its way.
#[derive(Debug)]
pub enum CrawlerMessage {
    /// Start crawling. Sent once, by the actor to itself.
    Begin,
    /// A round was committed.
    RoundDone(RoundSummary),
    /// The crawl ended.
    Ended(Result<TaskOutput, CrawlError>),
    /// The crawling thread panicked, with this message.
    Panicked(String),
    /// Stop before the next request; what is committed stays.
    Cancel,
}

/// Where a crawl stands after a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundSummary {
    /// Rounds committed.
    pub rounds: u64,
    /// Pages archived.
    pub pages: u64,
    /// Pages that will be archived at most.
    pub pages_max: u64,
    /// Bytes of the pages, unpacked.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Addresses known and not yet asked for.
    pub frontier: u64,
}
