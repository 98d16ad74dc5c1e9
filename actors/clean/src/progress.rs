//! How far a task is, and whether it is to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sixfold_cluster::task::{Metrics, TaskContext, TaskHost};
use tokio_util::sync::CancellationToken;

use crate::error::CleanError;

/// Counters that work increments, reported as they grow.
#[derive(Clone, Default)]
pub struct Progress {
    counts: Arc<Counts>,
    cancel: CancellationToken,
    host: Option<Arc<dyn TaskHost>>,
}

#[derive(Default)]
struct Counts {
    documents: AtomicU64,
    tokens: AtomicU64,
}

impl Progress {
    /// Counters that are reported to the task's host, for work that stops with the task.
    pub fn of(context: &TaskContext) -> Self {
        Self { counts: Arc::default(), cancel: context.cancel.clone(), host: Some(context.host.clone()) }
    }

    /// Counts documents and tokens.
    pub fn add(&self, documents: u64, tokens: u64) {
        self.counts.documents.fetch_add(documents, Ordering::Relaxed);
        self.counts.tokens.fetch_add(tokens, Ordering::Relaxed);
        if let Some(host) = &self.host {
            host.progress(self.figures());
        }
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`CleanError::Cancelled`] where the task is to stop.
    pub fn check(&self) -> Result<(), CleanError> {
        if self.cancel.is_cancelled() { Err(CleanError::Cancelled) } else { Ok(()) }
    }

    fn figures(&self) -> Metrics {
        let counts = [("documents", &self.counts.documents), ("tokens", &self.counts.tokens)];
        counts.map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed).into())).into()
    }
}
