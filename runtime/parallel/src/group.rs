//! The collective's tree group, as the model asks for it: [`ModelGroup`].

use sixfold_collective::TreeGroup;
use sixfold_model::{GroupError, Site, TensorGroup};

/// A tree group whose members own aligned runs of the model's logical shards, in order. It remembers where
/// this rank's own part of a sum was not finite first.
pub(crate) struct ModelGroup {
    pub(crate) tree: TreeGroup,
    /// What the sums are a part of; none outside of the passes through the model.
    site: Option<Site>,
    first_not_finite: Option<Site>,
}

impl ModelGroup {
    pub(crate) fn new(tree: TreeGroup) -> Self {
        Self { tree, site: None, first_not_finite: None }
    }

    /// The passes of a step are over. Returns where this rank first had a number that was not finite.
    pub(crate) fn leave(&mut self) -> Option<Site> {
        self.site = None;
        self.first_not_finite.take()
    }
}

impl TensorGroup for ModelGroup {
    fn sum(&mut self, partial: &mut [f32]) -> Result<(), GroupError> {
        if self.site.is_some() && self.first_not_finite.is_none() && !are_finite(partial) {
            self.first_not_finite = self.site;
        }
        self.tree.sum(partial).map_err(|error| GroupError(Box::new(error)))
    }

    fn max(&mut self, values: &mut [f32]) -> Result<(), GroupError> {
        self.tree.max(values).map_err(|error| GroupError(Box::new(error)))
    }

    fn enter(&mut self, site: Site) {
        self.site = Some(site);
    }
}

/// Whether all numbers are finite. It looks at every number: without a branch for each, that is a small part of
/// what a sum costs.
pub(crate) fn are_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let wrong =
        values.iter().fold(0, |wrong, value| wrong | u32::from(value.to_bits() & EXPONENT == EXPONENT));
    wrong == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_are_seen_wherever_they_are() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 7, 100] {
                let mut values = vec![f32::MAX; 101];
                assert!(are_finite(&values));
                values[at] = wrong;
                assert!(!are_finite(&values), "{wrong} at {at}");
            }
        }
        assert!(are_finite(&[]));
    }
}
