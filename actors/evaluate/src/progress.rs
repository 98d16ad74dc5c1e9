//! How far an evaluation is, and whether it is to stop.

use sixfold_cluster::task::{Metrics, TaskContext};

use crate::error::EvaluateError;

/// Reports how many of the tokens are scored.
pub(crate) struct Progress<'a> {
    pub(crate) context: &'a TaskContext,
    pub(crate) tokens_total: u64,
}

impl Progress<'_> {
    /// Whether to go on.
    pub(crate) fn check(&self) -> Result<(), EvaluateError> {
        if self.context.cancel.is_cancelled() { Err(EvaluateError::Cancelled) } else { Ok(()) }
    }

    /// Reports, and says whether to go on.
    pub(crate) fn scored(&self, tokens: u64) -> Result<(), EvaluateError> {
        let figures = [("tokens_scored", tokens), ("tokens_total", self.tokens_total)];
        let figures: Metrics = figures.map(|(name, count)| (name.to_owned(), count.into())).into();
        self.context.host.progress(figures);
        self.check()
    }
}
