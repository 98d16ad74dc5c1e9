//! The collective's tree group, as the model asks for it: [`ModelGroup`].

use sixfold_collective::{CollectiveError, TreeGroup};
use sixfold_model::{GroupError, Site, TensorGroup};
use sixfold_tensor::{Stream, View, ViewMut};

/// A tree group whose members own aligned runs of the model's logical shards, in order. It remembers where
/// this rank's own part of a sum was not finite first.
pub(crate) struct ModelGroup {
    pub(crate) tree: TreeGroup,
    /// What the sums are a part of; none outside of the passes through the model.
    site: Option<Site>,
    first_not_finite: Option<Site>,
    /// Whether other ranks' rows were not finite before any number of this rank was.
    not_finite_elsewhere: bool,
}

impl ModelGroup {
    pub(crate) fn new(tree: TreeGroup) -> Self {
        Self { tree, site: None, first_not_finite: None, not_finite_elsewhere: false }
    }

    /// The passes of a step are over. Returns where this rank first had a number that was not finite.
    pub(crate) fn leave(&mut self) -> Option<Site> {
        self.site = None;
        self.not_finite_elsewhere = false;
        self.first_not_finite.take()
    }

    /// Whether this rank still looks for its first number that is not finite.
    fn is_looking(&self) -> bool {
        self.site.is_some() && self.first_not_finite.is_none() && !self.not_finite_elsewhere
    }

    /// Looks for it in a part of a sum.
    fn look(&mut self, stream: &Stream, partial: View<'_>) {
        if self.is_looking() && !stream.are_finite(partial) {
            self.first_not_finite = self.site;
        }
    }
}

impl TensorGroup for ModelGroup {
    fn sum(&mut self, stream: &Stream, partial: ViewMut<'_>) -> Result<(), GroupError> {
        self.look(stream, partial.as_view());
        if self.tree.size() == 1 {
            return Ok(());
        }
        stream.with_host(partial, |partial| self.tree.sum(partial)).map_err(failed)
    }

    fn max(&mut self, stream: &Stream, values: ViewMut<'_>) -> Result<(), GroupError> {
        if self.tree.size() == 1 {
            return Ok(());
        }
        stream.with_host(values, |values| self.tree.max(values)).map_err(failed)
    }

    fn reduce_scatter(
        &mut self,
        stream: &Stream,
        partial: ViewMut<'_>,
        cuts: &[usize],
    ) -> Result<(), GroupError> {
        self.look(stream, partial.as_view());
        stream.with_host(partial, |partial| self.tree.reduce_scatter(partial, cuts)).map_err(failed)
    }

    fn all_gather(
        &mut self,
        stream: &Stream,
        mut whole: ViewMut<'_>,
        cuts: &[usize],
    ) -> Result<(), GroupError> {
        stream.with_host(whole.reborrow(), |whole| self.tree.all_gather(whole, cuts)).map_err(failed)?;
        if self.is_looking() && !stream.are_finite(whole.as_view()) {
            let piece = self.tree.piece();
            self.look(stream, whole.as_view().slice(cuts[piece]..cuts[piece + 1]));
            self.not_finite_elsewhere = self.first_not_finite.is_none();
        }
        Ok(())
    }

    fn piece(&self, index: usize) -> usize {
        TreeGroup::piece_of(index, self.tree.size())
    }

    fn enter(&mut self, site: Site) {
        self.site = Some(site);
    }
}

fn failed(error: CollectiveError) -> GroupError {
    GroupError(Box::new(error))
}
