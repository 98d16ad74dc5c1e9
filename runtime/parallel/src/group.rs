//! The collective's tree group, as the model asks for it: [`ModelGroup`].

use sixfold_collective::{CollectiveError, TreeGroup};
use sixfold_model::{GroupError, Site, TensorGroup};
use sixfold_tensor::{Stream, ViewMut};

use crate::profile::{Collective, Span, Spending};

/// A tree group whose members own aligned runs of the model's logical shards, in order. It remembers where
/// this rank's own part of a sum was not finite first.
pub(crate) struct ModelGroup {
    pub(crate) tree: TreeGroup,
    /// What the sums are a part of; none outside of the passes through the model.
    site: Option<Site>,
    first_not_finite: Option<Site>,
    /// What its collectives have taken.
    pub(crate) spending: Spending,
}

impl ModelGroup {
    pub(crate) fn new(tree: TreeGroup) -> Self {
        Self { tree, site: None, first_not_finite: None, spending: Spending::default() }
    }

    /// The passes of a step are over. Returns where this rank first had a number that was not finite.
    pub(crate) fn leave(&mut self) -> Option<Site> {
        self.site = None;
        self.first_not_finite.take()
    }

    /// Does a collective of the group, and counts what it takes.
    fn counted(
        &mut self,
        collective: Collective,
        run: impl FnOnce(&mut TreeGroup) -> Result<(), CollectiveError>,
    ) -> Result<(), GroupError> {
        let span = Span::begin(self.tree.waited(), self.tree.bytes_sent());
        let done = run(&mut self.tree).map_err(|error| GroupError(Box::new(error)));
        self.spending.count(collective, span, self.tree.waited(), self.tree.bytes_sent());
        done
    }
}

impl TensorGroup for ModelGroup {
    fn sum(&mut self, stream: &Stream, partial: ViewMut<'_>) -> Result<(), GroupError> {
        if self.site.is_some() && self.first_not_finite.is_none() && !stream.are_finite(partial.as_view()) {
            self.first_not_finite = self.site;
        }
        if self.tree.size() == 1 {
            return Ok(());
        }
        self.counted(Collective::TensorAllReduce, |tree| {
            stream.with_host(partial, |partial| tree.sum(partial))
        })
    }

    fn max(&mut self, stream: &Stream, values: ViewMut<'_>) -> Result<(), GroupError> {
        if self.tree.size() == 1 {
            return Ok(());
        }
        self.counted(Collective::TensorAllReduce, |tree| stream.with_host(values, |values| tree.max(values)))
    }

    fn enter(&mut self, site: Site) {
        self.site = Some(site);
    }
}
