//! How far a task is, and whether it is to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sixfold_cluster::task::Metrics;
use tokio_util::sync::CancellationToken;

use crate::error::CleanError;

/// Counters that work increments and an actor reads.
#[derive(Clone, Default)]
pub struct Progress {
    counts: Arc<Counts>,
    cancel: CancellationToken,
}

#[derive(Default)]
struct Counts {
    documents: AtomicU64,
    tokens: AtomicU64,
}

impl Progress {
    /// Counters for a task that stops when `cancel` is set.
    pub fn new(cancel: CancellationToken) -> Self {
        Self { counts: Arc::default(), cancel }
    }

    /// Counts documents.
    pub fn documents(&self, count: u64) {
        self.counts.documents.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts tokens.
    pub fn tokens(&self, count: u64) {
        self.counts.tokens.fetch_add(count, Ordering::Relaxed);
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`CleanError::Cancelled`] where the task is to stop.
    pub fn check(&self) -> Result<(), CleanError> {
        if self.cancel.is_cancelled() { Err(CleanError::Cancelled) } else { Ok(()) }
    }

    /// The counts so far.
    pub fn figures(&self) -> Metrics {
        let counts = [("documents", &self.counts.documents), ("tokens", &self.counts.tokens)];
        let counted = counts.map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed)));
        counted
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name, count.into()))
            .collect()
    }
}
