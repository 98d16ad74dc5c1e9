//! The collective's tree group, as the model asks for it: [`ModelGroup`].

use sixfold_collective::{CollectiveError, TreeGroup};
use sixfold_model::{GroupError, Site, TensorGroup};
use sixfold_tensor::{Stream, View, ViewMut};

use crate::profile::{Collective, Span, Spending};

/// A tree group whose members own aligned runs of the model's logical shards, in order. It remembers where
/// this rank's own part of a sum was not finite first.
pub(crate) struct ModelGroup {
    pub(crate) tree: TreeGroup,
    /// What the sums are a part of; none outside of the passes through the model.
    site: Option<Site>,
    first_not_finite: Option<Site>,
    /// Whether other ranks' rows were not finite before any number of this rank was.
    not_finite_elsewhere: bool,
    /// What its collectives have taken.
    pub(crate) spending: Spending,
}

impl ModelGroup {
    pub(crate) fn new(tree: TreeGroup) -> Self {
        let spending = Spending::default();
        Self { tree, site: None, first_not_finite: None, not_finite_elsewhere: false, spending }
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
        self.look(stream, partial.as_view());
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

    fn reduce_scatter(
        &mut self,
        stream: &Stream,
        partial: ViewMut<'_>,
        cuts: &[usize],
    ) -> Result<(), GroupError> {
        self.look(stream, partial.as_view());
        self.counted(Collective::TensorReduceScatter, |tree| {
            stream.with_host(partial, |partial| tree.reduce_scatter(partial, cuts))
        })
    }

    fn all_gather(
        &mut self,
        stream: &Stream,
        mut whole: ViewMut<'_>,
        cuts: &[usize],
    ) -> Result<(), GroupError> {
        self.counted(Collective::TensorAllGather, |tree| {
            stream.with_host(whole.reborrow(), |whole| tree.all_gather(whole, cuts))
        })?;
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
