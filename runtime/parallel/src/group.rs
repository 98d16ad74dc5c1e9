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

    /// Does what the host does with numbers of a device.
    fn on_host(
        &mut self,
        stream: &Stream,
        values: ViewMut<'_>,
        work: impl FnOnce(&mut TreeGroup, &mut [f32]) -> Result<(), CollectiveError>,
    ) -> Result<(), GroupError> {
        if self.tree.size() == 1 {
            return Ok(());
        }
        stream
            .with_host(values, |values| work(&mut self.tree, values))
            .map_err(|error| GroupError(Box::new(error)))
    }
}

impl TensorGroup for ModelGroup {
    fn sum(&mut self, stream: &Stream, partial: ViewMut<'_>) -> Result<(), GroupError> {
        self.look(stream, partial.as_view());
        self.on_host(stream, partial, TreeGroup::sum)
    }

    fn max(&mut self, stream: &Stream, values: ViewMut<'_>) -> Result<(), GroupError> {
        self.on_host(stream, values, TreeGroup::max)
    }

    fn reduce_scatter(
        &mut self,
        stream: &Stream,
        partial: ViewMut<'_>,
        cuts: &[usize],
    ) -> Result<(), GroupError> {
        self.look(stream, partial.as_view());
        self.on_host(stream, partial, |tree, partial| tree.reduce_scatter(partial, cuts))
    }

    fn all_gather(
        &mut self,
        stream: &Stream,
        mut whole: ViewMut<'_>,
        cuts: &[usize],
    ) -> Result<(), GroupError> {
        self.on_host(stream, whole.reborrow(), |tree, whole| tree.all_gather(whole, cuts))?;
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
