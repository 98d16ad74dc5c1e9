//! The safetensors files of one model: [`WeightFiles`].

use std::collections::HashSet;

use safetensors::tensor::{SafeTensorError, SafeTensors, TensorView};

use super::WeightsError;

/// Files whose tensors are those of one model.
#[derive(Debug)]
pub struct WeightFiles<'a>(Vec<SafeTensors<'a>>);

impl<'a> WeightFiles<'a> {
    /// Reads what the files say of themselves.
    ///
    /// # Errors
    /// [`WeightsError`] if one is broken, or two have a tensor of the same name.
    pub fn parse(files: &[&'a [u8]]) -> Result<Self, WeightsError> {
        let files = files.iter().map(|file| SafeTensors::deserialize(file)).collect::<Result<Vec<_>, _>>()?;
        let mut names = HashSet::new();
        let mut all = files.iter().flat_map(SafeTensors::names);
        match all.find(|name| !names.insert(*name)) {
            Some(twice) => Err(WeightsError::Twice(twice.to_owned())),
            None => Ok(Self(files)),
        }
    }

    /// The tensor with a name. Files of a model without a head, and those of GPT-2's authors, leave out the name of
    /// the model inside of the one with a head.
    pub(super) fn tensor(&self, name: &str) -> Result<TensorView<'a>, SafeTensorError> {
        let short = ["transformer.", "model."].iter().find_map(|prefix| name.strip_prefix(prefix));
        let names = [Some(name), short].into_iter().flatten();
        let mut found = names.flat_map(|name| self.0.iter().filter_map(|file| file.tensor(name).ok()));
        found.next().ok_or_else(|| SafeTensorError::TensorNotFound(name.to_owned()))
    }
}
