//! The collective's tree group, as the model asks for it: [`ModelGroup`].

use sixfold_collective::TreeGroup;
use sixfold_model::{GroupError, TensorGroup};

/// A tree group whose members own aligned runs of the model's logical shards, in order.
pub(crate) struct ModelGroup(pub(crate) TreeGroup);

impl TensorGroup for ModelGroup {
    fn sum(&mut self, partial: &mut [f32]) -> Result<(), GroupError> {
        self.0.sum(partial).map_err(|error| GroupError(Box::new(error)))
    }

    fn max(&mut self, values: &mut [f32]) -> Result<(), GroupError> {
        self.0.max(values).map_err(|error| GroupError(Box::new(error)))
    }
}
